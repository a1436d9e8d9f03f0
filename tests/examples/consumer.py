"""Takes tickets from the gateway's stream: each at least once, over crashes of this program, its neighbours and Redis.

    pip install redis
    CONSUMER=desk-1 python consumer.py

Run as many as you like, each under a name of its own that it keeps over restarts.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

STREAM, GROUP, DEAD = "tickets", "helpdesk", "{tickets}:dead"  # {…}: beside the stream in a Redis Cluster
BATCH = 10
Entry = tuple[str, dict[str, str]]


@dataclass
class Consumer:
    """Gives tickets to `store`. One may come twice, after a crash for example: its `id` is the key to store it by."""

    redis: Redis
    name: str
    store: Callable[[dict[str, Any]], None]
    stale_ms: int = 60_000  # longer than a batch takes; a reader that is silent for so long is taken for dead
    max_tries: int = 5

    def run(self) -> None:
        while True:
            try:
                self.join()
                self.work()
            except RedisError as error:  # it is away; or it has been emptied, and the group is gone too
                logging.warning("trying again: %s", error)
                time.sleep(1)

    def join(self) -> None:
        with suppress(ResponseError):  # BUSYGROUP: there is one
            self.redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)

    def work(self) -> None:
        for entry in self.read("0"):  # what this name was given before, and has not acknowledged
            self.handle(*entry)
        while True:
            for entry in [*self.read(">", count=BATCH, block=2000), *self.stale()]:
                self.handle(*entry)

    def read(self, after: str, **options: int) -> Iterator[Entry]:
        for _, entries in self.redis.xreadgroup(GROUP, self.name, {STREAM: after}, **options):
            yield from entries

    def stale(self) -> list[Entry]:
        """What others were given and did not finish, and what failed here."""
        return self.redis.xautoclaim(STREAM, GROUP, self.name, self.stale_ms, count=BATCH)[1]

    def handle(self, entry: str, fields: dict[str, str]) -> None:
        if not fields:
            return  # it was deleted from the stream meanwhile
        mine = self.redis.xpending_range(STREAM, GROUP, entry, entry, 1, self.name)
        if not mine:
            return  # we were slow, and another has it now
        tries = mine[0]["times_delivered"]
        try:
            if tries > self.max_tries:
                raise RuntimeError("its readers died")
            self.store(json.loads(fields["event"]))
        except Exception as error:
            logging.exception("ticket %s, try %d", fields["id"], tries)
            if tries >= self.max_tries:
                self.bury(entry, fields, repr(error))
        else:
            self.redis.xack(STREAM, GROUP, entry)

    def bury(self, entry: str, fields: dict[str, str], reason: str) -> None:
        both = self.redis.pipeline(transaction=True)
        both.xadd(DEAD, {**fields, "entry": entry, "reason": reason})
        both.xack(STREAM, GROUP, entry)
        both.execute()


def show(ticket: dict[str, Any]) -> None:
    logging.info("%s: %s", ticket["data"]["reference"], ticket["data"]["subject"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6390"), decode_responses=True)
    Consumer(redis, os.environ.get("CONSUMER", "desk-1"), store=show).run()
