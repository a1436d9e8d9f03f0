"""What the gateways know of a call between its callbacks, in Redis and for a time.

A report is added to its call's hash, under a key of its content, in the step that returns all of them: of two
gateways that add at once, the second sees what the first has added. So nothing is read first and written then.

The ticket is the same whoever makes it: its native id is the call's (R3), and the second is absorbed. What must not
happen is that something is in the absorbed one alone. So one step decides what is in the ticket: `claim` holds the
keys of the reports that the first to make it knew of. Whatever is not among them is published as an update; and with
the ticket once more, for the first to make it may have died before the spool had it.

Redis can be away, and it can come back empty. Nothing waits for it, and nothing is decided by its silence: `sure` says
whether a report that is not here was never here. What a customer said, and is in no ticket yet, is on our own disk too.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.contract import Memory, Shared
from gateway.errors import Unavailable
from gateway.voice.call import Call, key_of, together
from gateway.voice.report import Report

_FOREVER_SECS = 10 * 365 * 86_400
_EVER = "0"
_TICKET = "ticket"  # beside the reports, whose keys are hex digits
_GAP, _BEGUN, _KEPT = "voice_gap", "voice_begun", "voice_kept:"
_MAX_REPORTS = 200  # of a call; what comes beyond is published by itself


class Ticket(BaseModel):
    """What was decided of a call's ticket: which reports are in it, and where it belongs."""

    model_config = ConfigDict(frozen=True)

    reports: frozenset[str]
    conversation: str


