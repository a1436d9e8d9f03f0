"""Which calls become tickets."""

from pydantic import Field

from gateway.contract import Settings
from gateway.voice.call import Call
from gateway.voice.report import Result

IN_PROGRESS = "in_progress"  # nothing can be said yet of whether the call will be a ticket


class Rules(Settings):
    """A call becomes a ticket by how it ended, or by what the caller chose in the menu."""

    results: tuple[Result, ...] = Field(
        default=("missed", "abandoned_in_ivr", "abandoned_in_queue", "voicemail"),
        description="how a call has to end to become a ticket; `unknown` is an end for which the preset has no word",
    )
    choices: tuple[str, ...] = Field(
        default=(),
        description="what a caller chooses or presses in the menu to get a ticket, whatever becomes of the call: as the"
        " vendor reports it, the name of the choice or the keys",
    )
    outbound: bool = Field(default=False, description="whether calls to customers become tickets, by the same results")

    def against(self, call: Call) -> str:
        """Why the call is no ticket, as far as it is known, as the code by which it is counted; "" when it is one."""
        if call.direction == "outbound" and not self.outbound:
            return "outbound"
        if self.chosen(call) or (call.result == "voicemail" and "voicemail" in self.results):
            return ""  # it need not end first
        if not call.ended:
            return IN_PROGRESS
        return "" if call.result in self.results else call.result

    def chosen(self, call: Call) -> str:
        """The choice that makes a ticket; "" when there is none."""
        return next((choice for choice in call.choices if choice in self.choices), "")
