"""The suite notices what it is there for: for every defect a channel that has it, and the check that says so."""

import asyncio
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog
from hypothesis import Phase

from connectors import echo
from gateway import registry
from gateway.contract import (
    Accept,
    BodyFile,
    RawMessage,
    Receipt,
    Reply,
    Request,
    json_reply,
    problem_reply,
)
from gateway.errors import Rejected, Unavailable
from tests.contract import rig, running, webhook
from tests.contract.cases import cases
from tests.contract.driver import Subject, drivers
from tests.contract.outside import lines
from tests.contract.outside.connectors import lines as good_lines
from tests.contract.purity import deprived
from tests.contract.rig import STOP_SECS, Check, OpenRig
from tests.contract.watch import Fence

log = structlog.get_logger()
NOTICED = (AssertionError, TimeoutError, KeyError)

# Webhook channels with a defect each


class TrustsEverybody(echo.Connector):
    async def verify(self, request: Request) -> Mapping[str, Any]:
        return {}


class TrustsTheSilent(echo.Connector):
    async def verify(self, request: Request) -> Mapping[str, Any]:
        return await super().verify(request) if echo.SIGNATURE in request.headers else {}


class AcceptsTwice(echo.Connector):
    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Sequence[RawMessage]:
        (message,) = await super().extract(request, sender)
        return [message, RawMessage("echo", b'{"id": "more", "text": ""}', "more")]

    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        return super().reply(request, receipts[:1])


class AcceptsNothing(echo.Connector):
    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Any:
        return json_reply({"ok": True, "reference": "0000-0000-0000"})


class ChangesTheBytes(echo.Connector):
    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Sequence[RawMessage]:
        (message,) = await super().extract(request, sender)
        assert isinstance(message.body, bytes)
        return [RawMessage("echo", message.body + b" ", message.native_id)]


class ForgetsTheNativeId(echo.Connector):
    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Sequence[RawMessage]:
        return [RawMessage("echo", request.body, str(id(request)))]


class NeedsTheBodyInMemory(echo.Connector):
    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Sequence[RawMessage]:
        if isinstance(request.body, BodyFile):
            raise Rejected("malformed")
        return await super().extract(request, sender)


class NamesNoTicket(echo.Connector):
    def reply(self, request: Request, receipts: Sequence[Receipt]) -> Reply:
        return json_reply({"ok": True, "reference": "0000-0000-0000"})


class SaysYesToTheMalformed(echo.Connector):
    def refuse(self, request: Request, error: BaseException) -> Reply:
        return Reply() if isinstance(error, Rejected) and error.code == "malformed" else problem_reply(error)


class SaysYesToAll(echo.Connector):
    def refuse(self, request: Request, error: BaseException) -> Reply:
        return Reply()


class BlamesTheSender(echo.Connector):
    def refuse(self, request: Request, error: BaseException) -> Reply:
        return problem_reply(Rejected("malformed") if isinstance(error, Unavailable) else error)


class DoesNotSayWhen(echo.Connector):
    def refuse(self, request: Request, error: BaseException) -> Reply:
        return Reply(503) if isinstance(error, Unavailable) else problem_reply(error)


class StumblesOverHeaders(echo.Connector):
    async def verify(self, request: Request) -> Mapping[str, Any]:
        request.headers.get("Content-Type", "").encode("ascii")
        return await super().verify(request)


class StumblesOverBodies(echo.Connector):
    async def extract(self, request: Request, sender: Mapping[str, Any]) -> Sequence[RawMessage]:
        assert isinstance(request.body, bytes)
        request.body.decode()
        return await super().extract(request, sender)


class TellsTheLog(echo.Connector):
    async def verify(self, request: Request) -> Mapping[str, Any]:
        log.info("verifying", key=self.settings.secret.get_secret_value())
        return await super().verify(request)


