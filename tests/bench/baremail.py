"""The baseline of `mail.py`: the least aiosmtpd can do with a message, discard it and say yes."""

import asyncio
import logging
import sys

from aiosmtpd.smtp import SMTP


class Discard:
    """Every message."""

    async def handle_DATA(self, *_: object) -> str:
        return "250 OK"


async def main(port: int) -> None:
    loop, handler = asyncio.get_running_loop(), Discard()
    await loop.create_server(
        lambda: SMTP(handler, enable_SMTPUTF8=True, hostname="bare.test", loop=loop), "127.0.0.1", port
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.disable()
    asyncio.run(main(int(sys.argv[1])))
