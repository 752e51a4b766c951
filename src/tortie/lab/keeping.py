"""Keeping a program running in a node's namespace: an agent, a flanneld. Whoever does it may be killed: the next one
takes over what runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tortie.base.errors import Unavailable
from tortie.lab import processes

RESTART_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds before what died is started again, doubled while it dies young
_YOUNG = 2.0  # seconds
STARTS_PER_CORE = 2
"""Programs that begin at a time."""
_START_SECONDS, _POLL_SECONDS = 20.0, 0.05


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Program:
    """`name` is for the log, `socket` what it serves once it has begun. `environment` is added to this process's."""

    name: str
    argv: Sequence[str]
    pid_file: Path
    log: Path
    socket: Path
    netns_path: str
    environment: Mapping[str, str] = field(default_factory=dict)


def not_in_time(who: str, why: str, log_file: Path) -> Unavailable:
    """What is said of programs that one waits for no longer; the log is that of the first of them."""
    last = log_file.read_text(errors="replace").rstrip().rpartition("\n")[2] if log_file.exists() else "it is not there"
    return Unavailable(f"{who} not ready in time{why and ': '}{why}; {log_file} ends with: {last}")


async def keep_running(program: Program, starts: asyncio.Semaphore) -> None:
    """Starts the program, or takes over the one that runs, and starts another whenever it ends. For ever.

    `starts` bounds how many begin at a time: fifty that import Python's modules at once all come late.
    """
    pause = RESTART_PAUSE
    while True:
        began = time.monotonic()
        how = await _run_once(program, starts)
        pause = RESTART_PAUSE if time.monotonic() - began > _YOUNG else min(2 * pause, LONGEST_PAUSE)
        log.warning("the %s %s; starting it again in %.1f s", program.name, how, pause)
        await asyncio.sleep(pause)


async def _run_once(program: Program, starts: asyncio.Semaphore) -> str:
    """Until it ends; how it ended."""
    adopted = processes.read_pid(program.pid_file)
    if adopted:
        log.info("the %s runs already, pid %d", program.name, adopted.pid)
        await adopted.ended()
        return "ended"
    async with starts:
        child = await asyncio.to_thread(
            processes.spawn,
            program.argv,
            program.pid_file,
            program.log,
            netns_path=program.netns_path,
            env=program.environment,
        )
        log.info("the %s is pid %d", program.name, child.pid)
        running = processes.process(child.pid)
        ended = asyncio.create_task(_ended(running), name=f"end of the {program.name}")
        await _begun(program.socket, ended)
    await ended
    code = await asyncio.to_thread(child.wait)
    return f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"


async def _ended(running: processes.Process | None) -> None:
    if running:
        await running.ended()


async def _begun(socket: Path, ended: asyncio.Task[None]) -> None:
    """Until a program serves its socket, or has ended, or has had its time."""
    deadline = time.monotonic() + _START_SECONDS
    while not (ended.done() or await asyncio.to_thread(socket.exists) or time.monotonic() > deadline):
        await asyncio.wait([ended], timeout=_POLL_SECONDS)
