"""A message of the template channel.

theirs      ours
text        text and full_text
from        sender.identities: a user_id of this channel, which the vendor vouches for, and the conversation
"""

from typing import Any

from pydantic_core import from_json

from gateway.contract import Draft, StoredMessage
from gateway.envelope import Identity, Message, Sender
from gateway.errors import Rejected
from gateway.text import one_line, plain_text


def normalize(raw: StoredMessage) -> Draft:
    """Raises Rejected when the body cannot be read."""
    given = _loads(raw.body)
    text = plain_text(given["text"])
    user = _user(given.get("from"))
    identities = (Identity(kind="user_id", value=user, verified=True, account=raw.channel),) if user else ()
    sender = Sender(identities=identities)
    return Draft(Message(conversation=user or None, sender=sender, text=text, full_text=text))


def _loads(body: bytes) -> dict[str, Any]:
    try:
        given = from_json(body)
    except ValueError as error:
        raise Rejected("malformed", "the JSON cannot be read", reason=str(error)) from error
    if not isinstance(given, dict) or not isinstance(given.get("text"), str):
        raise Rejected("malformed", "the JSON is no message")
    return given


def _user(value: object) -> str:
    """Some vendors send numbers for ids."""
    return one_line(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""
