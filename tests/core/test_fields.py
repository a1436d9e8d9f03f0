"""Form fields: what a configuration may say, and what a submission gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from gateway.contract import BodyFile
from gateway.errors import Rejected
from gateway.fields import (
    JSON,
    MAX_JSON_BYTES,
    MESSAGES,
    Bilingual,
    Checked,
    FormFields,
    Given,
    Spec,
    check,
    file_name,
    one_line,
    plain_text,
    read,
    read_body,
    size_text,
)
from gateway.formdata import Upload

FORM = TypeAdapter(FormFields)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(24)
EVERY_TYPE = [
    {"name": "subject", "type": "text", "label": "S", "required": True, "min_length": 2, "pattern": "[^<>]*"},
    {"name": "text", "type": "textarea", "label": "T", "max_length": 50},
    {"name": "email", "type": "email", "label": "E"},
    {"name": "phone", "type": "phone", "label": "P"},
    {"name": "product", "type": "select", "label": "C", "choices": ["printer", "scanner"]},
    {"name": "urgency", "type": "radio", "label": "R", "choices": ["low", "high"]},
    {"name": "reach", "type": "checkbox", "label": "B", "choices": ["mail", "call"]},
    {"name": "agree", "type": "checkbox", "label": "A"},
    {"name": "bought", "type": "date", "label": "D"},
    {"name": "photo", "type": "file", "label": "F", "accept": ["image/*"], "max_files": 2, "max_bytes": 4096},
    {"name": "build", "type": "hidden", "default": "v1"},
]


def form(*fields: dict[str, Any]) -> FormFields:
    return FORM.validate_python([{"label": "L", "name": "x", **field} for field in fields])


def checked(field: dict[str, Any], *values: str, uploads: tuple[Upload, ...] = ()) -> Checked:
    return check(form(field), Given({"x": list(values)} if values else {}, {"x": list(uploads)} if uploads else {}))


def codes(result: Checked) -> list[str]:
    return [error.code for error in result.errors]


def upload(content: bytes = PNG, filename: str = "a.png", content_type: str = "image/png", size: int = -1) -> Upload:
    return Upload("x", filename, content_type, len(content) if size < 0 else size, "00", content)


# What a configuration may say


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ({"type": "colour"}, "colour"),
        ({"type": "text", "name": "1st"}, "name"),
        ({"type": "text", "name": "a b"}, "name"),
        ({"type": "text", "label": ""}, "zh"),
        ({"type": "text", "min_length": 300}, "min_length 300 is more than max_length 200"),
        ({"type": "text", "pattern": "["}, "unclosed character class"),
        ({"type": "text", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "text", "pattern": "a)(b"}, "unopened group"),
        ({"type": "text", "pattern": r"(a)\1"}, "backreferences"),
        ({"type": "text", "pattern": r"\d{1,999}{1,999}"}, "pattern"),
        ({"type": "text", "choices": ["a"]}, "choices"),
        ({"type": "select"}, "choices"),
        ({"type": "radio", "choices": []}, "choices"),
        ({"type": "select", "choices": ["a", "a"]}, "more than one choice is called a"),
        ({"type": "select", "choices": [" a"]}, "blanks"),
        ({"type": "phone", "region": "china"}, "ISO 3166-1"),
        ({"type": "file", "accept": [".png"]}, "media type"),
        ({"type": "file", "max_bytes": 0}, "max_bytes"),
    ],
)
def test_a_bad_definition_says_what_is_wrong(field: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint.replace("(", r"\(")):
        form(field)


def test_two_fields_cannot_share_a_name() -> None:
    with pytest.raises(ValidationError, match="more than one field is called x"):
        form({"type": "text"}, {"type": "email"})


def test_a_pattern_that_explodes_elsewhere_is_quick_here() -> None:
    result = checked({"type": "text", "pattern": "(a|a|aa)+$", "max_length": 100_000}, "a" * 50_000 + "b")

    assert codes(result) == ["pattern"]


def test_sizes_may_be_written_with_units() -> None:
    (field,) = form({"type": "file", "max_bytes": "2 MiB"})

    assert field.model_dump()["max_bytes"] == 2 << 20


def test_a_text_may_be_one_string_or_one_per_language() -> None:
    (plain,), (pair,) = form({"type": "text", "label": "Name"}), form({"type": "text", "label": {"zh": "名"}})

    assert (plain.label.to("zh"), plain.label.to("en")) == ("Name", "Name")
    assert pair.label.to("en") == "名"


def test_the_schema_allows_both_forms_of_a_text_and_of_a_choice() -> None:
    class Model(BaseModel):
        fields: FormFields

    definitions = Model.model_json_schema()["$defs"]

    assert {"type": "string"} in definitions["TextField"]["properties"]["label"]["anyOf"]
    assert {"type": "string"} in definitions["SelectField"]["properties"]["choices"]["items"]["anyOf"]


# What a submission gives


@pytest.mark.parametrize(
    ("field", "given_values", "value"),
    [
        ({"type": "text"}, ["  a\tb\r\nc "], "a b c"),
        ({"type": "text"}, ["a\0b\x1b[31mc\x7f"], "ab[31mc"),
        ({"type": "text"}, ["", "a"], "a"),
        ({"type": "text", "pattern": "[0-9]{3}"}, ["123"], "123"),
        ({"type": "textarea"}, ["\r\n  a\r\n\r\nb\rc  \n\n"], "  a\n\nb\nc"),
        ({"type": "email"}, [" zhang@Example.COM "], "zhang@example.com"),
        ({"type": "email"}, ["zhang＠example.com"], "zhang@example.com"),
        ({"type": "email"}, ["张三@例子.中国"], "张三@例子.中国"),
        ({"type": "phone"}, ["138 1234 5678"], "+8613812345678"),
        ({"type": "phone"}, ["１３８１２３４５６７８"], "+8613812345678"),
        ({"type": "phone"}, ["(010) 6552-9988"], "+861065529988"),
        ({"type": "phone"}, ["+44 20 7946 0958"], "+442079460958"),
        ({"type": "phone", "region": "GB"}, ["020 7946 0958"], "+442079460958"),
        ({"type": "phone"}, ["154 9999 0000"], "+8615499990000"),
        ({"type": "select", "choices": ["a", "b"]}, ["b"], "b"),
        ({"type": "checkbox", "choices": ["a", "b", "c"]}, ["c", "a", "c", ""], ["c", "a"]),
        ({"type": "checkbox"}, ["on"], True),
        ({"type": "date"}, ["2026-02-28"], "2026-02-28"),
        ({"type": "date"}, ["2026/2/8"], "2026-02-08"),
        ({"type": "date"}, ["2026年2月8日"], "2026-02-08"),
        ({"type": "hidden", "default": "v1"}, [], "v1"),
        ({"type": "hidden", "default": "v1"}, ["v2"], "v2"),
    ],
)
def test_a_good_value_is_tidied(field: dict[str, Any], given_values: list[str], value: object) -> None:
    assert checked(field, *given_values) == Checked({"x": value}, {}, [])


@pytest.mark.parametrize("type_", ["text", "textarea", "email", "phone", "date", "hidden", "checkbox", "file"])
@pytest.mark.parametrize("values", [[], [""], [" \r\n\t\0　"]])
def test_what_is_not_filled_in_is_absent_or_missed(type_: str, values: list[str]) -> None:
    optional, required = (checked({"type": type_, "required": needed}, *values) for needed in (False, True))
    if type_ == "file" and values and values[0]:
        assert codes(optional) == ["wrong_type"]
        return

    assert optional == Checked({}, {}, [])
    assert codes(required) == ["required"]


@pytest.mark.parametrize(
    ("field", "given_values", "code"),
    [
        ({"type": "text", "max_length": 3}, ["四个汉字"], "too_long"),
        ({"type": "text", "min_length": 3}, ["ab"], "too_short"),
        ({"type": "text"}, ["a", "b"], "one_value"),
        ({"type": "text", "pattern": "[0-9]{3}"}, ["1234"], "pattern"),
        ({"type": "text", "pattern": "a|b"}, ["ab"], "pattern"),
        ({"type": "textarea", "max_length": 3}, ["a\r\nbc"], "too_long"),
        ({"type": "hidden", "max_length": 3}, ["abcd"], "too_long"),
        ({"type": "email"}, ["zhang"], "email"),
        ({"type": "email"}, ["a@b"], "email"),
        ({"type": "email"}, ["a@b.cn, c@d.cn"], "email"),
        ({"type": "email"}, ["a" * 250 + "@b.cn"], "email"),
        ({"type": "phone"}, ["138123456"], "phone"),
        ({"type": "phone"}, ["call me"], "phone"),
        ({"type": "phone"}, ["010 6552 9988 ext. 12"], "phone"),
        ({"type": "phone"}, ["1" * 5000], "phone"),
        ({"type": "select", "choices": ["a"]}, ["b"], "choice"),
        ({"type": "radio", "choices": ["a"]}, ["A"], "choice"),
        ({"type": "checkbox", "choices": ["a"]}, ["a", "b"], "choice"),
        ({"type": "checkbox", "required": True}, ["false"], "required"),
        ({"type": "date"}, ["2026-02-30"], "date"),
        ({"type": "date"}, ["0000-01-01"], "date"),
        ({"type": "date"}, ["tomorrow"], "date"),
    ],
)
def test_a_bad_value_has_a_stable_code(field: dict[str, Any], given_values: list[str], code: str) -> None:
    assert codes(checked(field, *given_values)) == [code]


def test_length_is_counted_in_characters_after_line_ends_are_one() -> None:
    assert checked({"type": "textarea", "max_length": 3}, "汉\r\n字").values == {"x": "汉\n字"}


def test_an_error_names_the_field_and_speaks_both_languages() -> None:
    (error,) = checked({"type": "text", "max_length": 3}, "abcd").errors

    assert error.field == "x"
    assert error.text == Bilingual(zh="最多 3 个字，现在是 4 个", en="At most 3 characters; there are 4")


def test_every_message_exists_in_both_languages() -> None:
    assert all(message.zh and message.en and message.zh != message.en for message in MESSAGES.values())


def test_all_faults_are_listed_at_once_and_strangers_ignored() -> None:
    fields = form({"name": "a", "type": "text", "required": True}, {"name": "b", "type": "email"})

    result = check(fields, Given({"b": ["?"], "c": ["c"]}))

    assert [(error.field, error.code) for error in result.errors] == [("a", "required"), ("b", "email")]
    assert result.values == {}


# Files


def test_files_are_taken_in_their_order() -> None:
    files = (upload(filename="1.png"), upload(filename="2.png"))

    assert checked({"type": "file", "accept": ["image/*"]}, uploads=files).files == {"x": list(files)}


@pytest.mark.parametrize(
    ("settings_", "files", "code"),
    [
        ({"max_files": 1}, (upload(), upload()), "too_many_files"),
        ({"max_bytes": 16}, (upload(),), "file_too_large"),
        ({}, (upload(b""),), "file_empty"),
        ({"accept": ["image/*"]}, (upload(b"MZ\x90\0\3\0\0\0"),), "file_type"),
        ({"accept": ["image/png"]}, (upload(b"%PDF-1.7\n"),), "file_type"),
    ],
)
def test_files_have_limits(settings_: dict[str, Any], files: tuple[Upload, ...], code: str) -> None:
    assert codes(checked({"type": "file", **settings_}, uploads=files)) == [code]


def test_the_files_of_all_fields_together_have_a_limit() -> None:
    fields = form({"name": "a", "type": "file"}, {"name": "b", "type": "file"})

    result = check(fields, Given(uploads={"a": [upload()], "b": [upload()]}), max_files=1)

    assert [(error.field, error.code) for error in result.errors] == [("b", "too_many_files")]


def test_a_file_is_not_text_and_text_is_not_a_file() -> None:
    assert codes(checked({"type": "file"}, "photo.png")) == ["wrong_type"]
    assert checked({"type": "text"}, uploads=(upload(),)) == Checked({}, {}, [])


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("C:\\fakepath\\照片.png", "照片.png"),
        ("../../etc/passwd", "passwd"),
        ("a\r\nb\0.png", "a b.png"),
        ("x" * 300 + ".png", "x" * 196 + ".png"),
        ("/", ""),
    ],
)
def test_a_file_name_is_only_a_name(given_name: str, name: str) -> None:
    assert file_name(given_name) == name


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1 KB"), (512 << 10, "512 KB"), (10 << 20, "10 MB"), (1572864, "1.5 MB")]
)
def test_a_size_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


# Bodies


def test_json_values_become_texts() -> None:
    document = {
        "s": "a",
        "n": 7788,
        "f": 1.5,
        "yes": True,
        "no": False,
        "none": None,
        "l": ["a", 1, None],
        "d": {},
        "ll": [[]],
    }

    found = read_body(json.dumps(document).encode(), "application/json; charset=utf-8", keep_content=False)

    assert found.values == {
        "s": ["a"],
        "n": ["7788"],
        "f": ["1.5"],
        "yes": ["true"],
        "no": ["false"],
        "none": [],
        "l": ["a", "1"],
    }
    assert found.mistyped == {"d", "ll"}


def test_a_json_value_of_the_wrong_type_is_that_fields_error() -> None:
    for document in ({"x": {"deep": 1}}, {"x": ["a"] * 257}):
        found = read_body(json.dumps(document).encode(), JSON, keep_content=False)

        assert codes(check(form({"type": "checkbox", "choices": ["a"]}), found)) == ["wrong_type"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xff", b"[" * 100_000]
)
def test_json_that_is_no_object_is_malformed(body: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        read_body(body, JSON, keep_content=False)

    assert caught.value.code == "malformed"


def test_json_has_a_size_limit_and_may_lie_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b'{"x": "a"}')

    assert read_body(BodyFile(path, 10, b""), JSON, keep_content=False).values == {"x": ["a"]}
    with pytest.raises(Rejected, match="up to 2097152 bytes"):
        read_body(BodyFile(path, MAX_JSON_BYTES + 1, b""), JSON, keep_content=False)


# Anything at all

TEXTS = st.text(st.characters(exclude_categories=[]), max_size=60)
NAMES = st.sampled_from([field["name"] for field in EVERY_TYPE] + ["other"])
UPLOADS = st.builds(Upload, NAMES, TEXTS, TEXTS, st.integers(0, 9000), st.just("00"), st.binary(max_size=40))


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.lists(TEXTS, max_size=3)), st.dictionaries(NAMES, st.lists(UPLOADS, max_size=3)))
def test_any_submission_gives_values_or_errors(values: dict[str, list[str]], uploads: dict[str, list[Upload]]) -> None:
    fields = form(*EVERY_TYPE)

    result = check(fields, Given(values, uploads))

    names = [*result.values, *result.files, *(error.field for error in result.errors)]
    assert len(names) == len(set(names))
    json.dumps(result.values, ensure_ascii=False).encode()  # no surrogate came through
    for field in fields:
        if field.name in result.values:
            again = read(field.spec, _as_texts(result.values[field.name]))
            assert again == result.values[field.name], "tidying is stable"


def _as_texts(value: object) -> list[str]:
    return value if isinstance(value, list) else [str(value).lower() if value is True else str(value)]


def outcome(body: bytes, content_type: str) -> str:
    """`taken`, or the code of the refusal."""
    try:
        check(form(*EVERY_TYPE), read_body(body, content_type, keep_content=True))
    except Rejected as error:
        return error.code
    return "taken"


FORM_TYPES = st.sampled_from([JSON, "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"])


@settings(deadline=None)
@given(st.binary(max_size=300), FORM_TYPES)
def test_any_body_is_read_or_rejected(body: bytes, content_type: str) -> None:
    assert outcome(body, content_type) in {"taken", "malformed", "too_large"}


JSON_VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)


@settings(deadline=None)
@given(st.dictionaries(NAMES, JSON_VALUES))
def test_any_json_object_gives_values_or_errors(document: dict[str, Any]) -> None:
    # malformed: NaN, a lone surrogate, a number beyond JSON's
    assert outcome(json.dumps(document).encode(), JSON) in {"taken", "malformed"}


@settings(deadline=None)
@given(TEXTS)
def test_plain_text_is_stable_and_clean(text: str) -> None:
    assert plain_text(plain_text(text)) == plain_text(text)
    assert one_line(one_line(text)) == one_line(text)
    assert not set(one_line(text)) & {"\0", "\n", "\t", "\x1b"}


def test_read_needs_no_settings() -> None:
    assert read(Spec("phone", "GB"), ["020 7946 0958"]) == "+442079460958"
    assert read(Spec("unheard-of"), ["a"]) == "a"
