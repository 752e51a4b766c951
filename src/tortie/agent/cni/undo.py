"""Steps that are undone when a later one fails: a call leaves all of its work, or none."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from tortie.base.errors import TortieError

log = logging.getLogger(__name__)


def on_failure(undo: AsyncExitStack, step: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Have `step` run unless the stack is emptied before it ends (`pop_all`)."""
    undo.push_async_callback(_undone, step, *arguments)


async def _undone(step: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """What cannot be undone now is left to the runtime's DEL: why ADD failed is the better message."""
    try:
        await step(*arguments)
    except TortieError as error:
        log.warning("left for DEL: %s", error)
