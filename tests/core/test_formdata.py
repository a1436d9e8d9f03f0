"""A multipart body that is written is read as it was given."""

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract import Body, BodyFile
from gateway.formdata import Writer, parse

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
NAMES = st.text("abc-_\r\n\"'; =张", min_size=1, max_size=8)
FILES = st.tuples(NAMES, NAMES, st.sampled_from(("", "image/png")), st.binary(max_size=100))


def written(writer: Writer, values: list[tuple[str, str]], files: list[tuple[str, str, str, bytes]]) -> Body:
    for file in files:
        writer.file(*file)
    for value in values:
        writer.value(*value)
    return writer.finish()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES, TEXT), max_size=3), st.lists(FILES, max_size=3))
def test_what_is_written_is_read(values: list[tuple[str, str]], files: list[tuple[str, str, str, bytes]]) -> None:
    writer = Writer()

    body = written(writer, values, files)

    form = parse(body, writer.content_type, keep_content=True)
    assert form.values == values
    assert [(one.name, one.filename, one.content_type, one.content) for one in form.uploads] == files


def test_a_large_one_goes_into_a_file(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "body")

    body = written(writer, [("text", "你好")], [("photo", "a.png", "image/png", bytes(100_000))])

    assert isinstance(body, BodyFile)
    content = body.path.read_bytes()
    assert (body.size, body.sha256) == (len(content), sha256(content).digest())
    form = parse(body, writer.content_type, keep_content=True)
    assert (form.values, form.uploads[0].content) == ([("text", "你好")], bytes(100_000))


@pytest.mark.parametrize("name", ["body", None])
def test_a_discarded_one_leaves_nothing(name: str | None, tmp_path: Path) -> None:
    writer = Writer(tmp_path / name if name else None)
    writer.value("text", "你好")

    writer.discard()

    assert not list(tmp_path.iterdir())
