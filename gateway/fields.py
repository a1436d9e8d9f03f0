"""Form fields: what a configuration may say of them, and what a submission has to satisfy.

A value goes two steps. `read` tidies it by the field's type alone (a date becomes ISO 8601, a phone number E.164), so
that a normalizer can do the same from a stored body and `BaseField.spec`. `check` adds what the field demands and
collects one error per field. Names that no field has are ignored.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Any, Literal, NamedTuple, Self

import orjson
import phonenumbers
from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, StringConstraints, TypeAdapter, model_validator
from pydantic_core import SchemaError

from gateway import formdata, mediatype
from gateway.contract import Body, BodyFile, Settings, body_size
from gateway.errors import Rejected
from gateway.formdata import Upload
from gateway.text import file_name, one_line, plain_text

Language = Literal["zh", "en"]
Value = str | bool | list[str]
JSON = "application/json"
MAX_LENGTH = 100_000  # characters of one value; in UTF-8 well below what `formdata.parse` takes
MAX_PARTS = 512
MAX_JSON_BYTES = 2 << 20
_MAX_LISTED = 256  # values of one name in JSON
LANGUAGES: Mapping[str, Language] = {"zh": "zh", "en": "en"}
_UNTICKED = {"false", "off", "no", "0"}
_DATE = re.compile(r"([0-9]{4})[-/.年]([0-9]{1,2})[-/.月]([0-9]{1,2})日?")


class Bilingual(Settings):
    """A text in Chinese and in English; where one is missing, the other is shown."""

    zh: str = Field(default="", max_length=2000, description="Chinese")
    en: str = Field(default="", max_length=2000, description="English")

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if not (self.zh.strip() or self.en.strip()):
            raise ValueError("give the text in `zh`, in `en`, or in both")
        return self

    def to(self, language: Language) -> str:
        return (self.zh or self.en) if language == "zh" else (self.en or self.zh)

    def filled(self, details: Mapping[str, object]) -> "Bilingual":
        return Bilingual(zh=self.zh.format_map(details), en=self.en.format_map(details))


def _in_both(given: Any) -> Any:
    return {"zh": given, "en": given} if isinstance(given, str) else given


Words = Annotated[Bilingual, BeforeValidator(_in_both, json_schema_input_type=str | Bilingual)]


def _texts(zh: str, en: str) -> Bilingual:
    return Bilingual(zh=zh, en=en)


# By code, or by code and field type where one sentence does not fit all.
MESSAGES: Mapping[str, Bilingual] = {
    "required": _texts("请填写此项", "Please fill this in"),
    "required:select": _texts("请选择一项", "Please choose one"),
    "required:radio": _texts("请选择一项", "Please choose one"),
    "required:checkbox": _texts("请勾选", "Please tick at least one box"),
    "required:date": _texts("请选择日期", "Please choose a date"),
    "required:file": _texts("请选择文件", "Please choose a file"),
    "too_short": _texts("至少 {limit} 个字，现在是 {found} 个", "At least {limit} characters; there are {found}"),
    "too_long": _texts("最多 {limit} 个字，现在是 {found} 个", "At most {limit} characters; there are {found}"),
    "pattern": _texts("格式不符合要求", "This is not in the expected format"),
    "email": _texts(
        "请填写完整的邮箱地址，例如 name@example.com", "Enter a full e-mail address, like name@example.com"
    ),
    "phone": _texts(
        "请填写完整的电话号码，例如 {example}；座机请加区号，不要填分机号",
        "Enter a full phone number, like {example}, with its area code and no extension",
    ),
    "date": _texts("请填写日期，例如 2026-01-31", "Enter a date, like 2026-01-31"),
    "choice": _texts("请从列出的选项中选择", "Please choose from the list"),
    "one_value": _texts("此项只能填一个值", "Only one value can be given here"),
    "wrong_type": _texts("此项的数据类型不对，应为文字", "The value has the wrong type; text is expected"),
    "wrong_type:file": _texts("文件请用 multipart/form-data 上传", "Send files as multipart/form-data"),
    "too_many_files": _texts("最多 {limit} 个文件，现在是 {found} 个", "At most {limit} files; there are {found}"),
    "file_too_large": _texts(
        "“{file}”太大，每个文件最大 {limit}", "“{file}” is too large; a file may have up to {limit}"
    ),
    "file_type": _texts("“{file}”不是可以上传的类型", "“{file}” is not of a type that can be uploaded"),
    "file_empty": _texts("“{file}”是空文件，请重新选择", "“{file}” is empty; please choose it again"),
    "file_gone": _texts("文件已失效，请重新选择", "The file is no longer there; please choose it again"),
    "phone_code": _texts("手机号授权已失效，请重新授权", "The leave to read the number is over; please give it again"),
}


class Fault(ValueError):
    """One value is not acceptable. `code` is a key of MESSAGES, `details` fill its text."""

    def __init__(self, code: str, **details: object) -> None:
        super().__init__(code)
        self.code = code
        self.details = details


@dataclass(frozen=True, slots=True)
class FieldError:
    field: str
    code: str
    text: Bilingual

    def to(self, language: Language) -> dict[str, str]:
        """One of the `errors` of a problem document."""
        return {"field": self.field, "code": self.code, "message": self.text.to(language)}


def field_error(name: str, type_: str, fault: Fault) -> FieldError:
    """What is said of a field's fault: by its code and type where there is such a text, else by its code."""
    text = MESSAGES.get(f"{fault.code}:{type_}", MESSAGES[fault.code])
    return FieldError(name, fault.code, text.filled(fault.details))


