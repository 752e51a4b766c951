"""One SQLite file that many processes of a machine read and write: opening it, transactions, its errors as ours.

Two connections. The *reader* is used on the event loop itself: a point read takes 10 µs there, against 100 µs through a
thread, and in WAL mode no writer makes it wait. The *writer* lives on a thread of its own, because a commit that has to
move the log into the database waits for the disk (10 ms and more); long reads go there too. Nobody waits for a lock
inside SQLite: an attempt that finds the database locked comes back and is repeated after a random pause, so that a
writer waiting its turn holds up neither the loop nor other reads, and can be cancelled.

Durability: WAL with synchronous=NORMAL. What was acknowledged survives a kill -9 of any process, since the kernel has
it; a power cut may take the last few transactions with it, but never leaves half of one.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

from tortie.base.errors import ConfigError, NotSupported, TortieError, Unavailable
from tortie.store.notify import Notices

T = TypeVar("T")
Query = Callable[[sqlite3.Connection], T]

PATIENCE = 10.0
"""Seconds that a call tries before it is Unavailable, unless told otherwise."""
FIRST_PAUSE, LONGEST_PAUSE = 0.0005, 0.016
"""Bounds in seconds on the pause between two attempts. A write holds the lock for about 0.1 ms."""

APPLICATION = 0x74727469
"""PRAGMA application_id of our files: "trti"."""
SCHEMA = 1
"""PRAGMA user_version of our files. A change of tables raises it and brings a migration."""

TABLES = (
    """CREATE TABLE IF NOT EXISTS objects (
         kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
         PRIMARY KEY (kind, namespace, name))""",
    """CREATE TABLE IF NOT EXISTS changes (
         revision INTEGER PRIMARY KEY, type TEXT NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS changes_of_kind ON changes (kind, revision)",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
)
"""`body` is the JSON of `tortie.model.document.encode`, identity and revision included. `changes` has a row for each
write, the newest few thousand without a gap: its greatest revision is the store's."""


class Locked(Unavailable):
    """Another connection holds the lock."""


class Database:
    """An open database. Raises ConfigError or NotSupported when `path` is not one of ours and cannot become one."""

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        self.path = path
        self._patience = patience
        self._closed = False
        make_file(path)
        with translated(path):
            self._writer = connect(path, patience)
            self._reader = connect(path, patience)
            self._reader.execute("PRAGMA query_only = ON")
        self._file = file_id(path)
        try:
            self.notices = Notices(path.with_name(f"{path.name}-notify"))
        except OSError as error:
            raise ConfigError(f"cannot be opened: {os.strerror(error.errno or 0)}", f"{path}-notify") from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"store {path.name}")
        self._turn = asyncio.Lock()

    async def read(self, query: Query[T]) -> T:
        """What a short query says, asked on the event loop."""

        async def attempt() -> T:
            return query(self._reader)

        return await self._patiently(attempt, time.monotonic())

    async def read_aside(self, query: Query[T]) -> T:
        """What a long query says, asked on the thread, of one moment of the database."""
        return await self._patiently(
            lambda: self._on_thread(lambda: transaction(self._writer, "BEGIN", query)), time.monotonic()
        )

    async def write(self, change: Query[T]) -> T:
        """Run a change as one transaction on the thread; what it raises undoes it.

        Cancelled, it may or may not be made: whoever cares must look.
        """

        def attempt() -> T:
            self.check_file()
            before = self._writer.total_changes
            result = transaction(self._writer, "BEGIN IMMEDIATE", change)
            if self._writer.total_changes != before:
                self.notices.post()
            return result

        start = time.monotonic()
        async with self._turn:  # that one of this process asks for the lock is enough
            return await self._patiently(lambda: self._on_thread(attempt), start)

    def check_file(self) -> None:
        """Raises Unavailable when the file was deleted or replaced: what is written then, nobody would ever read."""
        if file_id(self.path) != self._file:
            raise Unavailable(f"{self.path}: the database was removed or replaced while in use: start again")

    async def close(self) -> None:
        """Idempotent. Lets a transaction that is under way finish."""
        if self._closed:
            return
        self._closed = True
        async with self._turn:
            self._reader.close()
            await self._on_thread(self._writer.close)
            self.notices.close()
            self._thread.shutdown(wait=False)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], start: float) -> T:
        for pause in pauses():
            if self._closed:
                raise Unavailable(f"{self.path}: this store is closed")
            try:
                with translated(self.path):
                    return await attempt()
            except Locked:
                if time.monotonic() - start > self._patience:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    async def _on_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def transaction(connection: sqlite3.Connection, begin: str, query: Query[T]) -> T:
    """Run a query as one transaction: all of it, or nothing when it raises."""
    connection.execute(begin)
    try:
        result = query(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def pauses() -> Iterator[float]:
    """Random pauses, longer and longer up to a bound, without end."""
    for attempt in count():
        yield random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 16)))