class _Kept(BaseModel):
    """A report on our disk, and when it came."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    report: Report


@dataclass(frozen=True, slots=True)
class Known:
    """The reports of a call by their keys, the new one among them; the ticket, when there is one; and whether this is
    all there was."""

    reports: dict[str, Report]
    ticket: Ticket | None = None
    reached: bool = True

    @property
    def call(self) -> Call:
        return together(self.reports.values())


class State:
    """Of one channel. `keep` is how long a call is remembered after its last report.

    No method but `keep` raises: without Redis a report is all that is known of its call.
    """

    def __init__(
        self, shared: Shared, memory: Memory, now: Callable[[], datetime], *, account: str, keep: timedelta
    ) -> None:
        self._shared = shared
        self._memory = memory
        self._now = now
        self._account = account
        self._keep = keep
        self._since = f"voice:{account}:since"
        self._begun = False
        self._gap: bool | None = None  # whether Redis lacks something of ours; None: not looked at yet
        self._kept: dict[str, _Kept] = {}

    async def add(self, report: Report) -> Known:
        """What is known of the report's call, with this report."""
        key, content = key_of(report), report.model_dump_json(exclude_defaults=True)
        try:
            await self._mend()
            found = await self._merge(report.call_id, self._kept_of(report.call_id) | {key: content})
        except Unavailable:
            await self._note_gap()
            return Known({**_reports(self._kept_of(report.call_id)), key: report}, reached=False)
        return Known({**_reports(found), key: report}, _ticket(found.get(_TICKET)))

    async def decide(self, known: Known) -> tuple[Known, Ticket]:
        """The ticket of a call that is to have one: as it was decided, by whomever, or as it is decided now.

        What is known comes back with all that is in the ticket.
        """
        call, ours = known.call, Ticket(reports=frozenset(known.reports), conversation=known.call.conversation)
        if known.ticket or not known.reached:
            return known, known.ticket or ours
        try:
            held = await self._shared.claim(
                self._name(call.id, "ticket"), ours.model_dump_json(), ttl_secs=self._keep.total_seconds()
            )
            # Beside the reports it lives as long as they do: a claim is not renewed.
            found = await self._merge(call.id, {_TICKET: held})
        except Unavailable:
            await self._note_gap()
            return known, ours
        return Known(_reports(found) | known.reports), _ticket(held) or ours

    async def is_sure(self, known: Known) -> bool:
        """Whether what is not known of this call was never reported.

        Not when Redis was away or lost what it had since the call can have begun, nor when the call is so old that it
        may have been forgotten.
        """
        if not known.reached:
            return False
        try:
            whole_since = await self._whole_since()
        except Unavailable:
            await self._note_gap()
            return False
        oldest = self._now() - self._keep
        return whole_since <= oldest and all(time > oldest for time in _times(known.call))

    async def keep(self, report: Report) -> None:
        """On our disk, until it can belong to no call any more: who gave it to us is told that it is safe (R1).

        Raises Unavailable.
        """
        oldest = self._now() - self._keep
        old = {key: None for key, kept in self._kept.items() if kept.at < oldest}
        key, kept = key_of(report), _Kept(at=self._now(), report=report)
        await self._memory.memorise({f"{_KEPT}{key}": kept.model_dump_json(), **{f"{_KEPT}{one}": None for one in old}})
        self._kept = {one: its for one, its in self._kept.items() if one not in old} | {key: kept}

    def _kept_of(self, call_id: str) -> dict[str, str]:
        kept = ((key, one.report) for key, one in self._kept.items() if one.report.call_id == call_id)
        return {key: report.model_dump_json(exclude_defaults=True) for key, report in kept}

    # What is in Redis

    async def _merge(self, call_id: str, values: dict[str, str]) -> dict[str, str]:
        return await self._shared.merge(self._name(call_id, "call"), values, ttl_secs=self._keep.total_seconds())

    def _name(self, call_id: str, what: str) -> str:
        return f"voice:{self._account}:{what}:{sha256(call_id.encode('utf-8', 'surrogatepass')).hexdigest()}"

    # Whether Redis has forgotten something. A mark there says since when it has all, and a mark on our disk that there
    # was one: without the first, the second means that Redis was emptied.

    async def _whole_since(self) -> datetime:
        mark = self._now().isoformat() if self._begun else _EVER
        held = await self._shared.claim(self._since, mark, ttl_secs=_FOREVER_SECS)
        if not self._begun:
            await self._memory.memorise({_BEGUN: "1"})
            self._begun = True
        return _moment(held)

    async def _note_gap(self) -> None:
        """Something could not be written: on disk, for we may end before Redis is back."""
        if not self._gap:
            self._gap = True
            with suppress(Unavailable):  # then nothing is accepted either
                await self._memory.memorise({_GAP: "1", _BEGUN: "1"})

    async def _mend(self) -> None:
        """Lets everybody know that something is missing, once Redis is back. Raises Unavailable."""
        if self._gap is None:
            recalled = await self._memory.recall()
            self._kept = _kept(recalled)
            self._begun, gap = _BEGUN in recalled, _GAP in recalled
            await self._whole_since()
            self._gap = gap
        if self._gap:
            await self._shared.put(self._since, self._now().isoformat(), ttl_secs=_FOREVER_SECS)
            await self._memory.memorise({_GAP: None})
            self._gap = False


def _kept(recalled: Mapping[str, str]) -> dict[str, "_Kept"]:
    kept = {}
    for name, content in recalled.items():
        if name.startswith(_KEPT):
            with suppress(ValidationError):  # written by another version
                kept[name.removeprefix(_KEPT)] = _Kept.model_validate_json(content)
    return kept


def _reports(found: dict[str, str]) -> dict[str, Report]:
    """What cannot be read was written by another version, and is left out."""
    reports = {}
    for key in sorted(found.keys() - {_TICKET})[:_MAX_REPORTS]:
        try:
            reports[key] = Report.model_validate_json(found[key])
        except ValidationError:
            continue
    return reports


def _ticket(content: str | None) -> Ticket | None:
    try:
        return Ticket.model_validate_json(content) if content else None
    except ValidationError:
        return None


def _times(call: Call) -> Sequence[datetime]:
    return [time for time in (call.started_at, call.answered_at, call.ended_at) if time]


def _moment(mark: str) -> datetime:
    try:
        return datetime.fromisoformat(mark)
    except ValueError:
        return datetime.fromisoformat("1970-01-01T00:00:00+00:00")
