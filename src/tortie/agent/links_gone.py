"""Links that are being deleted: they are gone when the kernel says so, long before its call returns.

    RTM_DELLINK ─► closed, routes flushed, name free ─► announced ─┬─► whoever waits goes on
                                                                   └─► until nothing refers to it ─► the call returns

The second part takes the kernel 20 to 40 ms, in which nobody can meet the link any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from tortie.kernel import events, links

log = logging.getLogger(__name__)


class LinksGone:
    """Of one node, on one event loop. Where nothing is heard, everybody waits for the calls themselves."""

    def __init__(self) -> None:
        self._awaited: dict[int, asyncio.Future[None]] = {}
        """By index: a name may be another link's the moment after."""
        self._tidying: set[asyncio.Task[None]] = set()

    def heard(self, told: Iterable[events.Event]) -> None:
        """What the kernel announces."""
        for event in told:
            if isinstance(event, events.LinkEvent) and event.gone and event.index in self._awaited:
                gone = self._awaited.pop(event.index)
                if not gone.done():
                    gone.set_result(None)

    async def after(self, name: str, delete: Callable[[Callable[[], None]], None]) -> None:
        """Run what deletes a link of this name in a thread, until the link is gone. Raises what that raises before.

        `delete` calls what it is given once it has found the link: nobody may have the name before that.
        """
        loop = asyncio.get_running_loop()
        index = links.index_here(name)
        gone: asyncio.Future[None] = loop.create_future()
        found: asyncio.Future[None] = loop.create_future()
        if index:
            self._awaited[index] = gone

        def tell() -> None:
            loop.call_soon_threadsafe(found.set_result, None)

        call = loop.create_task(asyncio.to_thread(delete, tell), name=f"delete {name}")
        try:
            await asyncio.wait((call, found), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((call, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._awaited.pop(index, None)
            if not found.done():
                call.cancel()  # one that has not begun would find whoever has the name by then
            elif not call.done():
                self._tidying.add(call)
                call.add_done_callback(self._tidied)
        if call.done():
            call.result()

    def _tidied(self, call: asyncio.Task[None]) -> None:
        self._tidying.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            log.warning("%s: it went, and then: %s", call.get_name(), error)
