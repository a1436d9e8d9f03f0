"""What all the reports of one call say together, in whatever order they came.

Vendors report a call in pieces: it rings, it is answered, it ends, and minutes later there is a recording. Pieces come
twice, late, and in any order. So nothing here depends on the order: `together` of the same reports is the same call.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, TypeVar

import orjson

from gateway.envelope import Model, Oddity, Time
from gateway.voice.report import Direction, Recording, Report, Result

T = TypeVar("T")

# Whose word counts where two reports say something different: what is said at the end of a call says the most.
_AUTHORITY = ("ended", "answered", "ring", "voicemail", "gather", "recording", "other")
# Who leaves a voicemail was "answered"; and of several ends, say of a transferred call, the one that went well counts.
_RESULTS: tuple[Result, ...] = (
    *("voicemail", "answered", "abandoned_in_queue", "abandoned_in_ivr", "missed", "busy", "failed"),
    "unknown",
)
_MAX_WARNINGS = 20


class Call(Model):
    """A call as far as it is known. `ended`: the vendor has said so."""

    id: str
    ended: bool = False
    direction: Direction = "unknown"
    caller: str | None = None
    caller_masked: bool = False
    caller_hidden: bool = False
    caller_name: str | None = None
    callee: str | None = None
    callee_masked: bool = False
    started_at: Time | None = None
    answered_at: Time | None = None
    ended_at: Time | None = None
    ring_seconds: float | None = None
    talk_seconds: float | None = None
    result: Result = "unknown"
    their_result: str | None = None
    keys_pressed: str | None = None
    choices: tuple[str, ...] = ()
    queue: str | None = None
    agent: str | None = None
    hangup_by: str | None = None
    fields: dict[str, Any] = {}
    recordings: tuple[Recording, ...] = ()
    transcription: str | None = None
    warnings: tuple[Oddity, ...] = ()

    @property
    def customer(self) -> str | None:
        """The number of who is not us, in E.164, where it is known and whole."""
        outbound = self.direction == "outbound"
        number, masked = (self.callee, self.callee_masked) if outbound else (self.caller, self.caller_masked)
        return number if number and number.startswith("+") and not masked else None

    @property
    def conversation(self) -> str:
        """Of all calls of a number; of this call alone where the number is not known, or a mask that fits many."""
        return f"phone:{self.customer}" if self.customer else native_id(self.id)


def native_id(call_id: str) -> str:
    """Of a call's ticket: a function of the call alone (R3), so that two reports that both make it make one."""
    return f"call:{call_id}"


def key_of(report: Report) -> str:
    """Of a report among those of its call: 24 hex digits of its content. Not by the vendor's id alone: where that is
    the kind of callback, a second one of the kind says something else, and is not lost for it."""
    content = orjson.dumps(report.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    return sha256(content).hexdigest()[:24]


def is_content(report: Report) -> bool:
    """Whether it brings what a customer said, beside what happened."""
    return report.kind in ("recording", "voicemail") or bool(report.recordings or report.transcription)


def together(reports: Iterable[Report]) -> Call:
    """Of one report at least, all of one call."""
    ordered = [_as_of_the_call(report) for report in sorted(reports, key=_rank)]
    hidden = any(report.caller_hidden for report in ordered)
    caller, callee = _first(ordered, _caller), _first(ordered, _callee)

    def first(name: str) -> Any:
        return _first(ordered, lambda report: getattr(report, name))

    return Call(
        id=ordered[0].call_id,
        ended=any(report.kind == "ended" and report.leg == "a" for report in ordered),
        direction=next((report.direction for report in ordered if report.direction != "unknown"), "unknown"),
        caller=caller[0] if caller else None,
        caller_masked=bool(caller and caller[1]),
        caller_hidden=hidden and not caller,
        caller_name=first("caller_name"),
        callee=callee[0] if callee else None,
        callee_masked=bool(callee and callee[1]),
        started_at=first("started_at"),
        answered_at=first("answered_at"),
        ended_at=first("ended_at"),
        ring_seconds=first("ring_seconds"),
        talk_seconds=first("talk_seconds"),
        result=_result(ordered),
        their_result=first("their_result"),
        keys_pressed=_keys(ordered),
        choices=tuple(
            sorted({text for report in ordered for text in (report.ivr_choice, report.keys_pressed) if text})
        ),
        queue=first("queue"),
        agent=first("agent"),
        hangup_by=first("hangup_by"),
        fields={name: value for report in reversed(ordered) for name, value in report.fields.items()},
        recordings=recordings(ordered),
        transcription="\n\n".join(_distinct(report.transcription for report in ordered)) or None,
        warnings=tuple(dict.fromkeys(one for report in ordered for one in report.warnings))[:_MAX_WARNINGS],
    )


def recordings(reports: Iterable[Report]) -> tuple[Recording, ...]:
    """Each once; one that any report calls a voicemail is one."""
    found: dict[str, Recording] = {}
    for report in sorted(reports, key=_rank):
        for recording in report.recordings:
            known = found.setdefault(recording.id, recording)
            if recording.kind == "voicemail" != known.kind:
                found[recording.id] = known.model_copy(update={"kind": "voicemail"})
    return tuple(found[id_] for id_ in sorted(found))


def _as_of_the_call(report: Report) -> Report:
    """Of the leg to an agent: that calls an extension, and may end unanswered while the caller waits for the next."""
    if report.leg == "a":
        return report
    silent = dict.fromkeys(("callee", "started_at", "answered_at", "ended_at", "ring_seconds", "talk_seconds"))
    silent |= dict.fromkeys(("result", "their_result", "hangup_by"))
    return report.model_copy(update={**silent, "direction": "unknown"})


def _rank(report: Report) -> tuple[str, int, int, str]:
    return report.leg, _AUTHORITY.index(report.kind), -(report.sequence or 0), key_of(report)


def _first(reports: Sequence[Report], value: Callable[[Report], T | None]) -> T | None:
    return next((found for report in reports if (found := value(report)) is not None), None)


def _caller(report: Report) -> tuple[str, bool] | None:
    return (report.caller, report.caller_masked) if report.caller else None


def _callee(report: Report) -> tuple[str, bool] | None:
    return (report.callee, report.callee_masked) if report.callee else None


def _keys(reports: Sequence[Report]) -> str | None:
    """As the record of the whole call has them; else those of each prompt, by the vendor's count."""
    if whole := _first([report for report in reports if report.kind == "ended"], lambda report: report.keys_pressed):
        return whole
    prompts = sorted(reports, key=lambda report: (report.sequence or 0, key_of(report)))
    return ", ".join(_distinct(report.keys_pressed for report in prompts)) or None


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _result(reports: Sequence[Report]) -> Result:
    """Of the end, where one is reported; a voicemail is one whatever else happened."""
    voices = [report.kind == "voicemail" or _has_voicemail(report) for report in reports]
    if any(voices):
        return "voicemail"
    ends = [report for report in reports if report.kind == "ended" and report.leg == "a"] or reports
    return min((report.result or "unknown" for report in ends), key=_RESULTS.index)


def _has_voicemail(report: Report) -> bool:
    return any(recording.kind == "voicemail" for recording in report.recordings)
