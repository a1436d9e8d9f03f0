"""What one callback says of a call, in our words. Several reports belong to one call, in any order."""

from typing import Any, Literal

from pydantic import Field

from gateway.envelope import Model, Oddity, Time

Kind = Literal["ring", "answered", "ended", "recording", "voicemail", "gather", "other"]
Direction = Literal["inbound", "outbound", "unknown"]
Result = Literal[
    "answered", "missed", "abandoned_in_ivr", "abandoned_in_queue", "busy", "failed", "voicemail", "unknown"
]
Sound = Literal["recording", "voicemail", "ivr"]


class Recording(Model):
    """A sound file on the vendor's server."""

    id: str = Field(description="the vendor's, else the address; equal in every callback that names it")
    url: str
    kind: Sound = "recording"
    seconds: float | None = None


class Report(Model):
    """One callback about one call. What it does not say is None; `unknown` is what it says in words we do not know.

    `call_id` is that of the call, also of a record of its second leg: then `leg` is "b". `event_id` is equal for every
    delivery of one callback, and no other callback of the call has it.
    """

    call_id: str
    kind: Kind = Field(description="`other`: nothing that the preset wants reported")
    event_id: str
    leg: Literal["a", "b"] = "a"
    direction: Direction = "unknown"
    caller: str | None = Field(default=None, description="E.164 where it can be, else as it came; None when hidden")
    caller_masked: bool = Field(default=False, description="digits are replaced: 138****1234")
    caller_hidden: bool = Field(default=False, description="the caller withholds the number")
    caller_name: str | None = None
    callee: str | None = None
    callee_masked: bool = False
    started_at: Time | None = None
    answered_at: Time | None = None
    ended_at: Time | None = None
    ring_seconds: float | None = None
    talk_seconds: float | None = None
    result: Result | None = None
    their_result: str | None = Field(default=None, description="the vendor's own code, whether we know it or not")
    keys_pressed: str | None = None
    ivr_choice: str | None = None
    queue: str | None = None
    agent: str | None = None
    hangup_by: str | None = Field(default=None, description="`customer`, `agent`, `system`, else the vendor's own word")
    fields: dict[str, Any] = {}
    recordings: tuple[Recording, ...] = ()
    transcription: str | None = None
    sequence: int | None = Field(default=None, description="orders the callbacks of one call, where the vendor counts")
    warnings: tuple[Oddity, ...] = ()
