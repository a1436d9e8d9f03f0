"""A file that came too late for its ticket: it was fetched after the ticket went out without it.

theirs                          ours
the body                        part, with the facts' `filename`
facts.updates, conversation     the ticket's native id; its conversation
"""

from gateway.contract import Draft, Part, StoredMessage
from gateway.envelope import Message


def normalize(raw: StoredMessage) -> Draft:
    """Never refuses."""
    part = Part(raw.body, _text(raw, "filename"), raw.content_type)
    return Draft(
        Message(conversation=_text(raw, "conversation") or None), (part,), updates=_text(raw, "updates") or None
    )


def _text(raw: StoredMessage, fact: str) -> str:
    return str(raw.facts.get(fact) or "")
