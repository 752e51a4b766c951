"""What the datastore is still to be told of pods that are connected already: a journal, and the task that works it off.

    ADD ─► promise: PENDING/<container>.json has the addresses ─► link ─► note: it has the endpoint, too ─► reply
                                                                                                         │
    PENDING/<container>.json deleted ◄─ addresses handed over to the container ◄─ endpoint written ◄─ settle

Every note is one more line of its container's file, written at once; the last whole line counts. It is there before a
link has the addresses, so that no agent that starts gives them to somebody else. Everything it speaks of may be done
again, so that this agent does what its forerunner did not come to. Of an ADD that was cut short, or a pod that is gone
by then, no endpoint is written; the addresses become the container's all the same, for DEL, GC or the controllers to
find.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from ipaddress import ip_interface
from pathlib import Path

import msgspec

from tortie.agent.endpoints import refresh
from tortie.agent.view import View
from tortie.base.addr import IP
from tortie.base.errors import Conflict, Exists, NotFound, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.ipam.assign import Ipam
from tortie.ipam.fill import Interface
from tortie.ipam.handover import Transfer
from tortie.model.k8s import Pod
from tortie.model.meta import changed
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

log = logging.getLogger(__name__)

LINGER = 0.02
"""Seconds from the first note to the writing of all that came meanwhile: one write of a block for many pods."""
TOGETHER = 64
"""Pods that are settled at a time."""
FIRST_RETRY, LONGEST_RETRY = 0.2, 5.0
"""Seconds between attempts while the datastore is away."""
PARTING = 5.0
"""Seconds that the agent takes to settle everything when it stops; what is left then, the next agent settles."""
LONGEST_NAME = 200
"""Characters of a container's id that may become a file's name."""


class Note(msgspec.Struct, frozen=True, rename="camel"):
    """A file of the journal. `addresses` are under the node's own handle until `handle` has them."""

    container_id: str
    handle: str
    attributes: dict[str, str]
    addresses: tuple[str, ...]
    netns: str
    endpoint: WorkloadEndpoint | None = None
    """None until the container is joined to its node."""

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(ip_interface(text) for text in self.addresses)

    @property
    def transfer(self) -> Transfer:
        return Transfer(self.interfaces, self.handle, self.attributes)


class Promise:
    """What a container has been promised, as it is on disk; from `settle` on the datastore is to be told.

    `replayed`: by an agent before this one. `begun`: the datastore may know of it.
    """

    def __init__(self, note: Note, *, replayed: bool = False) -> None:
        self.container_id = note.container_id
        self.note = note
        self.replayed = self.begun = replayed
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(lambda future: future.cancelled() or future.exception())

    def fail(self, error: TortieError) -> None:
        """Tell those that wait; the next attempt has waiters of its own."""
        self.done.set_exception(error)
        self.done = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(lambda future: future.cancelled() or future.exception())


