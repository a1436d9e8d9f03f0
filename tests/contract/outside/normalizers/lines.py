"""A line, as the text of a message."""

from gateway.contract import Draft, StoredMessage
from gateway.envelope import Message


def normalize(raw: StoredMessage) -> Draft:
    text = raw.body.decode("utf-8", "replace").strip()
    return Draft(Message(text=text, full_text=text))
