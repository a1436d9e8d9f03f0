"""The fields of a push, and what reading hostile ones may cost."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Rejected
from gateway.wechat.document import MAX_DEPTH, MAX_ELEMENTS, form_of, read
from tests.wechat.peer import TEXT

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,11}", fullmatch=True)
XML_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"))


def test_a_text_message() -> None:
    assert read(TEXT) == {
        "ToUserName": "gh_aa11",
        "FromUserName": "oUser01",
        "CreateTime": "1760000000",
        "MsgType": "text",
        "Content": "订单 7788 未到货",
        "MsgId": "24500000000000001",
    }


def test_xml_and_json_of_a_message_give_the_same_fields() -> None:
    xml = b"<xml><CreateTime>1760000000</CreateTime><MsgId>24500000000000001</MsgId><X>23.10</X><N></N></xml>"
    document = b'{"CreateTime":1760000000,"MsgId":24500000000000001,"X":23.10,"N":null}'

    assert (
        read(xml)
        == read(document)
        == {
            "CreateTime": "1760000000",
            "MsgId": "24500000000000001",
            "X": "23.10",
            "N": "",
        }
    )


@pytest.mark.parametrize(
    ("xml", "fields"),
    [
        ("<Content><![CDATA[ \n a \t]]></Content>", {"Content": " \n a \t"}),
        ("<Content></Content><Label/>", {"Content": "", "Label": ""}),
        ("<Content>a<![CDATA[<b>]]>&amp;&#x4e00;</Content>", {"Content": "a<b>&一"}),
        (
            "<Content><![CDATA[<!DOCTYPE html><!ENTITY a 'b'>]]></Content>",
            {"Content": "<!DOCTYPE html><!ENTITY a 'b'>"},
        ),
        ("<Content><![CDATA[a\x00\x08\x1fb]]></Content>", {"Content": "ab"}),
        ("<A b='c'>d</A>", {"A": "d"}),
        ("<P><L><item><K>1</K></item><item><K>2</K></item></L></P>", {"P": {"L": {"item": [{"K": "1"}, {"K": "2"}]}}}),
        ("<L><i>1</i><i>2</i><i>3</i></L>", {"L": {"i": ["1", "2", "3"]}}),
        ("", {}),
    ],
)
def test_elements_are_verbatim(xml: str, fields: dict[str, Any]) -> None:
    assert read(f"<xml>{xml}</xml>".encode()) == fields


@pytest.mark.parametrize(
    "start", ["", "\ufeff", " \r\n", "<?xml version='1.0' encoding='UTF-8'?>\n", "\ufeff<?xml version='1.0'?>"]
)
def test_what_may_stand_before_the_root(start: str) -> None:
    assert read(f"{start}<xml><A>1</A></xml>\n".encode()) == {"A": "1"}


def test_another_encoding_that_is_declared_changes_nothing() -> None:
    assert read("<?xml version='1.0' encoding='gbk'?><xml><A>汇</A></xml>".encode()) == {"A": "汇"}


@pytest.mark.parametrize(
    ("document", "fields"),
    [
        ('{"a": true, "b": false, "c": null}', {"a": "true", "b": "false", "c": ""}),
        ('{"a": -1, "b": 1e400, "c": 23.10}', {"a": "-1", "b": "1e400", "c": "23.10"}),
        ('{"a": {"b": [1, "x", null, {"c": true}]}}', {"a": {"b": ["1", "x", "", {"c": "true"}]}}),
        (r'{"a": "\ud83d\ude00", "b": "\ud83d", "\udc00": "c"}', {"a": "😀", "b": "\ufffd", "\ufffd": "c"}),
        ('\ufeff {"MsgId": "49d72d67_1555684067"}', {"MsgId": "49d72d67_1555684067"}),
        ('{"MsgId": %s}' % ("9" * 5000), {"MsgId": "9" * 5000}),
    ],
)  # fmt: skip
def test_json_values_become_texts(document: str, fields: dict[str, Any]) -> None:
    assert read(document.encode()) == fields


LAUGHS = b"<!DOCTYPE xml [<!ENTITY a '" + b"ha" * 99 + b"'><!ENTITY b '" + b"&a;" * 99 + b"'>]>"
MALFORMED = {
    "nothing": b"",
    "text": b"success",
    "a list": b"[1]",
    "a form": b"signature=1&Encrypt=2",
    "another root": b"<html><A>1</A></html>",
    "a root that begins like ours": b"<xmlx><A>1</A></xmlx>",
    "a document type": b"<!DOCTYPE xml><xml><A>1</A></xml>",
    "a document type behind the declaration": b"<?xml version='1.0'?> <!DOCTYPE xml SYSTEM 'file:///etc/passwd'><xml/>",
    "a document type behind a comment": b"<!-- --><!DOCTYPE xml [<!ATTLIST xml a CDATA 'b'>]><xml/>",
    "entities": LAUGHS + b"<xml><A>&b;</A></xml>",
    "a document type in the root": b"<xml><!DOCTYPE xml><A>1</A></xml>",
    "an entity": b"<xml><A>&a;</A></xml>",
    "a document type in UTF-16": "<!DOCTYPE xml><xml><A>1</A></xml>".encode("utf-16"),
    "UTF-16": "<xml><A>1</A></xml>".encode("utf-16"),
    "GBK": "<xml><A>汇入</A></xml>".encode("gbk"),
    "no end": b"<xml><A>1</A>",
    "two roots": b"<xml/><xml/>",
    "a field twice": b"<xml><MsgType>text</MsgType><MsgType>event</MsgType></xml>",
    "a field twice, once nested": b"<xml><MsgType><a>b</a></MsgType><MsgType>event</MsgType></xml>",
    "a character that does not exist": b"<xml><A>&#xffff;</A></xml>",
    "NUL by number": b"<xml><A>&#0;</A></xml>",
    "too many levels": b"<xml>" + b"<a>" * MAX_DEPTH + b"</a>" * MAX_DEPTH + b"</xml>",
    "too many elements": b"<xml><a>" + b"<b/>" * MAX_ELEMENTS + b"</a></xml>",
    "JSON, no end": b'{"a": "b"',
    "JSON, a key twice": b'{"MsgType": "text", "MsgType": "event"}',
    "JSON, a nested key twice": b'{"a": {"b": 1, "b": 1}}',
    "JSON, no number": b'{"a": NaN}',
    "JSON, GBK": '{"a": "汇入"}'.encode("gbk"),
    "JSON, too many values": b'{"a":[' + b"0," * MAX_ELEMENTS + b"0]}",
    "JSON, too many levels": b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
}  # fmt: skip


@pytest.mark.parametrize("document", MALFORMED.values(), ids=MALFORMED)
def test_what_cannot_be_read_is_malformed(document: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        read(document)

    assert refused.value.code == "malformed"


@settings(max_examples=60, deadline=None)
@given(fields=st.dictionaries(NAMES, XML_TEXT, max_size=8))
def test_whatever_text_comes_back(fields: dict[str, str]) -> None:
    elements = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in fields.items())

    assert read(f"<xml>{elements}</xml>".encode()) == fields
    assert read(json.dumps(fields).encode()) == fields


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
SPLICES = st.tuples(st.integers(0, len(TEXT)), st.integers(0, 30), st.binary(max_size=20) | st.sampled_from(
    [b"<", b"&", b"<![CDATA[", b"]]>", b"<!--", b"<?", b"<!ENTITY", b"</xml>", b"<MsgType>"]
))  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    document=st.binary(max_size=99)
    | st.binary(max_size=99).map(lambda inner: b"<xml>" + inner + b"</xml>")
    | st.binary(max_size=99).map(lambda inner: b'{"a":' + inner + b"}")
    | SPLICES.map(lambda splice: TEXT[: splice[0]] + splice[2] + TEXT[splice[0] + splice[1] :])
    | st.dictionaries(st.text(max_size=9), JSON, max_size=3).map(lambda document: json.dumps(document).encode())
)
def test_anything_is_read_or_refused(document: bytes) -> None:
    try:
        fields = read(document)
    except Rejected as refused:
        assert refused.code == "malformed"  # noqa: PT017 - it may as well be read
    else:
        json.dumps(fields, ensure_ascii=False).encode()  # no half characters
        assert form_of(document) in ("xml", "json")


# Cost

MANY = 200_000
COSTLY = {
    "nested": b"<xml>" + b"<a>" * MANY,
    "nested and closed": b"<xml>" + b"<a>" * MANY + b"</a>" * MANY + b"</xml>",
    "siblings": b"<xml><a>" + b"<b/>" * MANY + b"</a></xml>",
    "attributes": b"<xml " + b" ".join(b"a%d=''" % n for n in range(MANY)) + b"><a/><a/></xml>",
    "blanks": b" " * MANY + b"<xml>",
    "blanks before the root": b"<?xml " + b" " * MANY + b"?>" + b" " * MANY + b"<y>",
    "no end of a declaration": b"<?xml " * MANY,
    "document type": LAUGHS + b"<xml>" + b"<A>&b;</A>" * MANY,
    "JSON objects": b'{"a":' * MANY,
    "JSON lists": b'{"a":' + b"[" * MANY,
    "JSON values": b'{"a":[' + b"[]," * MANY + b"[]]}",
    "JSON number": b'{"a":' + b"9" * MANY + b',"a":1}',
}  # fmt: skip


@pytest.mark.parametrize("document", COSTLY.values(), ids=COSTLY)
def test_what_a_hostile_document_costs_is_bounded(document: bytes) -> None:
    """Counted in calls, of Python's functions and of C's: they do not grow with the document."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        with pytest.raises(Rejected):
            read(document)
    finally:
        sys.setprofile(None)

    assert calls < 20 * MAX_ELEMENTS


def test_all_hostile_documents_together_end_in_time() -> None:
    """Also in what is no call: expat's own work. The limit is far from what it takes, for slow machines."""
    program = (
        "from tests.wechat.test_document import COSTLY, Rejected, read\n"
        "for document in COSTLY.values():\n"
        "    try: read(document)\n"
        "    except Rejected: continue\n"
        "    raise SystemExit('was read')"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path(__file__).parents[2])
