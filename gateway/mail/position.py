"""Where a reader stands in a folder: UIDVALIDITY and UID (RFC 3501, 2.3.1.1), never a flag, a date or a list's number.

A position is written with the message that it is behind, and shared with other gateways. So one that was read back is
never ahead of what was accepted.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

_MOST_FAILED, _MOST_TODO = 1000, 20_000


class Failure(BaseModel):
    """A message that could not be fetched: how often it was begun, and when it will be again, by the clock."""

    model_config = ConfigDict(frozen=True)

    tries: int = 0
    due: float = 0
    reason: str = "the connection broke off while it was fetched"

    def again(self, retry_secs: float, now: float) -> Self:
        """The second try comes at once, the next ones later each time."""
        wait = retry_secs * 2 ** (self.tries - 1) if self.tries else 0
        return self.model_copy(update={"tries": self.tries + 1, "due": now + wait})

    def because(self, reason: str) -> Self:
        return self.model_copy(update={"reason": reason})


class Position(BaseModel):
    """Every message up to `uid` was accepted, but `failed`; up to `since_uid` only those that came at or after `since`.

    `todo` are accepted messages with which something is still to be done, `copied` those of them that have been copied.
    `careful`: up to this UID messages are fetched one by one, because a connection broke on one of them.
    `settled_at`: when all there was had been accepted; 0 before that.
    """

    model_config = ConfigDict(frozen=True)

    validity: int
    uid: int = 0
    since: str = ""
    since_uid: int = 0
    careful: int = 0
    failed: dict[int, Failure] = {}
    todo: tuple[int, ...] = ()
    copied: tuple[int, ...] = ()
    settled_at: float = 0

    def to(self, **changes: object) -> Self:
        return self.model_copy(update=changes)

    def with_accepted(self, uids: list[int], todo: list[int]) -> Self:
        failed = {uid: failure for uid, failure in self.failed.items() if uid not in uids}
        waiting = (*self.todo, *(uid for uid in todo if uid not in self.todo))[-_MOST_TODO:]
        return self.to(uid=max([self.uid, *uids]), failed=failed, todo=waiting)

    def with_failed(self, uid: int, failure: Failure) -> Self:
        return self.to(uid=max(self.uid, uid), failed={**self.failed, uid: failure})

    def without(self, uid: int) -> Self:
        """That message is gone."""
        return self.to(uid=max(self.uid, uid), failed={one: f for one, f in self.failed.items() if one != uid})

    @property
    def is_overwhelmed(self) -> bool:
        """So many failures are not the messages' fault."""
        return len(self.failed) >= _MOST_FAILED


def read(text: str | None) -> Position | None:
    """None for what is no position."""
    try:
        return Position.model_validate_json(text) if text else None
    except ValidationError:
        return None


def newest(known: list[Position | None], validity: int) -> Position | None:
    """The one that is furthest on: whoever wrote it had accepted all that is behind it. One of another UIDVALIDITY
    counts only when there is none of this one."""
    found = [one for one in known if one]
    of_this = [one for one in found if one.validity == validity]
    if not of_this:
        return max(found, key=lambda one: one.settled_at, default=None)
    first, *others = sorted(of_this, key=lambda one: one.uid, reverse=True)
    for other in others:
        if other.uid == first.uid:  # one of the two was written a little later: a message too many does no harm
            todo = tuple(dict.fromkeys((*first.todo, *other.todo)))
            copied = tuple(dict.fromkeys((*first.copied, *other.copied)))
            first = first.to(failed={**other.failed, **first.failed}, todo=todo, copied=copied)
    return first
