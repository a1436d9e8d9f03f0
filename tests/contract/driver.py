"""What the contract suite has to know of a channel type, beside its connector and its example configuration.

For each connector there is a module `tests/contract/drivers/<type>.py` with one driver class or more: one for each way
in which a sender may prove who they are.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar, Literal

from gateway import registry
from gateway.contract import Connector, WebhookConnector

ROOT = Path(__file__).parents[2]
DRIVERS = Path(__file__).parent / "drivers"
_REFERENCE = re.compile("[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}")


@dataclass(frozen=True)
class Call:
    """A request to `/c/<channel><path>`; `path` may have a query."""

    method: str = "POST"
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)

    def having(self, **headers: str) -> "Call":
        """With these headers in the place of those of the same name; `_` stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        new = {name.lower() for name in named}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in new}
        return replace(self, headers=kept | named)


@dataclass(frozen=True)
class Answer:
    """Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Send = Callable[[Call], Awaitable[Answer]]


class Driver:
    """What both kinds have in common. One object serves one test.

    `waivers` names the checks that the channel cannot pass, each with the reason; a waiver for a check that it passes
    fails the suite.
    """

    env: ClassVar[Mapping[str, str]] = {}  # for the `${…}` of the example configuration
    secrets: ClassVar[tuple[str, ...]] = ()  # what the messages carry and no log may show, beside the settings' secrets
    waivers: ClassVar[Mapping[str, str]] = {}
    kept: ClassVar[frozenset[str]] = frozenset()  # codes of what is proven but unreadable, and so kept, not refused

    def __init__(self, type_: str) -> None:
        self.type = type_

    @property
    def example(self) -> Path:
        """A file with `channels: {NAME: {…}}`, of one channel."""
        return ROOT / f"config/channels/{self.type}.example.yaml"

    @asynccontextmanager
    async def world(self) -> AsyncIterator[None]:
        """What has to be there before the connector starts. `overrides` may rely on it."""
        yield

    def overrides(self) -> dict[str, Any]:
        """Keys of the channel that have to differ from the example: a free port, a server of the test's own."""
        return {}


class WebhookDriver(Driver, ABC):
    """A webhook channel's sender."""

    async def prepare(self, send: Send) -> None:
        """Fetches what the messages need: a form's token, a session."""

    @abstractmethod
    def message(self, native_id: str) -> Call:
        """A message of this native id, not authenticated. Equal whenever it is called with the same id."""

    @abstractmethod
    def authenticated(self, call: Call) -> Call:
        """With what proves its sender, over the body as it is, well-formed or not."""

    @abstractmethod
    def forged(self, call: Call) -> Call:
        """With the proof of somebody who does not have our secret."""

    def good(self, native_id: str) -> Call:
        return self.authenticated(self.message(native_id))

    def malformed(self) -> Call:
        """Well authenticated, and no message."""
        return self.authenticated(replace(self.message("malformed"), body=b"\xff{"))

    def raw(self, call: Call) -> bytes | None:
        """The message in a well authenticated call, as it is kept; None: the connector makes that, anew each time."""
        return call.body

    # What its answers mean. A channel whose vendor wants them otherwise says so here.

    def is_yes(self, answer: Answer) -> bool:
        return 200 <= answer.status < 400

    def is_no(self, answer: Answer) -> bool:
        """Never send this again."""
        return 400 <= answer.status < 500

    def is_unauthenticated(self, answer: Answer) -> bool:
        return answer.status in (401, 403)

    def is_later(self, answer: Answer) -> bool:
        """Send it again."""
        return answer.status == 503 and int(answer.headers["retry-after"]) > 0

    def reference(self, answer: Answer) -> str:
        """What the answer calls the ticket."""
        found: set[str] = set(_REFERENCE.findall(answer.body.decode()))
        assert len(found) == 1, f"one reference was expected in {answer.body[:500]!r}"
        return found.pop()


Verdict = Literal["yes", "no", "later"]


class RunningDriver(Driver, ABC):
    """The other side of a channel that runs on its own: a client of its listener, or the server that it reads from."""

    @abstractmethod
    async def deliver(self, native_id: str) -> Verdict:
        """Hands a message over, the same one for the same id, and tells how it was acknowledged."""

    @abstractmethod
    async def deliver_forged(self) -> Verdict:
        """Hands a message over by somebody who cannot prove who they are."""

    @abstractmethod
    async def babble(self, noise: bytes) -> None:
        """Says what no peer should, and goes away."""

    @abstractmethod
    def dawdling(self) -> AbstractAsyncContextManager[None]:
        """A peer that has begun to say something, and does not go on."""


# Discovery


@dataclass(frozen=True)
class Subject:
    """A channel type by one of its drivers."""

    channel_type: str
    driver_class: type[Driver]

    def __str__(self) -> str:
        name = self.driver_class.__name__
        return self.channel_type if name == "Driver" else f"{self.channel_type}:{name.lower()}"

    def new_driver(self) -> Driver:
        return self.driver_class(self.channel_type)


def subjects(kind: type[Connector]) -> list[Subject]:
    """Every registered connector of this kind, with each of its drivers; one without a driver is left out."""
    of_kind = [type_ for type_ in registry.types() if issubclass(registry.connector(type_), kind)]
    return [Subject(type_, driver) for type_ in of_kind if has_driver(type_) for driver in drivers(type_)]


def has_driver(type_: str) -> bool:
    return (DRIVERS / f"{type_}.py").is_file()


def drivers(type_: str) -> list[type[Driver]]:
    """The driver classes of a type. Raises AssertionError, which says what to write, when there is none."""
    kind = WebhookDriver if issubclass(registry.connector(type_), WebhookConnector) else RunningDriver
    assert has_driver(type_), (
        f"the channel type {type_} has no driver: write tests/contract/drivers/{type_}.py with a class"
        f" Driver({kind.__name__}), see tests/contract/driver.py and drivers/echo.py"
    )
    found = members(import_module(f"tests.contract.drivers.{type_}"))
    assert found, f"tests/contract/drivers/{type_}.py defines no {kind.__name__}"
    assert all(issubclass(driver, kind) for driver in found), f"{type_} needs a {kind.__name__}"
    return found


def members(module: Any) -> list[type[Driver]]:
    """The driver classes that a module defines."""
    own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    return [one for one in own if issubclass(one, Driver) and not isabstract(one)]
