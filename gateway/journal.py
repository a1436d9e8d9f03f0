"""One SQLite database, one connection, group commit.

Whatever is asked for while a commit runs shares the next one, so the cost of an fsync is divided by the load and no
timer is needed. A waiter is told yes only after the commit that holds its change; when a commit fails, no waiter of
that batch is told yes. A cancelled waiter does not cancel the write.

Statements change pages in memory, and run where they are asked for; the commit, which writes and syncs, runs in a
thread, alone: under load whatever else a thread does costs many times its own work, for each statement in it takes the
interpreter's lock anew.

WAL with `synchronous=FULL` syncs at every commit (sqlite.org/pragma.html#pragma_synchronous). One exclusive connection
also keeps clear of the WAL-reset bug of SQLite 3.7.0 to 3.51.2, which takes two (sqlite.org/wal.html#walresetbug).
"""

import asyncio
import contextlib
import functools
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from gateway.errors import HuiruError, Unavailable

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

BATCH = 512
_ENOUGH, _MOST_TURNS = 32, 4  # asks, turns of the event loop: how long a batch gathers
_REOPEN_SECS = 5.0  # between two tries to replace a damaged database
_CHECKED_PAGES = 65_536  # 256 MiB
_CHECKPOINT_PAGES = 200  # 800 KiB of log: whoever is in that commit waits for the checkpoint too, so it is a short one
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SYNC_FAILED = {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC}
_NO_SPACE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE}

log = structlog.get_logger()


class Damaged(Exception):
    """The file is no database, or one whose pages do not fit together."""


@dataclass(slots=True)
class _Ask:
    future: asyncio.Future[Any]
    job: Job[Any] | None = None
    item: Any = None
    slow: bool = False
    done: bool = False
    result: Any = None
    error: BaseException | None = None