class Spec(NamedTuple):
    """What `read` needs to know of a field. `detail`: a phone's region, a hidden default, "many" for several boxes."""

    type: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """What came in a request, by name. `mistyped`: names whose JSON value is neither text nor a list of texts."""

    values: Mapping[str, list[str]] = field(default_factory=dict)
    uploads: Mapping[str, list[Upload]] = field(default_factory=dict)
    mistyped: frozenset[str] = frozenset()

    def first(self, name: str) -> str:
        """The first value of a name that is no field; "" if there is none."""
        return next(iter(self.values.get(name, ())), "")


@dataclass(frozen=True, slots=True)
class Checked:
    """The acceptable values and files by field name; names without a value are absent. No errors: take it."""

    values: dict[str, Value]
    files: dict[str, list[Upload]]
    errors: list[FieldError]

    def fingerprint(self, source: str = "") -> bytes:
        """A digest of what was said, however it was transported: a multipart boundary differs between two tries."""
        files = {
            name: [[file_name(upload.filename), upload.sha256] for upload in uploads]
            for name, uploads in self.files.items()
        }
        return sha256(orjson.dumps([self.values, files, source], option=orjson.OPT_SORT_KEYS)).digest()


class BaseField(Settings):
    """The keys every field has."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$", description="the value's name in the ticket")
    type: str
    label: Words = Field(description="what the customer reads above the field")
    help: Words | None = Field(default=None, description="a hint below the label")
    required: bool = Field(default=False, description="whether the form is refused without it")

    @property
    def spec(self) -> Spec:
        return Spec(self.type)

    def take(self, given: Given) -> Value | None:
        """The clean value; None when nothing was given and nothing need be. Raises Fault."""
        if self.name in given.mistyped:
            raise Fault("wrong_type")
        value = read(self.spec, given.values.get(self.name, ()))
        if value is None and self.required:
            raise Fault("required")
        if value is not None:
            self.demand(value)
        return value

    def demand(self, value: Value) -> None:
        """Raises Fault when a tidy value is not what this field asks for."""


class LineField(BaseField):
    """A field that is typed into."""

    placeholder: Words | None = Field(default=None, description="shown in the empty field")


class TextField(LineField):
    """One line of text."""

    type: Literal["text"] = "text"
    min_length: int = Field(default=0, ge=0, le=MAX_LENGTH, description="characters")
    max_length: int = Field(default=200, ge=1, le=MAX_LENGTH, description="characters")
    pattern: str | None = Field(
        default=None,
        max_length=500,
        description="regular expression for the whole value; no look-around, no references",
    )
    autocomplete: str | None = Field(
        default=None, pattern="^[a-z][a-z0-9 -]{0,60}$", description="the HTML attribute, for example `organization`"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _lengths_consistent(self.min_length, self.max_length)
        if self.pattern is not None:
            _matcher(self.pattern)  # alone first: `a)(b` would pass inside a group
            _ = self._whole
        return self

    @cached_property
    def _whole(self) -> TypeAdapter[str]:
        return _matcher(rf"\A(?:{self.pattern})\z")

    def demand(self, value: Value) -> None:
        _demand_length(value, self.min_length, self.max_length)
        if self.pattern is None:
            return
        try:
            self._whole.validate_python(value)
        except ValueError:
            raise Fault("pattern") from None


class TextAreaField(LineField):
    """Several lines of text."""

    type: Literal["textarea"] = "textarea"
    min_length: int = Field(default=0, ge=0, le=MAX_LENGTH, description="characters")
    max_length: int = Field(default=10_000, ge=1, le=MAX_LENGTH, description="characters")
    rows: int = Field(default=6, ge=2, le=40, description="visible lines")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _lengths_consistent(self.min_length, self.max_length)
        return self

    def demand(self, value: Value) -> None:
        _demand_length(value, self.min_length, self.max_length)


class EmailField(LineField):
    """An e-mail address; its domain is not looked up."""

    type: Literal["email"] = "email"


def _region(code: str) -> str:
    if code not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError("give a region as two capital letters (ISO 3166-1), for example CN")
    return code


class PhoneField(LineField):
    """A telephone number; becomes E.164."""

    type: Literal["phone"] = "phone"
    region: Annotated[str, AfterValidator(_region)] = Field(
        default="CN", description="where numbers without a country code belong (ISO 3166-1)"
    )

    @property
    def spec(self) -> Spec:
        return Spec(self.type, self.region)


class Choice(Settings):
    """One of the values to choose from."""

    value: str = Field(min_length=1, max_length=200, description="goes to the ticket")
    label: Words = Field(description="what the customer reads")

    @model_validator(mode="after")
    def _tidy(self) -> Self:
        if one_line(self.value) != self.value:
            raise ValueError("a value has no blanks around it and no control characters")
        return self


def _value_and_label(given: Any) -> Any:
    return {"value": given, "label": given} if isinstance(given, str) else given


def _distinct_values(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    _distinct([choice.value for choice in choices], "choice")
    return choices


Choices = Annotated[
    tuple[Annotated[Choice, BeforeValidator(_value_and_label, json_schema_input_type=str | Choice)], ...],
    AfterValidator(_distinct_values),
]


class ChoiceField(BaseField):
    """One of several values."""

    choices: Choices = Field(min_length=1, max_length=500, description="texts, or value and label")

    def demand(self, value: Value) -> None:
        if value not in {choice.value for choice in self.choices}:
            raise Fault("choice")


class SelectField(ChoiceField):
    """One of several values, in a drop-down list."""

    type: Literal["select"] = "select"


class RadioField(ChoiceField):
    """One of several values, all in sight."""

    type: Literal["radio"] = "radio"


class CheckboxField(BaseField):
    """Any of several values, a list; without choices a single box, `true` when it is ticked."""

    type: Literal["checkbox"] = "checkbox"
    choices: Choices = Field(default=(), max_length=100, description="texts, or value and label; none: a single box")

    @property
    def spec(self) -> Spec:
        return Spec(self.type, "many" if self.choices else "")

    def demand(self, value: Value) -> None:
        if isinstance(value, list) and not set(value) <= {choice.value for choice in self.choices}:
            raise Fault("choice")


class DateField(BaseField):
    """A day; becomes ISO 8601."""

    type: Literal["date"] = "date"


class HiddenField(BaseField):
    """A value that the page carries without showing it. Anybody can change it: do not trust it."""

    type: Literal["hidden"] = "hidden"
    label: Words = Field(default=Bilingual(en="hidden"), description="never shown")
    default: str = Field(default="", max_length=2000, description="the value when the submission has none")
    max_length: int = Field(default=2000, ge=1, le=MAX_LENGTH, description="characters")

    @property
    def spec(self) -> Spec:
        return Spec(self.type, self.default)

    def demand(self, value: Value) -> None:
        _demand_length(value, 0, self.max_length)


def _media_range(text: str) -> str:
    if not re.fullmatch(r"[a-z]+/(\*|[a-z0-9][a-z0-9.+_-]*)", text):
        raise ValueError("give a media type such as image/png, or image/*")
    return text


class FileField(BaseField):
    """One or more files."""

    type: Literal["file"] = "file"
    accept: tuple[Annotated[str, AfterValidator(_media_range)], ...] = Field(
        default=(), max_length=50, description="media types, for example image/*; none: any file"
    )
    max_files: int = Field(default=5, ge=1, le=100, description="files in this field")
    max_bytes: ByteSize = Field(default=ByteSize(10 << 20), ge=1, description="bytes of one file")

    def take_files(self, given: Given) -> list[Upload]:
        """The files, as many as there are. Raises Fault."""
        uploads = given.uploads.get(self.name, [])
        if self.name in given.mistyped or (not uploads and any(given.values.get(self.name, ()))):
            raise Fault("wrong_type")
        if self.required and not uploads:
            raise Fault("required")
        if len(uploads) > self.max_files:
            raise Fault("too_many_files", limit=self.max_files, found=len(uploads))
        for upload in uploads:
            self.demand_file(upload)
        return uploads

    def demand_file(self, upload: Upload) -> None:
        file = file_name(upload.filename)
        if not upload.size:
            raise Fault("file_empty", file=file)
        if upload.size > self.max_bytes:
            raise Fault("file_too_large", file=file, limit=size_text(self.max_bytes))
        found = mediatype.sniff(upload.head, file, upload.content_type)
        if self.accept and not any(_in_range(found, accepted) for accepted in self.accept):
            raise Fault("file_type", file=file)


def _distinct(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"more than one {what} is called {', '.join(twice)}; each needs a name of its own")


def _distinct_names(fields: tuple[BaseField, ...]) -> tuple[BaseField, ...]:
    _distinct([field.name for field in fields], "field")
    return fields


FormField = Annotated[
    TextField
    | TextAreaField
    | EmailField
    | PhoneField
    | SelectField
    | RadioField
    | CheckboxField
    | DateField
    | FileField
    | HiddenField,
    Field(discriminator="type"),
]
FormFields = Annotated[
    tuple[FormField, ...], Field(min_length=1, max_length=100), AfterValidator(_distinct_names)
]  # for a settings model


def read_body(body: Body, content_type: str, *, keep_content: bool) -> Given:
    """A submission in any of the three formats. Raises Rejected as `formdata.parse` does. Blocks on a BodyFile."""
    if content_type.partition(";")[0].strip().lower() == JSON:
        return _from_json(body)
    form = formdata.parse(body, content_type, keep_content=keep_content, max_parts=MAX_PARTS)
    values: dict[str, list[str]] = {}
    for name, value in form.values:
        values.setdefault(name, []).append(value)
    uploads: dict[str, list[Upload]] = {}
    for upload in form.uploads:
        uploads.setdefault(upload.name, []).append(upload)
    return Given(values, uploads)


def read_object(body: Body) -> dict[str, Any]:
    """A submission in JSON. Raises Rejected. Blocks on a BodyFile."""
    if body_size(body) > MAX_JSON_BYTES:
        raise Rejected("too_large", f"a JSON body may have up to {MAX_JSON_BYTES} bytes")
    try:
        document = orjson.loads(body.path.read_bytes() if isinstance(body, BodyFile) else body)
    except orjson.JSONDecodeError as error:
        raise Rejected("malformed", "the body is not JSON", reason=str(error)) from error
    if not isinstance(document, dict):
        raise Rejected("malformed", "the body must be a JSON object of field names and values")
    return document


def given_object(document: Mapping[str, Any]) -> Given:
    """The values of a JSON object as a form has them."""
    texts = {name: _json_texts(value) for name, value in document.items()}
    mistyped = frozenset(name for name, values in texts.items() if values is None)
    return Given({name: values for name, values in texts.items() if values is not None}, {}, mistyped)


def accepted_language(header: str) -> Language | None:
    """The better liked of our languages in an Accept-Language header (RFC 9110, 12.5.4)."""
    best: tuple[float, Language | None] = (0.0, None)
    for item in header.split(",")[:32]:
        tag, _, weight = item.lower().partition(";")
        language = LANGUAGES.get(tag.strip().partition("-")[0])
        quality = re.fullmatch(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", weight)
        if language and (liked := float(quality[1]) if quality else 1.0) > best[0]:
            best = (liked, language)
    return best[1]


def check(fields: Iterable[BaseField], given: Given, *, max_files: int = 100) -> Checked:
    """Everything the fields take of a submission, with one error for each that cannot take its part.

    `max_files` bounds the files of all fields together.
    """
    checked = Checked({}, {}, [])
    for field_ in fields:
        try:
            _take(field_, given, checked, max_files)
        except Fault as fault:
            checked.errors.append(field_error(field_.name, field_.type, fault))
    return checked


def _take(field_: BaseField, given: Given, checked: Checked, max_files: int) -> None:
    if not isinstance(field_, FileField):
        value = field_.take(given)
        if value is not None:
            checked.values[field_.name] = value
        return
    files = field_.take_files(given)
    found = len(files) + sum(map(len, checked.files.values()))
    if found > max_files:
        raise Fault("too_many_files", limit=max_files, found=found)
    if files:
        checked.files[field_.name] = files


def read(spec: Spec, given: Iterable[str]) -> Value | None:
    """The tidy value of a field that is not a file; None when there is none. Raises Fault: `one_value`, `email`,
    `phone`, `date`."""
    tidy = plain_text if spec.type == "textarea" else one_line
    texts = [text for text in map(tidy, given) if text]
    if spec.type == "checkbox":
        return _ticked(texts, many=bool(spec.detail))
    if len(texts) > 1:
        raise Fault("one_value")
    if not texts:
        return (spec.detail or None) if spec.type == "hidden" else None
    parse = _PARSERS.get(spec.type)
    return parse(texts[0], spec.detail) if parse else texts[0]


def size_text(size: int) -> str:
    """A number of bytes for people: `512 KB`, `10 MB`."""
    if size < 1 << 20:
        return f"{max(1, size >> 10)} KB"
    return f"{size / (1 << 20):.1f}".removesuffix(".0") + " MB"


def _ticked(texts: list[str], *, many: bool) -> Value | None:
    if many:
        return list(dict.fromkeys(texts)) or None
    return any(text.lower() not in _UNTICKED for text in texts) or None


def _email(text: str, _detail: str) -> str:
    # NFKC: Chinese input methods type a full-width @.
    text = unicodedata.normalize("NFKC", text)
    if len(text) > 254:  # RFC 5321, 4.5.3.1.3
        raise Fault("email")
    try:
        return validate_email(text, check_deliverability=False).normalized
    except EmailNotValidError:
        raise Fault("email") from None


def _phone(text: str, region: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        number = None
    # E.164 has no place for an extension: better refused than lost.
    if number is None or number.extension or not _callable(number):
        example = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
        national = phonenumbers.PhoneNumberFormat.NATIONAL
        raise Fault("phone", example=phonenumbers.format_number(example, national) if example else "+86 …")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _callable(number: phonenumbers.PhoneNumber) -> bool:
    """Valid by the library's tables, or a Chinese mobile number whose range was opened after they were made."""
    if phonenumbers.is_valid_number(number):
        return True
    return number.country_code == 86 and 13_000_000_000 <= (number.national_number or 0) < 20_000_000_000


