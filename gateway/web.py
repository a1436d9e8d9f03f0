"""The HTTP side of all webhook channels: body -> verify -> extract -> accept -> reply, and the files tickets refer to.

A body up to `memory_body_bytes` stays in memory; a larger one goes to a file of the spool while it arrives. An answer
that says yes is sent only after every message of the request is durable (R1).
"""

import asyncio
import errno
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from urllib.parse import quote

import structlog
from aiohttp import hdrs, web
from multidict import CIMultiDict

from gateway.blobs import Blobs
from gateway.contract import Body, BodyFile, RawMessage, Receipt, Reply, Request, WebhookConnector, problem_reply
from gateway.errors import HuiruError, Rejected, Unavailable, wire_error
from gateway.intake import Intake
from gateway.ratelimit import TokenBuckets
from gateway.settings import HttpSettings
from gateway.spool import Spool

log = structlog.get_logger()

_READ_BYTES = 64 << 10
_WRITE_BYTES = 1 << 20
_FILE_HEADERS = {
    # Whatever a customer sent must not run in the gateway's origin.
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-store",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class WebChannel:
    """A webhook channel as it is served."""

    connector: WebhookConnector
    buckets: TokenBuckets | None

    @classmethod
    def of(cls, connector: WebhookConnector) -> "WebChannel":
        rate = connector.settings.rate
        return cls(connector, TokenBuckets(rate) if rate else None)


class Web:
    """`channels` may be exchanged while it serves."""

    def __init__(
        self,
        settings: HttpSettings,
        intake: Intake,
        spool: Spool,
        blobs: Blobs,
        public_url: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.channels: Mapping[str, WebChannel] = {}
        self._settings = settings
        self._intake = intake
        self._spool = spool
        self._blobs = blobs
        self._public_url = public_url
        self._now = now
        self._inflight = 0
        self._idle: asyncio.Event | None = None  # there when it is stopping

    async def finish(self) -> None:
        """Refuses new messages from now on, and returns when the requests in work are answered."""
        self._idle = asyncio.Event()
        if self._inflight:
            await self._idle.wait()

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answers one request: `/c/<channel>…` or `/files/…`. For aiohttp's low-level server: two prefixes are no
        work for a router."""
        _, _, path = http.path.partition("/")
        room, _, path = path.partition("/")
        if room == "c":
            name, slash, path = path.partition("/")
            channel = self.channels.get(name)
            if channel is not None:
                return _response(await self._counted(name, channel, http, slash + path))
        elif room == "files" and http.method in ("GET", "HEAD"):
            return await self._file(http, *path.partition("/")[::2])
        return _response(problem_reply(Rejected("not_found")))

    # Channels

    async def _counted(self, name: str, channel: WebChannel, http: web.BaseRequest, path: str) -> Reply:
        self._inflight += 1
        try:
            return await self._answer(name, channel, http, path)
        finally:
            self._inflight -= 1
            if self._idle is not None and not self._inflight:
                self._idle.set()

    async def _answer(self, name: str, channel: WebChannel, http: web.BaseRequest, path: str) -> Reply:
        connector, request, incoming = channel.connector, self._request(http, path), None
        try:
            self._admit(channel, request)
            await connector.admit(request)
            request.body = incoming = await self._body(http, connector.settings.max_request_bytes)
            sender = await connector.verify(request)
            found = await connector.extract(request, sender)
            reply = found if isinstance(found, Reply) else connector.reply(request, await self._accept(name, found))
            if reply.ignored:
                self._intake.ignored(name, reply.ignored)
            return reply
        except Exception as error:
            return self._refuse(name, connector, request, error)
        finally:
            if isinstance(incoming, BodyFile):
                incoming.path.unlink(missing_ok=True)

    async def _accept(self, name: str, messages: Sequence[RawMessage]) -> list[Receipt]:
        if len(messages) == 1:
            return [await self._intake.accept(name, messages[0])]
        return await asyncio.gather(*(self._intake.accept(name, message) for message in messages))

    def _admit(self, channel: WebChannel, request: Request) -> None:
        methods = channel.connector.methods
        if request.method not in methods and not (request.method == "HEAD" and "GET" in methods):
            raise Rejected("method_not_allowed", reason=f"{request.method} is not one of {sorted(methods)}")
        if self._idle is not None:
            raise Unavailable("stopping")
        if self._inflight > self._settings.max_inflight:
            raise Unavailable("busy", reason="http.max_inflight is reached", retry_after=2)
        wait = channel.buckets.take(request.remote) if channel.buckets and request.method == "POST" else 0
        if wait:
            raise Unavailable("rate_limited", retry_after=int(wait) + 1)

    def _refuse(self, name: str, connector: WebhookConnector, request: Request, error: Exception) -> Reply:
        known = wire_error(error)
        if known is not error:
            log.error("request_failed", channel=name, exc_info=error)
        if not isinstance(error, HuiruError) or request.method == "POST":
            self._intake.refused(name, known)
        try:
            reply = connector.refuse(request, known)
        except Exception as again:  # the refusal itself is at fault
            log.error("refusal_failed", channel=name, exc_info=again)
            reply = problem_reply(known)
        if known.code == "method_not_allowed" and "Allow" not in reply.headers:
            reply = replace(reply, headers={**reply.headers, "Allow": ", ".join(sorted(connector.methods))})
        return reply

    def _request(self, http: web.BaseRequest, path: str) -> Request:
        return Request(
            method=http.method,
            path=path,
            url=f"{self._public_url}{http.raw_path}",
            query=http.query,
            headers=http.headers,
            remote=_client(http, self._settings.trusted_proxies),
        )

    # Bodies

    async def _body(self, http: web.BaseRequest, max_bytes: int) -> Body:
        if http.content_length is not None and http.content_length > max_bytes:
            raise Rejected("too_large", f"a request may have {max_bytes} bytes")
        if not http.can_read_body:
            return b""
        if http.content.is_eof() and http.content.total_bytes <= min(max_bytes, self._settings.memory_body_bytes):
            return http.content.read_nowait()  # it came with the headers: nothing to wait for
        try:
            async with asyncio.timeout(self._settings.body_timeout_secs):
                return await self._read(http, max_bytes)
        except TimeoutError as error:
            raise Unavailable("timeout") from error
        except (web.RequestPayloadError, ConnectionError, ValueError) as error:  # gone, or a damaged encoding
            raise Rejected("malformed", "the body did not arrive whole", reason=str(error)) from error

    async def _read(self, http: web.BaseRequest, max_bytes: int) -> Body:
        body = bytearray()
        async for chunk in http.content.iter_chunked(_READ_BYTES):
            body += chunk
            if len(body) > min(max_bytes, self._settings.memory_body_bytes):
                return await self._read_to_file(http, body, max_bytes)
        return bytes(body)

    async def _read_to_file(self, http: web.BaseRequest, start: bytearray, max_bytes: int) -> BodyFile:
        path = self._spool.incoming / uuid.uuid4().hex
        try:
            return await self._write(path, http, start, max_bytes)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise Unavailable("spool_full", reason=str(error), retry_after=30) from error
            raise

    async def _write(self, path: Path, http: web.BaseRequest, buffer: bytearray, max_bytes: int) -> BodyFile:
        digest, size = sha256(), 0
        with path.open("xb", buffering=0) as file:

            def flush(data: bytes) -> None:
                digest.update(data)
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, "the file system took only a part")

            async for chunk in http.content.iter_chunked(_READ_BYTES):
                buffer += chunk
                if size + len(buffer) > max_bytes:
                    raise Rejected("too_large", f"a request may have {max_bytes} bytes")
                if len(buffer) >= _WRITE_BYTES:
                    size += len(buffer)
                    await asyncio.to_thread(flush, bytes(buffer))
                    buffer.clear()
            size += len(buffer)
            if size > max_bytes:
                raise Rejected("too_large", f"a request may have {max_bytes} bytes")
            await asyncio.to_thread(flush, bytes(buffer))
        return BodyFile(path, size, digest.digest())

    # Files

    async def _file(self, http: web.BaseRequest, what: str, name: str) -> web.StreamResponse:
        try:
            return await (self._raw_file(http, name) if what == "raw" else self._attachment(http, what, name))
        except HuiruError as error:
            return _response(problem_reply(error))

    async def _attachment(self, http: web.BaseRequest, digest: str, filename: str) -> web.StreamResponse:
        content_type = http.query.get("type", "")
        self._check(http, digest, content_type)
        size, chunks = await self._blobs.open(digest)
        response = web.StreamResponse(headers=_FILE_HEADERS | _disposition(filename))
        response.content_type = content_type
        response.content_length = size
        await response.prepare(http)
        async for chunk in chunks:
            await response.write(bytes(chunk))
        await response.write_eof()
        return response

    async def _raw_file(self, http: web.BaseRequest, id_: str) -> web.StreamResponse:
        self._check(http, "raw", id_)
        try:
            row = await self._spool.find(id_, with_body=True)
        except Rejected as error:
            raise Rejected("gone", "the bytes are no longer kept") from error
        if row.fault:
            raise Rejected("gone", "the bytes cannot be read any more", reason=row.fault)
        headers = _FILE_HEADERS | _disposition(row.message.id)
        return web.Response(body=row.message.body, content_type="application/octet-stream", headers=headers)

    def _check(self, http: web.BaseRequest, *signed: str) -> None:
        expires, signature = http.query.get("expires", ""), http.query.get("signature", "")
        self._blobs.check(*signed, expires=expires, signature=signature, now=self._now())


def _response(reply: Reply) -> web.Response:
    headers = CIMultiDict(reply.headers)
    headers.setdefault(hdrs.CONTENT_TYPE, reply.content_type)
    return web.Response(status=reply.status, body=reply.body, headers=headers)


def _disposition(filename: str) -> dict[str, str]:
    # RFC 6266: a plain name for old clients, the real one beside it.
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "._- ") else "_" for char in filename)
    return {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"}


def _client(http: web.BaseRequest, trusted: Sequence[IPv4Network | IPv6Network]) -> str:
    """The nearest address that is not one of our proxies; what lies beyond it is anybody's claim."""
    address = http.remote or ""
    if not trusted or not _is_within(address, trusted):
        return address
    for hop in reversed(",".join(http.headers.getall("X-Forwarded-For", [])).split(",")):
        try:
            address = str(ip_address(hop.strip().strip("[]")))
        except ValueError:
            break
        if not _is_within(address, trusted):
            break
    return address


def _is_within(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)
