"""The baseline: the least an aiohttp handler can do with the same request, read its JSON and answer."""

import sys
from itertools import count

from aiohttp import web


def main(port: int) -> None:
    numbers = count()

    async def accept(request: web.Request) -> web.Response:
        message = await request.json()
        answer = {"id": str(next(numbers)), "reference": message["subject"], "status": "accepted"}
        return web.json_response(answer, status=202)

    app = web.Application()
    app.router.add_post("/c/app", accept)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
