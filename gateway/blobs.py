"""Attachments, content-addressed: `ab/cdef…` by SHA-256, in a local folder by default, in S3 (or GCS, Azure) by URL.

What a consumer gets is a signed address of ours that expires; the store itself is never exposed. The expiry is reckoned
from the message's arrival, so that the same message gives the same envelope whenever it is published.
"""

import asyncio
import hmac
import os
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterable
from datetime import datetime
from hashlib import blake2b, sha256
from pathlib import Path
from urllib.parse import quote

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

from gateway.errors import Rejected, Unavailable

_CHUNK = 256 << 10


class Blobs:
    """`url` None means a folder."""

    def __init__(self, folder: Path, url: str | None, *, public_url: str, key: bytes, url_ttl_hours: float) -> None:
        self._folder = folder if url is None else None
        self._store: ObjectStore = from_url(url) if url else LocalStore(folder, mkdir=True)
        self._base = f"{public_url}/files/"
        self._key = key
        self._ttl_secs = int(url_ttl_hours * 3600)

    async def put(self, content: bytes) -> str:
        """The hex SHA-256, once the content is stored. Raises Unavailable when the store does not take it."""
        digest = sha256(content).hexdigest()
        try:
            await obstore.put_async(self._store, _key(digest), content)
            if self._folder is not None:
                await asyncio.to_thread(_sync_with_folders, self._folder, _key(digest))
        except (OSError, obstore.exceptions.BaseError) as error:
            raise Unavailable(reason=f"the blob store refused: {error}") from error
        return digest

    async def get(self, digest: str) -> bytes:
        """The content. Raises as `open` does."""
        _, chunks = await self.open(digest)
        return b"".join([bytes(chunk) async for chunk in chunks])

    async def open(self, digest: str) -> tuple[int, AsyncIterable[bytes]]:
        """Size and content. Raises Rejected("gone") when its retention has ended, Unavailable when the store fails."""
        try:
            found = await obstore.get_async(self._store, _key(digest))
        except FileNotFoundError as error:
            raise Rejected("gone") from error
        except (OSError, obstore.exceptions.BaseError) as error:
            raise Unavailable(reason=f"the blob store refused: {error}") from error
        return found.meta["size"], found.stream(min_chunk_size=_CHUNK)

    def url(self, digest: str, filename: str, content_type: str, since: datetime) -> str:
        """The signed address of an attachment; it expires its time after `since`."""
        expires = self._expiry(since)
        signature = self._sign(digest, content_type, expires)
        name, media_type = quote(filename, safe="", errors="replace"), quote(content_type, safe="")
        return f"{self._base}{digest}/{name}?type={media_type}&expires={expires}&signature={signature}"

    def raw_url(self, id_: str, since: datetime) -> str:
        """The signed address of a message's bytes as they came."""
        expires = self._expiry(since)
        return f"{self._base}raw/{id_}?expires={expires}&signature={self._sign('raw', id_, expires)}"

    def check(self, *signed: str, expires: str, signature: str, now: datetime) -> None:
        """Raises Rejected: `forbidden` when the address is not one of ours, `gone` when it has expired."""
        if not hmac.compare_digest(self._sign(*signed, expires).encode(), signature.encode("utf-8", "replace")):
            raise Rejected("forbidden", "the address is not signed by this gateway")
        if now.timestamp() >= int(expires):
            raise Rejected("gone", "the address has expired")

    def _expiry(self, since: datetime) -> str:
        return str(int(since.timestamp()) + self._ttl_secs)

    def _sign(self, *values: str) -> str:
        # Keyed BLAKE2 is a MAC by itself (RFC 7693, 2.9), at a tenth of what an HMAC costs every message.
        text = "\n".join(values).encode("utf-8", "replace")
        return urlsafe_b64encode(blake2b(text, key=self._key, digest_size=18).digest()).decode()

    async def purge(self, before: datetime) -> int:
        """Deletes what was stored, for the last time, before that moment; returns how many objects.

        Raises Unavailable when the store fails.
        """
        try:
            return await self._purge(before)
        except (OSError, obstore.exceptions.BaseError) as error:
            raise Unavailable(reason=f"the blob store refused: {error}") from error

    async def _purge(self, before: datetime) -> int:
        deleted = 0
        async for page in obstore.list(self._store):
            old = [item["path"] for item in page if item["last_modified"] < before]
            if old:
                await obstore.delete_async(self._store, old)
            deleted += len(old)
        return deleted


def _key(digest: str) -> str:
    return f"{digest[:2]}/{digest[2:]}"


def _sync_with_folders(folder: Path, key: str) -> None:
    # obstore does not sync what it writes to a local folder.
    path = folder / key
    for target in (path, path.parent, folder):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
