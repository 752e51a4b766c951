"""Addresses ready on this node: ADD takes one without asking the datastore, and calls that come together share a write.

    ADD ─► take ─► a shelf that has one ─► it
                └► an empty one ─► wait ─► upkeep: one assignment for all who wait, and some more ─► it

There is a shelf for each choice of pools; an address leaves it only while its pools, the reservations and the node's
blocks still say that it may. IPAM holds all of it under one handle of the node's. Whatever that handle holds when an
agent starts, and no container was promised, is given back; but one that starts while the datastore is away goes on with
what its forerunner has noted (`shelfnote`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tortie.agent.known import Known
from tortie.agent.shelfnote import Choice, ShelfNote
from tortie.base.addr import IP, Net, host_net, parse_net
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError
from tortie.base.logs import Seldom
from tortie.ipam.allocation import READY_TYPE
from tortie.ipam.assign import Ipam
from tortie.ipam.block import Release
from tortie.ipam.fill import Interface
from tortie.ipam.owner import Owner, confirmed
from tortie.ipam.pools import Asker, Matches, Reserved, choose
from tortie.ipam.ready import MOST, SHARE, WINDOW, Shelf, order, ready_handle, surplus, unclaimed
from tortie.model.ipam import BlockAffinity, IPPool, IPReservation
from tortie.model.k8s import Namespace
from tortie.model.node import Node

log = logging.getLogger(__name__)

ROUND = 1.0
"""Seconds between two looks at what is held for nobody."""
YOUNG = 5.0
"""Seconds in which the watch may not know yet that a block has become ours."""
RETRY = 1.0
PARTING = 5.0
"""Seconds that giving all back may take when the agent stops; what is left then, the next agent gives back."""


@dataclass
class Kept:
    """A shelf: what is ready, each with when it was assigned; who waits; when calls came."""

    ready: deque[tuple[Interface, float]] = field(default_factory=deque)
    waiting: deque[asyncio.Future[Interface | None]] = field(default_factory=deque)
    calls: deque[float] = field(default_factory=deque)
    last: float = 0.0
    ceiling: int = 0
    surveyed: float = -WINDOW
    """When the ceiling was worked out."""

    def look(self, now: float) -> Shelf:
        while self.calls and now - self.calls[0] > WINDOW:
            self.calls.popleft()
        waiting = sum(not future.done() for future in self.waiting)
        return Shelf(len(self.ready), waiting, len(self.calls), now - self.last)


class Stock:
    """`most` is how many addresses of a choice are held ready at most; 0: none, and nothing here does anything.

    `promised` says which addresses under our handle are containers' already. `every` and `retry` are seconds between
    two looks, and after one that failed. Runs on the event loop.
    """

    def __init__(
        self,
        node: str,
        ipam: Ipam,
        known: Known,
        matches: Matches,
        promised: Callable[[], Collection[IP]] = tuple,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
        note: ShelfNote | None = None,
        every: float = ROUND,
        retry: float = RETRY,
    ) -> None:
        self.handle = ready_handle(node)
        self.most = most
        self._node = node
        self._ipam = ipam
        self._known = known
        self._matches = matches
        self._promised = promised
        self._clock = clock
        self._note = note or ShelfNote()
        self._every = every
        self._retry = retry
        self.nobody_there: Callable[[], bool] = lambda: False
        """Whether the datastore is away: then nothing is given back at the end, and the next agent may use it."""
        self._chosen: dict[tuple[str, tuple[int, ...]], tuple[object, tuple[Choice, ...] | None]] = {}
        """By namespace and IP versions: of which labels and pools a choice was made, and the choice."""
        self._shelves: dict[Choice, Kept] = {}
        self._returns: set[Interface] = set()
        self._wake = asyncio.Event()
        self._open = False
        self._complain = Seldom(log)

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def ready(self) -> tuple[Interface, ...]:
        """All that could be taken now."""
        return tuple(each for shelf in self._shelves.values() for each, _ in shelf.ready)

    def choices(self, namespace: str, versions: Iterable[int]) -> tuple[Choice, ...] | None:
        """From which shelves a pod of a namespace is served. None: it cannot be told from what is known."""
        node, space = self._known.get(Node, self._node), self._known.get(Namespace, namespace)
        if node is None or space is None:
            return None
        made_of = node.labels, space.labels, self._known.all(IPPool)
        asked = namespace, tuple(versions)
        known = self._chosen.get(asked)
        if known is None or known[0] != made_of:
            known = self._chosen[asked] = made_of, self._choose(*made_of, asked[1])
        return known[1]

    def _choose(
        self,
        node: Mapping[str, str],
        namespace: Mapping[str, str],
        pools: Sequence[IPPool],
        versions: Sequence[int],
    ) -> tuple[Choice, ...] | None:
        asker = Asker(self._node, node, namespace, "Workload")
        try:
            allowed = [(each, choose(pools, each, (), asker, self._matches).allowed) for each in versions]
        except ConfigError:
            return None  # who asks IPAM itself is told why
        return tuple((version, tuple(pool.spec.cidr for pool in found)) for version, found in allowed)

    # --- taking ---

    async def take(self, choices: Iterable[Choice]) -> tuple[Interface, ...] | None:
        """An address of each choice, or None when they are not to be had: then IPAM says why. Raises Unavailable."""
        if not self._open or not self.most:
            return None
        taken: list[Interface] = []
        try:
            for choice in choices:
                one = await self._take(choice)
                if one is None:
                    self.put_back(taken)
                    return None
                taken.append(one)
        except BaseException:
            self.put_back(taken)
            raise
        return tuple(taken)

    async def _take(self, choice: Choice) -> Interface | None:
        shelf = self._shelves.setdefault(choice, Kept())
        shelf.last = self._clock()
        shelf.calls.append(shelf.last)
        found = self._sound(choice, shelf)
        if found is None:
            future: asyncio.Future[Interface | None] = asyncio.get_running_loop().create_future()
            shelf.waiting.append(future)
            self._wake.set()
            return await future
        if order(shelf.look(shelf.last), self.most, self.most):  # what pools allow is looked at when it is filled
            self._wake.set()
        return found

    def _sound(self, choice: Choice, shelf: Kept) -> Interface | None:
        """The first that may still be given out; those that may not are given back."""
        if not shelf.ready:
            return None
        reserved = self._reserved()
        blocks = self._blocks()
        while shelf.ready:
            found, since = shelf.ready.popleft()
            kept = found.network in blocks or self._clock() - since < YOUNG
            if kept and reserved.around(host_net(found.ip)) is None:
                return found
            self._returns.add(found)
            self._wake.set()
        return None

    def _reserved(self) -> Reserved:
        return Reserved.of(self._known.all(IPReservation))

    def _blocks(self) -> frozenset[Net]:
        """This node's."""
        owner = Owner(self._node)
        found = (each for each in self._known.all(BlockAffinity) if Owner.of(each) == owner and confirmed(each))
        return frozenset(parse_net(each.spec.cidr) for each in found)

    def pick(self, ip: IP) -> Interface | None:
        """This very address, for who asks for it by name, if it is ready. What becomes of it is the caller's affair."""
        for shelf in self._shelves.values():
            for each in shelf.ready:
                if each[0].ip == ip:
                    shelf.ready.remove(each)
                    self.forget((ip,))
                    return each[0]
        return None

    def forget(self, ips: Iterable[IP]) -> None:
        """These are containers' now, or about to be given back: no agent after us may take them for ready. Raises
        Unavailable when that cannot be noted."""
        self._note.forget(ips, self._held_ready())

    def _held_ready(self) -> dict[Choice, list[Interface]]:
        return {choice: [each for each, _ in shelf.ready] for choice, shelf in self._shelves.items()}

    def restore(self) -> None:
        """What the agent before us had ready, and nobody was promised since: for as long as there is nobody to ask."""
        promised, now = set(self._promised()), self._clock()
        for choice, ready in self._note.read().items():
            kept = [(each, now) for each in ready if each.ip not in promised]
            if kept:
                self._shelves.setdefault(choice, Kept(last=now)).ready.extend(kept)

    def put_back(self, taken: Iterable[Interface]) -> None:
        """Taken, and not needed after all: given back to IPAM, so that it rests before it is used again."""
        self._returns.update(taken)
        self._wake.set()

    # --- upkeep ---

    @contextlib.asynccontextmanager
    async def running(self, broken: Callable[[BaseException], None]) -> AsyncIterator[None]:
        """Serve while the block runs; afterwards all is given back. `broken` is told of a bug."""

        def ended(task: asyncio.Task[None]) -> None:
            self._close()
            if not task.cancelled():
                broken(task.exception() or AssertionError("it never ends"))

        upkeep = asyncio.create_task(self._run(), name="addresses held ready")
        upkeep.add_done_callback(ended)
        try:
            yield
        finally:
            upkeep.cancel()
            await asyncio.wait((upkeep,))
            self._close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PARTING):
                    await self._part()

    def open(self) -> None:
        """What an earlier agent has promised is known from here on: the rest may be given back, and calls come."""
        self._wake.set()
        self._open = True

    async def _run(self) -> None:
        clean = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every if self._shelves or self._returns else None):
                    await self._wake.wait()
            self._wake.clear()
            if not self._open or not (self.most or not clean):
                continue
            try:
                if not clean:
                    await self._give_back_unknown()
                    clean = True
                await self._tend()
            except TortieError as error:
                self._fail(error)
                self._complain.warning(f"addresses held ready: {error}; trying again")
                await asyncio.sleep(self._retry)

    async def _tend(self) -> None:
        """One round: serve who waits, fill what runs low, give back what is too much."""
        for choice, shelf in list(self._shelves.items()):
            now = self._clock()
            look = shelf.look(now)
            if not look.ready and not look.waiting and look.idle > WINDOW:
                del self._shelves[choice]
                continue
            stale = not self._still(choice)
            if order(look, self.most, self.most) or now - shelf.surveyed > WINDOW:
                shelf.ceiling, shelf.surveyed = await self._ceiling(choice, shelf), now
            if look.waiting or not stale:
                await self._fill(choice, shelf, 0 if stale else shelf.ceiling)
            look = shelf.look(self._clock())
            for _ in range(look.ready if stale else surplus(look, shelf.ceiling, self.most)):
                self._returns.add(shelf.ready.popleft()[0])
        if self._returns:
            await self._give_back()

    def _still(self, choice: Choice) -> bool:
        """Whether the pools of a choice are all there as they were, for this node."""
        version, cidrs = choice
        node = self._known.get(Node, self._node)
        if node is None:
            return False
        known = {pool.spec.cidr: pool for pool in self._known.all(IPPool)}
        if not all(cidr in known for cidr in cidrs):
            return False
        asker = Asker(self._node, node.labels, None, "Workload")
        try:
            nets = [known[cidr].spec.net for cidr in cidrs]
            choose(tuple(known.values()), version, nets, asker, self._matches)
        except ConfigError:
            return False
        selectors = (known[cidr].spec.node_selector for cidr in cidrs)
        return all(not selector or self._matches(selector, node.labels) for selector in selectors)

    async def _ceiling(self, choice: Choice, shelf: Kept) -> int:
        """How many may be held ready on a shelf: one in a few of those that are free, all shelves together."""
        pools = [pool for pool in self._known.all(IPPool) if pool.spec.cidr in choice[1]]
        blocks = [parse_net(each.spec.cidr) for each in self._known.all(BlockAffinity)]
        ready = sum(each.version == choice[0] for each in self.ready)
        free = ready + unclaimed(pools, blocks, self._reserved())
        if free // SHARE - ready < self.most:
            free += await self._ipam.free_at_hand(pool.spec.net for pool in pools)
        return max(0, free // SHARE - ready + len(shelf.ready))

    async def _fill(self, choice: Choice, shelf: Kept, ceiling: int) -> None:
        """Assign, and serve who waits; who cannot be served asks IPAM itself."""
        wanted = order(shelf.look(self._clock()), ceiling, self.most)
        if not wanted:
            return
        version, cidrs = choice
        attrs = {"node": self._node, "type": READY_TYPE, "timestamp": _timestamp()}
        waiting = len(shelf.waiting)
        try:
            share = await self._ipam.lay_in(version, cidrs, wanted, handle=self.handle, attrs=attrs)
        except (ConfigError, NotFound):
            self._serve(shelf, waiting)
            return
        now = self._clock()
        shelf.ready.extend((each, now) for each in share.ips)
        self._serve(shelf, waiting)
        self._note.write(self._held_ready())

    def _serve(self, shelf: Kept, at_most: int) -> None:
        """Give those that have waited longest what is there. `at_most` of them were counted; nobody waits in vain."""
        for _ in range(at_most):
            future = shelf.waiting.popleft()
            if not future.done():
                future.set_result(shelf.ready.popleft()[0] if shelf.ready else None)
        while shelf.waiting and shelf.ready:
            future = shelf.waiting.popleft()
            if not future.done():
                future.set_result(shelf.ready.popleft()[0])
        if shelf.waiting:
            self._wake.set()

    def _fail(self, error: TortieError) -> None:
        for shelf in self._shelves.values():
            while shelf.waiting:
                future = shelf.waiting.popleft()
                if not future.done():
                    future.set_exception(error)

    # --- giving back ---

    async def _give_back(self) -> None:
        """Raises Unavailable and leaves the rest for later. What is another's by now is none of ours."""
        returns = tuple(self._returns)
        self.forget(each.ip for each in returns)
        released = await self._ipam.release_ips([Release(each.ip, self.handle) for each in returns])
        done = {each.ip for each in released.done}
        self._returns -= {each for each in returns if each.ip in done}
        if isinstance(released.error, Conflict):
            ours: set[IP] = set()
            with contextlib.suppress(NotFound):
                ours = set(await self._ipam.ips_by_handle(self.handle))
            self._returns = {each for each in self._returns if each.ip in ours}
        if released.error is not None:
            raise released.error

    async def _give_back_unknown(self) -> None:
        """What the handle holds and no shelf: an agent before us died with it. What containers have stays."""
        known = {each.ip for each in self.ready} | {each.ip for each in self._returns} | set(self._promised())
        if not known:
            with contextlib.suppress(NotFound):
                await self._ipam.release_by_handle(self.handle)
            return
        with contextlib.suppress(NotFound):
            held = set(await self._ipam.ips_by_handle(self.handle))
            self._drop(each for each in self.ready if each.ip not in held)
            unknown = [ip for ip in held if ip not in known]
            released = await self._ipam.release_ips([Release(ip, self.handle) for ip in unknown])
            if released.error is not None:
                raise released.error
        await self._ipam.count_what_is_held(self.handle)

    def _drop(self, strangers: Iterable[Interface]) -> None:
        """What is ready here, and not ours: somebody has given it back for us while no agent ran."""
        for one in frozenset(strangers):
            log.warning("%s was held ready, and is not this node's any more", one.ip)
            for shelf in self._shelves.values():
                shelf.ready = deque(each for each in shelf.ready if each[0] != one)

    def _close(self) -> None:
        """Who waits, and who comes from now on, asks IPAM itself."""
        self._open = False
        for shelf in self._shelves.values():
            while shelf.waiting:
                future = shelf.waiting.popleft()
                if not future.done():
                    future.set_result(None)

    async def _part(self) -> None:
        if self.nobody_there():
            log.warning("addresses held ready are left for the next agent: %d", len(self.ready))
            return
        for shelf in self._shelves.values():
            self._returns.update(each for each, _ in shelf.ready)
            shelf.ready.clear()
        try:
            if self._returns:
                await self._give_back()
            if self.most and not self._promised():
                with contextlib.suppress(NotFound):
                    await self._ipam.release_by_handle(self.handle)
        except TortieError as error:
            log.warning("addresses held ready are left for the next agent to give back: %s", error)


def _timestamp() -> str:
    """As Calico notes it beside an address."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f} +0000 UTC"
