// WeChat around a mini-program's page: `node miniprogram_wx.mjs CHANNEL_URL`. Each line of its input is a form that a user
// fills in: `{"codes": […], "values": {…}, "phone": "…", "photos": [path, …]}`. Each line of its output is what the page
// shows afterwards.
import { readFileSync } from 'node:fs'
import { basename } from 'node:path'
import { createInterface } from 'node:readline'

const PAGE = new URL('../../config/channels/miniprogram/support.js', import.meta.url)
let codes = []
let photos = []

async function answer(response, read, { success, fail }) {
  try {
    const got = await response
    success({ statusCode: got.status, data: read(await got.text()) })
  } catch (error) {
    fail({ errMsg: String(error) })
  }
}

const wx = {
  login: ({ success }) => success({ code: codes.shift() }),
  chooseMedia: ({ success }) => success({ tempFiles: photos.map((path) => ({ tempFilePath: path })) }),
  request({ url, method, data, header, ...then }) {
    const headers = { 'Content-Type': 'application/json', ...header }
    answer(fetch(url, { method, headers, body: JSON.stringify(data) }), JSON.parse, then)
  },
  uploadFile({ url, filePath, name, header, ...then }) {
    const body = new FormData()
    body.append(name, new Blob([readFileSync(filePath)], { type: 'image/png' }), basename(filePath))
    answer(fetch(url, { method: 'POST', headers: header, body }), (text) => text, then)
  },
}

let definition
const source = readFileSync(PAGE, 'utf8').replace(/const CHANNEL = .*/, `const CHANNEL = '${process.argv[2]}'`)
new Function('wx', 'Page', source)(wx, (given) => (definition = given))

for await (const line of createInterface({ input: process.stdin })) {
  const user = JSON.parse(line)
  ;({ codes, photos } = user)
  const page = { ...definition, data: { ...definition.data }, setData: (more) => Object.assign(page.data, more) }
  await page.choosePhotos()
  page.takePhone({ detail: { code: user.phone } })
  await page.submit({ detail: { value: user.values } })
  console.log(JSON.stringify(page.data))
}