class TellsTheSender(echo.Connector):
    async def verify(self, request: Request) -> Mapping[str, Any]:
        try:
            return await super().verify(request)
        except Rejected as error:
            raise Rejected(error.code, f"try {self.settings.secret.get_secret_value()}") from error


class ProbesForEver(echo.Connector):
    async def probe(self) -> None:
        await asyncio.Event().wait()


class ProbesBadly(echo.Connector):
    async def probe(self) -> None:
        raise KeyError("token")


@pytest.mark.parametrize(
    ("defective", "check"),
    [
        (TrustsEverybody, webhook.a_forged_message_is_refused),
        (TrustsTheSilent, webhook.a_message_without_proof_is_refused),
        (AcceptsTwice, webhook.a_good_message_is_one_ticket),
        (AcceptsNothing, webhook.a_good_message_is_one_ticket),
        (ChangesTheBytes, webhook.a_good_message_is_one_ticket),
        (NamesNoTicket, webhook.the_answer_names_the_ticket),
        (ForgetsTheNativeId, webhook.a_message_again_is_the_same_ticket),
        (ForgetsTheNativeId, webhook.a_message_twice_at_once_is_one_ticket),
        (NeedsTheBodyInMemory, webhook.a_message_in_a_file_is_the_same_ticket),
        (SaysYesToTheMalformed, webhook.a_malformed_message_is_refused),
        (SaysYesToAll, webhook.an_oversized_message_is_refused),
        (SaysYesToAll, webhook.another_method_is_refused),
        (BlamesTheSender, webhook.a_full_spool_is_a_temporary_answer),
        (BlamesTheSender, webhook.a_failing_spool_is_a_temporary_answer),
        (DoesNotSayWhen, webhook.a_full_spool_is_a_temporary_answer),
        (StumblesOverHeaders, webhook.awkward_headers_get_an_answer),
        (StumblesOverBodies, webhook.random_requests_get_an_answer),
        (TellsTheLog, webhook.a_good_message_is_one_ticket),
        (TellsTheSender, webhook.a_forged_message_is_refused),
        (AcceptsTwice, webhook.the_counters_move),
        (ProbesForEver, webhook.the_probe_ends_in_time),
        (ProbesBadly, webhook.the_probe_ends_in_time),
    ],
)
async def test_a_defect_of_a_webhook_channel(
    defective: type[echo.Connector], check: Check, open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo, "Connector", defective)
    monkeypatch.setattr(webhook, "PROBE_SECS", 0.1)
    monkeypatch.setattr(webhook, "PHASES", (Phase.generate,))  # nobody reads the smallest example
    (driver,) = drivers("echo")

    with pytest.raises(NOTICED):
        async with open_rig(driver("echo")) as opened:
            await check(opened)


# Channels that run on their own, with a defect each


class AcknowledgesFirst(good_lines.Connector):
    async def _answer(self, line: bytes, accept: Accept) -> bytes:
        with suppress(Unavailable):
            await accept(self._message(line))
        return b"OK\n"


class RefusesForGood(good_lines.Connector):
    async def _answer(self, line: bytes, accept: Accept) -> bytes:
        return (await super()._answer(line, accept)).replace(b"AGAIN", b"NO")


class TrustsEveryLine(good_lines.Connector):
    def _message(self, line: bytes) -> RawMessage:
        return RawMessage("lines", line, "m1")


class CountsLines(good_lines.Connector):
    lines = 0

    def _message(self, line: bytes) -> RawMessage:
        self.lines += 1
        return RawMessage("lines", line, str(self.lines))


class DiesOfNoise(good_lines.Connector):
    def _message(self, line: bytes) -> RawMessage:
        if not line.isascii():
            raise LookupError("no such letter")
        return super()._message(line)


class IsNeverUp(good_lines.Connector):
    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        await super().run(accept, lambda _: None)


class RunsOnce(good_lines.Connector):
    ran = False

    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        while self.ran:
            await asyncio.Event().wait()
        self.ran = True
        await super().run(accept, up)


