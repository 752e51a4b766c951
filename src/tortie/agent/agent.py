"""One node's agent: datastore, picture, kernel and servers wired together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from tortie.agent import bgp_routes, collector, probe, standing, startup
from tortie.agent.addresses import NodeAddresses
from tortie.agent.cni.ipam import IpamServer
from tortie.agent.cni.server import CniServer
from tortie.agent.conditions import Conditions
from tortie.agent.config import AgentConfig
from tortie.agent.datastore import Datastore
from tortie.agent.departures import Departures
from tortie.agent.doctor import Doctor
from tortie.agent.drops import Drops
from tortie.agent.endpoints import follow_pods
from tortie.agent.environment import Environment
from tortie.agent.evidence import Evidence, answerable, path
from tortie.agent.flows import Flows
from tortie.agent.holdings import Holdings
from tortie.agent.host import pod_mtus
from tortie.agent.known import ALSO
from tortie.agent.kubernetes import KubernetesNode
from tortie.agent.link_watch import watch_links
from tortie.agent.links_gone import LinksGone
from tortie.agent.metrics import Metrics
from tortie.agent.node_leaving import follow_leaving
from tortie.agent.node_status import StatusReporter
from tortie.agent.node_view import NodeView
from tortie.agent.overlay import built, repair_overlay
from tortie.agent.pending import Pending
from tortie.agent.pod_mtu import PodMtu
from tortie.agent.pod_networks import OwnPodNetworks, repair_pod_routes, routes_answer
from tortie.agent.registration import registered
from tortie.agent.restart import Restart
from tortie.agent.secrets import follow_secrets
from tortie.agent.server import application, health_application, unreadable
from tortie.agent.shelfnote import ShelfNote
from tortie.agent.snapshot import Snapshots
from tortie.agent.stock import Stock
from tortie.agent.tunnels import follow_tunnels
from tortie.agent.view import Progress, View
from tortie.agent.vms import follow_migrations
from tortie.base.errors import KernelError
from tortie.bgp.birdc import ESTABLISHED
from tortie.calc.cluster import INPUTS
from tortie.calc.default_pools import NONE
from tortie.calc.state import DesiredState
from tortie.cni.spec import Call, CniError, Code
from tortie.dataplane.converge import Failure
from tortie.dataplane.drift import repair_table
from tortie.dataplane.overlay import routing_stages
from tortie.dataplane.stages.bird import BirdDaemon
from tortie.dataplane.stages.departed_flows import Departed, ReusedAddresses
from tortie.dataplane.stages.nft import Nft
from tortie.dataplane.stages.peering_addresses import PeeringAddresses
from tortie.dataplane.stages.qos import Qos
from tortie.dataplane.stages.routes import Routes
from tortie.dataplane.stages.rp_filter import RpFilter
from tortie.dataplane.stages.stale_routes import StaleRoutes
from tortie.dataplane.stages.stolen_routes import StolenRoutes
from tortie.dataplane.worker import Worker
from tortie.ipam.assign import Ipam
from tortie.ipam.ready import ready_handle
from tortie.ipam.vm import VmAddresses
from tortie.kernel import nft, sysctl
from tortie.kernel.bird import Bird
from tortie.kernel.scraped import metrics_application
from tortie.kernel.serving import serving
from tortie.model.store import Store
from tortie.policy.selector import parse
from tortie.proxy.config import proxy_config
from tortie.proxy.proxy import Proxy
from tortie.render.ruleset import TABLE
from tortie.store.cluster import api_of
from tortie.store.place import place

log = logging.getLogger("tortie.agent")

BIRD_CHECK = 2.0
"""Seconds between two looks at whether BIRD still answers."""
THREADS = 32
"""That wait for the kernel and for files: as many pods may come and go at a time. They cost nothing while they wait."""
LOOPBACK = "127.0.0.1"
"""Where health is asked for: a machine without /etc/hosts does not know localhost by its name."""


class Agent:
    """Everything of one node. `run` is the whole life."""

    def __init__(self, config: AgentConfig, store: Store, environment: Environment) -> None:
        self.config = config
        self.environment = environment
        self._api, self._asked = api_of(store), store
        self.store = store = Datastore(store)
        self.progress = Progress()
        self.view = View(config.node, store, self._publish, bird=config.bgp, environment=environment.bgp)
        self.metrics = Metrics()
        self.view.cluster.tell(environment.felix)
        self.ipam = Ipam(store, config.node, lambda: datetime.now(UTC), matches)
        self.pending = Pending(config.run_dir / "pending", ready_handle(config.node), store, self.view, self.ipam)
        known, most, note = self.view.known, config.ready_addresses, ShelfNote(config.run_dir / "ready.json")
        self.stock = Stock(config.node, self.ipam, known, matches, lambda: self.pending.ips, most, note=note)
        self.departures = Departures(config.run_dir / "leaving", store, self.view, self.ipam)
        self._join_journals()
        holdings = Holdings(config.node, store, self.ipam, self.stock, self.pending, config.run_dir / "ipam_upgraded")
        self.mtu = PodMtu(config.files / "mtu")
        self.addresses = NodeAddresses(config.node, environment, store, self._looked)
        self.links_gone = LinksGone()
        self.cni_server = CniServer(
            config.node, store, self.view, self.progress, holdings, self.mtu, self.departures, self.links_gone
        )
        self.ipam_server = IpamServer(holdings)
        run_dir = config.run_dir
        self.bird = Bird(run_dir / "bird.conf", run_dir / "bird.ctl", log=run_dir / "bird.log") if config.bgp else None
        self.nft = Nft()
        tunnels, vteps, ways, self.pod_routes = routing_stages()
        self.overlay = tunnels, vteps, ways
        departed = Departed()
        of_pods = ReusedAddresses(departed), Routes()
        stages = (self.nft, *of_pods, *self.overlay, self.pod_routes, RpFilter(), Qos(), PeeringAddresses())
        self.dataplane = Worker("dataplane", stages, self._applied, self._worker_broke)
        self.flows = Flows(self.view, departed, self.metrics.passes.labels("flows").inc, self._worker_broke)
        self.drops = Drops(config.node, self.view.cluster, lambda: self.nft.ruleset)
        where = place(config.datastore)
        self.evidence = Evidence(config.node, str(where), self.view, self.progress, self.nft)
        self.routing: Worker[DesiredState] | None = None
        self._routing_failures: tuple[str, ...] = ()
        if self.bird is not None:
            routing = BirdDaemon(self.bird, config.connect_delay), StaleRoutes(self.bird), StolenRoutes(self.bird)
            self.routing = Worker("routing", routing, self._routing_applied, self._worker_broke, BIRD_CHECK)
            self._routing_failures = ("not looked at yet",)
        self.proxy = Proxy(
            environment.kubernetes_node or config.node,
            proxy_config(config.services, config.nodeport_addresses, healthz_port=config.proxy_health_port),
            config.files,
            store,
            self._worker_broke,
            datastore=str(where),
            api=self._api,
            registry=self.metrics.registry,
        )
        self._routed: DesiredState | None = None
        """The state that BIRD's worker was given last."""
        self.pod_networks = OwnPodNetworks(
            config.node, store, self.view, config.networks, lambda: self.addresses.links, self.pod_routes
        )
        self.node_view = NodeView(
            config.node, self.bird, self.view, lambda: self._routing_failures, self.pod_networks.problems
        )
        self.doctor = Doctor(
            config.node,
            str(where),
            self.view,
            self.progress,
            self.bird,
            lambda: self._routing_failures,
            self.pod_networks.problems,
        )
        self.reporter = StatusReporter(config.node, store, self.bird, self.node_view.families)
        self.conditions = Conditions(config.node, store, self.node_view.problems)
        self.kubernetes = KubernetesNode(
            environment.kubernetes_node or config.node,
            store,
            environment.shutdown_file or config.files / "shutdownTS",
            self._networked,
            demanded=where.backend == "kubernetes" or where.kubernetes_too,
            conditioned=environment.backend != NONE,
        )
        self._node_says = where.backend == "kubernetes"
        """Whether our own Node says that its machine is leaving."""
        snapshots = Snapshots(config.run_dir / "snapshot", config.node, str(where), self.view)
        self.pending.once_noted = snapshots.once_written
        self.restart = Restart(self.view, snapshots, self.pending, self.departures, self.stock, self.addresses)
        self.standing = standing.Standing(
            config.node,
            str(where),
            self.view,
            self.progress,
            self.stock,
            self.pending,
            self.departures,
            self.reports,
        )
        self.metrics.watch(self.standing)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bug: asyncio.Future[None] | None = None

    def _join_journals(self) -> None:
        """Of pods that come and go while the datastore is away: which must wait for which."""
        self.stock.nobody_there = lambda: bool(self.store.away or self.store.disbelief)
        self.pending.handing_over = self.stock.forget
        self.pending.blocked = self.departures.blocks
        self.departures.settled = self.pending.settled
        self.departures.done = self.pending.hurry

    async def run(self) -> None:
        """Until cancelled. Raises ConfigError, NotSupported, KernelError or Unavailable when it cannot go on."""
        self._loop = asyncio.get_running_loop()
        self._bug = self._loop.create_future()
        self._loop.set_exception_handler(self._loop_broke)
        self._loop.set_default_executor(ThreadPoolExecutor(THREADS, "kernel"))
        registered(None, self.config.node, "", "")  # says at once what cannot be right
        prepare_host()
        monitor = self.nft.monitor()
        self.dataplane.start()
        self.flows.start()
        if self.routing is not None:
            self.routing.start()
        try:
            async with contextlib.AsyncExitStack() as stack:
                # Calls that are under way when it ends still need both.
                await stack.enter_async_context(self.stock.running(self._task_broke))
                await stack.enter_async_context(self.pending.running(self._task_broke))
                await stack.enter_async_context(serving(application(self), self.config.socket, unreadable))
                stack.callback(self.drops.close)
                if self.config.health_port:
                    where = (LOOPBACK, self.config.health_port)
                    await stack.enter_async_context(serving(health_application(self), where))
                if self.config.metrics_port:
                    app = metrics_application(self.metrics.registry)
                    await stack.enter_async_context(serving(app, ("", self.config.metrics_port)))
                async with asyncio.TaskGroup() as tasks:
                    links = watch_links(self.view, self.dataplane.again, self.links_gone.heard, self.addresses.heard)
                    tasks.create_task(links, name="watch links")
                    tasks.create_task(repair_table(monitor, self.nft, self.dataplane.again), name="repair the table")
                    tasks.create_task(self.flows.repair(), name="repair the flow table")
                    tasks.create_task(self._repair_overlay(), name="repair the overlay")
                    repair = repair_pod_routes(self.dataplane, lambda: self.view.latest)
                    tasks.create_task(repair, name="repair routes to pod networks")
                    tasks.create_task(self.proxy.run(), name="proxy")
                    tasks.create_task(self._watch_workers(), name="watch workers")
                    await self._follow(tasks)
        finally:
            await self.restart.close()
            await self.proxy.close()
            await asyncio.to_thread(self._stop_workers)

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Start to follow the datastore, once there is one."""
        config = self.config
        restored = await self.restart.begin(tasks)
        start_up = startup.start_up
        whole = self.store, self.addresses, self.kubernetes
        await start_up(config, self.environment, *whole, restored=restored, api=self._api)
        self.metrics.resync.set(2)
        self.stock.open()
        tasks.create_task(follow_secrets(self.view), name="follow secrets")
        for kind in (*INPUTS, *ALSO):
            tasks.create_task(self.view.follow(kind), name=f"follow {kind.KIND.key}")
        tasks.create_task(probe.check(self.view), name="check the datastore")
        tasks.create_task(probe.probe(self.view), name="look for silent watches")
        tasks.create_task(self.kubernetes.run(), name="tell Kubernetes")
        if not self._node_says:
            proxy = self.proxy
            leaving = follow_leaving(self.kubernetes.name, self._asked, proxy.hear_leaving, lambda: proxy.serves)
            tasks.create_task(leaving, name="ask whether the node is leaving")
        tasks.create_task(follow_pods(config.node, self.store, self.view), name="follow pods")
        tasks.create_task(self.addresses.follow(), name="follow addresses")
        tasks.create_task(self.pod_networks.run(), name="follow pod networks")
        tunnels = follow_tunnels(config.node, self.store, self.ipam, self._tunnels_built)
        tasks.create_task(tunnels, name="follow tunnels")
        tasks.create_task(self.reporter.run(), name="report node status")
        tasks.create_task(self.conditions.run(), name="report conditions")
        machines = VmAddresses(self.store, self.ipam)
        tasks.create_task(follow_migrations(config.node, self.store, machines), name="follow migrations")

    async def _tunnels_built(self) -> Set[str]:
        tunnels, _, _ = self.overlay
        return await built(self.store, self.config.node, tunnels)

    async def _repair_overlay(self) -> None:
        _, _, routes = self.overlay
        await repair_overlay(self.dataplane, lambda: self.view.latest, lambda: routes.held)

    async def _watch_workers(self) -> None:
        """A worker that has met a bug is no use any more, nor are we without it."""
        assert self._bug is not None
        await self._bug

    def _worker_broke(self, bug: BaseException) -> None:
        """In the worker's thread."""
        assert self._loop is not None
        assert self._bug is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are stopping
            self._loop.call_soon_threadsafe(_fail, self._bug, bug)

    def _task_broke(self, bug: BaseException) -> None:
        assert self._bug is not None
        _fail(self._bug, bug)

    def _loop_broke(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback that raises, such as the one that publishes a state, has nobody else whom it could tell."""
        loop.default_exception_handler(context)
        if "handle" in context and self._bug is not None:
            _fail(self._bug, context["exception"])

    def _stop_workers(self) -> None:
        self.dataplane.close()
        self.flows.close()
        if self.routing is not None:
            self.routing.close()

    # ------------------------------------------------------------------------------------------------ state

    def _publish(self, state: DesiredState) -> None:
        self.metrics.resync.set(3 if self.view.live else 1)
        self.drops.see(state)
        self.mtu.see(state)
        self.dataplane.submit(state)
        self.proxy.see(state.proxy)

    def _looked(self) -> None:
        """At this machine's links."""
        self.mtu.see_links(self.addresses.links)

    def _applied(self, state: DesiredState, failures: Sequence[Failure], seconds: float) -> None:
        """In the worker's thread."""
        assert self._loop is not None
        self.metrics.passes.labels("dataplane").inc()
        texts = tuple(map(str, failures))
        enforced = not any(failure.guard for failure in failures)
        if enforced:
            self.flows.submit(state)
        if self.routing is not None and state is not self._routed:
            self._routed = state
            self.routing.submit(state)  # only now: the agent's routes are there where BIRD lets go of its own
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are stopping
            if not self.progress.generation:
                self._loop.call_soon_threadsafe(collector.settle)
            self._loop.call_soon_threadsafe(self.progress.reached, state.generation, texts, enforced)
            self._loop.call_soon_threadsafe(self.metrics.observe, state, bool(failures), seconds)
            self._loop.call_soon_threadsafe(self.drops.applied, self.nft.ruleset)

    def _routing_applied(self, state: DesiredState, failures: Sequence[Failure], seconds: float) -> None:
        self.metrics.passes.labels("routing").inc()
        self._routing_failures = tuple(map(str, failures))

    # ------------------------------------------------------------------------------------------------ answers

    async def cni(self, plugin: str, call: Call) -> str:
        outcome = "error"
        try:
            answer = await self._plugin(plugin).answer(call)
            outcome = "success"
            return answer
        finally:
            self.metrics.cni_calls.labels(call.command, outcome).inc()

    def _plugin(self, name: str) -> CniServer | IpamServer:
        if name == "calico":
            return self.cni_server
        if name == "calico-ipam":
            return self.ipam_server
        text = f'this agent serves the plugins calico and calico-ipam, not "{name}"'
        raise CniError(Code.INVALID_ENVIRONMENT, text)

    async def node(self) -> Mapping[str, Any]:
        return {**await self.node_view.node(), "podRoutes": routes_answer(self.view.latest, self.pod_routes)}

    async def diagnosis(self) -> Mapping[str, Any]:
        return await self.node_view.diagnosis()

    async def bgp_routes(self, prefix: str) -> Mapping[str, Any]:
        return await bgp_routes.answer(self.config.node, self.bird, self.view.latest, prefix)

    async def look_around(self) -> Mapping[str, Any]:
        return await self.doctor.answer()

    async def node_addresses(self) -> Mapping[str, Any]:
        return self.addresses.answer()

    async def health(self) -> Mapping[str, Any]:
        """Of Felix' part here, and of BIRD; `age` is in seconds since the node started."""
        reports = {name: report for name, report in self.reports().items() if name != "BIRD"}
        felix = {what: all(report[what] for report in reports.values()) for what in ("live", "ready")}
        node = await self.node_view.bird(routes=False)
        age = startup.age(startup.nodename_file(self.config, self.environment), time.time())
        return {"felix": felix, "bird": node["bird"], "peers": node["peers"], "age": age}

    async def node_mtu(self) -> Mapping[str, Any]:
        found = await asyncio.to_thread(pod_mtus)
        return self.mtu.answer({self.view.pod_at(interface): mtu for interface, mtu in found.items()})

    async def counters(self) -> Mapping[str, Any]:
        found = await asyncio.to_thread(nft.counters, TABLE)
        return {name: {"packets": packets, "bytes": octets} for name, (packets, octets) in found.items()}

    async def rules(self, names: Sequence[str], interfaces: Sequence[str]) -> Mapping[str, Any]:
        standing = await self.evidence.settled()
        found = await asyncio.to_thread(self.evidence.rules, names, interfaces)
        return {**standing, **found, "flowTable": self.flows.table()}

    async def path(self, question: Mapping[str, str]) -> Mapping[str, Any]:
        return await asyncio.to_thread(path, *answerable(question))

    async def denials(self) -> Mapping[str, Any]:
        return await asyncio.to_thread(lambda: self.drops.counted(nft.counters(TABLE)))

    def watch_drops(self) -> AsyncGenerator[bytes, None]:
        return self.drops.watch()

    async def status(self) -> Mapping[str, Any]:
        """On one page how this node is."""
        return self.standing.answer(await self.node_view.bird(routes=False), self.flows.table())

    async def accept_datastore(self) -> Mapping[str, Any]:
        """A person says that the datastore is the cluster's, whatever it was before. Of one that is believed nothing is
        read again: until that is done no pod could be connected."""
        if accepted := bool(self.store.disbelief):
            self.store.accept()
            self.view.begin_again()
        return {"accepted": accepted}

    async def shut_down(self) -> Mapping[str, Any]:
        """The agent is going to be stopped, and its node to be without a network."""
        await self.kubernetes.shut_down()
        return {"node": self.kubernetes.name}

    async def _networked(self) -> bool:
        """Whether pods can be connected, policy is in the kernel, and BGP has all of its sessions."""
        if not all(report["ready"] for report in self.reports().values()):
            return False
        bird = await self.node_view.bird(routes=False)
        return all(peer["state"] == ESTABLISHED for peer in bird["peers"])

    def reports(self) -> Mapping[str, Mapping[str, Any]]:
        reports: dict[str, Mapping[str, Any]] = {
            "CalculationGraph": standing.graph_report(self.view, time.time()),
            "InternalDataplaneMainLoop": standing.dataplane_report(self.progress, self.dataplane.busy_for),
        }
        reports |= standing.failing(
            {
                "PendingWrites": self.pending.failure,
                "PendingDeletions": self.departures.failure,
                "NodeAddresses": self.addresses.failure,
                "EstablishedFlows": self.flows.failure,
                "Services": "; ".join(self.proxy.failures),
            }
        )
        if self.routing is not None:
            failed = "; ".join(self._routing_failures)
            reports["BIRD"] = {"live": True, "ready": not failed, "reason": failed}
        return reports


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


def prepare_host() -> None:
    """Programs and sysctls that every node needs. Raises NotSupported naming the package that is missing."""
    nft.available()
    sysctl.write("net/ipv4/ip_forward", 1)
    with contextlib.suppress(KernelError):  # a kernel without IPv6
        sysctl.write("net/ipv6/conf/all/forwarding", 1)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
