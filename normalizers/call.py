"""A telephone call, or what came to be known of one after its ticket.

The facts are what is known of the call in our words (gateway/voice/call.py); the body is the vendor's record, as it
came, and is not looked at again.

    facts                               ours
    call                                data.call; caller (of an outbound call: callee) as sender, not verified
    conversation                        conversation
    recordings                          wanted, by their kind: `recording`, `voicemail`, `ivr`
    transcription                       the beginning of the text
    call.fields, choices, their_result  fields
    updates                             updates: the native id of the call's ticket
    unreadable                          Rejected("malformed"): quarantine
    language, region, utc_offset_secs   how people there read numbers and times
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal

import orjson
import phonenumbers
from pydantic import Field, ValidationError

from gateway.contract import Draft, StoredMessage, Wanted
from gateway.envelope import Call as CallPlace
from gateway.envelope import Identity, Message, Model, Recipient, Sender
from gateway.errors import Rejected
from gateway.text import one_line, plain_text
from gateway.voice.call import Call
from gateway.voice.report import Kind, Recording

Language = Literal["zh", "en"]


class Facts(Model):
    """What the connector says. `recordings` are those that are new; `utc_offset_secs` is the channel's zone then."""

    call: Call
    kind: Kind = "ended"
    conversation: str
    recordings: tuple[Recording, ...] = ()
    transcription: str | None = None
    chosen: str = ""
    updates: str | None = None
    language: Language = "zh"
    region: str = "CN"
    utc_offset_secs: int = Field(default=0, gt=-86_400, lt=86_400)
    fetch: bool = True
    recording_urls: bool = False


# Words

_RESULTS: dict[Language, dict[str, str]] = {
    "zh": {
        "answered": "已接来电",
        "missed": "未接来电",
        "abandoned_in_ivr": "来电在语音菜单中挂断",
        "abandoned_in_queue": "来电在排队中挂断",
        "busy": "来电占线",
        "failed": "来电未接通",
        "voicemail": "语音留言",
        "unknown": "来电",
    },
    "en": {
        "answered": "Answered call",
        "missed": "Missed call",
        "abandoned_in_ivr": "Call abandoned in the menu",
        "abandoned_in_queue": "Call abandoned in the queue",
        "busy": "Call met a busy line",
        "failed": "Call failed",
        "voicemail": "Voicemail",
        "unknown": "Call",
    },
}
_OUTBOUND: dict[Language, dict[str, str]] = {
    "zh": {"answered": "呼出电话已接通", "missed": "呼出电话未接", "busy": "呼出电话占线", "": "呼出电话"},
    "en": {"answered": "Outbound call, answered", "missed": "Outbound call, not answered", "": "Outbound call"},
}
_ADDITIONS: dict[Language, dict[str, str]] = {
    "zh": {"recording": "通话录音", "voicemail": "语音留言", "ended": "通话记录", "": "通话补充信息"},
    "en": {"recording": "Recording", "voicemail": "Voicemail", "ended": "Call record", "": "More about the call"},
}
_LABELS: dict[Language, dict[str, str]] = {
    "zh": {
        "started_at": "来电时间",
        "ring_seconds": "振铃",
        "talk_seconds": "通话",
        "keys_pressed": "按键",
        "chosen": "自助选择",
        "queue": "队列",
        "agent": "坐席",
        "hangup_by": "挂机方",
        "their_result": "系统结果",
        "voicemail": "留言",
        "recording": "录音",
        "ivr": "语音菜单录音",
        "between": "：",
    },
    "en": {
        "started_at": "Called at",
        "ring_seconds": "Rang for",
        "talk_seconds": "Talked for",
        "keys_pressed": "Keys pressed",
        "chosen": "Chose",
        "queue": "Queue",
        "agent": "Agent",
        "hangup_by": "Hung up by",
        "their_result": "The system's result",
        "voicemail": "Voicemail",
        "recording": "Recording",
        "ivr": "Recording in the menu",
        "between": ": ",
    },
}
_HIDDEN: dict[Language, str] = {"zh": "号码隐藏", "en": "hidden number"}
_UNKNOWN: dict[Language, str] = {"zh": "号码未知", "en": "unknown number"}
_PARTIES: dict[Language, dict[str, str]] = {
    "zh": {"customer": "客户", "agent": "坐席", "system": "系统"},
    "en": {"customer": "customer", "agent": "agent", "system": "system"},
}


def normalize(raw: StoredMessage) -> Draft:
    """Raises Rejected when the record could not be read as a report."""
    facts = _facts(raw.facts)
    call = facts.call
    text = "\n".join(_text(facts))
    message = Message(
        kind="call",
        conversation=facts.conversation,
        sent_at=call.started_at,
        sender=_sender(call),
        recipients=tuple(_recipients(call)),
        subject=one_line(_subject(facts)),
        text=text,
        full_text=text,
        language=facts.language,
        fields=_fields(facts),
        call=_place(call),
        warnings=call.warnings,
    )
    wanted = tuple(map(_wanted, facts.recordings)) if facts.fetch else ()
    return Draft(message, wanted=wanted, updates=facts.updates)


