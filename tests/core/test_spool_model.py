"""The spool against a plain dict, through every order of events that hypothesis thinks of, crashes among them."""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.errors import Rejected
from gateway.identity import conflict_id
from gateway.spool import DUPLICATE, PUBLISHED, QUARANTINED, ROW_BYTES, WAITING, Entry, Outcome, Spool
from tests.core.samples import EVERYTHING, audit, body_file, query, sample

T = TypeVar("T")
INLINE = 16
NAMES = {PUBLISHED: "published", DUPLICATE: "duplicate", QUARANTINED: "quarantined"}

natives = st.sampled_from(["n1", "n2", "n3", None])
bodies = st.sampled_from([b"", b"one", b"two", b"a body too large to lie inline", b"another body of that kind"])
channels = st.sampled_from(["shop", "app"])
states = st.sampled_from([PUBLISHED, DUPLICATE, QUARANTINED, WAITING])


@dataclass
class Known:
    """What the model knows of a message."""

    body: bytes
    fingerprint: bytes
    channel: str
    conflict_with: str | None
    state: int = WAITING
    tries: int = 0
    not_before: float = 0
    settled_at: float = 0


class SpoolModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.base = Path(tempfile.mkdtemp(prefix="huiru-model-"))
        self.lives = 0
        self.now = 1000.0
        self.known: dict[str, Known] = {}
        self.ledger: Counter[tuple[str, str]] = Counter()

    def teardown(self) -> None:
        self.run(self.spool.close())
        self.runner.close()
        shutil.rmtree(self.base)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def start(self) -> None:
        self.open(self.base / "0")

    def open(self, folder: Path) -> None:
        self.spool = Spool(folder, inline_bytes=INLINE, clock=lambda: self.now)
        self.spool.open()

    def count(self, channel: str, **entries: int) -> None:
        for name, n in entries.items():
            self.ledger[channel, name] += n

    # What may happen

    @rule(native=natives, body=bodies, channel=channels, as_file=st.booleans(), refuse=st.booleans())
    def put(self, native: str | None, body: bytes, channel: str, as_file: bool, refuse: bool) -> None:
        given = body_file(self.spool, body) if as_file else body
        entry = sample(native, given, channel=channel, on_conflict="refuse" if refuse else "keep")
        id_, duplicate = self.expected(entry, body)
        if id_ is None:
            with pytest.raises(Rejected) as caught:
                self.run(self.spool.put(entry))
            assert caught.value.code == "idempotency_mismatch"
        else:
            receipt = self.run(self.spool.put(entry))
            assert (receipt.id, receipt.duplicate) == (id_, duplicate)

    @rule(names=st.lists(st.sampled_from([f"m{n}" for n in range(9)]), max_size=20), channel=channels)
    def put_at_once(self, names: list[str], channel: str) -> None:
        entries = [sample(name, name.encode(), channel=channel) for name in names]
        expected = [self.expected(entry, name.encode()) for name, entry in zip(names, entries, strict=True)]

        async def put_all() -> list[Any]:
            return await asyncio.gather(*map(self.spool.put, entries))

        assert [(receipt.id, receipt.duplicate) for receipt in self.run(put_all())] == expected

    def expected(self, entry: Entry, body: bytes) -> tuple[str | None, bool]:
        """The id and whether it is a duplicate; None for a refusal."""
        id_, conflict_with = entry.id, None
        if id_ in self.known and self.known[id_].fingerprint != entry.fingerprint:
            if entry.raw.on_conflict == "refuse":
                return None, False
            id_, conflict_with = conflict_id(id_, entry.fingerprint), id_
        duplicate = id_ in self.known
        self.count(entry.channel, accepted=1, duplicate=int(duplicate))
        if not duplicate:
            self.known[id_] = Known(body, entry.fingerprint, entry.channel, conflict_with)
        return id_, duplicate

    @rule(limit=st.integers(1, 5), fates=st.lists(st.tuples(states, st.integers(0, 3), st.booleans()), min_size=5))
    def claim_and_settle(self, limit: int, fates: list[tuple[int, int, bool]]) -> None:
        rows = self.run(self.spool.claim(limit, EVERYTHING))
        due = {id_ for id_, one in self.known.items() if one.state == WAITING and one.not_before <= self.now}
        assert len(rows) == min(limit, len(due))
        assert {row.message.id for row in rows} <= due
        outcomes = []
        for row, (state, wait, counts) in zip(rows, fates, strict=False):
            one = self.known[row.message.id]
            assert (row.message.body, row.fault) == (one.body, None)
            assert (row.tries, row.conflict_with) == (one.tries, one.conflict_with)
            one.state, one.not_before, one.settled_at = state, self.now + wait, self.now
            one.tries += counts and state in (WAITING, QUARANTINED)
            outcomes.append(Outcome(row.seq, one.channel, state, "invalid", "", self.now + wait, counts))
            if state == QUARANTINED:
                self.count(one.channel, **{"quarantined_total:invalid": 1})
            if state != WAITING:
                self.count(one.channel, **{NAMES[state]: 1})
        self.run(self.spool.settle(outcomes))

    @rule()
    def mark_conflict(self) -> None:
        for row in self.run(self.spool.claim(1, EVERYTHING)):
            one = self.known[row.message.id]
            new = conflict_id(row.message.id, one.fingerprint)
            if new in self.known:
                one.state, one.settled_at = DUPLICATE, self.now
                self.count(one.channel, duplicate=1)
            else:
                self.known[new] = self.known.pop(row.message.id)
                one.conflict_with = row.message.id
            self.run(self.spool.mark_conflict(row))

    @rule(data=st.data())
    @precondition(lambda self: any(one.state == QUARANTINED for one in self.known.values()))
    def decide_on_one(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(id_ for id_, one in self.known.items() if one.state == QUARANTINED)))
        row = self.run(self.spool.find(id_, state=QUARANTINED))
        self.count(row.message.channel, quarantined=-1)
        if data.draw(st.booleans()):
            self.run(self.spool.discard(row))
            self.count(row.message.channel, discarded=1)
            del self.known[id_]
        else:
            assert self.run(self.spool.retry(row.seq)) == 1
            self.known[id_].state, self.known[id_].tries, self.known[id_].not_before = WAITING, 0, 0

    @rule()
    def retry_all(self) -> None:
        quarantined = [one for one in self.known.values() if one.state == QUARANTINED]
        for one in quarantined:
            one.state, one.tries, one.not_before = WAITING, 0, 0
            self.count(one.channel, quarantined=-1)

        assert self.run(self.spool.retry(None)) == len(quarantined)

    @rule(age=st.integers(0, 3))
    def purge(self, age: int) -> None:
        before = self.now - age
        for id_, one in list(self.known.items()):
            if one.state in (PUBLISHED, DUPLICATE) and one.settled_at < before:
                del self.known[id_]
        after: int | None = 0
        while after is not None:
            after = self.run(self.spool.purge(before, after, limit=3))

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        self.run(self.spool.close())
        self.open(self.spool.folder)

    @rule()
    def crash(self) -> None:
        """The files as they are at this moment are all that is left."""
        self.lives += 1
        after = self.base / str(self.lives)
        shutil.copytree(self.spool.folder, after)
        self.run(self.spool.close())
        self.open(after)

    # What must hold

    @invariant()
    def the_books_balance(self) -> None:
        self.run(audit(self.spool))
        assert +self.spool.ledger == +self.ledger
        assert self.spool.bytes == sum(len(one.body) + ROW_BYTES for one in self.known.values())

    @invariant()
    def every_message_is_there_in_its_state(self) -> None:
        rows = self.run(query(self.spool, "SELECT id, state, tries, conflict_with FROM message"))
        model = {(id_, one.state, one.tries, one.conflict_with) for id_, one in self.known.items()}
        assert set(rows) == model
        assert len(rows) == len(model)

    @invariant()
    def every_body_is_what_it_was(self) -> None:
        for id_, one in self.known.items():
            row = self.run(self.spool.find(id_, with_body=True))
            assert (row.message.body, row.fault) == (one.body, None)


TestSpoolModel = SpoolModel.TestCase
TestSpoolModel.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
