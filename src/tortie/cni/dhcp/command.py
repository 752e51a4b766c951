"""The command `dhcp daemon`: its flags, its socket (its own, or systemd's), its end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from tortie.base.errors import ConfigError
from tortie.cni.dhcp.daemon import serve
from tortie.cni.dhcp.lease import Timing
from tortie.cni.dhcp.rpc import SOCKET

FIRST_PASSED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def seconds(text: str) -> float:
    """A duration as Go writes it: `10s`, `1m2.5s`. Raises ValueError."""
    if not re.fullmatch(f"({_PART.pattern})+", text):
        raise ValueError(f'"{text}" is not a duration such as 10s or 1m30s')
    return sum(float(number) * UNITS[unit] for number, unit in _PART.findall(text))


def truth(text: str) -> bool:
    if text in {"1", "t", "T", "true", "TRUE", "True"}:
        return True
    if text in {"0", "f", "F", "false", "FALSE", "False"}:
        return False
    raise ValueError(f'"{text}" is neither true nor false')


def flags(words: Sequence[str]) -> argparse.Namespace:
    """Exits with 2 and says how it is used when they are wrong."""
    parser = argparse.ArgumentParser(prog="dhcp daemon", description=__doc__, allow_abbrev=False)

    def flag(name: str, **how: Any) -> None:
        parser.add_argument(f"-{name}", f"--{name}", dest=name, **how)

    flag("pidfile", default="", metavar="PATH", help="write the process's number here")
    flag("hostprefix", default="", metavar="PATH", help="in front of the socket's path and those of namespaces")
    flag("socketpath", default=SOCKET, metavar="PATH", help="listen here (default %(default)s)")
    flag("timeout", default=10.0, type=seconds, metavar="TIME", help="for a lease that was offered (default 10s)")
    flag("resendmax", default=62.0, type=seconds, metavar="TIME", help="the longest pause between two tries (62s)")
    flag("resendtimeout", default=208.0, type=seconds, metavar="TIME", help="how long a lease is sought (208s)")
    flag("broadcast", nargs="?", const=True, default=False, type=truth, help="servers shall answer to everybody")
    return parser.parse_args(words)


def passed_socket() -> socket.socket | None:
    """The one that systemd listens on for us; None without. Raises ConfigError for more than one."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = int(os.environ.get("LISTEN_FDS", "0"))
    if count > 1:
        raise ConfigError(f"too many sockets passed to the daemon: {count} instead of 1")
    if not count:
        return None
    return socket.socket(fileno=FIRST_PASSED)


def own_socket(path: str) -> socket.socket:
    """One that only root may speak to. Raises ConfigError when somebody listens there already, or nobody can."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        if os.path.exists(path):
            _forget(path)
        mask = os.umask(0o077)
        try:
            listening.bind(path)
        finally:
            os.umask(mask)
    except OSError as why:
        raise ConfigError(f"cannot listen there: {os.strerror(why.errno or 0)}", path) from None
    return listening


def _forget(path: str) -> None:
    """Takes away the socket of a daemon that is no more. To what is no socket connections are refused, too."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ConfigError("there is something else", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise ConfigError("a daemon listens there already", path)


async def _until_told(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work, name="daemon")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        pass


def main(words: Sequence[str]) -> int:
    asked = flags(words)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    path = asked.hostprefix + asked.socketpath
    timing = Timing(asked.timeout, asked.resendmax, asked.resendtimeout)
    try:
        passed = passed_socket()
        listening = passed or own_socket(path)
        if asked.pidfile:
            Path(asked.pidfile).write_text(f"{os.getpid()}\n", encoding="ascii")
    except (ConfigError, OSError) as why:
        sys.stderr.write(f"dhcp daemon: {why}\n")
        return 1
    try:
        asyncio.run(_until_told(serve(listening, asked.hostprefix, timing, asked.broadcast, f"{path}.leases")))
    finally:
        if passed is None:
            Path(path).unlink(missing_ok=True)
        if asked.pidfile:
            Path(asked.pidfile).unlink(missing_ok=True)
    return 0
