"""A message that a program handed in: JSON, or multipart with that JSON and files (`gateway.apimessage` is its shape).

theirs                          ours
subject, text                   subject, text and full_text
html                            html, sanitised
sender.name                     sender.name
sender.user_id, email, phone    sender.identities; verified where the key vouches for its users
conversation, fields            conversation, fields
sent_at, language               sent_at in UTC; language if it is a language tag, else a warning
attachments, files              parts
"""

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import phonenumbers
from pydantic_core import from_json

from gateway import formdata
from gateway.contract import Draft, Part, StoredMessage
from gateway.envelope import Identity, Message, Oddity, Sender
from gateway.errors import Rejected
from gateway.text import file_name, one_line, plain_text, sanitise_html, without_controls

_LANGUAGE = re.compile("[a-z]{2,3}(-[a-z0-9]{1,8})*", re.IGNORECASE)
_ESCAPED_CONTROL = b"\\u00"  # JSON has no other way to write one below U+0020


def normalize(raw: StoredMessage) -> Draft:
    """Raises Rejected when the body cannot be read."""
    document, files = _open(raw)
    given = _loads(document)
    try:
        return _draft(given, document, files, raw.facts)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        # Nothing that the channel accepts today; but a message may have been kept under other rules.
        raise Rejected("malformed", "the JSON is no message", reason=f"{type(error).__name__} in a value") from error


def _draft(given: Mapping[str, Any], document: bytes, files: list[formdata.Upload], facts: Mapping[str, Any]) -> Draft:
    text = plain_text(given["text"])
    html = given.get("html")
    language, warnings = _language(given.get("language") or "")
    fields = given.get("fields") or {}
    message = Message(
        conversation=one_line(given.get("conversation") or "") or None,
        sent_at=_utc(given.get("sent_at")),
        sender=_sender(given.get("sender") or {}, facts),
        subject=one_line(given.get("subject") or "") or None,
        text=text,
        full_text=text,
        html=sanitise_html(html) if html else None,
        language=language,
        fields=_clean(fields) if _ESCAPED_CONTROL in document else fields,
        warnings=warnings,
    )
    return Draft(message, (*_attachments(given.get("attachments") or ()), *_files(files)))


def _open(raw: StoredMessage) -> tuple[bytes, list[formdata.Upload]]:
    if not raw.content_type.strip().lower().startswith(formdata.MULTIPART):
        return raw.body, []
    limits = {"max_parts": len(raw.body), "max_value_bytes": len(raw.body)}  # they were kept when it was accepted
    form = formdata.parse(raw.body, raw.content_type, keep_content=True, **limits)
    values = [value.encode("utf-8", "surrogatepass") for name, value in form.values if name == "message"]
    values += [upload.content for upload in form.uploads if upload.name == "message"]
    if not values:
        raise Rejected("malformed", "the part `message` is missing")
    return values[0], [upload for upload in form.uploads if upload.name != "message"]


def _loads(document: bytes) -> Mapping[str, Any]:
    """By the parser that checked it: another might read doubtful JSON in another way."""
    try:
        given = from_json(document)
    except ValueError as error:
        raise Rejected("malformed", "the JSON cannot be read", reason=str(error)) from error
    if not isinstance(given, dict) or not isinstance(given.get("text"), str):
        raise Rejected("malformed", "the JSON is no message")
    return given


def _utc(time: str | None) -> datetime | None:
    return datetime.fromisoformat(time).astimezone(UTC) if time else None


def _language(tag: str) -> tuple[str | None, tuple[Oddity, ...]]:
    tag = tag.strip().replace("_", "-")  # Java and POSIX write zh_CN
    if not tag or _LANGUAGE.fullmatch(tag):
        return tag or None, ()
    return None, (Oddity(code="unknown_language", detail=one_line(tag)),)


def _sender(given: Mapping[str, Any], facts: Mapping[str, Any]) -> Sender:
    return Sender(name=one_line(given.get("name") or "") or None, identities=tuple(_identities(given, facts)))


def _identities(given: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Identity]:
    vouched = facts.get("vouches_for", ())
    for kind, form in (("user_id", one_line), ("email", _email), ("phone", _phone)):
        if value := form(given.get(kind) or ""):
            account = facts.get("client") if kind == "user_id" else None
            yield Identity(kind=kind, value=value, verified=kind in vouched, account=account)


def _email(address: str) -> str:
    local, at, domain = one_line(address).rpartition("@")
    return f"{local}{at}{domain.lower()}"


def _phone(number: str) -> str:
    """E.164 where it begins with a country code, else as given: we do not know whose national numbers these are."""
    number = one_line(number)
    if not number.startswith("+"):
        return number
    try:
        return phonenumbers.format_number(phonenumbers.parse(number), phonenumbers.PhoneNumberFormat.E164)
    except phonenumbers.NumberParseException:
        return number


def _clean(value: Any) -> Any:
    """A field without control characters: PostgreSQL's jsonb refuses the whole ticket for one NUL."""
    if isinstance(value, str):
        return without_controls(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return {key: _clean(item) for key, item in value.items()} if isinstance(value, dict) else value


def _attachments(given: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    for one in given:
        name, declared = file_name(one.get("filename") or ""), one_line(one.get("content_type") or "")
        yield Part(b64decode(one["content"]), name, declared)


def _files(uploads: list[formdata.Upload]) -> Iterator[Part]:
    for upload in uploads:
        yield Part(upload.content, file_name(upload.filename), one_line(upload.content_type))
