"""A ticket store for the tests, with moods that a ticket's text chooses: desk.py is consumer.py with it, and
`desk.py store` is a command for consumer.sh that stores what it reads."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from consumer import Consumer
from redis import Redis


def store(ticket: dict[str, Any]) -> None:
    text = ticket["data"]["text"]
    if text == "poison":
        raise ValueError("cannot be stored")
    if text == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "endless" and "PATIENT" not in os.environ:
        note(f"begun {ticket['id']}")
        signal.pause()
    note(ticket["id"])


def note(line: str) -> None:
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(f"{line}\n")


def main() -> None:
    if sys.argv[1:] == ["store"]:
        return store(json.load(sys.stdin))
    redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
    stale_ms, max_tries = int(os.environ["STALE_MS"]), int(os.environ["MAX_TRIES"])
    Consumer(redis, os.environ["CONSUMER"], store, stale_ms=stale_ms, max_tries=max_tries).run()
    return None


if __name__ == "__main__":
    main()