def _date(text: str, _detail: str) -> str:
    found = _DATE.fullmatch(unicodedata.normalize("NFKC", text))
    with suppress(ValueError):
        if found:
            return date(*map(int, found.groups())).isoformat()
    raise Fault("date")


_PARSERS: Mapping[str, Callable[[str, str], str]] = {"email": _email, "phone": _phone, "date": _date}


def _from_json(body: Body) -> Given:
    return given_object(read_object(body))


def _json_texts(value: object) -> list[str] | None:
    items = value if isinstance(value, list) else [value]
    if len(items) > _MAX_LISTED or not all(item is None or isinstance(item, str | int | float) for item in items):
        return None
    return [_json_text(item) for item in items if item is not None]


def _json_text(item: object) -> str:
    return str(item).lower() if isinstance(item, bool) else str(item)


def _lengths_consistent(least: int, most: int) -> None:
    if least > most:
        raise ValueError(f"min_length {least} is more than max_length {most}")


def _demand_length(value: Value, least: int, most: int) -> None:
    found = len(value) if isinstance(value, str) else 0
    if found < least:
        raise Fault("too_short", limit=least, found=found)
    if found > most:
        raise Fault("too_long", limit=most, found=found)


def _in_range(media_type: str, accepted: str) -> bool:
    return media_type.startswith(accepted[:-1]) if accepted.endswith("/*") else media_type == accepted


def _matcher(pattern: str) -> TypeAdapter[str]:
    # pydantic's engine is the Rust `regex` crate, whose matching is linear in the text: no pattern can stall us.
    try:
        return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    except SchemaError as error:
        fault = str(error).rpartition("error: ")[2].strip() or "it is too large"
        raise ValueError(f"the pattern cannot be used: {fault}") from None
