"""What an agent knows, on disk, for the one after it: started while the datastore is away, it goes on with this.

    View ── this object changed ──► the part it is in is due ──every few seconds──► a thread writes what is due
                                                                                              │
    RUN/snapshot/about.json   node, datastore, cluster, revisions, when                       ▼
    RUN/snapshot/<kind>.<n>   objects of a kind, compressed: each kind that may be large is in many parts, so that a pod
                              that comes costs a few hundred objects, not a hundred thousand

There are no Secrets in it. Every file is whole or not there, readable by root only, and gone after a reboot. What is
damaged, of another node, cluster or format is ignored: then there is no snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tortie.agent.known import ALSO
from tortie.agent.view import View
from tortie.calc.cluster import INPUTS
from tortie.model.document import decode, encode
from tortie.model.k8s import Namespace, Pod, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.service import EndpointSlice
from tortie.model.workload import WorkloadEndpoint

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when files of before could not be read right."""
PAUSE = 3.0
"""Seconds between two writes, at least."""
PARTS = 128
LARGE: tuple[type[Resource], ...] = (WorkloadEndpoint, EndpointSlice, Namespace, ServiceAccount)
"""Kinds of which a cluster has as many as it has pods; they are in so many parts."""
SWIFT = 1
"""zlib's level. JSON shrinks to a tenth with it, in a third of the time of the usual one."""
OWN: tuple[type[Resource], ...] = (Pod,)
"""Kinds of which only this node's objects are kept."""
KINDS: Mapping[str, type[Resource]] = {kind.KIND.key: kind for kind in (*INPUTS, *ALSO, *OWN)}
ABOUT = "about.json"

Part = tuple[type[Resource], int]


class About(msgspec.Struct, frozen=True, rename="camel"):
    """Which snapshot it is. `heard` is when the datastore answered last, in seconds since 1970."""

    format: int
    node: str
    datastore: str
    guid: str
    heard: float
    revisions: dict[str, int]


