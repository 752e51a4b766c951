"""Services of one node, all together: who serves them, rules, health checks, addresses of load balancers.

    state ─┐                        ┌─► worker: table inet tortie-services ─► stale flows
           ├─► served by us? ─ yes ─┼─► health checks
    kube-proxy? what was asked for? ┘   └─► layer 2

The worker is one of its own: no pod waits for ten thousand services. Closed or killed, everything that is in the kernel
stays, and connections go on. One program serves in a network namespace, which is who has the lock `LOCK`; another one
waits until that has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from tortie.base.errors import KernelError, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.calc.proxy.state import ProxyState
from tortie.dataplane.converge import Failure
from tortie.dataplane.drift import repair_table
from tortie.dataplane.service_hits import Hit, hits
from tortie.dataplane.stages.services import Services
from tortie.dataplane.stages.stale_flows import StaleFlows
from tortie.dataplane.worker import RESYNC, Broken, Worker
from tortie.kernel.netns_lock import Holder, NetnsLock
from tortie.model.store import Store
from tortie.proxy import kube_proxy, takeover
from tortie.proxy.answer import AboutNode, answer, wants_hits
from tortie.proxy.choice import Choice
from tortie.proxy.config import CLUSTER_CIDR, ProxyConfig
from tortie.proxy.daemon_set import Asks, DaemonSet
from tortie.proxy.health_checks import HealthChecks, Pulse
from tortie.proxy.kube_proxy import Asked, KubeProxy, Standing
from tortie.proxy.layer2.announcer import Layer2
from tortie.proxy.server import Metrics

log = logging.getLogger(__name__)

LOOK = 15.0
"""Seconds between two looks for a kube-proxy."""
LOCK = "tortie/services"
TURN = 1.0
"""Seconds between two looks whether whoever has the lock has ended."""
NOBODY = (
    "nothing says where pods have their addresses, no IPPool for workloads and no podCIDRs of a Node: everybody who "
    "asks a service is masqueraded, and policy sees nodes in place of pods: set "
    f"{CLUSTER_CIDR} in the agent's environment, or --cluster-cidr of tortie proxy, to the networks of pods, such as "
    "10.244.0.0/16"
)
PATIENCE = 60.0
"""Seconds for the kernel to have what a person asks for."""


class Proxy:
    """Of one node, on one event loop. `directory` is where it remembers what a person chose; `datastore` names the
    datastore for people, without a credential, and `api` is Kubernetes' where there is one. `broken` is told of a bug
    that ends the worker. Raises ConfigError."""

    def __init__(
        self,
        node: str,
        config: ProxyConfig,
        directory: Path,
        store: Store,
        broken: Broken,
        *,
        datastore: str = "",
        api: Asks | None = None,
        registry: CollectorRegistry | None = None,
        resync: float = RESYNC,
        lock: NetnsLock | None = None,
    ) -> None:
        self.node = node
        self.metrics = Metrics(registry or CollectorRegistry())
        self.also: Callable[[], Sequence[str]] = tuple
        """Problems of whoever feeds us."""
        self._config = config
        self._datastore = datastore
        self._choice = Choice(directory, config.asked)
        self._lock = lock or NetnsLock(LOCK)
        self._stage = Services(lock=self._lock)
        self._worker: Worker[ProxyState | None] = Worker(
            "services", (self._stage, StaleFlows()), self._applied, broken, resync
        )
        pulse = Pulse(lambda: not self._failures, lambda: not self._leaving)
        self._health = HealthChecks(pulse, healthz_port=config.healthz_port)
        self._layer2 = Layer2(node, store)
        self._daemon_set = DaemonSet(api) if api is not None else None
        self._seen: ProxyState | None = None
        """As it came; `_state` is the same with what is configured here."""
        self._state: ProxyState | None = None
        self._told_leaving = False
        self._told: Mapping[str, str] = {}
        self._standing: Standing | None = None
        self._unsure = "not looked yet"
        """Why there is no standing, while there is none."""
        self._holder: Holder | None = None
        """Who else serves here, so that we do not."""
        self._found: tuple[KubeProxy, ...] = ()
        self._failures: tuple[str, ...] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_kernel: bool | None = None
        """Whether the kernel has our rules, as far as the last pass without a failure tells."""
        self._changing = asyncio.Lock()
        self._complain = Seldom(log)

    # --- in -----------------------------------------------------------------------------------------------------------

    def see(self, state: ProxyState) -> None:
        """What there is to serve, from the event loop. The first after everything has been listed."""
        if state is self._seen:
            return
        config, self._seen = self._config, state
        if config.node_ports is not None or config.masquerade_all:
            state = replace(state, node_ports=config.node_ports, masquerade_all=config.masquerade_all)
        if config.cluster_cidrs is not None:
            state = replace(state, pods=config.cluster_cidrs)
        self._state = state
        self._submit()

    def hear_leaving(self, leaving: bool) -> None:
        """That the node is leaving, or is to stay after all, from who asks where states do not say it."""
        self._told_leaving = leaving

    @property
    def _leaving(self) -> bool:
        return self._told_leaving or (self._state is not None and self._state.leaving)

    @property
    def _knows_no_pods(self) -> bool:
        return self._state is not None and bool(self._state.services) and not self._state.pods

    async def run(self) -> None:
        """Until cancelled. Raises TortieError, in groups, when it cannot begin."""
        self._loop = asyncio.get_running_loop()
        await self._look()
        monitor = self._stage.monitor()
        self._worker.start()
        async with asyncio.TaskGroup() as tasks:
            repair = repair_table(monitor, self._stage, self._worker.again, lambda: self.serves)
            tasks.create_task(repair, name="repair services")
            tasks.create_task(self._health.run(), name="health checks")
            tasks.create_task(self._layer2.run(), name="layer 2")
            tasks.create_task(self._keep_looking(), name="look for kube-proxy")
            tasks.create_task(self._take_turns(), name="one proxy at a time")

    async def close(self) -> None:
        """Waits for the pass under way. The kernel stays as it is."""
        await asyncio.to_thread(self._worker.close)
        self._lock.release()

    # --- who serves ---------------------------------------------------------------------------------------------------

    @property
    def serves(self) -> bool:
        return self._standing is not None and self._standing.on and self._holder is None

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            async with self._changing:
                await self._look()

    async def _take_turns(self) -> None:
        while True:
            await asyncio.sleep(TURN)
            self._lock.turn_away()
            if self._holder is not None:
                self._worker.again()

    async def _look(self) -> None:
        try:
            self._found = await asyncio.to_thread(kube_proxy.found)
        except TortieError as error:
            self._unsure = f"looking for kube-proxy: {error}"
            self._complain.warning(self._unsure)
            if self._standing is not None or self._choice.asked == "auto":
                return  # nobody serves beside a kube-proxy by mistake
        self._decide()

    def _decide(self, *, looked: bool = True) -> None:
        before = self._standing
        self._standing = kube_proxy.decide(self._choice.asked, self._found, before, looked=looked)
        if before is None or before.on != self._standing.on:
            self._holder = None
            with contextlib.suppress(KernelError):  # the worker comes upon it, too, and tells it
                self._holder = self._lock.take() if self._standing.on else None
            log.info("services are %s: %s", "served" if self.serves else "not served", self._why())
            self._submit()

    def _why(self) -> str:
        if self._standing is None:
            return self._unsure
        if self._standing.on and self._holder is not None:
            return f"{self._holder} serves them"
        return self._standing.why

    def _submit(self) -> None:
        if self._state is None or self._standing is None:
            return
        self._worker.submit(self._state if self._standing.on else None)
        self._announce(self._state)
        if self._standing.on:
            nobody = {"services": NOBODY} if self._knows_no_pods else {}
            self._tell({**self._state.problems, **nobody})

    def _tell(self, problems: Mapping[str, str]) -> None:
        """Say once what is not served as it is asked for."""
        for title, why in problems.items():
            if self._told.get(title) != why:
                log.warning("%s: %s", title, why)
        self._told = problems

    def _announce(self, state: ProxyState) -> None:
        """To who asks from outside."""
        self._health.update(state if self.serves else None)
        self._layer2.see(state, self.serves and not state.excluded)

    def _applied(self, state: ProxyState | None, failures: Sequence[Failure], seconds: float) -> None:
        """In the worker's thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are stopping
            texts, holder = tuple(map(str, failures)), self._stage.holder
            self._loop.call_soon_threadsafe(self._done, state, texts, seconds, holder)

    def _done(self, state: ProxyState | None, failures: tuple[str, ...], seconds: float, holder: Holder | None) -> None:
        self._failures = failures
        self._see_holder(holder if state is not None else None)
        self.metrics.services.set(len(state.services) if state is not None else 0)
        self.metrics.seconds.observe(seconds)
        self.metrics.failures.set(len(failures))
        if not failures:
            self.metrics.when.set_to_current_time()
            self._in_kernel = state is not None

    def _see_holder(self, holder: Holder | None) -> None:
        before, self._holder = self._holder, holder
        if (before is None) != (holder is None) and self._state is not None:
            log.info("services are %s: %s", "served" if self.serves else "not served", self._why())
            self._announce(self._state)

    # --- asked by people ----------------------------------------------------------------------------------------------

    @property
    def daemon_set(self) -> DaemonSet | None:
        return self._daemon_set

    async def serve(self, asked: Asked) -> None:
        """Implements `takeover.Hands`. Raises ConfigError, Unavailable."""
        if asked == "on" and (holder := await asyncio.to_thread(self._lock.holder)) is not None:
            raise Unavailable(f"services are served here by {holder}: stop that one first")
        await asyncio.to_thread(self._choice.note, asked)
        self._decide(looked=False)
        self._worker.again()
        deadline = asyncio.get_running_loop().time() + PATIENCE
        wanted = asked == "on"
        while self._in_kernel is not wanted or self._failures:  # not: has the newest state, which changes on
            if asyncio.get_running_loop().time() > deadline:
                why = "; ".join(self._failures) or "the datastore has not been read yet"
                raise Unavailable(f"the kernel does not have what was asked for after {PATIENCE:g} s: {why}")
            await asyncio.sleep(0.05)

    async def take_over(self, *, yes: bool = False, only_plan: bool = False) -> Mapping[str, Any]:
        return await self._changed(takeover.take_over(self, yes=yes, only_plan=only_plan))

    async def release(self, *, yes: bool = False, only_plan: bool = False) -> Mapping[str, Any]:
        return await self._changed(takeover.release(self, yes=yes, only_plan=only_plan))

    async def _changed(self, work: Any) -> Mapping[str, Any]:
        async with self._changing:
            found: Mapping[str, Any] = await work
            await self._look()
        return found

    async def answer(self, query: Mapping[str, str]) -> Mapping[str, Any]:
        """`GET /services`."""
        counted: list[Hit] = []
        if self.serves and wants_hits(query):
            counted = await asyncio.to_thread(hits)
        state = self._state or ProxyState(node=self.node)
        other = self._holder or (None if self.serves else await asyncio.to_thread(self._lock.holder))
        return await asyncio.to_thread(answer, state, counted, self._about(other), query)

    def _about(self, other: Holder | None) -> AboutNode:
        told = [*self.also(), *self._health.failures.values(), *self._layer2.problems]
        if self.serves and self._knows_no_pods:
            told.append(NOBODY)
        own = self._layer2.answering
        return AboutNode(
            node=self.node,
            datastore=self._datastore,
            asked=self._choice.asked,
            on=self.serves,
            why=self._why(),
            served_by="" if other is None else str(other),
            kube_proxy=self._found,
            failures=self._failures,
            problems={f"node {self.node} ({number})": text for number, text in enumerate(told, 1)},
            layer2={ip: (node, own.get(ip, "")) for ip, node in self._layer2.holders.items()},
        )

    @property
    def failures(self) -> tuple[str, ...]:
        """What the kernel does not have as it should, for health reports."""
        return self._failures if self.serves else ()
