"""The mini-program's chat and form, driven as the core drives them, at a stand-in for WeChat's server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, MultiDict
from pydantic import ValidationError

from connectors.miniprogram import Connector
from gateway.contract import (
    Apart,
    BodyFile,
    Context,
    Draft,
    Part,
    RawMessage,
    Receipt,
    Reply,
    Request,
    Shared,
    StoredMessage,
    Uploads,
    Wanted,
    body_digest,
)
from gateway.envelope import Identity
from gateway.errors import HuiruError, Rejected, Unavailable, wire_error
from gateway.fetch import Fetcher
from gateway.formdata import Writer
from gateway.settings import MediaSettings
from normalizers.form import normalize as normalize_form
from normalizers.wechat import normalize as normalize_push
from tests.wechat.peer import AES_KEY, NOW, TOKEN, Peer, fields
from tests.wechatserver import APPID, MEDIA, PHONE, SECRET, SESSION, WeChatServer

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40)
FORM: dict[str, Any] = {
    "fields": [
        {"name": "text", "type": "textarea", "label": {"zh": "描述", "en": "Description"}, "required": True},
        {"name": "order_no", "type": "text", "label": "Order", "pattern": "[0-9]{4}"},
        {"name": "reach", "type": "checkbox", "label": "Reach", "choices": ["mail", "call"]},
        {"name": "phone", "type": "phone", "label": "Phone"},
        {"name": "photo", "type": "file", "label": "Photo", "accept": ["image/*"], "max_bytes": 1000, "max_files": 2},
        {"name": "paper", "type": "file", "label": "Paper", "accept": ["application/pdf"], "max_bytes": 1000},
    ],
    "phone_codes": ["phone"],
    "max_files": 3,
    "max_files_per_session": 4,
    "rate": None,
}
SETTINGS: dict[str, Any] = {
    "type": "miniprogram",
    "appid": APPID,
    "token": TOKEN,
    "aes_key": AES_KEY,
    "secret": SECRET,
    "form": FORM,
}
PEER = Peer(appid=APPID)
TEXT: dict[str, Any] = {
    "ToUserName": "gh_aa11",
    "FromUserName": "oUser01",
    "CreateTime": NOW,
    "MsgType": "text",
    "Content": "坏了",
    "MsgId": "49d72d67-a1_1555684067",
}
CHECKS = [b'{"action":"CheckContainerPath"}', b"<xml><action><![CDATA[CheckContainerPath]]></action></xml>"]


class Files(Uploads):
    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def keep(self, content: bytes, /) -> str:
        digest = sha256(content).hexdigest()
        self.kept[digest] = content
        return digest

    async def get(self, digest: str, /) -> bytes:
        if digest not in self.kept:
            raise Rejected("gone")
        return self.kept[digest]


class Away(Shared):
    """Redis that does not answer."""

    async def _fail(self, *_: Any, **__: Any) -> Any:
        raise Unavailable(reason="Redis is away")

    get = put = claim = merge = delete = _fail


@dataclass
class Channel:
    """A connector with its surroundings, and what the core would do with it."""

    connector: Connector
    files: Files
    shared: Apart
    folder: Path
    accepted: list[RawMessage] = field(default_factory=list)

    async def ask(self, request: Request) -> Reply:
        """Accepts what is accepted as the spool would: the same native id is a duplicate, or other content."""
        try:
            await self.connector.admit(request)
            sender = await self.connector.verify(request)
            found = await self.connector.extract(request, sender)
            if isinstance(found, Reply):
                return found
            return self.connector.reply(request, [self._accept(raw) for raw in found])
        except HuiruError as error:
            return self.connector.refuse(request, wire_error(error))

    def _accept(self, raw: RawMessage) -> Receipt:
        known = [one for one in self.accepted if one.native_id == raw.native_id and raw.native_id]
        if known and raw.on_conflict == "refuse" and known[0].fingerprint != raw.fingerprint:
            raise Rejected("idempotency_mismatch")
        self.accepted.append(raw)
        return Receipt("id", "7K3M-9QX2-4WPD", bool(known))

    async def post(self, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
        reply = await self.ask(call(path, body, **headers))
        return reply.status, json.loads(reply.body)

    async def log_in(self, wechat: WeChatServer, openid: str = "oUser01", unionid: str | None = "uUser01") -> str:
        status, answer = await self.post("/session", dumped({"code": wechat.login(openid, unionid)}))
        assert status == 201, answer
        return str(answer["session"])

    async def upload(self, session: str, content: bytes = PNG, name: str = "a.png") -> tuple[int, dict[str, Any]]:
        writer = Writer()
        writer.value("user", "formData of wx.uploadFile")
        writer.file("file", name, "image/png", content)
        body = writer.finish()
        assert isinstance(body, bytes)
        return await self.post("/attachments", body, Content_Type=writer.content_type, **bearer(session))

    async def submit(
        self, session: str, values: Mapping[str, Any], key: str = "k-1", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        return await self.post("/messages", dumped(values), Idempotency_Key=key, **bearer(session), **headers)

    def draft(self, number: int = -1) -> Draft:
        """What the normalizer makes of a message."""
        raw = self.accepted[number]
        body = raw.body.path.read_bytes() if isinstance(raw.body, BodyFile) else raw.body
        stored = StoredMessage("id", "mini", raw.kind, body, raw.content_type, raw.native_id, raw.facts, NOON)
        return normalize_form(stored) if raw.kind == "form" else normalize_push(stored)


NOON = datetime.fromtimestamp(NOW, UTC)
Make = Callable[..., Channel]


def dumped(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def bearer(session: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {session}"}


def call(path: str, body: bytes = b"", method: str = "POST", **headers: str) -> Request:
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return Request(method, path, f"https://x.example/c/mini{path}", MultiDict(), named, "203.0.113.5", body)


@pytest.fixture
async def wechat() -> AsyncIterator[WeChatServer]:
    async with WeChatServer() as server:
        yield server


@pytest.fixture
async def make(wechat: WeChatServer, tmp_path: Path) -> AsyncIterator[Make]:
    """`make(format="json", form={…})`: a channel with these keys beside the usual ones."""
    http = Fetcher(MediaSettings())
    paths = (tmp_path / f"body-{number}" for number in range(1000))

    def made(shared: Shared | None = None, *, without: Sequence[str] = (), **changed: Any) -> Channel:
        given = {**SETTINGS, "api_base_url": wechat.url, **changed}
        given = {key: value for key, value in given.items() if key not in without}
        held, files = shared or Apart(), Files()
        context = Context(
            "acme",
            "https://x.example",
            lambda _: bytes(32),
            lambda: NOON,
            scratch=lambda: next(paths),
            shared=held,
            http=http,
            uploads=files,
        )
        connector = Connector("mini", Connector.Settings.model_validate(given), context)
        return Channel(connector, files, held, tmp_path)  # type: ignore[arg-type]  # Apart, where it is looked at

    yield made
    await http.close()


@pytest.fixture
def channel(make: Make) -> Channel:
    return make()


# --- the settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"secret": None}, "form needs secret"),
        ({"form": {**FORM, "phone_codes": ["text"]}}, "phone_codes names text"),
        ({"form": {**FORM, "phone_codes": ["mobile"]}}, "phone_codes names mobile"),
        ({"max_request_bytes": 1024, "form": {"fields": [{**FORM["fields"][4], "max_bytes": 2000}]}}, "max_bytes of"),
        ({"token": ""}, "token"),
        ({"aes_key": "short"}, "EncodingAESKey"),
        ({"format": "yaml"}, "format"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(make: Make, changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        make(**changed)


# --- logins -----------------------------------------------------------------------------------------------------------


async def test_a_login_gives_a_session_and_nothing_of_wechats(channel: Channel, wechat: WeChatServer) -> None:
    reply = await channel.ask(call("/session", dumped({"code": wechat.login("oUser01")})))

    answer = json.loads(reply.body)
    assert (reply.status, set(answer), answer["expires_in"]) == (201, {"session", "expires_in"}, 7200)
    assert reply.headers["Cache-Control"] == "no-store"
    stored = repr(vars(channel.shared))
    assert "oUser01" in stored
    assert answer["session"] not in stored
    assert "session_key" not in stored


async def test_a_code_that_wechat_refuses_is_no_login(channel: Channel, wechat: WeChatServer) -> None:
    code = wechat.login("oUser01")
    await channel.post("/session", dumped({"code": code}))

    again = await channel.post("/session", dumped({"code": code}))
    guessed = await channel.post("/session", dumped({"code": "guessed"}))

    assert [status for status, _ in (again, guessed)] == [401, 401]


async def test_while_wechats_server_is_in_trouble_the_login_comes_again(channel: Channel, wechat: WeChatServer) -> None:
    code = wechat.login("oUser01")
    wechat.fail_once(SESSION, -1)

    reply = await channel.ask(call("/session", dumped({"code": code})))

    assert (reply.status, int(reply.headers["Retry-After"]) > 0) == (503, True)
    assert (await channel.post("/session", dumped({"code": code})))[0] == 201


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"code": 7}', b'{"code": null}', b'{"openid": "oUser01"}'])
async def test_a_login_without_a_code_is_refused(channel: Channel, body: bytes) -> None:
    status, _ = await channel.post("/session", body)

    assert status in (400, 422)


async def test_a_login_is_small(channel: Channel) -> None:
    assert (await channel.post("/session", dumped({"code": "x" * 5000})))[0] == 413


@pytest.mark.parametrize("path", ["/attachments", "/messages"])
@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer guessed", "Basic Og==", f"Bearer {'A' * 43}"])
async def test_without_a_session_one_is_told_to_log_in(channel: Channel, path: str, given: str | None) -> None:
    reply = await channel.ask(call(path, b"{}", **({} if given is None else {"Authorization": given})))

    problem = json.loads(reply.body)
    assert (reply.status, problem["code"], problem["action"]) == (401, "unauthenticated", "login")
    assert reply.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_session_ends(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)
    channel.shared._values.clear()  # as Redis does when the time is over

    status, problem = await channel.submit(session, {"text": "坏了"})

    assert (status, problem["action"]) == (401, "login")


async def test_without_redis_nobody_is_logged_in_and_everybody_comes_again(make: Make, wechat: WeChatServer) -> None:
    channel = make(Away())

    calls = [
        call("/session", dumped({"code": wechat.login("oUser01")})),
        call("/attachments", b"", **bearer("A" * 43)),
        call("/messages", b"{}", **bearer("A" * 43)),
    ]
    replies = [await channel.ask(one) for one in calls]

    assert [(reply.status, int(reply.headers["Retry-After"]) > 0) for reply in replies] == [(503, True)] * 3


async def test_a_user_and_an_address_may_not_ask_too_often(make: Make, wechat: WeChatServer) -> None:
    channel = make(form={**FORM, "rate": {"per_minute": 1, "burst": 2}})
    mine, other = await channel.log_in(wechat), await channel.log_in(wechat, "oOther")

    logins = [await channel.post("/session", b"{}")]
    mines = [await channel.submit(mine, {"text": "坏了"}, key) for key in ("1", "2", "3")]
    others = [await channel.submit(other, {"text": "坏了"})]

    assert [status for status, _ in (*logins, *mines, *others)] == [429, 202, 202, 429, 202]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/messages", 405), ("POST", "/other", 404)])
async def test_elsewhere_there_is_nothing(channel: Channel, method: str, path: str, status: int) -> None:
    assert (await channel.ask(call(path, method=method))).status == status


@pytest.mark.parametrize("path", ["/session", "/attachments", "/messages"])
async def test_without_a_form_there_is_only_the_chat(make: Make, path: str) -> None:
    assert (await make(form=None, secret=None).ask(call(path, b"{}"))).status == 404


async def test_a_form_of_its_own_needs_no_words(make: Make, wechat: WeChatServer) -> None:
    channel = make(without=("form",))
    session = await channel.log_in(wechat)
    _, photo = await channel.upload(session)

    status, _ = await channel.submit(session, {"text": "坏了", "attachments": [photo["id"]]})

    assert status == 202
    draft = channel.draft()
    assert (draft.message.text, [part.content for part in draft.parts]) == ("坏了", [PNG])


def test_without_a_secret_there_is_no_form_by_itself(make: Make) -> None:
    channel = make(without=("form", "secret"))

    assert channel.connector._form is None


# --- files ------------------------------------------------------------------------------------------------------------


async def test_a_file_is_kept_for_its_user(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)

    status, answer = await channel.upload(session, name="C:\\照片 1.png")
    again = await channel.upload(session, name="C:\\照片 1.png")

    assert (status, answer["filename"], answer["size"]) == (201, "照片 1.png", len(PNG))
    assert again == (201, answer)
    assert list(channel.files.kept.values()) == [PNG]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "file_empty"),
        (PNG + bytes(2000), 413, "file_too_large"),
        (b"MZ\x90\0 a program", 422, "file_type"),
    ],
)
async def test_a_file_that_no_field_takes_is_not_kept(
    channel: Channel, wechat: WeChatServer, content: bytes, status: int, code: str
) -> None:
    session = await channel.log_in(wechat)

    found, problem = await channel.upload(session, content)

    assert (found, problem["errors"][0]["field"], problem["errors"][0]["code"]) == (status, "file", code)
    assert not channel.files.kept


async def test_one_call_has_one_file(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)
    none, two, other = Writer(), Writer(), Writer()
    none.value("file", "no file")
    for _ in range(2):
        two.file("file", "a.png", "image/png", PNG)
    other.file("image", "a.png", "image/png", PNG)

    for writer in (none, two, other):
        body = writer.finish()
        assert isinstance(body, bytes)
        status, _ = await channel.post("/attachments", body, Content_Type=writer.content_type, **bearer(session))
        assert status == 422
    assert (await channel.post("/attachments", b"{}", Content_Type="application/json", **bearer(session)))[0] == 415


async def test_a_session_has_room_for_some_files(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)
    kept = [await channel.upload(session, PNG + bytes([number])) for number in range(4)]

    one_more = await channel.upload(session, PNG + b"\x09")
    known = await channel.upload(session, PNG + b"\0")

    assert [status for status, _ in kept] == [201] * 4
    assert (one_more[0], one_more[1]["errors"][0]["code"]) == (422, "too_many_files")
    assert known == kept[0]
    assert len(channel.files.kept) == 4


# --- messages ---------------------------------------------------------------------------------------------------------


async def test_a_message_is_whole_and_its_user_is_known(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)
    _, photo = await channel.upload(session, name='照片"1.png')
    code = wechat.phone_code("13812345678")
    values = {
        "text": "坏了\n红灯",
        "order_no": 7788,
        "reach": ["mail", "call"],
        "phone": {"code": code},
        "photo": [photo["id"]],
        "openid": "oSomebodyElse",
        "unionid": "uSomebodyElse",
    }

    status, answer = await channel.submit(
        session, values, Accept_Language="zh-CN,zh;q=0.9", User_Agent="MicroMessenger"
    )

    assert (status, answer) == (202, {"id": "id", "reference": "7K3M-9QX2-4WPD", "status": "accepted"})
    (raw,) = channel.accepted
    assert isinstance(raw.body, BodyFile)
    assert (raw.body.size, raw.body.sha256) == (raw.body.path.stat().st_size, body_digest(raw.body.path.read_bytes()))
    assert raw.native_id == "oUser01:k-1"
    channel.files.kept.clear()  # the message needs them no more
    draft = channel.draft()
    message = draft.message
    assert draft.parts == (Part(PNG, '照片"1.png', "image/png"),)
    assert (message.kind, message.text, message.language) == ("form", "坏了\n红灯", "zh")
    assert message.fields == {"order_no": "7788", "reach": ["mail", "call"]}
    assert message.conversation == f"wechat:{APPID}:oUser01"
    assert message.sender.identities == (
        Identity(kind="wechat_openid", value="oUser01", verified=True, account=APPID),
        Identity(kind="wechat_unionid", value="uUser01", verified=True),
        Identity(kind="phone", value="+8613812345678", verified=True),
    )


async def test_a_message_without_files_needs_none(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat, unionid=None)

    status, _ = await channel.submit(session, {"text": "坏了", "photo": [], "paper": None, "phone": None})

    assert status == 202
    assert isinstance(channel.accepted[0].body, bytes)
    assert channel.draft().message.sender.identities == (
        Identity(kind="wechat_openid", value="oUser01", verified=True, account=APPID),
    )
    assert list(channel.folder.iterdir()) == []


async def test_the_same_key_is_the_same_message_also_after_another_login(
    channel: Channel, wechat: WeChatServer
) -> None:
    session = await channel.log_in(wechat)
    _, photo = await channel.upload(session)
    values = {"text": "坏了", "photo": photo["id"], "phone": {"code": wechat.phone_code("13812345678")}}

    first = await channel.submit(session, values)
    again = await channel.submit(session, values)
    another = await channel.log_in(wechat)
    await channel.upload(another)
    later = await channel.submit(another, values | {"phone": {"code": wechat.phone_code("13812345678")}})
    other = await channel.submit(session, values | {"text": "好了"})

    assert [status for status, _ in (first, again, later, other)] == [202, 200, 200, 422]
    assert other[1]["code"] == "idempotency_mismatch"
    assert wechat.times(PHONE) == 2  # a code that comes again is not asked for again


async def test_a_key_is_its_users_own(channel: Channel, wechat: WeChatServer) -> None:
    mine, other = await channel.log_in(wechat), await channel.log_in(wechat, "oOther")

    answers = [await channel.submit(session, {"text": "坏了"}) for session in (mine, other)]

    assert [status for status, _ in answers] == [202, 202]
    assert [raw.native_id for raw in channel.accepted] == ["oUser01:k-1", "oOther:k-1"]


@pytest.mark.parametrize("key", [None, "", " ", "a b", "x" * 256])
async def test_a_message_needs_a_key(channel: Channel, wechat: WeChatServer, key: str | None) -> None:
    headers = bearer(await channel.log_in(wechat)) | ({} if key is None else {"Idempotency_Key": key})

    assert (await channel.post("/messages", dumped({"text": "坏了"}), **headers))[0] == 400


async def test_every_fault_is_listed_in_the_readers_language(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)
    values = {"order_no": "12", "phone": "13812345678", "photo": ["none"], "reach": {"a": 1}, "paper": {"id": 1}}

    status, problem = await channel.submit(session, values, Accept_Language="en-GB")

    assert status == 422
    assert {error["field"]: error["code"] for error in problem["errors"]} == {
        "text": "required",
        "order_no": "pattern",
        "phone": "phone_code",
        "reach": "wrong_type",
        "photo": "file_gone",
        "paper": "file_gone",
    }
    assert "Please fill this in" in {error["message"] for error in problem["errors"]}
    assert not channel.accepted


async def test_a_phone_code_that_wechat_refuses_is_a_fault_of_the_field(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)

    status, problem = await channel.submit(session, {"text": "坏了", "phone": {"code": "guessed"}})

    assert (status, problem["errors"][0]["code"]) == (422, "phone_code")


async def test_another_users_file_is_nobodys(channel: Channel, wechat: WeChatServer) -> None:
    mine, other = await channel.log_in(wechat), await channel.log_in(wechat, "oOther")
    _, photo = await channel.upload(mine)

    status, problem = await channel.submit(other, {"text": "坏了", "photo": photo["id"]})

    assert (status, problem["errors"][0]["code"]) == (422, "file_gone")


async def test_a_file_that_is_kept_no_longer_has_to_come_again(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)
    _, photo = await channel.upload(session)
    channel.files.kept.clear()

    status, problem = await channel.submit(session, {"text": "坏了", "photo": photo["id"]})

    assert (status, problem["errors"][0]["code"]) == (422, "file_gone")
    assert list(channel.folder.iterdir()) == []


async def test_a_file_goes_where_its_field_takes_it(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)
    ids = [(await channel.upload(session, PNG + bytes([number])))[1]["id"] for number in range(4)]

    wrong = await channel.submit(session, {"text": "坏了", "paper": ids[:1]})
    too_many = await channel.submit(session, {"text": "坏了", "photo": ids[:3]})
    far_too_many = await channel.submit(session, {"text": "坏了", "photo": ids})

    codes = [problem["errors"][0]["code"] for _, problem in (wrong, too_many, far_too_many)]
    assert codes == ["file_type", "too_many_files", "too_many_files"]
    assert list(channel.folder.iterdir()) == []


async def test_the_files_of_a_message_together_are_bounded(make: Make, wechat: WeChatServer) -> None:
    channel = make(max_request_bytes=1500)
    session = await channel.log_in(wechat)
    ids = [(await channel.upload(session, PNG + bytes([number]) * 800))[1]["id"] for number in range(2)]

    assert (await channel.submit(session, {"text": "坏了", "photo": ids}))[0] == 413


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=6), values, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([one["name"] for one in FORM["fields"]])


async def test_whatever_is_posted_is_answered(channel: Channel, wechat: WeChatServer) -> None:
    session = await channel.log_in(wechat)
    values = st.dictionaries(NAMES, JSON | st.fixed_dictionaries({"code": JSON}), max_size=6)

    loop = asyncio.get_running_loop()

    async def post(body: bytes) -> None:
        status, _ = await channel.post("/messages", body, Idempotency_Key="k", **bearer(session))
        assert status < 500
        if channel.accepted:
            channel.draft()
        channel.accepted.clear()

    @settings(max_examples=100, deadline=None)
    @given(body=st.binary(max_size=60) | values.map(lambda found: json.dumps({"text": "坏了", **found}).encode()))
    def ask(body: bytes) -> None:
        asyncio.run_coroutine_threadsafe(post(body), loop).result()

    await asyncio.to_thread(ask)


# --- the chat ---------------------------------------------------------------------------------------------------------


def pushed(message: dict[str, Any], form: str = "json") -> Request:
    plain = dumped(message) if form == "json" else as_xml(message)
    return PEER.push(plain, form=form, nonce=sha256(plain).hexdigest()[:16])


def as_xml(message: dict[str, Any]) -> bytes:
    return f"<xml>{''.join(f'<{name}><![CDATA[{value}]]></{name}>' for name, value in message.items())}</xml>".encode()


@pytest.mark.parametrize("form", ["json", "xml"])
async def test_a_message_of_the_chat_is_a_ticket(make: Make, form: str) -> None:
    channel = make(format=form)

    reply = await channel.ask(pushed(TEXT, form))

    assert (reply.status, reply.body) == (200, b"success")
    (raw,) = channel.accepted
    assert raw.native_id == f"{APPID}:oUser01:49d72d67-a1_1555684067"
    message = channel.draft().message
    assert (message.text, message.conversation) == ("坏了", f"wechat:{APPID}:oUser01")
    assert message.sender.identities == (Identity(kind="wechat_openid", value="oUser01", verified=True, account=APPID),)


@pytest.mark.parametrize("form", ["json", "xml"])
async def test_a_format_that_was_not_chosen_is_refused(make: Make, form: str) -> None:
    channel = make(format="xml" if form == "json" else "json")

    assert (await channel.ask(pushed(TEXT, form))).status == 415
    assert not channel.accepted


async def test_in_plaintext_both_are_read_too(make: Make) -> None:
    channel = make(mode="plaintext", aes_key=None, form=None)

    replies = [await channel.ask(PEER.plain(dumped(TEXT), nonce="1")), await channel.ask(PEER.plain(as_xml(TEXT)))]

    assert [reply.body for reply in replies] == [b"success"] * 2
    assert channel.draft().message.authentication.verdict == "none"


CARD = {"Title": "订单", "AppId": APPID, "PagePath": "pages/order?id=7", "ThumbUrl": "https://x.example/t"}


@pytest.mark.parametrize(
    ("message", "wanted", "fields_"),
    [
        ({"MsgType": "image", "PicUrl": "http://x.example/p", "MediaId": "M1"}, ["image"], {"MediaId": "M1"}),
        ({"MsgType": "miniprogrampage", **CARD, "ThumbMediaId": "M2"}, ["thumb"], {"PagePath": "pages/order?id=7"}),
        ({"MsgType": "link", "Title": "页", "Url": "https://x.example/"}, [], {"Url": "https://x.example/"}),
        ({"MsgType": "hologram", "Shape": "cube"}, [], {"MsgType": "hologram", "Shape": "cube"}),
    ],
)
async def test_every_type_of_message_is_a_ticket(
    channel: Channel, message: dict[str, Any], wanted: list[str], fields_: dict[str, Any]
) -> None:
    common = {name: value for name, value in TEXT.items() if name != "Content"}

    reply = await channel.ask(pushed({**common, **message}))

    assert reply.body == b"success"
    draft = channel.draft()
    assert [one.what for one in draft.wanted] == wanted
    assert fields_.items() <= draft.message.fields.items()


async def test_a_picture_is_fetched_from_wechats_server(channel: Channel, wechat: WeChatServer) -> None:
    wechat.add_media("M1", PNG, "image/png", "a.png")

    part = await channel.connector.fetch(Wanted("image", "M1"))

    assert part == Part(PNG, "a.png", "image/png")
    assert wechat.times(MEDIA) == 1


async def test_without_a_secret_there_are_no_files(make: Make) -> None:
    channel = make(secret=None, form=None)

    await channel.ask(pushed({**TEXT, "MsgType": "image", "MediaId": "M1"}))

    draft = channel.draft()
    assert ([one.what for one in draft.message.omissions], draft.wanted) == (["image"], ())
    with pytest.raises(Rejected):
        await channel.connector.fetch(Wanted("image", "M1"))


ENTERED = {
    "ToUserName": "gh_aa11",
    "FromUserName": "oUser01",
    "CreateTime": NOW,
    "MsgType": "event",
    "Event": "user_enter_tempsession",
    "SessionFrom": "order-7",
}


async def test_who_opens_the_chat_is_counted_and_where_is_remembered(channel: Channel) -> None:
    entered = await channel.ask(pushed(ENTERED))
    await channel.ask(pushed(TEXT))

    assert (entered.body, list(entered.ignored)) == (b"success", ["event_user_enter_tempsession"])
    assert channel.draft().message.fields["source"] == "order-7"


async def test_an_event_that_is_listed_is_a_ticket(make: Make) -> None:
    channel = make(events={"user_enter_tempsession": "all"})

    await channel.ask(pushed(ENTERED))
    await channel.ask(pushed({**ENTERED, "Event": "user_leave"}))

    assert len(channel.accepted) == 1
    assert channel.draft().message.kind == "event"
    assert channel.accepted[0].native_id == f"{APPID}:oUser01:{NOW}:user_enter_tempsession:"


async def test_without_redis_the_chat_goes_on(make: Make) -> None:
    channel = make(Away())

    replies = [await channel.ask(pushed(ENTERED)), await channel.ask(pushed(TEXT))]

    assert [reply.body for reply in replies] == [b"success"] * 2
    assert len(channel.accepted) == 1


@pytest.mark.parametrize("body", CHECKS)
async def test_the_hostings_check_is_answered_and_is_nothing_else(channel: Channel, body: bytes) -> None:
    reply = await channel.ask(call("", body))

    assert (reply.status, reply.body, channel.accepted) == (200, b"success", [])


@pytest.mark.parametrize(
    "body",
    [
        b'{"action":"CheckContainerPath","MsgType":"text","FromUserName":"o"}',
        b'{"action":"Other"}',
        b"<xml><action>CheckContainerPath</action><MsgType>text</MsgType></xml>",
        b'{"action":"CheckContainerPath"}' + b" " * 300,
    ],
)
async def test_what_only_resembles_the_check_needs_a_signature(channel: Channel, body: bytes) -> None:
    assert (await channel.ask(call("", body))).status == 403
    assert not channel.accepted


@pytest.mark.parametrize("form", ["json", "xml"])
async def test_a_message_is_handed_on_in_the_same_format(make: Make, form: str) -> None:
    channel = make(transfer_customer_service=True)

    replies = [await channel.ask(pushed(TEXT, form)) for _ in range(2)]
    entered = await channel.ask(pushed(ENTERED, form))

    for reply in replies:
        assert reply.body.startswith(b"{" if form == "json" else b"<")
        handed = fields(PEER.read(reply.body))
        assert (handed["MsgType"], handed["ToUserName"]) == ("transfer_customer_service", "oUser01")
    assert entered.body == b"success"


async def test_what_is_authentic_and_cannot_be_read_is_kept(make: Make) -> None:
    channel = make(transfer_customer_service=True)

    reply = await channel.ask(PEER.push(b"not a document", form="json"))

    assert reply.body == b"success"
    with pytest.raises(Rejected):
        channel.draft()


async def test_a_message_of_nobody_is_answered_all_the_same(make: Make) -> None:
    channel = make(transfer_customer_service=True)

    reply = await channel.ask(pushed({"MsgType": "text", "MsgId": "1"}))

    assert reply.body == b"success"


async def test_a_forged_push_is_refused(channel: Channel) -> None:
    forged = Peer(token="a-token-that-was-guessed", appid=APPID)

    assert (await channel.ask(forged.push(dumped(TEXT), form="json"))).status == 403
    assert (await channel.ask(PEER.plain(dumped(TEXT)))).status == 403
    assert not channel.accepted


async def test_the_console_is_given_its_echo(channel: Channel) -> None:
    assert (await channel.ask(PEER.echo("4375120948345356249"))).body == b"4375120948345356249"


async def test_the_probe_says_that_the_secret_is_wrong(make: Make) -> None:
    channel = make(secret="another")

    with pytest.raises(Unavailable, match="secret is wrong"):
        await channel.connector.probe()
    assert "secret is wrong" in channel.connector.trouble
