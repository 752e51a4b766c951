"""Pods that went while nobody could tell the datastore: a journal of DEL, and the task that works it off.

    DEL, and the datastore is away ─► LEAVING/<container>.json ─► out of the picture, link away ─► success
                                          │ the datastore is back
                                          ▼
                              endpoint deleted, unless another container has it ─► addresses released ─► file deleted

A runtime whose DEL fails keeps the pod, and tries for ever. What DEL takes from this machine it can always take; that
an address is free for others can wait. Everything here may be done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from tortie.agent.view import View
from tortie.base.errors import Conflict, NotFound, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.ipam.assign import Ipam
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

log = logging.getLogger(__name__)

FIRST_RETRY, LONGEST_RETRY = 0.2, 5.0
"""Seconds between attempts while the datastore is away."""
PATIENCE = 5.0
"""Seconds that the next container of an id waits."""
ATTEMPTS = 6
"""At an endpoint that changes each time we look."""


class Departure(msgspec.Struct, frozen=True, rename="camel"):
    """A file of the journal: whose endpoint goes, and the handles whose addresses are released."""

    container_id: str
    namespace: str
    endpoint: str
    handles: tuple[str, ...]


class Departures:
    """All of this node, by container. `settled` waits until what a container was promised is written: only then can it
    be deleted. Runs on the event loop."""

    def __init__(self, directory: Path, store: Store, view: View, ipam: Ipam) -> None:
        self.failure = ""
        self.settled: Callable[[str], Awaitable[None]] = _nothing
        self.done: Callable[[], None] = lambda: None
        """Told when one is through: others may have waited for it."""
        self._directory = directory
        self._store = store
        self._view = view
        self._ipam = ipam
        self._leaving: dict[str, Departure] = {}
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._moved = asyncio.Event()
        self._complain = Seldom(log)

    @property
    def waiting(self) -> int:
        """How many pods the datastore is to be told of."""
        return len(self._leaving)

    def blocks(self, namespace: str, endpoint: str, container_id: str) -> bool:
        """Whether the datastore's endpoint of this name is still that of another container, which is leaving."""
        return any(
            (one.namespace, one.endpoint) == (namespace, endpoint) and one.container_id != container_id
            for one in self._leaving.values()
        )

    async def gone(self, container_id: str) -> None:
        """Until nothing is left of a container of this id that went: ids that people choose come again. Raises
        Unavailable when that takes too long."""
        if container_id not in self._leaving:
            return
        self._hurry.set()
        try:
            async with asyncio.timeout(PATIENCE):
                while container_id in self._leaving:
                    await self._moved.wait()
        except TimeoutError:
            text = f"the datastore has not been told yet that container {container_id[:12]} went"
            raise Unavailable(f"{text}: {self.failure or 'it is slow'}") from None

    def note(self, departure: Departure) -> None:
        """From now on the container is gone, as far as this node can say. Raises Unavailable."""
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            file = self._file(departure.container_id)
            new = file.with_suffix(".new")
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as opened:
                opened.write(msgspec.json.encode(departure))
            new.replace(file)
        except OSError as error:
            raise Unavailable(f"{self._directory}: {os.strerror(error.errno or 0)}") from None
        self._begin(departure)

    def replay(self) -> None:
        """Go on with what an earlier agent has noted. What cannot be read is left where it is, and told."""
        for file in sorted(self._directory.glob("*.json")):
            try:
                self._begin(msgspec.json.decode(file.read_bytes(), type=Departure))
            except (OSError, ValueError) as error:
                log.warning("%s is ignored: %s", file, error)
        if self._leaving:
            log.info("pods that went, and the datastore may not know: %d", len(self._leaving))

    def _begin(self, departure: Departure) -> None:
        self._leaving[departure.container_id] = departure
        self._view.take_out(departure.namespace, departure.endpoint, departure.container_id)
        self._wake.set()

    def _file(self, container_id: str) -> Path:
        return self._directory / f"{container_id}.json"

    async def run(self) -> None:
        """Forever."""
        pause = FIRST_RETRY
        while True:
            await self._wake.wait()
            self._wake.clear()
            self.failure = ""
            for departure in list(self._leaving.values()):
                try:
                    await self._tell(departure)
                    pause = FIRST_RETRY
                except TortieError as error:
                    self.failure = f"pods that went, and the datastore does not know: {len(self._leaving)}: {error}"
                    self._complain.warning(f"tell the datastore of pods that went: {error}; trying again")
            if self._leaving:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), pause)
                self._hurry.clear()
                pause = min(LONGEST_RETRY, 2 * pause)
                self._wake.set()

    async def _tell(self, departure: Departure) -> None:
        """Raises Unavailable, Conflict."""
        await self.settled(departure.container_id)
        await self._delete(departure)
        for handle in departure.handles:
            with contextlib.suppress(NotFound):
                await self._ipam.release_by_handle(handle)
        self._file(departure.container_id).unlink(missing_ok=True)
        self._leaving.pop(departure.container_id, None)
        self._moved.set()
        self._moved.clear()
        self.done()

    async def _delete(self, departure: Departure) -> None:
        namespace, name = departure.namespace, departure.endpoint
        for _ in range(ATTEMPTS):
            try:
                endpoint = await self._store.get(WorkloadEndpoint, name, namespace)
                if endpoint.spec.container_id not in ("", departure.container_id):
                    return
                revision = endpoint.metadata.resource_version
                self._view.drop(await self._store.delete(WorkloadEndpoint, name, namespace, revision))
            except NotFound:
                return
            except Conflict:
                continue
            return
        raise Conflict(f"WorkloadEndpoint {namespace}/{name} changes each time it is looked at")


async def _nothing(container_id: str) -> None:
    """Where nothing is promised."""
