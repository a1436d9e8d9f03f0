"""Attachments: stored by their content, had at addresses that only we can make."""

import os
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.blobs import Blobs
from gateway.errors import Rejected, Unavailable

NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)
DIGEST = sha256(b"content").hexdigest()


def made(folder: Path, key: bytes = b"k" * 32) -> Blobs:
    return Blobs(folder, None, public_url="https://x.example", key=key, url_ttl_hours=2)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return made(tmp_path / "blobs")


async def read(blobs: Blobs, digest: str) -> bytes:
    size, chunks = await blobs.open(digest)
    content = b"".join([bytes(chunk) async for chunk in chunks])
    assert len(content) == size
    return content


@pytest.mark.parametrize("content", [b"", b"content", b"x" * 3_000_000], ids=["empty", "small", "large"])
async def test_what_is_put_can_be_read(blobs: Blobs, content: bytes) -> None:
    digest = await blobs.put(content)

    assert digest == sha256(content).hexdigest()
    assert await read(blobs, digest) == content


async def test_the_same_content_lies_there_once(blobs: Blobs, tmp_path: Path) -> None:
    for _ in range(3):
        await blobs.put(b"content")

    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == [
        tmp_path / "blobs" / DIGEST[:2] / DIGEST[2:]
    ]


async def test_what_is_not_there_is_gone(blobs: Blobs) -> None:
    with pytest.raises(Rejected) as caught:
        await blobs.open(DIGEST)

    assert caught.value.code == "gone"


async def test_a_store_that_does_not_take_it_is_a_temporary_fault(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "blobs" / DIGEST[:2]).write_bytes(b"in the way")

    with pytest.raises(Unavailable, match="the blob store refused"):
        await blobs.put(b"content")


async def test_a_store_that_cannot_be_read_is_a_temporary_fault(blobs: Blobs, tmp_path: Path) -> None:
    await blobs.put(b"content")
    (tmp_path / "blobs" / DIGEST[:2] / DIGEST[2:]).unlink()
    (tmp_path / "blobs" / DIGEST[:2]).rmdir()
    (tmp_path / "blobs" / DIGEST[:2]).write_bytes(b"in the way")

    with pytest.raises(Unavailable, match="the blob store refused"):
        await blobs.open(DIGEST)


async def test_retention_ends_with_the_last_use(blobs: Blobs, tmp_path: Path) -> None:
    # given: two old ones, of which one has come again
    old, again = await blobs.put(b"old"), await blobs.put(b"again")
    for digest in (old, again):
        os.utime(tmp_path / "blobs" / digest[:2] / digest[2:], (1, 1))
    await blobs.put(b"again")

    # when
    deleted = await blobs.purge(datetime.now(UTC) - timedelta(days=1))

    # then
    assert deleted == 1
    assert await read(blobs, again) == b"again"
    with pytest.raises(Rejected):
        await blobs.open(old)


# --- addresses --------------------------------------------------------------------------------------------------------


def parts(url: str) -> tuple[list[str], dict[str, str]]:
    split = urlsplit(url)
    return split.path.split("/")[1:], {name: values[0] for name, values in parse_qs(split.query).items()}


def check(blobs: Blobs, url: str, *signed: str, at: datetime = NOW) -> None:
    _, query = parts(url)
    blobs.check(*signed, expires=query["expires"], signature=query["signature"], now=at)


def test_an_address_is_the_same_whenever_it_is_made(blobs: Blobs, tmp_path: Path) -> None:
    urls = [one.url(DIGEST, "a.png", "image/png", NOW) for one in (blobs, made(tmp_path / "other"))]

    assert urls[0] == urls[1]
    assert urls[0].startswith(f"https://x.example/files/{DIGEST}/a.png?type=image%2Fpng&expires=")


def test_an_address_is_good_for_its_time(blobs: Blobs) -> None:
    url = blobs.url(DIGEST, "a.png", "image/png", NOW)

    check(blobs, url, DIGEST, "image/png", at=NOW + timedelta(hours=2, seconds=-1))
    with pytest.raises(Rejected) as caught:
        check(blobs, url, DIGEST, "image/png", at=NOW + timedelta(hours=2))
    assert caught.value.code == "gone"


@pytest.mark.parametrize("signed", [("0" * 64, "image/png"), (DIGEST, "text/html"), ("raw", DIGEST), (DIGEST,)])
def test_an_address_is_good_for_nothing_else(blobs: Blobs, signed: tuple[str, ...]) -> None:
    url = blobs.url(DIGEST, "a.png", "image/png", NOW)

    with pytest.raises(Rejected) as caught:
        check(blobs, url, *signed)
    assert caught.value.code == "forbidden"


def test_an_address_is_good_at_one_gateway_alone(blobs: Blobs, tmp_path: Path) -> None:
    other = made(tmp_path / "other", key=b"o" * 32)

    with pytest.raises(Rejected):
        check(other, blobs.url(DIGEST, "a.png", "image/png", NOW), DIGEST, "image/png")


def test_a_raw_address_names_its_message(blobs: Blobs) -> None:
    url = blobs.raw_url("id1", NOW)

    assert parts(url)[0] == ["files", "raw", "id1"]
    check(blobs, url, "raw", "id1")
    with pytest.raises(Rejected):
        check(blobs, url, "raw", "id2")


@given(st.text(st.characters(), min_size=1, max_size=40), st.text(max_size=30))
def test_any_name_and_type_give_an_address(tmp_path_factory: pytest.TempPathFactory, name: str, media: str) -> None:
    blobs = made(tmp_path_factory.getbasetemp() / "blobs")
    url = blobs.url(DIGEST, name, media, NOW)

    path, query = parts(url)
    assert url.isascii()
    assert len(path) == 3
    assert unquote(path[2]) == name.encode("utf-8", "replace").decode()
    check(blobs, url, DIGEST, query.get("type", ""))


@given(st.text(), st.text())
def test_no_invention_is_a_signature(tmp_path_factory: pytest.TempPathFactory, expires: str, signature: str) -> None:
    blobs = made(tmp_path_factory.getbasetemp() / "blobs")

    with pytest.raises(Rejected) as caught:
        blobs.check(DIGEST, "image/png", expires=expires, signature=signature, now=NOW)
    assert caught.value.code == "forbidden"