class Journal:
    """`put_all(db, items)` gives a result, or a HuiruError, for every item that was put into one batch.

    `opened` runs on every new connection, `before_commit` in every transaction behind all else, and `settled(ok)` after
    its end. `sync` runs before the commit, for files that have to be on disk by then. `replace` is called when the
    database turns out to be damaged: it has to put a usable one in its place. All but `put_all` and `before_commit`
    run in the journal's thread, and these two may.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        put_all: Callable[[sqlite3.Connection, list[Any]], list[Any]],
        before_commit: Job[None],
        sync: Callable[[], None],
        settled: Callable[[bool], None],
        opened: Job[None],
        replace: Callable[[], None],
    ) -> None:
        self._path = path
        self._schema = schema
        self._put_all = put_all
        self._before_commit = before_commit
        self._sync = sync
        self._settled = settled
        self._opened = opened
        self._replace = replace
        self._asked: list[_Ask] = []
        self._running: asyncio.Future[None] | None = None
        self._batches: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._open: sqlite3.Connection | None = None
        self._distrust_wal = False
        self._reopen_at = 0.0  # time.monotonic()
        self._closing = False
        self._changes = 0  # of the connection, when its last transaction ended
        self.healthy = True  # the last commit of changes went well

    # Life

    @property
    def connection(self) -> sqlite3.Connection:
        """For whoever runs the current batch, and until the first one for whoever opened it."""
        if self._open is None:
            raise Unavailable("spool_failed", reason="the journal is not open")
        return self._open

    def open(self) -> None:
        """Raises Damaged, or sqlite3.OperationalError when another process holds the file."""
        db = connect(self._path, self._schema)
        try:
            self._opened(db)
        except BaseException as error:
            db.close()
            _raise_damage(error)
            raise
        self._open = db

    def reopen(self) -> None:
        """Closes the connection, has the file exchanged, opens the new one."""
        self._close_connection()
        self._replace()
        self.open()

    async def close(self) -> None:
        """Commits what was asked for, and ends. What is asked for later is Unavailable("stopping")."""
        self._closing = True
        while self._running is not None:
            await asyncio.wait([self._running])
        if self._thread is not None:
            self._batches.put(None)
            await asyncio.to_thread(self._thread.join)
        self._close_connection()

    def _close_connection(self) -> None:
        if self._open is not None:
            with contextlib.suppress(sqlite3.Error):
                self._open.close()
        self._open = None

    # Asking

    def put(self, item: Any) -> asyncio.Future[Any]:
        """What `put_all` makes of the item, once it is on disk. Raises like `run`."""
        return self._ask(_Ask(_future(), item=item))

    async def run(self, job: Job[T], *, slow: bool = False) -> T:
        """The job's result once its changes are on disk. A `slow` one runs in the journal's thread.

        A job that refuses raises a HuiruError before it changes anything. Raises Unavailable("spool_failed") when the
        commit failed.
        """
        result: T = await self._ask(_Ask(_future(), job, slow=slow))
        return result

    def _ask(self, ask: _Ask) -> asyncio.Future[Any]:
        if self._closing:
            ask.future.set_exception(Unavailable("stopping"))
            return ask.future
        self._asked.append(ask)
        if self._running is None:
            self._running = _future()
            self._gather()
        return ask.future

    def _gather(self, before: int = 0, turns: int = 0) -> None:
        """Begins a batch, but not while every turn of the event loop brings more who can share its commit."""
        asked = len(self._asked)
        if before < asked < _ENOUGH and turns < _MOST_TURNS:
            asyncio.get_running_loop().call_soon(self._gather, asked, turns + 1)
        else:
            self._next()

    # A batch: its statements in the event loop, its commit in the thread

    def _next(self) -> None:
        batch, self._asked = self._asked[:BATCH], self._asked[BATCH:]
        failure: Exception | None = None
        try:
            self._begin(batch)
        except Exception as error:
            failure = error
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
            self._thread.start()
        self._batches.put(functools.partial(self._end, asyncio.get_running_loop(), batch, failure))

    def _work(self) -> None:
        while (task := self._batches.get()) is not None:
            task()

    def _end(self, loop: asyncio.AbstractEventLoop, batch: list[_Ask], failure: Exception | None) -> None:
        crash: BaseException | None = None
        try:
            self._finish(batch, failure)
        except BaseException as error:
            crash = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._resolve, batch, crash)

    def _resolve(self, batch: list[_Ask], crash: BaseException | None) -> None:
        for ask in batch:
            if ask.future.done():  # its waiter went away
                continue
            if crash is not None:  # nobody knows how far it came: nobody is told yes
                ask.future.set_exception(Unavailable("spool_failed", reason=repr(crash)))
            elif ask.error is not None:
                ask.future.set_exception(ask.error)
            else:
                ask.future.set_result(ask.result)
        if self._asked:
            self._gather()
        elif self._running is not None:
            self._running.set_result(None)
            self._running = None

    def _begin(self, batch: list[_Ask]) -> None:
        if self._distrust_wal or self._open is None:
            return  # no place to write to before the thread has dealt with it
        db = self.connection
        db.execute("BEGIN IMMEDIATE")
        quick = [ask for ask in batch if not ask.slow]
        self._do(db, quick)
        if len(quick) == len(batch):
            self._before_commit(db)

    def _do(self, db: sqlite3.Connection, asks: list[_Ask]) -> None:
        puts = [ask for ask in asks if ask.job is None]
        results = self._put_all(db, [ask.item for ask in puts]) if puts else []
        for ask, result in zip(puts, results, strict=True):
            ask.result, ask.error = (None, result) if isinstance(result, HuiruError) else (result, None)
        for ask in asks:
            if ask.job is not None:
                try:
                    ask.result = ask.job(db)
                except HuiruError as error:
                    ask.error = error
            ask.done = True

    def _finish(self, batch: list[_Ask], failure: Exception | None = None) -> None:
        """In the thread: the rest of the batch and its commit; what it comes to is in each ask."""
        try:
            try:
                if failure is not None:
                    raise failure
                self._commit(batch)
            except BaseException:
                self._roll_back()
                raise
        except sqlite3.Error as error:
            self._failed(batch, error)
        except Exception as error:  # a defect in a job: its neighbours are innocent
            self._apart(batch, error)

    def _commit(self, batch: list[_Ask]) -> None:
        if self._open is None:
            self._recover()
        db = self.connection
        if self._distrust_wal:
            self._rewrite(db)
        if not db.in_transaction:
            db.execute("BEGIN IMMEDIATE")
        if rest := [ask for ask in batch if not ask.done]:
            self._do(db, rest)
            self._before_commit(db)
        self._sync()
        db.execute("COMMIT")
        self._settled(True)
        # A transaction that only read says nothing about a full disk.
        self.healthy = self.healthy or db.total_changes != self._changes
        self._changes = db.total_changes

    def _roll_back(self) -> None:
        if self._open is not None:
            with contextlib.suppress(sqlite3.Error):
                if self._open.in_transaction:
                    self._open.execute("ROLLBACK")
                self._changes = self._open.total_changes
        self._settled(False)

    # When it fails

    def _failed(self, batch: list[_Ask], error: sqlite3.Error) -> None:
        code = getattr(error, "sqlite_errorcode", 0)
        if _is_damage(error):
            self._refuse(batch, error)
            self._set_aside(error)
        elif code in _SYNC_FAILED | _NO_SPACE:
            self._distrust_wal = self._distrust_wal or code in _SYNC_FAILED
            self._refuse(batch, error)
        else:
            self._apart(batch, error)

    def _apart(self, batch: list[_Ask], error: Exception) -> None:
        """Each in a transaction of its own: only the one at fault fails."""
        if len(batch) == 1:
            self._refuse(batch, error)
            return
        for ask in batch:
            ask.done, ask.error = False, None
            self._finish([ask])

    def _refuse(self, batch: list[_Ask], error: BaseException) -> None:
        if isinstance(error, sqlite3.Error | OSError):  # else a defect of the job's own
            self.healthy = False
        log.error("spool.commit_failed", error=f"{type(error).__name__}: {error}", waiters=len(batch))
        for ask in batch:  # also whoever was refused: perhaps because of a neighbour that is not there now
            ask.error = Unavailable("spool_failed", reason=str(error))

    def _rewrite(self, db: sqlite3.Connection) -> None:
        # After a failed fsync the kernel may call dirty pages clean, so syncing the same file again proves nothing
        # (wiki.postgresql.org/wiki/Fsync_Errors). A full checkpoint writes everything anew and syncs the main file.
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._distrust_wal = bool(busy)
        log.info("spool.wal_rewritten")

    def _set_aside(self, error: BaseException) -> None:
        log.critical("spool.damaged", path=str(self._path), error=str(error))
        with contextlib.suppress(Unavailable):
            self._reopen_or_wait()

    def _recover(self) -> None:
        if time.monotonic() >= self._reopen_at:
            self._reopen_or_wait()

    def _reopen_or_wait(self) -> None:
        """Raises Unavailable when the damaged file cannot be replaced now: the disk may be full."""
        try:
            self.reopen()
        except (sqlite3.Error, OSError, Damaged) as error:
            self._reopen_at = time.monotonic() + _REOPEN_SECS
            log.critical("spool.not_replaced", error=str(error))
            raise Unavailable("spool_failed", reason=str(error)) from error


def connect(path: Path, schema: str) -> sqlite3.Connection:
    """Opens or makes the database. Raises Damaged; sqlite3.OperationalError when somebody else has it locked."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1, cached_statements=64)
    try:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        if db.execute("PRAGMA page_count").fetchone()[0] == 0:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        db.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT;")
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        # Damage in a larger file is met, and dealt with, when it is read: a start must not take minutes.
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0] if pages <= _CHECKED_PAGES else "ok"
    except sqlite3.DatabaseError as error:
        db.close()
        _raise_damage(error)
        raise
    if verdict != "ok":
        db.close()
        raise Damaged(verdict)
    return db


def _is_damage(error: BaseException) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGE


def _raise_damage(error: BaseException) -> None:
    if _is_damage(error):
        raise Damaged(str(error)) from error


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()
