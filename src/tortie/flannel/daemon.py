"""flanneld: one network on this node, from its configuration to packets, for as long as it runs.

    manager.network ─► interface.choose ─► backend.begin ─► manager.acquire ─► Place
                            ▲                                                    │
      links and addresses ──┘ (a node that changes its address begins anew)      ▼
      manager.neighbours ──leases──► backend.want ─► FlannelState ─► Worker: devices, far ends, peers, routes, rules
      what others change in the kernel ───────────────────────────►    │
                                                                       └─► subnet.env, ready, backend.carry_out

Nothing is written to the kernel before the neighbours are known: what the daemon before this one left stays as it is
until then, and whatever of it is right stays for good. A daemon that ends leaves it all behind.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from tortie.base.errors import ConfigError, KernelError, NotFound, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.dataplane.converge import Failure, Stage
from tortie.dataplane.worker import Worker
from tortie.flannel import backends, findings, health, interface, leftovers, probe, rules, subnet_file
from tortie.flannel.backend import Backend, Setting
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Attrs
from tortie.flannel.manager import Leases, Overrides, SubnetManager
from tortie.flannel.options import Options
from tortie.flannel.stages.devices import Devices
from tortie.flannel.stages.far_ends import FarEnds
from tortie.flannel.stages.peers import Peers
from tortie.flannel.stages.routes import Routes
from tortie.flannel.stages.rules import Rules
from tortie.flannel.state import External, FlannelState, Place, Site, Ways
from tortie.flannel.status import Picture, document
from tortie.flannel.wanted import addresses, fitting, subnets, wanted
from tortie.flannel.watching import Concerns, watch_kernel, watch_rules
from tortie.flannel.ways import look

T = TypeVar("T")

log = logging.getLogger("tortie.flannel")

RETRY = 1.0
"""Seconds between two questions to a datastore that is away, or has no network yet; and at least between two
beginnings, however often a link flaps."""
RESYNC = 10.0
"""Seconds between two times that everything in the kernel is listed, at least; what happens to it is heard at once."""
EXAMINE = 600.0
"""Seconds between two looks at the ways to other nodes."""
REST = 4.0
"""How much longer than a look at this machine the pause after it is: pods that come by the dozen must not make a node
with thousands of links and routes do nothing else."""
PATIENT = (Unavailable, NotFound)
"""What goes by itself."""
VITAL = ("devices", "rules")
"""Stages without which pods are not told that there is a network."""


class Moved(Exception):
    """The node's own address, interface or MTU is another one: begin anew."""


