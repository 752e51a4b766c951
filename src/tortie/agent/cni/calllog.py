"""The file that a network's configuration names for its calls' log (`log_file_path`), beside the agent's own log.

What is logged while a call is served goes there too, threads included: each call has a context of its own. A file that
has grown large is set aside under its time and compressed; those that are old or too many go. A file that cannot be
written fails no call.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tortie.agent.netconf import LogFile
from tortie.base.logs import Seldom

log = logging.getLogger(__name__)
calls = logging.getLogger("tortie.calls")
"""For these files alone."""
calls.propagate = False

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "error": logging.ERROR}
DAY = 86400.0
_OURS = logging.getLogger("tortie")


@dataclass(frozen=True, slots=True)
class _Place:
    file: LogFile
    title: str


_current: ContextVar[_Place | None] = ContextVar("call log", default=None)


@contextlib.contextmanager
def logging_to(file: LogFile, title: str) -> Iterator[None]:
    """While the block runs what is logged goes to the file, too; `title` says of which call it is."""
    if file.path and LEVELS[file.level] < _OURS.getEffectiveLevel():
        _OURS.setLevel(LEVELS[file.level])  # the agent's own log has its level at its handler
    token = _current.set(_Place(file, title) if file.path else None)
    try:
        yield
    finally:
        _current.reset(token)


class CallLog(logging.Handler):
    """Writes records to the file of the call that they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self._complain = Seldom(log)

    def emit(self, record: logging.LogRecord) -> None:
        place = _current.get()
        if place is None or record.levelno < LEVELS[place.file.level]:
            return
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = f"{when} [{record.levelname}] {place.title}: {record.getMessage()}\n"
        try:
            _append(place.file, line)
        except OSError as error:
            token = _current.set(None)
            self._complain.warning(f"log_file_path: {place.file.path}: {error.strerror}")
            _current.reset(token)


def install() -> None:
    """From now on calls may have log files."""
    if not any(isinstance(one, CallLog) for one in calls.handlers):
        handler = CallLog()
        calls.addHandler(handler)
        _OURS.addHandler(handler)


def _append(file: LogFile, line: str) -> None:
    path = Path(file.path)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        os.makedirs(path.parent, 0o755, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, line.encode("utf-8", "replace"))
        if os.fstat(fd).st_size >= file.megabytes * 2**20:
            _set_aside(path, fd, file)
    finally:
        os.close(fd)


def _set_aside(path: Path, fd: int, file: LogFile) -> None:
    """Unless another agent has done so. Compressing takes seconds, for which nobody waits."""
    if os.stat(path).st_ino != os.fstat(fd).st_ino:
        return
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    old = path.with_name(f"{path.stem}-{when}{path.suffix}")
    path.rename(old)
    threading.Thread(target=_compress, args=(path, old, file), name="compress log").start()


def _compress(path: Path, old: Path, file: LogFile) -> None:
    with contextlib.suppress(OSError):  # a log that stays large is still a log
        packed = old.with_name(f"{old.name}.gz")
        with old.open("rb") as source, gzip.open(packed, "wb") as target:
            shutil.copyfileobj(source, target)
        old.unlink()
        kept = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}.gz"))
        too_old = time.time() - file.days * DAY
        for one in kept[: -file.count] + [one for one in kept[-file.count :] if one.stat().st_mtime < too_old]:
            one.unlink(missing_ok=True)
