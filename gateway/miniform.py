"""The form inside a mini-program: logins, files and messages, as its own page sends them.

Nothing that the page says of its user is believed: who they are comes from WeChat's server, at the login. A message and
its files become one multipart body, which holds everything and is what the normalizer `form` reads.
Source: developers.weixin.qq.com/miniprogram/dev/framework/open-ability/login.html, …/open-ability/getPhoneNumber.html,
    /miniprogram/dev/api/network/upload/wx.uploadFile.html
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from pydantic import Field, model_validator

from gateway import formdata, mediatype
from gateway.contract import Context, Rate, RawMessage, Reply, Request, Settings, body_size, json_reply
from gateway.errors import Rejected, Unavailable
from gateway.fields import (
    Checked,
    Fault,
    FieldError,
    FileField,
    FormFields,
    Given,
    Language,
    PhoneField,
    accepted_language,
    check,
    field_error,
    given_object,
    read_object,
)
from gateway.formdata import HEAD_BYTES, Upload, Writer
from gateway.idempotency import idempotency_key
from gateway.ratelimit import TokenBuckets
from gateway.text import file_name, one_line
from gateway.wechat.api import Api
from gateway.wechat.visits import Kept, Visitor, Visits, file_id

SESSION, ATTACHMENTS, MESSAGES = "/session", "/attachments", "/messages"
FILE = "file"  # the part that holds the file: `name` of wx.uploadFile
_MAX_LOGIN_BYTES = 4096
_MAX_UPLOAD_PARTS = 32  # the file, and what `formData` may have beside it
_MAX_AGENT_CHARS = 200


_FIELDS: Any = (
    {"name": "subject", "type": "text", "label": {"zh": "标题", "en": "Subject"}},
    {"name": "text", "type": "textarea", "label": {"zh": "描述", "en": "Description"}, "required": True},
    {"name": "phone", "type": "phone", "label": {"zh": "电话", "en": "Phone"}},
    {"name": "attachments", "type": "file", "label": {"zh": "附件", "en": "Files"}, "max_files": 9},
)


class MiniForm(Settings):
    """The keys of the form inside the mini-program."""

    fields: FormFields = Field(
        default=_FIELDS,
        validate_default=True,
        description="as a webform's; the value of a file field is a list of ids of uploads. Without it: `subject`,"
        " `text`, `phone` and `attachments`",
    )
    phone_codes: tuple[str, ...] = Field(
        default=(),
        description="fields of the type `phone` that take a code of getPhoneNumber, `{code: …}`, and nothing else: the"
        " number is WeChat's, and so it is verified",
    )
    language: Language = Field(default="zh", description="of complaints, where the request prefers neither")
    max_files: int = Field(default=9, ge=0, le=100, description="files of one message, all fields together")
    max_files_per_session: int = Field(default=50, ge=1, le=500, description="different files uploaded in a session")
    session_minutes: int = Field(default=120, ge=1, le=10_080, description="how long a login is good, and its files")
    rate: Rate | None = Field(
        default=Rate(per_minute=60, burst=40),
        description="requests per user, and logins per client address, which many may share; null: unlimited",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        phones = {one.name for one in self.fields if isinstance(one, PhoneField)}
        for name in self.phone_codes:
            if name not in phones:
                raise ValueError(f"phone_codes names {name}, which is no field of the type phone")
        return self

    @property
    def file_fields(self) -> list[FileField]:
        return [one for one in self.fields if isinstance(one, FileField)]


class Faulty(Rejected):
    """Values are not acceptable: one error for each."""

    def __init__(self, errors: Sequence[FieldError], language: Language, code: str = "invalid") -> None:
        summary = ", ".join(f"{error.field}: {error.code}" for error in errors)
        super().__init__(code, reason=summary, extra={"errors": [error.to(language) for error in errors]})


class Form:
    """Of one channel. `max_bytes` bounds a message with all its files."""

    def __init__(self, form: MiniForm, appid: str, max_bytes: int, api: Api, context: Context) -> None:
        self._form = form
        self._appid = appid
        self._max_bytes = max_bytes
        self._context = context
        self._visits = Visits(api, context.shared, appid, form.session_minutes * 60)
        self._logins = TokenBuckets(form.rate) if form.rate else None
        self._users = TokenBuckets(form.rate) if form.rate else None

    async def visitor(self, request: Request) -> Visitor:
        """By the session's token. Raises Rejected("unauthenticated"), and Unavailable."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        visitor = await self._visits.find(token.strip() if scheme.lower() == "bearer" else "")
        _take(self._users, visitor.openid)
        return visitor

    # Logins

    def admit_login(self, request: Request) -> None:
        """Raises Unavailable("rate_limited")."""
        _take(self._logins, request.remote)

    async def log_in(self, request: Request) -> Reply:
        """A session. Raises Rejected and Unavailable, as WeChat's server has it."""
        if body_size(request.body) > _MAX_LOGIN_BYTES:
            raise Rejected("too_large", f"a login may have {_MAX_LOGIN_BYTES} bytes")
        code = (await asyncio.to_thread(read_object, request.body)).get("code")
        if not isinstance(code, str):
            raise Rejected("invalid", "send what wx.login gave as `code`")
        token = await self._visits.begin(code)
        document = {"session": token, "expires_in": self._form.session_minutes * 60}
        return json_reply(document, 201, **{"Cache-Control": "no-store"})

    # Files

    async def upload(self, request: Request, visitor: Visitor) -> Reply:
        """Keeps a file for a message to come. Raises Rejected and Unavailable."""
        upload, language = await _uploaded(request), self._language(request)
        self._demand_wanted(upload, language)
        held = await self._visits.files(visitor)
        most, id_ = self._form.max_files_per_session, file_id(upload.sha256)
        if id_ not in held and len(held) >= most:
            raise Faulty([_of_file(FILE, Fault("too_many_files", limit=most, found=len(held) + 1))], language)
        name, declared = file_name(upload.filename), mediatype.declared(upload.content_type)
        digest = await self._context.uploads.keep(upload.content)
        await self._visits.add(visitor, Kept(digest, name, declared, upload.size))
        return json_reply({"id": id_, "filename": name, "size": upload.size}, 201)

    def _demand_wanted(self, upload: Upload, language: Language) -> None:
        """Some field takes it; which one it is for comes with the message."""
        faults: list[Fault] = []
        for one in self._form.file_fields:
            try:
                return one.demand_file(upload)
            except Fault as fault:
                faults.append(fault)
        if not faults:
            raise Rejected("not_found", "this form takes no files")
        code = "too_large" if faults[-1].code == "file_too_large" else "invalid"
        raise Faulty([_of_file(FILE, faults[-1])], language, code)

    # Messages

    async def message(self, request: Request, visitor: Visitor) -> RawMessage:
        """What was filled in, with its files. Raises Rejected: `invalid` with an error for each field at fault."""
        key = idempotency_key(request.headers.getall("Idempotency-Key", []))
        document = await asyncio.to_thread(read_object, request.body)
        errors = await self._put_numbers(visitor, document)
        chosen = await self._chosen(visitor, document, errors)
        self._demand_room(chosen, errors, self._language(request))
        writer = Writer(self._context.scratch() if any(chosen.values()) else None)
        try:
            checked = await self._write(writer, given_object(document), chosen, errors)
            if checked.errors:
                raise Faulty(checked.errors, self._language(request))
            body = await asyncio.to_thread(writer.finish)
        except BaseException:
            writer.discard()
            raise
        return RawMessage(
            kind="form",
            body=body,
            native_id=f"{visitor.openid}:{key}",
            content_type=writer.content_type,
            facts=self._facts(request, visitor),
            fingerprint=checked.fingerprint(),
            on_conflict="refuse",
        )

    async def _put_numbers(self, visitor: Visitor, document: dict[str, Any]) -> list[FieldError]:
        """Puts the number in the place of every code."""
        errors = []
        for name in self._form.phone_codes:
            value = document.pop(name, None)
            code = value.get("code") if isinstance(value, dict) else None
            try:
                if isinstance(code, str):
                    document[name] = await self._visits.phone(visitor, code)
                elif value not in (None, ""):
                    raise Rejected("invalid")
            except Rejected:
                errors.append(field_error(name, "phone", Fault("phone_code")))
        return errors

    async def _chosen(
        self, visitor: Visitor, document: dict[str, Any], errors: list[FieldError]
    ) -> Mapping[str, list[Kept]]:
        """The files by field. Takes their ids out of the document, and notes those that are not the visitor's."""
        given = {one.name: document.pop(one.name, None) or [] for one in self._form.file_fields}
        held = await self._visits.files(visitor) if any(given.values()) else {}
        chosen: dict[str, list[Kept]] = {}
        for name, ids in given.items():
            listed = ids if isinstance(ids, list) else [ids]
            if all(isinstance(id_, str) and id_ in held for id_ in listed):
                chosen[name] = [held[id_] for id_ in listed]
            else:
                errors.append(_of_file(name, Fault("file_gone")))
        return chosen

    def _demand_room(self, chosen: Mapping[str, list[Kept]], errors: Sequence[FieldError], language: Language) -> None:
        """Before anything is read."""
        files, most = [file for listed in chosen.values() for file in listed], self._form.max_files
        if len(files) > most:
            fault = Fault("too_many_files", limit=most, found=len(files))
            raise Faulty([*errors, *(_of_file(name, fault) for name, listed in chosen.items() if listed)], language)
        if sum(file.size for file in files) > self._max_bytes:
            raise Rejected("too_large", f"a message with its files may have {self._max_bytes} bytes")

    async def _write(
        self, writer: Writer, given: Given, chosen: Mapping[str, list[Kept]], errors: list[FieldError]
    ) -> Checked:
        """One file at a time is in memory."""
        uploads: dict[str, list[Upload]] = {}
        for name, files in chosen.items():
            try:
                uploads[name] = [await self._copy(writer, name, file) for file in files]
            except Rejected:  # it is kept no longer
                errors.append(_of_file(name, Fault("file_gone")))
        good = [one for one in self._form.fields if one.name not in {error.field for error in errors}]
        checked = check(good, replace(given, uploads=uploads), max_files=self._form.max_files)
        for one in good:
            for value in given.values.get(one.name, ()):
                writer.value(one.name, value)
        return replace(checked, errors=[*errors, *checked.errors])

    async def _copy(self, writer: Writer, name: str, file: Kept) -> Upload:
        content = await self._context.uploads.get(file.digest)
        await asyncio.to_thread(writer.file, name, file.filename, file.content_type, content)
        return Upload(name, file.filename, file.content_type, file.size, file.digest, content[:HEAD_BYTES])

    def _facts(self, request: Request, visitor: Visitor) -> dict[str, Any]:
        identities: list[dict[str, Any]] = [
            {"kind": "wechat_openid", "value": visitor.openid, "verified": True, "account": self._appid}
        ]
        if visitor.unionid:
            identities.append({"kind": "wechat_unionid", "value": visitor.unionid, "verified": True})
        facts = {
            "fields": {one.name: list(one.spec) for one in self._form.fields},
            "identities": identities,
            "verified": list(self._form.phone_codes),
            "conversation": f"wechat:{self._appid}:{visitor.openid}",
            "language": accepted_language(request.headers.get("Accept-Language", "")),
            "remote": request.remote,
            "user_agent": one_line(request.headers.get("User-Agent", ""))[:_MAX_AGENT_CHARS],
        }
        return {name: fact for name, fact in facts.items() if fact}

    def _language(self, request: Request) -> Language:
        return accepted_language(request.headers.get("Accept-Language", "")) or self._form.language


def _take(buckets: TokenBuckets | None, client: str) -> None:
    wait = buckets.take(client) if buckets else 0
    if wait:
        raise Unavailable("rate_limited", retry_after=int(wait) + 1)


async def _uploaded(request: Request) -> Upload:
    found = await asyncio.to_thread(
        formdata.parse,
        request.body,
        request.headers.get("Content-Type", ""),
        keep_content=True,
        max_parts=_MAX_UPLOAD_PARTS,
    )
    if [one.name for one in found.uploads] != [FILE]:
        raise Rejected("invalid", f"send one file, in a part named {FILE}")
    return found.uploads[0]


def _of_file(name: str, fault: Fault) -> FieldError:
    return field_error(name, "file", fault)