def make_file(path: Path) -> None:
    """Make the directory (0700) and an empty file (0600; SQLite gives its companions the same mode) if missing.

    An existing file is not opened here: closing it would drop the POSIX locks that SQLite holds on it in this process.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"cannot make a database here: {os.strerror(error.errno or 0)}", str(path)) from None
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"cannot be opened: {os.strerror(error.errno or 0)}", str(path)) from None
    if stat.S_ISDIR(mode):
        raise ConfigError(f"is a directory; name a file in it, such as {path / 'store.db'}", str(path))
    if not stat.S_ISREG(mode):
        raise ConfigError("is not a regular file, so it cannot hold a database", str(path))
    if not os.access(path, os.R_OK | os.W_OK):
        raise ConfigError("cannot be read and written: check owner, mode, and that nothing is read-only", str(path))


def file_id(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that takes its place later; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def connect(path: Path, patience: float) -> sqlite3.Connection:
    """A connection to a database of ours, made one if it was empty. Raises ConfigError, NotSupported, sqlite3.Error."""
    start = time.monotonic()
    for pause in pauses():
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            prepare(connection, path)
        except BaseException as error:
            connection.close()
            if not is_locked(error) or time.monotonic() - start > patience:
                raise
        else:
            return connection
        time.sleep(pause)
    raise AssertionError("pauses never end")


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check whose file this is before anything is changed in it, then make what is missing."""

    def identity(connection: sqlite3.Connection) -> tuple[int, ...]:
        questions = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        return tuple(connection.execute(question).fetchone()[0] for question in questions)

    application, schema, tables = transaction(connection, "BEGIN", identity)
    if application != APPLICATION and (application or schema or tables):
        raise ConfigError("is an SQLite database of another program", str(path))
    if schema > SCHEMA:
        raise NotSupported(f"{path}: schema {schema} is of a newer Tortie than this one, which knows {SCHEMA}: upgrade")
    connection.execute("PRAGMA synchronous = NORMAL")
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise NotSupported(f"{path}: no write-ahead log is possible here: put the database on a local file system")
    connection.execute(f"PRAGMA journal_size_limit = {16 << 20}")  # cuts back a log that grew in a burst
    if not tables:
        transaction(connection, "BEGIN IMMEDIATE", lambda connection: [*map(connection.execute, TABLES)])


def is_locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and result_code(error) in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def result_code(error: sqlite3.Error) -> int:
    """The primary result code, https://sqlite.org/rescode.html; 0 for errors of Python's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours. What is none of the operator's business is a bug and passes as it is."""
    try:
        yield
    except sqlite3.Error as error:
        found = translation(error, path)
        if found is None:
            raise
        raise found from None


def translation(error: sqlite3.Error, path: Path) -> TortieError | None:
    """What the caller can do about an error of SQLite's."""
    match result_code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Locked(
                f"{path}: database is locked: another program keeps writing (fuser -v shows which); try again"
            )
        case sqlite3.SQLITE_FULL:
            return Unavailable(f"{path}: the disk is full, nothing was written: free some space and try again")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return Unavailable(
                f"{path}: cannot be written: check its owner and mode, and that it is not mounted read-only"
            )
        case sqlite3.SQLITE_CANTOPEN:
            return Unavailable(f"{path}: cannot be opened: check that it exists, its owner and its mode")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_PROTOCOL:
            return Unavailable(f"{path}: {error}: look into the kernel log, try again")
        case sqlite3.SQLITE_NOTADB:
            return ConfigError("is not a database", str(path))
        case sqlite3.SQLITE_CORRUPT:
            return ConfigError("the database is damaged: restore a copy, or delete it and start afresh", str(path))
    return None
