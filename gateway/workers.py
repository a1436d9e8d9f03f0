"""Child processes for heavy messages: what takes too long or too much memory there costs nobody else anything.

A child is a fresh interpreter, started when it is first needed, that normalises one message at a time. Over its pipes
go frames: eight bytes of length and a pickle. A large body is not sent, but read by the child where the spool has it.

A child ends with its parent, whatever either is doing: when its pipe ends, by the kernel on Linux (prctl(2),
PR_SET_PDEATHSIG), and elsewhere by its alarm clock.
"""

import asyncio
import contextlib
import os
import pickle
import resource
import signal
import struct
import sys
import traceback
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from gateway.contract import Draft, Normalizer, StoredMessage
from gateway.errors import HuiruError, Rejected

log = structlog.get_logger()

_START_SECS = 60.0
_GRACE_SECS = 5  # after the time limit, before the child's own clock ends it
_NICE = 5  # customers who wait for an answer come first
_PDEATHSIG = 1  # linux/prctl.h
_LENGTH = struct.Struct(">Q")
_READ_BYTES = 1 << 20

Find = Callable[[str], Normalizer]


class Failed(Exception):
    """The child, or the normalizer in it, failed in a way that may be ours: it counts as a try (R8)."""


class Workers:
    """At most `size` children, each held to `timeout_secs` a message and `memory_bytes` of address space.

    `find` gives the normalizer of a kind; it is a function of a module, because the child has to find it by its name.
    """

    def __init__(self, find: Find, *, size: int, timeout_secs: float, memory_bytes: int) -> None:
        self.size = size
        self._setup = (find, timeout_secs, memory_bytes)
        self._timeout_secs = timeout_secs
        self._turn = asyncio.Semaphore(size)
        self._idle: list[Process] = []

    async def normalize(self, message: StoredMessage, file: Path | None = None) -> Draft:
        """The draft of a message whose body lies in `file`, or is in it. Waits for a child that is free.

        Raises what the normalizer raised if that is a HuiruError, else Failed; Rejected("too_slow" or "too_heavy") at a
        limit, and Rejected("unreadable") when the file is not there.
        """
        async with self._turn:
            child = await self._child()
            try:
                answer = await self._ask(child, (message, file))
            except BaseException:  # also a cancellation: nobody knows what it is at
                await _kill(child)
                raise
            if isinstance(answer, Rejected) and answer.code == "too_heavy":
                await _kill(child)  # little of its memory is left
            else:
                self._idle.append(child)
        if isinstance(answer, Exception):
            raise answer
        draft: Draft = answer
        return draft

    async def close(self) -> None:
        """Ends the children that are idle. Those at work end when whoever waits for them is cancelled."""
        while self._idle:
            await _kill(self._idle.pop())

    async def _child(self) -> Process:
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
        return await self._start()

    async def _start(self) -> Process:
        program = f"import sys; sys.path[:] = {sys.path!r}; from gateway.workers import serve; serve()"
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=PIPE, stdout=PIPE, limit=_READ_BYTES
        )
        try:
            async with asyncio.timeout(_START_SECS):
                refused = await _exchange(child, (os.getpid(), *self._setup))
        except BaseException as error:
            await _kill(child)
            if isinstance(error, OSError | EOFError | TimeoutError):
                raise Failed("no worker could be started") from error
            raise
        log.debug("worker.started", pid=child.pid)
        if refused:
            log.warning("worker.unrestricted", reason=refused, remedy="let workers call setrlimit and setpriority")
        return child

    async def _ask(self, child: Process, task: tuple[StoredMessage, Path | None]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_secs):
                return await _exchange(child, task)
        except TimeoutError:
            raise Rejected("too_slow", reason=f"normalizing took more than {self._timeout_secs:g} s") from None
        except (OSError, EOFError) as error:
            raise Failed(f"the worker ended: {await _end_of(child)}") from error


async def _exchange(child: Process, message: object) -> Any:
    """Raises OSError or EOFError when the child has ended."""
    if child.stdin is None or child.stdout is None:
        raise EOFError
    frame = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    child.stdin.write(_LENGTH.pack(len(frame)))
    child.stdin.write(frame)
    await child.stdin.drain()
    (length,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
    return pickle.loads(await child.stdout.readexactly(length))  # noqa: S301 - of our own child


async def _kill(child: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    # Shielded: whoever is cancelled twice must not leave a process behind that nobody has waited for.
    await asyncio.shield(asyncio.ensure_future(child.communicate()))


async def _end_of(child: Process) -> str:
    # Not by killing it: Popen.kill polls, and takes the status from asyncio.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_SECS):
            await child.wait()
    status = child.returncode or 0
    return f"status {status}" if status >= 0 else signal.Signals(-status).name


# In the child


def serve() -> None:
    """Until its parent ends, in silence: the daemon's log is the next daemon's too."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's, a service manager's: for the parent to decide
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no frame
    with contextlib.suppress(EOFError, BrokenPipeError):
        _serve(questions, answers)
    os._exit(0)  # an answer that nobody took must not be written out now


def _serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Raises EOFError or BrokenPipeError when the parent has ended."""
    parent, find, timeout_secs, memory_bytes = _receive(questions)
    _die_with(parent)
    _send(answers, pickle.dumps(_restrict(memory_bytes)))
    while True:
        task = _receive(questions)
        signal.alarm(int(timeout_secs) + _GRACE_SECS)
        _send(answers, _answer(find, *task))
        signal.alarm(0)
        del task


def _die_with(parent: int) -> None:
    # Imported here: where no memory may be written and executed, an old libffi cannot even be loaded.
    with contextlib.suppress(ImportError, OSError, MemoryError, AttributeError):
        from ctypes import CDLL

        if sys.platform == "linux":
            CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def _restrict(memory_bytes: int) -> str:
    """What the machine does not let us do, such as a service manager's filter of system calls."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.nice(_NICE)
    except OSError as error:
        return str(error)
    return ""


def _answer(find: Find, message: StoredMessage, file: Path | None) -> bytes:
    """The draft or what was raised, pickled: that too may be more than there is memory for."""
    try:
        return _pickled(_outcome(find, message, file))
    except MemoryError:
        return _pickled(Rejected("too_heavy", reason="normalizing took more memory than a worker may have"))


def _outcome(find: Find, message: StoredMessage, file: Path | None) -> Draft | Exception:
    try:
        if file is not None:
            message = replace(message, body=file.read_bytes())
    except OSError as error:
        return Rejected("unreadable", reason=str(error))
    try:
        return find(message.kind)(message)
    except HuiruError as error:
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error
    except MemoryError:
        raise
    except Exception as error:  # of any class, which the parent may not know
        failed = Failed(f"{type(error).__name__}: {error}")
        failed.add_note(traceback.format_exc())
        return failed


def _pickled(answer: Draft | Exception) -> bytes:
    return pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)


def _receive(pipe: BinaryIO) -> Any:
    """Raises EOFError when the parent has ended, be it in the midst of a frame."""
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    return pickle.loads(_read(pipe, length))  # noqa: S301 - of our own parent


def _read(pipe: BinaryIO, size: int) -> bytes:
    found = pipe.read(size)
    if len(found) < size:
        raise EOFError
    return found


def _send(pipe: BinaryIO, frame: bytes) -> None:
    pipe.write(_LENGTH.pack(len(frame)))
    pipe.write(frame)
    pipe.flush()
