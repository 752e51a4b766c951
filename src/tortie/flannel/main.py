"""flanneld as a program: from its flags to the end, by a signal or because its lease is gone.

SIGTERM and SIGINT end it with status 0 and leave the network as it is; so does SIGKILL, and the next one goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress

from tortie.base.errors import ConfigError, Unavailable, one_of
from tortie.base.logs import Seldom, to_stderr
from tortie.flannel.daemon import RETRY, Daemon
from tortie.flannel.manager import SubnetManager
from tortie.flannel.managers import opened
from tortie.flannel.options import Options

log = logging.getLogger("tortie.flannel")


def main(options: Options, environment: Mapping[str, str] = os.environ) -> None:
    """Blocks until told to stop. Raises TortieError."""
    if os.geteuid() != 0:
        raise ConfigError("flanneld programs the kernel: run it as root")
    to_stderr("debug" if options.v else "info")
    try:
        asyncio.run(_until_signal(options, environment))
    except BaseExceptionGroup as group:
        raise one_of(group) from None


async def _until_signal(options: Options, environment: Mapping[str, str]) -> None:
    work = asyncio.create_task(run(options, environment), name="flanneld")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    with suppress(asyncio.CancelledError):
        await work


async def run(options: Options, environment: Mapping[str, str]) -> None:
    """Until cancelled. Raises TortieError, alone or in groups."""
    manager = await _patiently_opened(options, environment)
    try:
        await Daemon(options, manager, lambda: notify(environment)).run()
    finally:
        await manager.close()


async def _patiently_opened(options: Options, environment: Mapping[str, str]) -> SubnetManager:
    """A node may start before its cluster does."""
    complain = Seldom(log)
    while True:
        try:
            return await opened(options, environment)
        except Unavailable as error:
            complain.warning(f"waiting to learn which node this is: {error}")
            await asyncio.sleep(RETRY)


def notify(environment: Mapping[str, str]) -> None:
    """Tells systemd that we are ready, where it wants to know (sd_notify(3))."""
    where = environment.get("NOTIFY_SOCKET", "")
    if where:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", f"\0{where[1:]}" if where.startswith("@") else where)
