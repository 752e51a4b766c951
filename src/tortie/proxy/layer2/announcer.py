"""Addresses of load balancers that this node answers for by ARP and neighbour discovery.

    ProxyState.layer2 ┐
    leases ─► roll ───┴► election.holders ─► mine ─┐
    links, addresses ──► ports ────────────────────┴► claims ─frames─► answerer
                            └─► networks, told in the own lease

While this node's own lease is not renewed (the datastore is away from it, or from all), it takes nothing over and keeps
what it has, until somebody else claims that: then it was relieved without hearing of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from tortie.base.addr import IP, Net
from tortie.base.errors import KernelError
from tortie.calc.proxy.election import FRESH, holders
from tortie.calc.proxy.state import ProxyState
from tortie.kernel import events
from tortie.kernel.live_links import GROUPS, LiveLinks
from tortie.model.store import Store
from tortie.proxy.layer2 import frames
from tortie.proxy.layer2.answerer import Answerer
from tortie.proxy.layer2.claims import Claims, Place, some
from tortie.proxy.layer2.leases import Leases
from tortie.proxy.layer2.ports import Port, Ports, ports_of

log = logging.getLogger(__name__)

LOOK = 10.0
"""Seconds between two looks when nothing is heard: what could not be opened is tried again."""
PAUSE = 0.01
"""Seconds between two bursts of frames."""
CALM = 0.1
"""Seconds between two looks at links, however often they change: pods come by the dozen."""
PODS = "cali"
"""How the names of most pods' interfaces begin, of which there may be thousands: nobody asks there."""

Layer2Map = Mapping[IP, frozenset[str] | None]


