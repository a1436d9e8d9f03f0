"""The baseline of WeChat's push: an aiohttp handler that lets wechatpy check, decrypt and parse, and keeps nothing."""

import sys

from aiohttp import web
from wechatpy import parse_message
from wechatpy.crypto import WeChatCrypto

from tests.wechat.peer import AES_KEY, APPID, TOKEN


def main(port: int) -> None:
    crypto = WeChatCrypto(TOKEN, AES_KEY, APPID)

    async def accept(request: web.Request) -> web.Response:
        query = request.query
        plain = crypto.decrypt_message(await request.read(), query["msg_signature"], query["timestamp"], query["nonce"])
        parse_message(plain)
        return web.Response(text="success")

    app = web.Application(client_max_size=64 << 10)
    app.router.add_post("/c/wechat", accept)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