class Lingers(good_lines.Connector):
    async def run(self, accept: Accept, up: Callable[[bool], None]) -> None:
        try:
            await super().run(accept, up)
        finally:
            loop = asyncio.get_running_loop()
            end = loop.time() + STOP_SECS + 2.2
            while (left := end - loop.time()) > 0:
                with suppress(asyncio.CancelledError):  # the supervisor cancels more than once
                    await asyncio.sleep(left)


@pytest.mark.parametrize(
    ("defective", "check"),
    [
        (AcknowledgesFirst, running.a_full_spool_is_a_temporary_answer),
        (AcknowledgesFirst, running.a_failing_spool_is_a_temporary_answer),
        (RefusesForGood, running.a_full_spool_is_a_temporary_answer),
        (TrustsEveryLine, running.a_forged_message_is_refused),
        (CountsLines, running.a_message_again_is_the_same_ticket),
        (CountsLines, running.the_counters_move),
        (DiesOfNoise, running.noise_does_no_harm),
        (IsNeverUp, running.a_good_message_is_one_ticket),
        (RunsOnce, running.it_runs_again_after_a_failure),
        (Lingers, running.a_stop_ends_in_time),
    ],
)
async def test_a_defect_of_a_running_channel(
    defective: type[good_lines.Connector],
    check: Check,
    open_rig: OpenRig,
    outsiders: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry.connector_module("lines"), "Connector", defective)
    monkeypatch.setattr(rig, "UP_SECS", 1)

    with pytest.raises(NOTICED):
        async with open_rig(lines.Driver("lines")) as opened:
            await check(opened)


# What stands around the checks


def test_a_connection_to_the_outside(fence: Fence) -> None:
    for reach in (lambda: socket.create_connection(("192.0.2.1", 25)), lambda: socket.getaddrinfo("example.com", 25)):
        with pytest.raises(ConnectionRefusedError):
            reach()

    assert len(fence.attempts) == 2
    fence.attempts.clear()


def test_a_connection_within_the_machine(fence: Fence) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(("localhost", server.getsockname()[1])),
    ):
        assert fence.attempts == []


def test_a_connector_without_a_driver(tmp_path: Path, add_modules: Callable[[Path], None]) -> None:
    (tmp_path / "connectors").mkdir()
    (tmp_path / "connectors/pigeon.py").write_text("from connectors.echo import Connector")
    add_modules(tmp_path)

    assert "pigeon" in registry.types()
    with pytest.raises(AssertionError, match=r"write tests/contract/drivers/pigeon\.py with a class Driver"):
        drivers("pigeon")


def test_a_waiver_that_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    (driver,) = drivers("echo")
    monkeypatch.setattr(driver, "waivers", {"the_counters_move": "they are shy"})

    params = cases([Subject("echo", driver)], [webhook.the_counters_move, webhook.the_probe_ends_in_time])

    ((mark,), no_marks) = (param.marks for param in params)
    assert mark == pytest.mark.xfail(reason="they are shy", raises=AssertionError, strict=True)
    assert not no_marks


@pytest.mark.parametrize(
    "source",
    [
        "from datetime import datetime\ndef impure(): datetime.now()",
        "import datetime\ndef impure(): datetime.datetime.now()",
        "import time\ndef impure(): time.time()",
        "from time import time\ndef impure(): time()",
        "import random\ndef impure(): random.random()",
        "from uuid import uuid4\ndef impure(): uuid4()",
        "from pathlib import Path\ndef impure(): Path('/etc/passwd').read_text()",
        "def impure(): open('/etc/passwd')",
        "import socket\ndef impure(): socket.create_connection(('127.0.0.1', 9))",
    ],
)
def test_an_impure_normalizer(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("normalizers.impure")
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "normalizers.impure", module)

    with deprived(), pytest.raises(AssertionError):
        module.impure()