class Pending:
    """All promises of this node, by container. `linger` is how long a note waits for others, `retry` how long the first
    attempt for the second, in seconds. Runs on the event loop."""

    def __init__(
        self,
        directory: Path,
        giver: str,
        store: Store,
        view: View,
        ipam: Ipam,
        linger: float = LINGER,
        retry: float = FIRST_RETRY,
    ) -> None:
        self.failure = ""
        self.handing_over: Callable[[Iterable[IP]], None] = lambda ips: None
        """Told of addresses before they are the containers' in IPAM too. May raise Unavailable."""
        self.blocked: Callable[[str, str, str], bool] = lambda namespace, name, container_id: False
        """Whether an endpoint cannot be written yet: the one of the container before is to be deleted first."""
        self.once_noted: Callable[[Callable[[], None]], None] = lambda then: then()
        """Calls back once what is in the picture now is noted elsewhere for the next agent."""
        self._directory = directory
        self._giver = giver
        self._store = store
        self._view = view
        self._ipam = ipam
        self._linger = linger
        self._retry = retry
        self._promises: dict[str, Promise] = {}
        self._due: dict[str, Promise] = {}
        self._kept: dict[str, object] = {}
        """Containers of which all is told, and whose file is the only thing on this machine that knows of them yet."""
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._complain = Seldom(log)

    @property
    def ips(self) -> frozenset[IP]:
        """All that is promised."""
        return frozenset(each.ip for one in self._promises.values() for each in one.note.interfaces)

    @property
    def waiting(self) -> int:
        """How many pods the datastore is to be told of."""
        return len(self._due)

    def promised(self, container_id: str) -> frozenset[IP]:
        """What a container has been promised and does not have in IPAM yet."""
        promise = self._promises.get(container_id)
        return frozenset(each.ip for each in promise.note.interfaces) if promise is not None else frozenset()

    # --- what ADD does ---

    def promise(self, container_id: str, transfer: Transfer, netns: str) -> None:
        """Addresses of the node's handle are this container's from now on. Raises Unavailable."""
        addresses = tuple(map(str, transfer.addresses))
        note = Note(container_id, transfer.handle, dict(transfer.attrs), addresses, netns)
        self._drop(container_id)
        self._write(note)
        self._promises[container_id] = Promise(note)

    def forget(self, container_id: str) -> Transfer | None:
        """What the container was promised, which it does not need after all. None: no promise, or it has been kept."""
        self._drop(container_id)
        promise = self._promises.get(container_id)
        if promise is None or container_id in self._due:
            return None
        del self._promises[container_id]
        self._erase(container_id)
        return promise.note.transfer

    def note(self, endpoint: WorkloadEndpoint) -> int | None:
        """Put the endpoint into the picture and on disk; the answer is the generation of the first state that has it,
        None while not in sync. Raises Unavailable."""
        promise = self._promises[endpoint.spec.container_id]
        note = msgspec.structs.replace(promise.note, endpoint=endpoint)
        generation = self._view.put_ahead(endpoint)
        try:
            self._write(note)
        except Unavailable:
            self._view.withdraw(endpoint)
            raise
        promise.note = note
        return generation

    def withdraw(self, container_id: str, name: str) -> bool:
        """Take an endpoint of this name back that is only noted, out of the picture. False when there is none, or it is
        being written. The note goes with the addresses, in `forget`: they are the container's until its link is gone.
        """
        promise = self._promises.get(container_id)
        endpoint = promise.note.endpoint if promise is not None and not promise.begun else None
        if endpoint is None or endpoint.name != name:
            return False
        self._due.pop(container_id, None)
        self._view.withdraw(endpoint)
        return True

    def settle(self, container_id: str) -> None:
        """The reply is on its way: tell the datastore, in a moment and together with others."""
        self._due[container_id] = self._promises[container_id]
        self._wake.set()

    async def hand_over(self, container_id: str) -> None:
        """Make the addresses the container's now, without a note. Raises Unavailable, Conflict."""
        promise = self._promises[container_id]
        self.handing_over(each.ip for each in promise.note.interfaces)
        await self._ipam.hand_over(self._giver, [promise.note.transfer])
        self._erase(container_id)
        del self._promises[container_id]

    # --- what everybody else does ---

    async def settled(self, *container_ids: str) -> None:
        """Until the datastore has been told of these containers. Raises Unavailable, Conflict."""
        for container_id in container_ids:
            while (promise := self._due.get(container_id)) is not None:
                self._hurry.set()
                await asyncio.shield(promise.done)

    async def endpoint_settled(self, namespace: str, name: str) -> None:
        """The same, of whatever container has this endpoint."""
        found = ((one.container_id, one.note.endpoint) for one in self._due.values())
        await self.settled(*(who for who, each in found if each and (each.namespace, each.name) == (namespace, name)))

    async def handle_settled(self, handle: str) -> None:
        await self.settled(*(one.container_id for one in self._due.values() if one.note.handle == handle))

    def hurry(self) -> None:
        """What was put off may go on now."""
        self._hurry.set()

    async def all_settled(self) -> None:
        await self.settled(*self._due)

    # --- the journal ---

    def replay(self) -> None:
        """Promise again what is noted on disk, so that the first state that the kernel is given has it.

        Comes before the datastore is listed, which may have it already. Raises Unavailable.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            files = sorted(self._directory.iterdir())
        except OSError as error:
            raise Unavailable(f"{self._directory}: {os.strerror(error.errno or 0)}") from None
        for file in files:
            try:
                note = _read(file)
            except (OSError, ValueError) as error:
                log.warning("%s is ignored: %s", file, error)
                continue
            if note is None:
                file.unlink(missing_ok=True)
                continue
            promise = Promise(note, replayed=True)
            self._promises[note.container_id] = self._due[note.container_id] = promise
            if note.endpoint is not None:
                self._view.put_ahead(note.endpoint)
        if self._due:
            log.info("pods that the datastore may not know yet: %d", len(self._due))
            self._wake.set()

    def _path(self, container_id: str) -> str:
        return f"{self._directory}/{container_id}.json"

    def _keep(self, container_id: str) -> None:
        """The file stays until the next agent would know the endpoint without it, and without the datastore."""
        mark = self._kept[container_id] = object()

        def done() -> None:
            if self._kept.get(container_id) is mark:
                self._drop(container_id)

        self.once_noted(done)

    def _drop(self, container_id: str) -> None:
        """A file that was only kept."""
        if self._kept.pop(container_id, None) is not None:
            self._erase(container_id)

    def _erase(self, container_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(container_id))

    def _write(self, note: Note) -> None:
        """As the last line of the container's file, which is the one that counts. Raises Unavailable."""
        line = msgspec.json.encode(note) + b"\n"
        try:
            fd = os.open(self._path(note.container_id), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                written = os.write(fd, line)
                if written < len(line):
                    os.ftruncate(fd, os.fstat(fd).st_size - written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(fd)
        except OSError as error:
            raise Unavailable(f"{self._directory}: {os.strerror(error.errno or 0)}") from None

    # --- settling ---

    @contextlib.asynccontextmanager
    async def running(self, broken: Callable[[BaseException], None]) -> AsyncIterator[None]:
        """Settle while the block runs; afterwards what is due. `broken` is told of a bug."""
        task = asyncio.create_task(self._run(), name="tell the datastore")
        task.add_done_callback(
            lambda task: None if task.cancelled() else broken(task.exception() or AssertionError("it never ends"))
        )
        try:
            yield
        finally:
            parting = asyncio.create_task(self.all_settled(), name="tell the datastore the rest")
            await asyncio.wait((task, parting), timeout=PARTING, return_when=asyncio.FIRST_COMPLETED)
            for each in (parting, task):
                each.cancel()
            await asyncio.gather(parting, task, return_exceptions=True)
            if self._due:
                log.warning("pods that are left for the next agent to tell the datastore of: %d", len(self._due))

    async def _run(self) -> None:
        pause = self._retry
        while True:
            await self._wake.wait()
            await self._view.in_sync.wait()
            await self._pause(self._linger)
            error, done = await self._settle(list(self._due.values())[:TOGETHER])
            if error is None:
                self.failure = ""
            else:
                self.failure = f"pods that the datastore does not know yet: {len(self._due)}: {error}"
                self._complain.warning(f"tell the datastore of pods: {error}; trying again")
            if done:
                pause = self._retry
            else:
                await self._pause(pause)
                pause = min(LONGEST_RETRY, pause * 2)
            if not self._due:
                self._wake.clear()

    async def _pause(self, seconds: float) -> None:
        """Not for those who are waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        self._hurry.clear()

    async def _settle(self, batch: list[Promise]) -> tuple[TortieError | None, int]:
        """The last error, and how many are done. Endpoints first: other nodes wait for them. What fails, fails alone,
        but for the addresses, and is tried after all others."""
        ready: list[Promise] = []
        failure: TortieError | None = None
        for promise in batch:
            if promise.container_id not in self._due:
                continue  # withdrawn meanwhile
            endpoint = promise.note.endpoint
            if endpoint is not None and self.blocked(endpoint.namespace, endpoint.name, promise.container_id):
                failure = Unavailable(f"{endpoint.title} is still that of a container which is leaving")
                self._put_off(promise, failure)
                continue
            promise.begun = True
            try:
                await self._tell(promise)
                ready.append(promise)
            except TortieError as error:
                self._put_off(promise, error)
                failure = error
        try:
            self.handing_over(each.ip for promise in ready for each in promise.note.interfaces)
            lost = await self._ipam.hand_over(self._giver, [each.note.transfer for each in ready]) if ready else ()
        except TortieError as error:
            for promise in ready:
                self._put_off(promise, error)
            return error, 0
        for ip in lost:
            log.error("%s is used by a pod here, but IPAM gave it to somebody else: tortie ipam explain %s", ip, ip)
        for promise in ready:
            self._keep(promise.container_id)
            del self._due[promise.container_id], self._promises[promise.container_id]
            promise.done.set_result(None)
        return failure, len(ready)

    def _put_off(self, promise: Promise, error: TortieError) -> None:
        self._due[promise.container_id] = self._due.pop(promise.container_id)
        promise.fail(error)

    async def _tell(self, promise: Promise) -> None:
        """Write the endpoint, unless its pod is gone or another container has it."""
        endpoint = promise.note.endpoint
        if endpoint is None:
            return
        gone = promise.replayed and await self._gone(promise.note.netns, endpoint)
        stored = await self._stored(endpoint) if not gone else None
        if stored is None:
            self._view.withdraw(endpoint)
            return
        self._view.confirm(stored)
        pod = self._view.known.get(Pod, endpoint.spec.pod, endpoint.namespace)
        if pod is not None:  # what has happened to the pod since ADD read it
            await refresh(pod, stored.spec.node, self._store, self._view)

    async def _stored(self, endpoint: WorkloadEndpoint) -> WorkloadEndpoint | None:
        """As the datastore has it; None when it is another container's, or cannot be any more."""
        try:
            return await self._store.create(endpoint)
        except NotFound:
            return None  # where an endpoint is a part of its pod: that is gone
        except Exists:
            pass
        try:
            old = await self._store.get(WorkloadEndpoint, endpoint.name, endpoint.namespace)
            if old.spec.container_id == endpoint.spec.container_id:
                return old  # written before, and perhaps refreshed since
            if old.spec.container_id:
                log.info("%s is container %s's by now", old.title, old.spec.container_id)
                return None
            revision = old.metadata.resource_version
            return await self._store.update(changed(endpoint, resource_version=revision))
        except NotFound as error:
            raise Conflict(str(error)) from None

    async def _gone(self, netns: str, endpoint: WorkloadEndpoint) -> bool:
        """Whether there is nobody for whom an endpoint would be."""
        if netns and not await asyncio.to_thread(os.path.exists, netns):
            return True
        try:
            pod = await self._store.get(Pod, endpoint.spec.pod, endpoint.namespace)
        except NotFound:
            return True
        return pod.spec.node_name not in ("", endpoint.spec.node)


def _read(file: Path) -> Note | None:
    """None when its first line was still being written. Raises OSError, and ValueError for what is no note."""
    *lines, rest = file.read_bytes().split(b"\n")
    if not lines and not rest.endswith(b"}"):
        return None
    note = msgspec.json.decode(lines[-1] if lines else rest, type=Note)
    for text in note.addresses:
        ip_interface(text)
    return note