def asleep_too() -> float:
    """Seconds, forward only; those during which the machine was suspended count."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Layer2:
    """Of one node, on one event loop. `netns` is the path of the node's namespace; None is this thread's own."""

    def __init__(
        self, node: str, store: Store, netns: str | None = None, *, clock: Callable[[], float] = asleep_too
    ) -> None:
        self.holders: Mapping[IP, str] = {}
        """Who answers for each address, as far as this node knows."""
        self._node = node
        self._netns = netns
        self._clock = clock
        self._news = asyncio.Event()
        self._layer2: Layer2Map = {}
        self._serving = False
        self._links: LiveLinks | None = None
        self._heard_of = -1
        self._ports = Ports()
        self._reach: tuple[Ports, Layer2Map, tuple[Net, ...]] = self._ports, {}, ()
        self._claims = Claims()
        self._answerer = Answerer(netns, self._hear)
        self._leases = Leases(store, node, self._news.set, clock)
        self._fresh = False
        self._fresh_at: float | None = None
        """When this node's own lease was last known to be renewed."""
        self._decided: tuple[object, ...] = ()
        self._elected: tuple[object, ...] = ()
        self._listening: frozenset[Place] = frozenset()
        self._kernel_problem = ""

    def see(self, state: ProxyState, serving: bool) -> None:
        """What is to be announced. `serving`: this node forwards connections to services, and has not the label that
        keeps it from being a load balancer's target."""
        if (state.layer2, serving) != (self._layer2, self._serving):
            self._layer2, self._serving = state.layer2, serving
            self._news.set()

    @property
    def answering(self) -> Mapping[IP, str]:
        """The addresses that this node answers for, and at which interface, or interfaces with commas between."""
        return self._claims.answering()

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each thing that is wrong."""
        found = [self._kernel_problem] if self._kernel_problem else []
        if away := self._layer2 and (self._leases.deaf or self._leases.mute):
            found.append(f"leases of layer 2: {away}; what is answered for stays, nothing is taken over")
        found += [*self._answerer.problems, *self._claims.problems(self._clock())]
        nobody = [ip for ip, may in self._layer2.items() if ip not in self.holders and may != frozenset()]
        if nobody and self._elected:
            found.append(f"{some(nobody)}: no live node that serves it has an interface in a network with this address")
        return tuple(found)

    async def run(self) -> None:
        """Until cancelled; then nothing is answered any more, and others take over at once."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._leases.run(), name="layer 2 leases")
                tasks.create_task(self._act(), name="layer 2")
                tasks.create_task(self._watch_links(), name="layer 2 links")
        finally:
            self._answer(frozenset())  # first: who takes over asks whether anybody answers
            self.holders = {}
            if self._links is not None:
                self._links.close()
                self._links = None
            await self._leases.release()

    # --- deciding -----------------------------------------------------------------------------------------------------

    async def _act(self) -> None:
        while True:
            self._news.clear()
            wait = self._step(self._clock())
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _step(self, now: float) -> float | None:
        """Everything that is due; seconds until something is again, unless there are news before."""
        if not self._layer2:
            self._leases.hold(None)
            self._leases.follow(False)
            self._fresh, self._fresh_at, self._elected, self.holders = False, None, (), {}
            self._answer(frozenset())
            return None
        self._look_at_links(now)
        nets = self._networks() if self._serving else ()
        self._leases.hold(nets or None)
        self._leases.follow(True)
        self._judge(now, candidate=bool(nets))
        self._elect(now, candidate=bool(nets))
        self._answer(self._wanted())
        for port, frame in self._claims.due(now):
            self._answerer.send(port, frame)
        self._tell()
        return self._pause(now)

    def _networks(self) -> tuple[Net, ...]:
        """On which this node can answer for any address."""
        ports, layer2, _ = self._reach
        if ports is not self._ports or layer2 is not self._layer2:
            self._reach = self._ports, self._layer2, self._ports.networks(self._layer2)
        return self._reach[2]

    def _judge(self, now: float, *, candidate: bool) -> None:
        """Whether this node may believe what it knows of others."""
        fresh = candidate and self._leases.roll.age(self._node, now) < FRESH
        if not candidate:
            self._fresh_at = None
        if fresh and not self._fresh and self._fresh_at is not None:
            self._leases.roll.pardon(self._fresh_at, now)
            self._claims.announce_again(now)
        self._fresh = fresh
        if fresh:
            self._fresh_at = now

    def _elect(self, now: float, *, candidate: bool) -> None:
        if not self._leases.known or self._leases.deaf or (candidate and not self._fresh):
            return
        live = self._leases.roll.live(now)
        if (live, self._layer2) != self._elected:
            self._elected = live, self._layer2
            self.holders = holders(self._layer2, live)

    def _wanted(self) -> frozenset[Place]:
        """Where this node is to answer. The very same as last time if nothing has changed."""
        decided = self._serving, self._fresh, self._ports, self._layer2, self._fresh and self.holders
        if decided == self._decided and self._fresh:
            return self._listening
        self._decided = decided
        if not self._serving:
            return frozenset()
        if not self._fresh:
            return frozenset(place for place in self._claims.held if self._still(place))
        mine = (ip for ip, node in self.holders.items() if node == self._node and ip not in self._ports.own)
        return frozenset((ip, port) for ip in mine for port in self._ports.of(ip))

    def _still(self, place: Place) -> bool:
        ip, port = place
        may = self._layer2.get(ip, frozenset())
        return (may is None or self._node in may) and ip not in self._ports.own and port in self._ports.of(ip)

    def _pause(self, now: float) -> float:
        due = [now + LOOK]
        if (send := self._claims.next()) is not None:
            due.append(max(send, now + PAUSE))
        if (death := self._leases.roll.next_death(now)) is not None:
            due.append(death)
        if self._fresh:
            due.append(now + FRESH - self._leases.roll.age(self._node, now))
        return max(0.0, min(due) - now)

    def _tell(self) -> None:
        """What has changed, once there is a moment: many addresses are one line."""
        at = self._claims.next()
        if at is None or at > self._clock():
            for ips, what in ((self._claims.taken, "answered for"), (self._claims.lost, "given up to another node")):
                if ips:
                    log.info("layer 2: %s %s", some(set(ips)), what)
                    ips.clear()

    # --- doing --------------------------------------------------------------------------------------------------------

    def _answer(self, places: frozenset[Place]) -> None:
        same = places == self._listening and len(self._claims.places) == len(places)
        if same and not self._answerer.problems:
            return
        now = self._clock()
        before = self.answering
        self._listening = places
        self._claims.want(places, now)
        self._answerer.listen(places)
        if gone := before.keys() - self.answering.keys():
            log.info("layer 2: %s not answered for any more", some(gone))

    def _hear(self, port: Port, frame: bytes) -> bytes | None:
        heard = frames.read(frame)
        if heard is None:
            return None
        now = self._clock()
        doubtful = self._leases.roll.age(self._node, now) >= FRESH
        answer = self._claims.hear(port, heard, now, doubtful=doubtful)
        if heard.claimed in self._layer2:
            self._news.set()
        return answer

    def _look_at_links(self, now: float) -> None:
        try:
            if self._links is None:
                self._links = LiveLinks(self._netns, without=PODS)
            self._links.refresh()
        except KernelError as error:
            self._kernel_problem = str(error)
            return
        self._kernel_problem = ""
        if self._links.changes != self._heard_of:
            self._heard_of = self._links.changes
            links = self._links.links
            self._ports = ports_of(links, {index: self._links.addresses(index) for index in links})
            self._claims.macs = self._ports.macs

    async def _watch_links(self) -> None:
        """Wakes the rest when the kernel tells something of links and addresses. It is read where it is needed."""
        loop = asyncio.get_running_loop()
        with events.Monitor(self._netns, GROUPS, matters=lambda message: False) as monitor:
            readable = asyncio.Event()
            loop.add_reader(monitor.fileno(), readable.set)
            try:
                while True:
                    await readable.wait()
                    readable.clear()
                    monitor.read()
                    if self._layer2:
                        self._news.set()
                        await asyncio.sleep(CALM)
            finally:
                loop.remove_reader(monitor.fileno())
