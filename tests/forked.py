"""`tortie` in a process of its own, without the time that Python takes to start and to import it, half a second of CPU.

The child is this process until it begins the command: no thread but the one that asks goes with it.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from tortie.cli.main import command_line
from tortie.cli.main import main as tortie

WARM = ("cli.output", "calc.explain", "lab.kubelet", "lab.tables", "lab.verdicts", "store.sqlite")
"""What most commands import; children of this process have it already."""
CRASHED = 70  # EX_SOFTWARE of sysexits.h


@cache
def _warm() -> None:
    for name in WARM:
        importlib.import_module(f"tortie.{name}")
    command_line()


def run(
    words: Sequence[str],
    environment: Mapping[str, str],
    streams: tuple[IO[bytes] | None, IO[bytes], IO[bytes]],
    directory: Path | None = None,
    seconds: float = 120.0,
) -> int:
    """Exit status of `tortie WORDS`. `streams`: its input (None: nothing), output and errors; `environment`: on top of
    ours. Raises TimeoutError, when it has been killed."""
    _warm()
    pid = os.fork()
    if pid == 0:
        _child(words, environment, streams, directory)
    ended = os.pidfd_open(pid)
    in_time = select.select([ended], [], [], seconds)[0]
    os.close(ended)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not in_time:
        raise TimeoutError(f"tortie {' '.join(words)}: still running after {seconds:g} s")
    return status


def _child(
    words: Sequence[str],
    environment: Mapping[str, str],
    streams: tuple[IO[bytes] | None, IO[bytes], IO[bytes]],
    directory: Path | None,
) -> None:
    """Ends the process."""
    status = CRASHED
    try:
        given, out, err = streams
        os.dup2(given.fileno() if given is not None else os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        if directory is not None:
            os.chdir(directory)
        os.environ.update(environment)
        status = tortie(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
