"""The agent as a program: from its options to the end, by a signal.

SIGTERM and SIGINT end it and leave the dataplane, BIRD included, forwarding as it is. So does SIGKILL: the next start
finds the kernel's state and BIRD, and changes only what differs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Any

from tortie.agent import collector, startup
from tortie.agent.agent import Agent
from tortie.agent.config import AgentConfig
from tortie.agent.environment import Environment
from tortie.agent.registration import RETRY
from tortie.base.errors import TortieError, Unavailable
from tortie.base.logs import Seldom, to_stderr
from tortie.kernel.bird import available as bird_available
from tortie.kernel.occupied import occupied
from tortie.model.store import Store
from tortie.store import open_store
from tortie.store.fanout.wanted import by_fanout

log = logging.getLogger("tortie.agent")


async def opened(datastore: str, node: str = "") -> Store:
    """The datastore, as soon as it can be opened. Raises ConfigError, NotSupported."""
    complain = Seldom(log)
    while True:
        try:
            return open_store(datastore, node=node)
        except Unavailable as error:
            complain.warning(f"waiting for the datastore: {error}")
            await asyncio.sleep(RETRY)


async def serve(config: AgentConfig, environment: Environment) -> None:
    """Run an agent until SIGTERM or SIGINT. Raises TortieError when it cannot start or go on."""
    running = asyncio.create_task(_serve(config, environment), name="agent")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        log.info("stopping; the dataplane stays as it is")
    except BaseExceptionGroup as group:
        raise first_error(group) from None


async def _serve(config: AgentConfig, environment: Environment) -> None:
    with occupied(config.run_dir):
        direct = await opened(config.datastore, config.node)
        store = by_fanout(direct, config.fanout, config.node, os.environ)
        try:
            await Agent(config, store, environment).run()
        finally:
            await store.close()


def first_error(group: BaseExceptionGroup[Any]) -> TortieError:
    """What a person wants to know of a group: the first thing that went wrong."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TortieError):
        return error
    raise group  # a bug


def main(config: AgentConfig, level: str = "info") -> None:
    """Blocks until told to stop. Raises TortieError when the agent cannot start."""
    to_stderr(level)
    collector.begin()
    config, environment = startup.told(config)
    if config.bgp:
        bird_available()
    asyncio.run(serve(config, environment))
