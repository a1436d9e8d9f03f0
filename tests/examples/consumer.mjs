// Takes tickets from the gateway's stream: each at least once, over crashes of this program, its neighbours and Redis.
//
//     npm install redis
//     CONSUMER=desk-1 node consumer.mjs
//
// Run as many as you like, each under a name of its own that it keeps over restarts.
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { createClient } from 'redis'

const STREAM = 'tickets', GROUP = 'helpdesk'
const DEAD = '{tickets}:dead' // {…}: beside the stream in a Redis Cluster
const COUNT = 10

// Gives tickets to `store`. One may come twice, after a crash for example: its `id` is the key to store it by.
export class Consumer {
  // staleMs is longer than a batch takes; a reader that is silent for so long is taken for dead.
  constructor(redis, name, store, { staleMs = 60_000, maxTries = 5 } = {}) {
    Object.assign(this, { redis, name, store, staleMs, maxTries })
  }

  async run() {
    for (;;) {
      try {
        await this.join()
        await this.work()
      } catch (error) { // Redis is away; or it has been emptied, and the group is gone too
        console.warn(`trying again: ${error.message}`)
        await sleep(1000)
      }
    }
  }

  async join() {
    const known = (error) => { if (!error.message.startsWith('BUSYGROUP')) throw error }
    await this.redis.xGroupCreate(STREAM, GROUP, '0', { MKSTREAM: true }).catch(known)
  }

  async work() {
    for (const entry of await this.unfinished()) await this.handle(entry)
    for (;;) {
      for (const entry of [...await this.fresh(), ...await this.stale()]) await this.handle(entry)
    }
  }

  // What this name was given before, and has not acknowledged. (XREADGROUP with the id 0 says so in one step, but
  // node-redis cannot read its answer when one of the entries has been deleted.)
  async unfinished() {
    const pending = await this.redis.xPendingRange(STREAM, GROUP, '-', '+', 1000, { consumer: this.name })
    return pending.length ? this.redis.xClaim(STREAM, GROUP, this.name, 0, pending.map(({ id }) => id)) : []
  }

  async fresh() {
    const found = await this.redis.xReadGroup(GROUP, this.name, { key: STREAM, id: '>' }, { COUNT, BLOCK: 2000 })
    return found ? found[0].messages : []
  }

  // What others were given and did not finish, and what failed here.
  async stale() {
    return (await this.redis.xAutoClaim(STREAM, GROUP, this.name, this.staleMs, '0', { COUNT })).messages
  }

  async handle(entry) {
    if (!entry) return // it was deleted from the stream meanwhile
    const { id, message } = entry
    const [mine] = await this.redis.xPendingRange(STREAM, GROUP, id, id, 1, { consumer: this.name })
    if (!mine) return // we were slow, and another has it now
    const tries = mine.deliveriesCounter
    try {
      if (tries > this.maxTries) throw new Error('its readers died')
      await this.store(JSON.parse(message.event))
    } catch (error) {
      console.error(`ticket ${message.id}, try ${tries}:`, error)
      if (tries >= this.maxTries) await this.bury(id, message, error)
      return
    }
    await this.redis.xAck(STREAM, GROUP, id)
  }

  async bury(id, message, reason) {
    await this.redis.multi()
      .xAdd(DEAD, '*', { ...message, entry: id, reason: String(reason) })
      .xAck(STREAM, GROUP, id)
      .exec()
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const redis = createClient({ url: process.env.REDIS_URL ?? 'redis://127.0.0.1:6390' })
  redis.on('error', (error) => console.warn(error.message)) // it connects again by itself
  await redis.connect()
  const show = ({ data }) => console.log(`${data.reference}: ${data.subject}`)
  await new Consumer(redis, process.env.CONSUMER ?? 'desk-1', show).run()
}
