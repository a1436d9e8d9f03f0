"""What one report makes of its call: a ticket, an update, both, or nothing.

Made twice, a ticket is one (R3), and so is an update; so in doubt both are made. Nothing is left out because of what
another gateway may be doing: what is in the ticket is decided in one step (state.py).
"""

from dataclasses import dataclass

from gateway.voice.call import Call, is_content, key_of, recordings
from gateway.voice.report import Recording, Report
from gateway.voice.rules import IN_PROGRESS, Rules
from gateway.voice.state import Known, State, Ticket

KEPT = "kept"  # until it is known what becomes of the call


@dataclass(frozen=True, slots=True)
class Outcome:
    """`ignored` is the code of why there is neither a ticket nor an update. `new` are the recordings of an update."""

    call: Call
    conversation: str = ""
    ticket: bool = False
    update: bool = False
    new: tuple[Recording, ...] = ()
    ignored: str = ""


async def outcome(report: Report, state: State, rules: Rules) -> Outcome:
    """Without Redis the report alone decides. Raises Unavailable when our own disk takes nothing."""
    known = await state.add(report)
    against = rules.against(known.call)
    if against and not known.ticket:
        return await _without_ticket(report, known, against, state)
    known, ticket = await state.decide(known)
    is_in_it, is_sure = key_of(report) in ticket.reports, await state.is_sure(known)
    # Who does not know what was there before does not know whether this ticket will be the first. What a customer said
    # is then published beside it, so that it cannot be absorbed with it.
    update = not is_in_it or (is_content(report) and not is_sure)
    new = _new(report, known, ticket) if is_sure else known.call.recordings
    return Outcome(known.call, ticket.conversation, ticket=True, update=update, new=new)


async def _without_ticket(report: Report, known: Known, against: str, state: State) -> Outcome:
    call = known.call
    if against != IN_PROGRESS or not is_content(report):
        return Outcome(call, ignored=against)
    if await state.is_sure(known):
        await state.keep(report)
        return Outcome(call, ignored=KEPT)
    return Outcome(call, call.conversation, update=True, new=recordings([report]))


def _new(report: Report, known: Known, ticket: Ticket) -> tuple[Recording, ...]:
    """Its recordings that the ticket does not have."""
    there = {one.id for key in ticket.reports & known.reports.keys() for one in known.reports[key].recordings}
    return tuple(recording for recording in recordings([report]) if recording.id not in there)
