"""Telephone calls, as cloud call centres and exchanges report them by callback.

Protocol: `GET` or `POST /c/NAME`, or `/c/NAME/<secret>`, in whatever form the vendor has: the address' parameters, a
    form, a JSON object or array, XML, a record in a form value. A vendor is data: gateway/voice/preset.py.
Authentication: a secret in the path, Basic, a bearer or another header, Twilio's signature, an HMAC, source networks,
    or several of them (gateway/voice/signature.py). None at all only where the configuration says so, with a warning
    at every start.
Redelivery: most vendors try again until they get what they call success; each preset says what is known. A callback
    that comes again is the same ticket.
Tickets: several callbacks belong to one call, in any order; `tickets` says which calls become one. What comes to be
    known after the ticket is an update of it (gateway/voice/outcome.py). What becomes neither is counted, by its code.
Limits: `max_request_bytes`, and those of gateway/voice/reading.py. A record in a list that cannot be read goes to
    quarantine, and its neighbours go on.
Source: the vendors' pages, named in gateway/voice/presets/.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import phonenumbers
import structlog
from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from gateway.contract import (
    ChannelSettings,
    Context,
    Part,
    Profile,
    RawMessage,
    Receipt,
    Reply,
    Request,
    Wanted,
    WebhookConnector,
)
from gateway.errors import HuiruError, Rejected
from gateway.voice import answer
from gateway.voice.call import native_id
from gateway.voice.outcome import Outcome, outcome
from gateway.voice.preset import Preset, Zone, preset
from gateway.voice.report import Report
from gateway.voice.rules import Rules
from gateway.voice.signature import Authentication, Gate, Nobody, Twilio
from gateway.voice.sound import Recordings, Sounds
from gateway.voice.state import State
from gateway.voice.translation import Found, reports

log = structlog.get_logger()

KIND = "call"
REFERENCE = "Huiru-Reference"  # in answers, beside what the vendor wants to hear
_IGNORED = "ignored"  # in the request's notes


def _several(given: Any) -> Any:
    return (given,) if isinstance(given, Mapping) else given


Schemes = Annotated[
    tuple[Authentication, ...],
    BeforeValidator(_several, json_schema_input_type=Authentication | list[Authentication]),
]


class VoiceSettings(ChannelSettings):
    """The keys of a `voice` channel."""

    type: Literal["voice"]
    preset: str | dict[str, Any] = Field(
        description="the vendor: a built-in preset by its name, one with keys of its own (`{use: tccc, zone: …}`), or a"
        " whole one: see config/channels/voice.md"
    )
    authentication: Schemes = Field(
        default=(), description="how callers prove who they are, one way or several that must all agree"
    )
    auth_token: SecretStr | None = Field(
        default=None, min_length=1, description="Twilio's Auth Token: short for an `authentication` of that scheme"
    )
    region: str = Field(default="CN", description="of numbers without a country code: ISO 3166, two letters")
    zone: Zone = Field(default="Asia/Shanghai", description="of the times in the tickets' text: an IANA name")
    language: Literal["zh", "en"] = Field(default="zh", description="of the tickets' subject and text")
    tickets: Rules = Field(default=Rules(), description="which calls become tickets")
    recordings: Recordings = Field(default=Recordings(), description="what is done about recordings and voicemails")
    state_hours: float = Field(
        default=72,
        gt=0,
        le=168,
        description="how long after a call's last callback the next is known to belong to it; not longer than"
        " `stream.dedup_window_hours`",
    )

    @field_validator("region")
    @classmethod
    def _demand_region(cls, region: str) -> str:
        if region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError("expected a country's two letters in capitals, such as CN")
        return region

    @model_validator(mode="after")
    def _demand_sense(self) -> "VoiceSettings":
        self.vendor()
        schemes = self.schemes()
        if not schemes:
            raise ValueError("say who may call: authentication; `{scheme: none}` lets everybody in")
        if any(isinstance(scheme, Nobody) for scheme in schemes) and len(schemes) > 1:
            raise ValueError("the scheme none stands alone")
        return self

    def vendor(self) -> Preset:
        """Raises ValueError."""
        return preset(self.preset)

    def schemes(self) -> tuple[Authentication, ...]:
        token = self.auth_token
        return (*self.authentication, *([Twilio(scheme="twilio", auth_token=token)] if token else []))


class Connector(WebhookConnector):
    """`voice`: see the module."""

    Settings = VoiceSettings
    redelivers = True
    methods = frozenset({"GET", "POST"})
    settings: VoiceSettings

    def __init__(self, name: str, settings: VoiceSettings, context: Context) -> None:
        super().__init__(name, settings, context)
        self._preset = settings.vendor()
        self._zone = ZoneInfo(settings.zone)
        self._gate = Gate(name, settings.schemes(), context.shared, context.now)
        self._sounds = Sounds(settings.recordings, self._preset.fetching, context.http)
        keep = timedelta(hours=settings.state_hours)
        self._state = State(context.shared, context.memory, context.now, account=name, keep=keep)
        if any(isinstance(scheme, Nobody) for scheme in settings.schemes()):
            log.warning("unauthenticated", channel=name, reason="whoever knows the address can make tickets here")

    async def admit(self, request: Request) -> None:
        if request.method == "HEAD":  # it would be a GET to us, and a GET can be a callback
            raise Rejected("method_not_allowed")
        self._gate.admit(request)

    async def verify(self, request: Request) -> Mapping[str, Any]:
        return await self._gate.verify(request)

    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Reply | Sequence[RawMessage]:
        found = await asyncio.to_thread(reports, self._preset, request, self.settings.region)
        if len(found) == 1 and found[0].report is None and not found[0].record.fault:
            raise Rejected("malformed", found[0].fault)
        content_type = request.headers.get("Content-Type", "")
        messages: list[RawMessage] = []
        ignored: list[str] = request.notes.setdefault(_IGNORED, [])
        for one in found:  # in their order: those of one call may follow each other
            messages += await self._messages(one, content_type, ignored)
        return messages or self.reply(request, [])

    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        reference = receipts[0].reference if receipts else ""
        said = answer.success(self._preset, reference)
        headers = {**said.headers, REFERENCE: reference} if reference else said.headers
        return Reply(said.status, said.body, said.content_type, headers, tuple(request.notes.get(_IGNORED, ())))

    def refuse(self, request: Request, error: BaseException) -> Reply:
        unknown = isinstance(error, HuiruError) and error.code == "unauthenticated"
        return answer.failure(self._preset, error, **(self._gate.challenge if unknown else {}))

    async def fetch(self, wanted: Wanted) -> Part | Profile:
        return await self._sounds.fetch(wanted)

    # Messages

    async def _messages(self, found: Found, content_type: str, ignored: list[str]) -> list[RawMessage]:
        report, body = found.report, found.record.raw
        if report is None:
            return [RawMessage(KIND, body, None, content_type, {"unreadable": found.fault})]
        if report.kind == "other":
            ignored.append("other")
            return []
        made = await outcome(report, self._state, self.settings.tickets)
        if made.ignored:
            ignored.append(made.ignored)
        messages = []
        if made.ticket:
            messages.append(self._ticket(made, body, content_type))
        if made.update:
            messages.append(self._update(made, report, body, content_type))
        return messages

    def _ticket(self, made: Outcome, body: bytes, content_type: str) -> RawMessage:
        """Whoever makes it and of whichever callback, it is the same message: its fingerprint is its id's."""
        id_, call = native_id(made.call.id), made.call
        facts = self._facts(made) | {"transcription": call.transcription}
        facts["recordings"] = [one.model_dump(mode="json") for one in call.recordings]
        return RawMessage(KIND, body, id_, content_type, facts, sha256(_bytes(id_)).digest())

    def _update(self, made: Outcome, report: Report, body: bytes, content_type: str) -> RawMessage:
        ticket = native_id(made.call.id)
        facts = self._facts(made) | {"transcription": report.transcription, "kind": report.kind, "updates": ticket}
        facts["recordings"] = [one.model_dump(mode="json") for one in made.new]
        fingerprint = sha256(_bytes(report.model_dump_json())).digest()
        # By its digest: with some presets the id has a recording's address in it, which is not to be in the ticket.
        which = sha256(_bytes(report.event_id)).hexdigest()[:16]
        return RawMessage(KIND, body, f"{ticket}:{report.kind}:{which}", content_type, facts, fingerprint)

    def _facts(self, made: Outcome) -> dict[str, Any]:
        own, call = self.settings, made.call
        return {
            "call": call.model_dump(mode="json", exclude_defaults=True),
            "conversation": made.conversation,
            "chosen": own.tickets.chosen(call),
            "language": own.language,
            "region": own.region,
            "utc_offset_secs": self._utc_offset_secs(call.started_at),
            "fetch": own.recordings.fetch,
            "recording_urls": own.recordings.urls,
        }

    def _utc_offset_secs(self, moment: datetime | None) -> int:
        offset = (moment or self.context.now()).astimezone(self._zone).utcoffset()
        return int(offset.total_seconds()) if offset else 0


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