def _facts(given: Any) -> Facts:
    if reason := given.get("unreadable"):
        raise Rejected("malformed", "the record cannot be read", reason=str(reason))
    try:
        return Facts.model_validate(given)
    except ValidationError as error:
        reason = str(error.errors(include_input=False, include_url=False))
        raise Rejected("malformed", "the facts of the call cannot be read", reason=reason) from error


def _place(call: Call) -> CallPlace:
    names = CallPlace.model_fields.keys() & Call.model_fields.keys()
    return CallPlace.model_validate({name: getattr(call, name) for name in names})


# People and numbers


def _sender(call: Call) -> Sender:
    """A caller's number is what the network says, and can be forged; so it is not verified."""
    identities = (Identity(kind="phone", value=call.customer),) if call.customer else ()
    name = one_line(call.caller_name or "") if call.direction != "outbound" else ""
    return Sender(name=name or None, identities=identities)


def _recipients(call: Call) -> Iterator[Recipient]:
    if call.callee and call.direction != "outbound":
        yield Recipient(kind="phone", value=call.callee)


def _fields(facts: Facts) -> dict[str, Any]:
    call = facts.call
    own: dict[str, Any] = {"call_id": call.id}
    if call.their_result:
        own["their_result"] = call.their_result
    if facts.chosen:
        own["choice"] = facts.chosen
    if facts.recording_urls and facts.recordings:
        own["recording_urls"] = [recording.url for recording in facts.recordings]
    return {**call.fields, **own}


def _wanted(recording: Recording) -> Wanted:
    source = orjson.dumps({"url": recording.url, "id": recording.id, "kind": recording.kind}).decode()
    return Wanted(recording.kind, source)


# What a person reads


def _subject(facts: Facts) -> str:
    language, call = facts.language, facts.call
    if not (call.caller or call.caller_hidden or call.callee):
        return _headline(facts)
    return f"{_headline(facts)} {_caller(facts)} → {_number(call.callee, facts) or _UNKNOWN[language]}"


def _headline(facts: Facts) -> str:
    language, call = facts.language, facts.call
    if facts.updates:
        what = _kind_of_addition(facts)
        return _ADDITIONS[language].get(what, _ADDITIONS[language][""])
    if facts.chosen and call.result in ("answered", "unknown"):
        return f"{_LABELS[language]['chosen']} {facts.chosen}"
    if call.direction == "outbound":
        return _OUTBOUND[language].get(call.result, _OUTBOUND[language][""])
    return _RESULTS[language][call.result]


def _kind_of_addition(facts: Facts) -> str:
    if any(recording.kind == "voicemail" for recording in facts.recordings):
        return "voicemail"
    return "recording" if facts.recordings else facts.kind


def _caller(facts: Facts) -> str:
    hidden = _HIDDEN if facts.call.caller_hidden else _UNKNOWN
    return _number(facts.call.caller, facts) or hidden[facts.language]


def _number(number: str | None, facts: Facts) -> str:
    """As it is dialled in the channel's region: 13800138000, 010 1234 5678."""
    if not number or not number.startswith("+"):
        return number or ""
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return number
    if parsed.country_code != phonenumbers.country_code_for_region(facts.region):
        return number
    text = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.NATIONAL)
    is_mobile = facts.region == "CN" and not text.startswith("0")
    return text.replace(" ", "") if is_mobile else text


def _text(facts: Facts) -> Iterator[str]:
    if facts.transcription:
        yield plain_text(facts.transcription)
        yield ""
    yield _subject(facts)
    between = _LABELS[facts.language]["between"]
    for name, value in _lines(facts):
        if value:
            yield f"{_LABELS[facts.language][name]}{between}{one_line(value)}"


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    language, call = facts.language, facts.call
    yield "started_at", _time(call.started_at, facts.utc_offset_secs)
    yield "ring_seconds", _duration(call.ring_seconds, language)
    yield "talk_seconds", _duration(call.talk_seconds, language)
    yield "keys_pressed", call.keys_pressed or ""
    yield "chosen", facts.chosen
    yield "queue", call.queue or ""
    yield "agent", call.agent or ""
    yield "hangup_by", _PARTIES[language].get(call.hangup_by or "", call.hangup_by or "")
    yield "their_result", (call.their_result or "") if call.result == "unknown" else ""
    for recording in facts.recordings:
        yield recording.kind, _duration(recording.seconds, language)


def _time(moment: datetime | None, offset_secs: int) -> str:
    if moment is None:
        return ""
    zone = timezone(timedelta(seconds=offset_secs)) if offset_secs else UTC
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def _duration(seconds: float | None, language: Language) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if language == "zh":
        return f"{minutes} 分 {rest} 秒" if minutes else f"{rest} 秒"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
