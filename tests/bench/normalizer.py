"""`python -m tests.bench.normalizer`: mails a second of the normalizer with everything on, beside lesser parsers.

One thread, the processor's time, in one run. The standard library's bare parse only splits the mail: it decodes no
header, no charset and no transfer encoding. `policy.default` is asked for what a ticket needs: subject, people, text.
The libraries from PyPI are measured where they are installed (fast-mail-parser, mail-parser).
"""

import sys
import time
from base64 import encodebytes
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.parser import BytesParser
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway.contract import StoredMessage
from normalizers.rfc5322 import normalize

SECONDS = 1.5
FOLDER = Path(__file__).parent.parent / "payloads" / "rfc5322" / "generated"
Parser = Callable[[bytes], object]

HEAD = (
    "Return-Path: <wangfang@example.com>\r\n"
    "Received: from mail.example.com (mail.example.com [192.0.2.1]) by mx.acme.cn (Postfix) with ESMTPS\r\n"
    " id 4Xyz for <support@acme.cn>; Tue, 05 Mar 2024 10:11:13 +0800 (CST)\r\n"
    "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=s1; h=from:to:subject:date;\r\n"
    " bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=abcdefabcdefabcdefabcdefabcdefabcdefabcdef\r\n"
    "From: =?utf-8?B?546L6Iqz?= <wangfang@example.com>\r\n"
    "To: support@acme.cn\r\n"
    "Subject: =?utf-8?B?5oiR55qE6K6i5Y2V6L+Y5rKh5pS25Yiw?=\r\n"
    "Date: Tue, 05 Mar 2024 10:11:12 +0800\r\n"
    "Message-ID: <CAabc123@mail.example.com>\r\n"
    "MIME-Version: 1.0\r\n"
)
CHINESE = "您好，我的订单 A1024 还没有收到，请尽快处理，谢谢。\r\n"
ENGLISH = "Dear team, my order A1024 has not arrived yet. Could you look into it please?\r\n"
QUOTED = "在 2024年3月4日，16:20，客服 <support@acme.cn> 写道：\r\n" + "> 请问还需要什么资料？\r\n" * 8


def plain(text: str) -> bytes:
    return (HEAD + "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + text).encode()


def alternative() -> bytes:
    body = [CHINESE * 5, f'<div dir="ltr">{CHINESE.strip() * 5}</div>']
    parts = [
        f'--b\r\nContent-Type: text/{kind}; charset="UTF-8"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
        + encodebytes(text.encode()).decode()
        for kind, text in zip(("plain", "html"), body, strict=True)
    ]
    return (HEAD + "Content-Type: multipart/alternative; boundary=b\r\n\r\n" + "".join(parts) + "--b--\r\n").encode()


def with_file(size: int) -> bytes:
    file = encodebytes(bytes(size * 3 // 4)).replace(b"\n", b"\r\n")
    head = (
        HEAD + "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    )
    named = "Content-Type: application/pdf\r\nContent-Disposition: attachment; filename=a.pdf\r\n"
    encoded = "--b\r\n" + named + "Content-Transfer-Encoding: base64\r\n\r\n"
    return (head + CHINESE * 5 + encoded).encode() + file + b"--b--\r\n"


SETS: dict[str, list[bytes]] = {
    "2 KiB, Chinese": [plain(CHINESE * 18)],
    "2 KiB, English": [plain(ENGLISH * 16)],
    "2 KiB, with history": [plain(CHINESE * 6 + QUOTED)],
    "2 KiB, plain and HTML": [alternative()],
    "100 KiB, a file": [with_file(100 << 10)],
    "100 KiB, text": [plain(CHINESE * 1400)],
    "the made corpus": [path.read_bytes() for path in sorted(FOLDER.glob("*.eml"))],
}


def ours(raw: bytes) -> object:
    moment = datetime(2026, 11, 23, 9, tzinfo=UTC)
    return normalize(StoredMessage("id", "mailbox", "rfc5322", raw, "", None, {}, moment))


def policy_default(raw: bytes) -> object:
    """It raises for some mails of the corpus; then it has less to do."""
    mail = message_from_bytes(raw, policy=policy.default)
    with suppress(Exception):
        body = mail.get_body(("plain", "html"))
        return mail["Subject"], mail["From"], mail["To"], mail["Date"], body and body.get_content()
    return None


def _fast_mail_parser() -> Parser:
    parse: Parser = import_module("fast_mail_parser").parse_email
    return _forgiving(parse)


def _mail_parser() -> Parser:
    module = import_module("mailparser")
    return _forgiving(lambda raw: (mail := module.parse_from_bytes(raw)).subject or mail.text_plain)


def _forgiving(parse: Parser) -> Parser:
    def parser(raw: bytes) -> object:
        with suppress(Exception):
            return parse(raw)
        return None

    return parser


def parsers() -> dict[str, Parser]:
    found: dict[str, Parser] = {
        "ours": ours,
        "compat32, bare": BytesParser().parsebytes,
        "policy.default": policy_default,
    }
    for name, load in (("fast-mail-parser", _fast_mail_parser), ("mail-parser", _mail_parser)):
        with suppress(ImportError):
            found[name] = load()
    return found


def rate(parse: Parser, mails: Sequence[bytes], seconds: float) -> float:
    """Mails per second of the processor's time, after a first round that nobody counts."""
    for mail in mails[:50]:
        parse(mail)
    stream, done, began = cycle(mails), 0, time.process_time()
    while (spent := time.process_time() - began) < seconds:
        batch = list(islice(stream, 20))
        for mail in batch:
            parse(mail)
        done += len(batch)
    return done / spent


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    known = parsers()
    table = Table("mails per second", *known, "ours / bare", title=f"Python {sys.version.split()[0]}, one thread")
    for name, mails in SETS.items():
        rates = {parser: rate(parse, mails, seconds) for parser, parse in known.items()}
        ratio = rates["ours"] / rates["compat32, bare"]
        table.add_row(name, *(f"{value:.0f}" for value in rates.values()), f"{ratio:.2f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
