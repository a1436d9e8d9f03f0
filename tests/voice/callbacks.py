"""Requests as tests write them: by hand, or as files that look like HTTP."""

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from multidict import CIMultiDict, MultiDict

from gateway.contract import Request

PUBLIC = "https://support.example.com"
PAYLOADS = Path(__file__).parents[1] / "payloads" / "voice"


def request(
    body: bytes = b"", content_type: str = "", address: str = "/c/hotline", method: str = "POST", **headers: str
) -> Request:
    """`headers` with underscores for hyphens; `address` behind `/c/hotline` is the connector's path."""
    given = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    if content_type:
        given["Content-Type"] = content_type
    url = address if "://" in address else PUBLIC + address
    split = urlsplit(url)
    query = MultiDict(parse_qsl(split.query, keep_blank_values=True))
    path = split.path.removeprefix("/c/hotline")
    return Request(method, path, url, query, given, "203.0.113.7", body)


def recorded(file: Path) -> Request:
    """`POST /c/hotline?x=1`, headers, an empty line, and the body as it is."""
    head, _, body = file.read_bytes().partition(b"\n\n")
    first, *lines = head.decode().split("\n")
    method, address = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    content_type = headers.pop("Content-Type", "")
    given = {name.replace("-", "_"): value for name, value in headers.items()}
    return request(body, content_type, address, method, **given)
