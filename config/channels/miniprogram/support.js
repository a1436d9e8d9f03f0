// Its host has to be in the console's domains for request and for uploadFile (开发管理 → 开发设置 → 服务器域名).
const CHANNEL = 'https://support.example.com/c/mini-shop'
const AGAIN = '没有发送成功，请稍后再试'

let session = ''

const done = (start) => new Promise((success, fail) => start({ success, fail }))

const request = (path, data, header) =>
  done((then) => wx.request({ url: CHANNEL + path, method: 'POST', data, header, ...then }))

async function logIn() {
  const { code } = await done((then) => wx.login(then))
  const answer = await request('/session', { code })
  if (answer.statusCode !== 201) throw new Error(answer.data.detail)
  session = answer.data.session
}

async function upload(filePath, header) {
  const url = CHANNEL + '/attachments'
  const answer = await done((then) => wx.uploadFile({ url, filePath, name: 'file', header, ...then }))
  return { ...answer, data: JSON.parse(answer.data) } // wx.uploadFile gives a text, wx.request the object
}

// Files belong to the session: after another login they have to come again.
async function send(values, photos, key) {
  const header = { Authorization: `Bearer ${session}` }
  const ids = []
  for (const photo of photos) {
    const answer = await upload(photo, header)
    if (answer.statusCode !== 201) return answer
    ids.push(answer.data.id)
  }
  return request('/messages', { ...values, photo: ids }, { ...header, 'Idempotency-Key': key })
}

async function sendLoggedIn(...message) {
  if (!session) await logIn()
  const answer = await send(...message)
  if (answer.data.action !== 'login') return answer
  await logIn()
  return send(...message)
}

Page({
  data: { photos: [], phone: '', errors: {}, failure: '', reference: '', sending: false },

  takePhone({ detail }) {
    this.setData({ phone: detail.code || '' })
  },

  async choosePhotos() {
    const { tempFiles } = await done((then) => wx.chooseMedia({ count: 9, mediaType: ['image'], ...then }))
    this.setData({ photos: tempFiles.map((file) => file.tempFilePath) })
  },

  // The same content under the same key is one ticket, however often it is sent.
  keyOf(content) {
    if (content !== this.content) this.key = `${Date.now()}-${Math.random().toString(36).slice(2)}`
    this.content = content
    return this.key
  },

  async submit({ detail }) {
    const { phone, photos } = this.data
    const values = { ...detail.value, ...(phone && { phone: { code: phone } }) }
    this.setData({ sending: true, errors: {}, failure: '' })
    try {
      const { statusCode, data } = await sendLoggedIn(values, photos, this.keyOf(JSON.stringify([values, photos])))
      if (statusCode < 300) return this.setData({ reference: data.reference })
      const errors = (data.errors || []).map(({ field, message }) => [field, message])
      this.setData({ errors: Object.fromEntries(errors), failure: errors.length ? '' : AGAIN })
    } catch (error) {
      this.setData({ failure: AGAIN })
    } finally {
      this.setData({ sending: false })
    }
  },
})
