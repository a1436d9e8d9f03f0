"""Every normalizer: pure (R12), and whatever it is given, it makes a message of it or says Rejected."""

import asyncio
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import normalizers
from gateway import registry
from gateway.contract import Draft, RunningConnector, StoredMessage, WebhookConnector
from gateway.errors import Rejected
from tests.contract.driver import ROOT, RunningDriver, Subject, WebhookDriver, subjects
from tests.contract.purity import deprived
from tests.contract.rig import Rig
from tests.contract.watch import Log

KINDS = sorted(module.name for module in iter_modules(normalizers.__path__))
Samples = dict[str, list[StoredMessage]]


@pytest.fixture(scope="module")
def samples(redis_url: str) -> Samples:
    """Kind -> a message of each driver, as the spool kept it; and one that the core sends itself."""
    found: Samples = {"attachment": [_late_attachment()]}
    for subject in chain.from_iterable(map(subjects, (WebhookConnector, RunningConnector))):
        for message in asyncio.run(_stored(subject, redis_url)):
            found.setdefault(message.kind, []).append(message)
    return found


def _late_attachment() -> StoredMessage:
    facts = {"updates": "n1", "conversation": "c1", "filename": "打印机.png"}
    now = datetime(2026, 11, 23, 9, tzinfo=UTC)
    return StoredMessage("id", "shop", "attachment", b"\x89PNG", "image/png", "id#0", facts, now)


async def _stored(subject: Subject, redis_url: str) -> list[StoredMessage]:
    with tempfile.TemporaryDirectory(prefix="huiru-") as folder, Log().watching() as log:
        async with Rig(subject.new_driver(), Path(folder), redis_url, log).running() as rig:
            await _hand_over(rig)
            return await rig.stored()


async def _hand_over(rig: Rig) -> None:
    if isinstance(rig.driver, WebhookDriver):
        await rig.send(rig.driver.good("m1"))
    elif isinstance(rig.driver, RunningDriver):
        await rig.until_up()
        await rig.driver.deliver("m1")


def test_every_normalizer_is_met(samples: Samples) -> None:
    assert set(samples) == set(KINDS), "a driver has to send a message of every kind, and nothing of another"


@pytest.mark.parametrize("kind", KINDS)
def test_it_needs_nothing_but_the_message(kind: str, samples: Samples) -> None:
    normalize = registry.normalizer(kind)
    expected = [normalize(message) for message in samples[kind]]  # also loads what is loaded at the first use

    with deprived():
        found = [normalize(message) for message in samples[kind]]

    assert found == expected


def test_it_is_the_same_in_every_process(samples: Samples) -> None:
    """The order of sets differs from one to the next."""
    everything = list(chain.from_iterable(samples.values()))
    expected = [_shown(registry.normalizer(message.kind)(message)) for message in everything]

    for seed in ("1", "2"):
        assert _in_another_process(everything, seed) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_comes_is_a_message_or_rejected(kind: str, samples: Samples) -> None:
    normalize = registry.normalizer(kind)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(message=_messages(samples[kind]))
    def read(message: StoredMessage) -> None:
        try:
            draft = normalize(message)
        except Rejected:
            return
        assert isinstance(draft, Draft)
        draft.message.model_dump_json()

    read()


# In other processes

_SCRIPT = """
import json, pickle, sys
from gateway import registry
drafts = [registry.normalizer(message.kind)(message) for message in pickle.load(sys.stdin.buffer)]
print(json.dumps([[draft.message.model_dump_json(), repr(draft.parts)] for draft in drafts]))
"""


def _shown(draft: Draft) -> list[str]:
    return [draft.message.model_dump_json(), repr(draft.parts)]


def _in_another_process(messages: list[StoredMessage], seed: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=pickle.dumps(messages),
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    return json.loads(done.stdout)


# Whatever comes

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=4,
)
_TYPES = ("", "application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "text/plain")


def _messages(samples: list[StoredMessage]) -> st.SearchStrategy[StoredMessage]:
    """On the way from what the channel accepted to nonsense."""
    return st.sampled_from(samples).flatmap(_variants)


def _variants(message: StoredMessage) -> st.SearchStrategy[StoredMessage]:
    places = st.integers(0, len(message.body))
    spliced = st.builds(_spliced, st.just(message.body), places, st.integers(0, 9), st.binary(max_size=9))
    documents = (_JSON | _altered(message.body)).map(lambda value: json.dumps(value).encode())
    bodies = spliced | documents | documents.map(_as_part) | st.binary(max_size=300)
    types = st.sampled_from((message.content_type, *_TYPES)) | st.text(max_size=40)
    return st.builds(_bearing, st.just(message), bodies, types)


def _bearing(message: StoredMessage, body: bytes, content_type: str) -> StoredMessage:
    return replace(message, body=body, content_type=content_type)


def _spliced(body: bytes, at: int, gone: int, new: bytes) -> bytes:
    return body[:at] + new + body[at + gone :]


def _altered(body: bytes) -> st.SearchStrategy[Any]:
    """A JSON object with other values under some of its keys."""
    try:
        document = json.loads(body)
    except ValueError:
        return st.nothing()
    if not isinstance(document, dict):
        return st.nothing()
    names = st.sampled_from([*document, "attachments", "fields", "html", "language", "sender", "sent_at", "subject"])
    return st.dictionaries(names, _JSON, min_size=1, max_size=3).map(lambda other: document | other)


def _as_part(document: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="message"\r\n\r\n' + document + b"\r\n--b--\r\n"