class Daemon:
    """`run` is the whole life; cancelled, it leaves the network working."""

    def __init__(self, options: Options, manager: SubnetManager, notify: Callable[[], None]) -> None:
        """`notify` is called whenever pods may come."""
        self._options = options
        self._manager = manager
        self._notify = notify
        self._setting = Setting(options.subnet_file.parent)
        self._tables = rules.names(options.subnet_file, options.etcd_prefix)
        self._rules = Rules(tables=self._tables)
        stages: Sequence[Stage[FlannelState]] = (Devices(), Peers(), FarEnds(), Routes(), self._rules)
        self._worker = Worker("flannel", stages, self._applied, self._broke, max(RESYNC, options.iptables_resync))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._overrides = Overrides()
        self._backend: Backend | None = None
        self._external: External | None = None
        """What was chosen last, and began."""
        self._picture = Picture(time.time())
        self._passes = asyncio.Event()
        self._joined = asyncio.Event()
        """There are other nodes, and ways to them."""
        self._look_again = asyncio.Event()
        self._broken: asyncio.Future[None] | None = None
        self._complain = Seldom(log)

    async def run(self) -> None:
        """Until cancelled. Raises LeaseLost, and ConfigError for what an operator has to mend."""
        self._loop = asyncio.get_running_loop()
        self._broken = self._loop.create_future()
        async with AsyncExitStack() as stack:
            await self._serve(stack)
            config = await self._patiently(self._manager.network, "the network's configuration")
            self._worker.start()
            stack.push_async_callback(self._end)  # last: what it takes away nobody makes again
            stack.push_async_callback(asyncio.to_thread, self._worker.close)
            while True:
                begun = time.monotonic()
                try:
                    await asyncio.create_task(self._life(config), name="life")
                except* Moved:
                    _heed_the_end()
                await asyncio.sleep(begun + RETRY - time.monotonic())

    async def _serve(self, stack: AsyncExitStack) -> None:
        def ready() -> bool:
            return self._picture.ready

        await health.serve_socket(stack, health.application(ready, self.status), self._options.socket)
        if self._options.healthz_port:
            where = self._options.healthz_ip, self._options.healthz_port
            await health.serve_port(stack, health.application(ready), *where)

    async def status(self) -> Mapping[str, Any]:
        """For `tortie flannel status`."""
        mode = "kubernetes" if self._options.kube_subnet_mgr else "etcd"
        counters = getattr(self._backend, "counters", None)
        manager = self._manager
        found = document(self._picture, mode, manager.where, manager.problems, counters() if counters else None)
        return found | {"rules": await asyncio.to_thread(self._rules.counts)}

    # --- beginning --------------------------------------------------------------------------------------------------

    async def _life(self, config: NetworkConfig) -> None:
        """With one address of this node. Raises Moved, among others."""
        self._joined.clear()
        site, attrs, backend = await self._begun(config)
        previous = subnet_file.previous(self._options.subnet_file)
        lease = await self._patiently(lambda: self._manager.acquire(config, attrs, previous), "a lease")
        place = Place(site, lease)
        external = site.external.name
        log.info("lease %s by %s, backend %s", subnets(lease), external, config.backend_type)
        if not config.nftables:
            log.info("EnableNFTables is not set: masquerading and forwarding are nftables' here all the same")
        self._picture = self._picture.at(place, backend.mtu(site))
        written = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(watch_rules(self._rules, self._worker.again), name="rules")  # before there are any
            group.create_task(self._follow(place, backend), name="leases")
            group.create_task(self._carry_out(place, backend, written), name="what is not the kernel's")
            group.create_task(self._tell_ready(written), name="ready")
            group.create_task(self._manager.keep(lease), name="own lease")
            group.create_task(self._watch_machine(place, backend), name="own address")
            group.create_task(self._examine(place), name="findings")
            group.create_task(self._until_broken(), name="worker")

    async def _begun(self, config: NetworkConfig) -> tuple[Site, Attrs, Backend]:
        """Where this node is, and what is published of it. What is wrong with that ends a daemon that starts; one that
        runs looks again, as it does while its interface is gone: raises Moved then, else ConfigError."""
        self._overrides = await self._patiently(self._manager.overrides, "what is said of this node's addresses")
        try:
            before = self._external
            looked = (*PATIENT, KernelError)
            site = await self._patiently(lambda: self._site(config, before), "this node's interfaces", looked)
            self._picture = replace(self._picture, config=config)
            self._backend = backend = self._backend or _loaded(config, self._setting)
            attrs = Attrs(site.public_ip, site.public_ipv6, backend.published_type)
            remembered = await self._patiently(lambda: self._manager.remembered(attrs), "what was published before")
            published = await self._patiently(lambda: backend.begin(site, remembered), "what its backend needs")
        except ConfigError as error:
            if self._external is None:
                raise
            self._wait(error)
            raise Moved from None
        self._external = site.external
        return site, replace(attrs, data=published.data, data6=published.data6), backend

    async def _site(self, config: NetworkConfig, before: External | None = None) -> Site:
        """This node, as its flags, what the datastore says of it, and its interfaces have it; `before` is what was
        chosen of them last. Raises ConfigError."""
        flags, overrides = self._options, self._overrides
        flags = replace(
            flags,
            public_ip=overrides.public_ip or flags.public_ip,
            public_ipv6=overrides.public_ipv6 or flags.public_ipv6,
        )
        sight = await asyncio.to_thread(interface.look, flags.iface_can_reach)
        external = interface.choose(flags, config, sight, before)
        return Site(
            config,
            external,
            (overrides.published_ip or flags.public_ip or external.ipv4) if config.v4 else None,
            (overrides.published_ipv6 or flags.public_ipv6 or external.ipv6) if config.v6 else None,
        )

    async def _patiently(
        self, ask: Callable[[], Awaitable[T]], what: str, patient: tuple[type[TortieError], ...] = PATIENT
    ) -> T:
        """The answer, however long the datastore is away."""
        waited = False
        while True:
            try:
                answer = await ask()
            except patient as error:
                self._wait(error, f"waiting for {what}: ")
                waited = True
                await asyncio.sleep(RETRY)
            else:
                if waited:
                    self._picture = replace(self._picture, waiting="")
                return answer

    def _wait(self, error: TortieError, what: str = "") -> None:
        self._complain.warning(f"{what}{error}")
        self._picture = replace(self._picture, waiting=str(error))

    # --- going on ---------------------------------------------------------------------------------------------------

    async def _follow(self, place: Place, backend: Backend) -> None:
        """Every picture of the neighbours becomes a state for the kernel."""
        if not backend.watches:
            self._submit(await self._state(place, backend, {}), {})
            await asyncio.Event().wait()
        leases: Leases = {}
        changes = asyncio.Event()

        async def hear() -> None:
            nonlocal leases
            async for found in self._manager.neighbours(place.lease):
                leases = found
                changes.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(hear(), name="neighbours")
            await changes.wait()
            while True:
                changes.clear()
                now, begun = leases, time.monotonic()
                self._submit(await self._state(place, backend, now), now)
                await asyncio.sleep(time.monotonic() - begun)  # thousands of nodes, one after the other
                await _first_of(changes, self._look_again)
                self._look_again.clear()

    async def _state(self, place: Place, backend: Backend, leases: Leases) -> FlannelState:
        asked = addresses(fitting(backend, list(leases.values()))) if backend.asks_ways else []
        ways: Ways = {}
        if asked:
            ask = partial(asyncio.to_thread, look, place.site.external, asked)
            ways = await self._patiently(ask, "the ways to other nodes", (KernelError,))
        others = list(leases.values())  # of thousands of them it takes a while
        return await asyncio.to_thread(wanted, place, backend, others, ways, self._options, self._tables)

    def _submit(self, state: FlannelState, leases: Leases) -> None:
        for problem in state.problems:
            self._complain.warning(problem)
        self._picture = replace(self._picture, state=state, leases=leases, in_sync=True)
        self._worker.submit(state)

    async def _carry_out(self, place: Place, backend: Backend, written: asyncio.Event) -> None:
        """After every pass of the kernel's worker, which comes at every change and every resync; what did not work is
        tried again then."""
        while True:
            await self._passes.wait()
            self._passes.clear()
            if not self._picture.passed:
                continue
            leases = fitting(backend, list(self._picture.leases.values()))
            try:
                lines = tuple(await backend.carry_out(place, leases))
                if not written.is_set() and not self._picture.failed(VITAL):
                    await self._let_pods_come(place)
                    written.set()
            except (KernelError, Unavailable) as error:
                lines = (str(error),)
            for line in lines:
                self._complain.warning(line)
            self._picture = replace(self._picture, undone=lines)

    async def _let_pods_come(self, place: Place) -> None:
        """The plugin finds its file. Raises KernelError."""
        for line in await asyncio.to_thread(leftovers.clear):
            log.warning("%s", line)
        mtu = self._picture.pod_mtu
        await asyncio.to_thread(subnet_file.write, self._options.subnet_file, place, mtu, self._options.ip_masq)
        self._picture = replace(self._picture, ready=True)
        log.info("%s is written; pods get %s, MTU %d", self._options.subnet_file, subnets(place.lease), mtu)
        self._notify()

    async def _tell_ready(self, written: asyncio.Event) -> None:
        """Whoever waits for the node is told, however long he is away: nothing else waits for that."""
        await written.wait()
        await self._patiently(self._manager.tell_ready, "whom to tell that this node is ready")

    async def _examine(self, place: Place) -> None:
        """Looks, as soon as there is another node and then once in a while, for what users would find else."""
        await self._joined.wait()
        while True:
            state, leases = self._picture.state, tuple(self._picture.leases.values())
            over = threading.Event()
            try:
                seen = await asyncio.to_thread(probe.look, place, state, leases, over)
            finally:
                over.set()  # a thread cannot be cancelled; this one ends by itself then
            found = findings.lines(place, self._picture.pod_mtu, state, leases, seen)
            for line in found:
                self._complain.warning(line)
            self._picture = replace(self._picture, findings=found)
            await asyncio.sleep(EXAMINE)

    async def _watch_machine(self, place: Place, backend: Backend) -> None:
        """Raises Moved once this node is somewhere else. An interface that is gone for a while is waited for."""
        site = place.site
        heard = asyncio.Event()

        def changed(what: Concerns) -> None:
            self._worker.again()
            if backend.asks_ways:
                self._look_again.set()
            if Concerns.SELF in what:
                heard.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(watch_kernel(site.external.name, changed), name="kernel")
            while True:
                await heard.wait()
                heard.clear()
                begun = time.monotonic()
                try:
                    if await self._site(site.config, site.external) != site:
                        log.info("this node's own address or interface has changed: beginning anew")
                        raise Moved
                    self._picture = replace(self._picture, waiting="")
                except ConfigError as error:
                    self._wait(error)
                except KernelError as error:
                    self._wait(error)
                    heard.set()
                    await asyncio.sleep(RETRY)
                await asyncio.sleep(REST * (time.monotonic() - begun))

    async def _until_broken(self) -> None:
        assert self._broken is not None
        await asyncio.shield(self._broken)

    async def _end(self) -> None:
        if self._backend is not None:
            await self._backend.end()

    # --- the worker's thread ----------------------------------------------------------------------------------------

    def _applied(self, state: FlannelState, failures: Sequence[Failure], seconds: float) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._passed, state, tuple(failures))

    def _passed(self, state: FlannelState, failures: tuple[Failure, ...]) -> None:
        newest = self._picture.in_sync and state is self._picture.state
        self._picture = replace(self._picture, passed=self._picture.passed or newest, failures=failures)
        if newest and self._picture.leases:
            self._joined.set()
        self._passes.set()

    def _broke(self, bug: BaseException) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._give_up, bug)

    def _give_up(self, bug: BaseException) -> None:
        assert self._broken is not None
        if not self._broken.done():
            self._broken.set_exception(bug)


def _loaded(config: NetworkConfig, setting: Setting) -> Backend:
    """Raises ConfigError."""
    backend = backends.load(config, setting)
    if not any(family.network.version in backend.versions for family in config.families):
        why = f"{config.backend_type} carries only IPv{min(backend.versions)}, and the network has none"
        raise ConfigError(why, "Backend.Type")
    return backend


def _heed_the_end() -> None:
    """Raises CancelledError where this task was told to end while the one that it waited for ended by an error: then it
    has heard of the error alone. Not for a task with groups of its own, which count that wrongly (Python 3.11)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _first_of(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