class Body(msgspec.Struct, frozen=True):
    """A part, before it is compressed."""

    kind: str
    objects: list[msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Restored:
    """What was found, and what it is of."""

    about: About
    objects: tuple[Resource, ...]


def part_of(kind: type[Resource], namespace: str, name: str) -> Part:
    """Where an object is kept.

    >>> part_of(Namespace, "", "red") == part_of(Namespace, "", "red"), part_of(Pod, "red", "web")[1]
    (True, 0)
    """
    return kind, zlib.crc32(f"{namespace}/{name}".encode()) % PARTS if kind in LARGE else 0


def pack(kind: type[Resource], objects: Iterable[Resource]) -> bytes:
    """A part's file. The checksum is zlib's."""
    body = Body(kind.KIND.key, [msgspec.Raw(encode(one)) for one in objects])
    return zlib.compress(msgspec.json.encode(body), SWIFT)


def unpack(data: bytes) -> list[Resource]:
    """The objects of a part's file. Raises ValueError for what is none."""
    try:
        body = msgspec.json.decode(zlib.decompress(data), type=Body)
        kind = KINDS[body.kind]
        return [decode(kind, bytes(one)) for one in body.objects]
    except (zlib.error, msgspec.MsgspecError, KeyError) as error:
        raise ValueError(f"a part is damaged: {error}") from None


def read(directory: Path, node: str, datastore: str) -> Restored | None:
    """The snapshot of this node and datastore, if there is one that is whole. Blocks: 100,000 pods take seconds."""
    try:
        about = msgspec.json.decode((directory / ABOUT).read_bytes(), type=About)
        if about.format != FORMAT:
            raise ValueError(f"its format is {about.format}, this version's {FORMAT}")
        for what, has, wanted in (("node", about.node, node), ("datastore", about.datastore, datastore)):
            if has != wanted:
                raise ValueError(f"it is of {what} {has}, this is {wanted}")
        files = sorted(file for file in directory.iterdir() if file.name != ABOUT and not file.name.endswith(".new"))
        return Restored(about, tuple(one for file in files for one in unpack(file.read_bytes())))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # msgspec's errors among them
        log.warning("%s is ignored: %s", directory, error)
        return None


def write(directory: Path, about: About, parts: Mapping[Part, Sequence[Resource]]) -> int:
    """Write these parts, then what they are of. The bytes written. Blocks. Raises OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    size = 0
    for (kind, number), objects in parts.items():
        file = directory / f"{kind.KIND.key}.{number}"
        if objects:
            size += _replace(file, pack(kind, objects))
        else:
            file.unlink(missing_ok=True)
    return size + _replace(directory / ABOUT, msgspec.json.encode(about))


def _replace(file: Path, data: bytes) -> int:
    new = file.with_name(f"{file.name}.new")
    with suppress(FileNotFoundError):
        new.unlink()
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as opened:
            opened.write(data)
    except OSError:  # the disk is full: half a file is of no use to anybody
        new.unlink()
        raise
    new.replace(file)
    return len(data)


def forget(directory: Path) -> None:
    """Of a snapshot that is not to be read again."""
    for file in directory.glob("*"):
        file.unlink(missing_ok=True)


class Snapshots:
    """Keeps the snapshot of a view. Runs on the event loop, and writes in a thread."""

    def __init__(self, directory: Path, node: str, datastore: str, view: View) -> None:
        self.directory = directory
        self._node = node
        self._datastore = datastore
        self._view = view
        self._due: set[Part] = set()
        self._members: dict[Part, set[tuple[str, str]]] = {}
        """Names of a part's objects, of kinds that are in many."""
        self._changed = asyncio.Event()
        self._then: list[Callable[[], None]] = []
        self._failed = ""
        self._writing: asyncio.Future[int] | None = None
        """The thread that writes, or wrote last."""
        view.changed = self._note

    def _note(self, kind: type[Resource], namespace: str, name: str) -> None:
        """An object has come, changed or gone."""
        if kind.KIND.key not in KINDS:
            return
        part = part_of(kind, namespace, name)
        if kind in LARGE:
            members = self._members.setdefault(part, set())
            (members.add if (namespace, name) in self._view.objects(kind) else members.discard)((namespace, name))
        self._due.add(part)
        self._changed.set()

    def once_written(self, then: Callable[[], None]) -> None:
        """Call back when all that is in the view now is on disk."""
        self._then.append(then)
        self._changed.set()

    async def read(self) -> Restored | None:
        """What an earlier agent has left. What cannot be used goes, that nothing of it is taken for ours."""
        found = await asyncio.to_thread(read, self.directory, self._node, self._datastore)
        if found is None:
            with suppress(OSError):
                await asyncio.to_thread(forget, self.directory)
        return found

    async def run(self) -> None:
        """Forever, once everything is known from the datastore; what is due when it is cancelled, `close` writes."""
        while True:
            await self._changed.wait()
            if self._view.live:
                self._changed.clear()
                await self._write()
            await asyncio.sleep(PAUSE)

    async def close(self) -> None:
        """The last of it."""
        if self._view.live:
            await self._write()

    async def _write(self) -> None:
        self._due.add((Pod, 0))  # nobody tells of pods, and there are few here
        if self._writing is not None:  # of a task that was cancelled: two threads would trip over each other's files
            await asyncio.wait((self._writing,))
        due, self._due = self._due, set()
        then, self._then = self._then, []
        parts = {part: self._objects(part) for part in due}
        self._writing = asyncio.ensure_future(asyncio.to_thread(write, self.directory, self._about(), parts))
        self._writing.add_done_callback(lambda writing: writing.cancelled() or writing.exception())
        try:
            await asyncio.shield(self._writing)
            self._failed = ""
            for each in then:
                each()
        except asyncio.CancelledError:
            self._due |= due  # nobody hears whether it has been written
            self._then = then + self._then
            raise
        except OSError as error:
            self._due |= due
            self._then = then + self._then
            self._changed.set()
            if self._failed != (failed := os.strerror(error.errno or 0)):
                log.warning(
                    "%s: %s: an agent that starts while the datastore is away knows less", self.directory, failed
                )
            self._failed = failed

    def _objects(self, part: Part) -> list[Resource]:
        kind, _ = part
        if kind is Pod:
            return list(self._view.known.all(Pod))
        objects = self._view.objects(kind)
        if kind not in LARGE:
            return [one for _, one in objects.values()]
        return [objects[name][1] for name in self._members.get(part, ()) if name in objects]

    def _about(self) -> About:
        age = self._view.datastore.age or 0.0
        guid, revisions = self._view.datastore.guid, self._view.revisions()
        return About(FORMAT, self._node, self._datastore, guid, time.time() - age, revisions)
