// desk.py's ticket store, with consumer.mjs.
import { appendFileSync } from 'node:fs'
import { createClient } from 'redis'
import { Consumer } from './consumer.mjs'

const { env } = process
const note = (line) => appendFileSync(env.NOTES, `${line}\n`)

async function store(ticket) {
  const { text } = ticket.data
  if (text === 'poison') throw new Error('cannot be stored')
  if (text === 'deadly') process.kill(process.pid, 'SIGKILL')
  if (text === 'endless' && env.PATIENT === undefined) {
    note(`begun ${ticket.id}`)
    await new Promise(() => {})
  }
  note(ticket.id)
}

const redis = createClient({ url: env.REDIS_URL })
redis.on('error', () => {})
await redis.connect()
const limits = { staleMs: Number(env.STALE_MS), maxTries: Number(env.MAX_TRIES) }
await new Consumer(redis, env.CONSUMER, store, limits).run()
