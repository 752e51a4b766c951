"""A lab from the outside: bringing it up, asking how it is, taking it down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import uuid4

from tortie.base.addr import IP
from tortie.base.errors import ConfigError, Exists, NotFound, Unavailable
from tortie.cni.install import build_stub
from tortie.kernel import netns
from tortie.lab import agents, controllers, daemons, dns, flanneld, kubelet, network, node_cni, processes, proxies
from tortie.lab.agents import AgentState
from tortie.lab.chart import Chart, chart
from tortie.lab.controllers import ControllersState
from tortie.lab.flanneld import FlanneldState
from tortie.lab.keeping import not_in_time
from tortie.lab.machine import check_machine
from tortie.lab.networks import networks
from tortie.lab.objects import initial_objects
from tortie.lab.places import netns_of, opened
from tortie.lab.podspec import PodKey, answered_ports, key_of, programs
from tortie.lab.probe import Endpoint
from tortie.lab.proxies import ProxyAnswer
from tortie.lab.sessions import KINDS, Session, Wanted, wanted_by
from tortie.lab.state import LabDirectory
from tortie.lab.steps import Step, Steps
from tortie.lab.topology import NODE_PORT, OUTSIDE, OUTSIDE_PORT, Host, Router, Topology, names
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.k8s import Pod
from tortie.model.node import ClusterInformation
from tortie.model.store import Store

_POLL_SECONDS = 0.1
_PATIENCE = (30.0, 3.0)  # seconds to wait for agents, and again for BGP: for the lab, and for each node
_AT_A_TIME = 12
"""Agents that are asked at a time how they are."""


# --- up and down --------------------------------------------------------------------------------------------------


async def up(lab: Topology, directory: LabDirectory, steps: Steps, netconf: Mapping[str, object] | None = None) -> None:
    """Brings the lab up, or makes what it lacks, until every agent is ready and all BGP sessions are established.

    `netconf` is added to the CNI plugin's configuration of a lab that is not up yet.

    Raises ConfigError when a lab of that name is another one, Unavailable when something does not come up in time: then
    the lab stays as it is, to be looked at. Cancelled, it takes away what it began.
    """
    check_machine(lab.has_agents)
    node_cni.check(lab)
    with directory.locked():
        fresh = not directory.exists
        if not fresh:
            _check_same(directory.read(), lab)
        try:
            await _make(lab, directory, steps, netconf)
        except BaseException:
            if fresh:
                network.destroy(directory)
            raise
        try:
            if lab.has_agents:
                await wait_established(directory, lab, steps)
            if lab.blueprint.flannel is not None:
                with steps.step(f"flanneld on {_nodes(lab)}") as step:
                    await flanneld.wait_joined(directory, lab, step, 2 * _PATIENCE[0] + _PATIENCE[1] * len(lab.nodes))
            if lab.has_proxies:
                with steps.step(f"proxies of {_nodes(lab)}") as step:
                    await proxies.wait_ready(directory, lab, step, _PATIENCE[0] + _PATIENCE[1] * len(lab.nodes))
            if lab.has_services:
                with steps.step("controllers") as step:
                    await controllers.wait_ready(directory, step, _PATIENCE[0])
            if lab.blueprint.begins_with_pods:
                await wait_pods(directory, lab, steps)
        except asyncio.CancelledError:
            if fresh:
                with steps.step(f"interrupted: taking lab {lab.name} down"):
                    network.destroy(directory)
            raise


def down(directory: LabDirectory) -> bool:
    """Takes everything of the lab away; whether there was anything. Raises Unavailable while another command has it."""
    there = directory.path.exists() or bool(network.namespaces(directory.name))
    if there:
        with directory.locked():
            network.destroy(directory)
    return there


def is_complete(directory: LabDirectory) -> bool:
    """Whether the lab is up already: network, kubelet, and every agent alive."""
    if not directory.exists or processes.read_pid(directory.kubelet_pid) is None:
        return False
    lab = directory.read()
    files = [directory.agent_pid(node.name) for node in lab.nodes if lab.has_agents]
    files += [directory.flanneld_pid(node.name) for node in lab.nodes if lab.blueprint.flannel is not None]
    files += [directory.proxy_pid(node.name) for node in lab.nodes if lab.has_proxies]
    files += [directory.controllers_pid] if lab.has_services else []
    files += [directory.router_pid(router.name) for router in lab.routers if router.daemon]
    alive = all(processes.read_pid(file) for file in files)
    return alive and set(lab.namespaces) <= set(network.namespaces(lab.name))


async def _make(lab: Topology, directory: LabDirectory, steps: Steps, netconf: Mapping[str, object] | None) -> None:
    with steps.step(f"network of {_spoken(lab)} and an outside host"):
        # Others go by the directory's lab.json: it is there before anything else is.
        directory.write(lab)
        node_cni.prepare(lab, directory, netconf)
        daemons.configure(lab, directory)
        await _to_the_end(lambda: network.build(lab))
        await _to_the_end(lambda: node_cni.tell_ways(lab))
    with steps.step("datastore and CNI plugins"):
        if lab.has_agents:
            await _to_the_end(lambda: build_stub(directory.bin))
        async with opened(directory) as store:
            await _fill(lab, store)
        kubelet.start(directory)


def _spoken(lab: Topology) -> str:
    nodes = _nodes(lab)
    racks = len(lab.blueprint.racks)
    if racks == 1 and len(lab.routers) == 1:
        return f"{nodes}, a gateway"
    routers = "1 router" if len(lab.routers) == 1 else f"{len(lab.routers)} routers"
    return f"{nodes} in {racks} racks, {routers}" if racks > 1 else f"{nodes}, {routers}"


def _nodes(lab: Topology) -> str:
    return "1 node" if len(lab.nodes) == 1 else f"{len(lab.nodes)} nodes"


async def _fill(lab: Topology, store: Store) -> None:
    """What a new cluster has. ClusterInformation comes last: where it is, nothing that was deleted comes back."""
    with suppress(NotFound):
        await store.get(ClusterInformation, "default")
        return
    objects = list(initial_objects(lab, uuid4().hex))
    for resource in sorted(objects, key=lambda one: isinstance(one, ClusterInformation)):
        with suppress(Exists):
            await store.create(resource)


async def _to_the_end(work: Callable[[], object]) -> None:
    """Runs it in a thread. Cancelled, waits for the thread all the same: what is taken away must not be made again."""
    thread = asyncio.create_task(asyncio.to_thread(work), name="work of lab up")
    try:
        await asyncio.shield(thread)
    finally:
        await asyncio.wait([thread])


def _check_same(have: Topology, want: Topology) -> None:
    if have != want:
        about = have.blueprint.about
        text = f"with {len(have.nodes)} nodes" + (f", {about}" if about else "")
        raise ConfigError(f'lab "{have.name}" is there already {text}; take it down first, or choose another --name')


async def wait_established(directory: LabDirectory, lab: Topology, steps: Steps) -> None:
    """Until every agent is ready and has all the BGP sessions that the datastore's objects ask for. Raises Unavailable
    saying what is missing."""
    patience = _PATIENCE[0] + _PATIENCE[1] * len(lab.nodes)
    with steps.step(f"agents of {len(lab.nodes)} nodes") as step:
        await _wait(directory, lab.nodes, lambda _, state: state.ready, step, time.monotonic() + patience)
    if lab.blueprint.flannel is not None:
        return
    wanted = await asked_for(directory, lab)
    with steps.step(f"{len(wanted.sessions())} BGP sessions") as step:
        deadline = time.monotonic() + patience
        await _wait(
            directory,
            lab.nodes,
            lambda node, state: wanted.of_node(node.name) <= state.established,
            step,
            deadline,
        )
        await _wait_routers(directory, lab, wanted, step, deadline)


async def wait_pods(directory: LabDirectory, lab: Topology, steps: Steps) -> None:
    """Until the pods run that the lab has from the beginning, as far as they are still there. Raises Unavailable."""
    begun = {key_of(one) for one in lab.blueprint.objects if isinstance(one, Pod)}
    with steps.step("1 pod" if len(begun) == 1 else f"{len(begun)} pods"):
        async with opened(directory) as store:
            there = [key_of(pod) for pod in (await store.list(Pod)).items]
            await wait_running(
                store, [key for key in there if key in begun], 2 * _PATIENCE[0] + _PATIENCE[1] * len(lab.nodes)
            )


async def asked_for(directory: LabDirectory, lab: Topology) -> Wanted:
    """The sessions that the datastore's objects and the topology ask for."""
    async with opened(directory) as store:
        objects = [resource for kind in KINDS for resource in (await store.list(kind)).items]
    return wanted_by(lab, objects)


async def _wait_routers(directory: LabDirectory, lab: Topology, wanted: Wanted, step: Step, deadline: float) -> None:
    for router in lab.routers:
        if not router.daemon:
            continue
        due = {one.ip: one.name for one in wanted.of_router(router.name)}
        while late := due.keys() - await asyncio.to_thread(daemons.established, directory, router):
            who = names(sorted({due[ip] for ip in late}))
            step.note(f"waiting for {router.name} with {who}")
            if time.monotonic() > deadline:
                log = directory.router_log(router.name)
                raise Unavailable(f"{router.name} has no session with {who}; its log is {log}")
            await asyncio.sleep(_POLL_SECONDS)
        step.note("")


async def _wait(
    directory: LabDirectory,
    nodes: Sequence[Host],
    good: Callable[[Host, AgentState], bool],
    step: Step,
    deadline: float,
) -> None:
    """Asks those that were not good the last time, a few at a time: answering costs them time in which to become so."""
    late = list(nodes)
    while True:
        asked = late[:_AT_A_TIME]
        states = await ask_agents(directory, asked)
        late = [node for node in asked if not good(node, states[node.name])] + late[_AT_A_TIME:]
        if not late:
            step.note("")
            return
        who = names(node.name for node in late)
        step.note(f"waiting for {who}")
        if time.monotonic() > deadline:
            why = states.get(late[0].name, AgentState()).why
            raise not_in_time(who, why, directory.agent_log(late[0].name))
        await asyncio.sleep(_POLL_SECONDS)


async def ask_agents(directory: LabDirectory, nodes: Sequence[Host]) -> dict[str, AgentState]:
    """How the agents are, by node."""
    asked = (asyncio.to_thread(agents.state_of, directory.agent_socket(node.name)) for node in nodes)
    return dict(zip((node.name for node in nodes), await asyncio.gather(*asked), strict=True))


# --- what there is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node and its agent. `pid` is 0 when no agent runs. `wanted` are the names of the sessions it should have.
    `network` is what connects pods where no agent does, or not alone. `flannel` is None where nodes have no flanneld,
    `flannel_pid` 0 when it does not run; `proxy` and `proxy_pid` alike."""

    host: Host
    pid: int
    state: AgentState
    pods: int
    wanted: Set[str]
    network: str = ""
    has_agent: bool = True
    flannel: FlanneldState | None = None
    flannel_pid: int = 0
    proxy: ProxyAnswer | None = None
    proxy_pid: int = 0

    @property
    def good(self) -> bool:
        return self.ready and (not self.has_agent or self.wanted <= self.state.established)

    @property
    def ready(self) -> bool:
        """Whether its daemons are, whatever they say of BGP."""
        flannel = self.flannel is None or (bool(self.flannel_pid) and self.flannel.ready)
        proxy = self.proxy is None or (bool(self.proxy_pid) and self.proxy.ready)
        return flannel and proxy and (not self.has_agent or (bool(self.pid) and self.state.ready))


@dataclass(frozen=True, slots=True)
class RouterRow:
    """A router that speaks BGP. `wanted` are the neighbours that it should have a session with."""

    router: Router
    pid: int
    established: frozenset[IP]
    wanted: frozenset[IP]

    @property
    def good(self) -> bool:
        return bool(self.pid) and self.wanted <= self.established


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab at one instant. `kubelet` is its pid, or 0; `controllers` is None where there are to be none."""

    lab: Topology
    kubelet: int
    nodes: tuple[NodeRow, ...]
    routers: tuple[RouterRow, ...]
    pods: tuple[Pod, ...]
    wanted: Wanted
    controllers: ControllersState | None = None

    @property
    def healthy(self) -> bool:
        nodes, routers = all(row.good for row in self.nodes), all(row.good for row in self.routers)
        return bool(self.kubelet) and nodes and routers and (self.controllers is None or self.controllers.ready)

    @property
    def sessions(self) -> list[Session]:
        """Every session, and whether it is up."""
        nodes = {row.host.name: row.state.established for row in self.nodes}
        routers = {row.router.name: row.established for row in self.routers}
        return self.wanted.sessions(nodes, routers)


async def status(directory: LabDirectory) -> LabStatus:
    """Raises ConfigError when there is no such lab."""
    lab = directory.read()
    async with opened(directory) as store:
        pods = (await store.list(Pod)).items
    wanted = await asked_for(directory, lab)
    own = networks(lab)
    states = await ask_agents(directory, lab.nodes if lab.has_agents else ())
    flannels = await flanneld.ask_all(directory, lab.nodes if lab.blueprint.flannel is not None else ())
    answering = await proxies.ask_all(directory, lab.nodes if lab.has_proxies else ())
    rows = []
    for node in lab.nodes:
        files = (directory.agent_pid, directory.flanneld_pid, directory.proxy_pid)
        agent, daemon, proxy = (processes.read_pid(one(node.name)) for one in files)
        here = (pod for pod in pods if pod.spec.node_name == node.name and not pod.finished)
        count = sum(pod.namespace != dns.NAMESPACE for pod in here)
        rows.append(
            NodeRow(
                node,
                agent.pid if agent else 0,
                states.get(node.name, AgentState()),
                count,
                wanted.of_node(node.name),
                str(own[node.name]) if own else "",
                lab.has_agents,
                flannels.get(node.name),
                daemon.pid if daemon else 0,
                answering.get(node.name),
                proxy.pid if proxy else 0,
            )
        )
    routers = []
    for router in lab.routers:
        if router.daemon:
            daemon = processes.read_pid(directory.router_pid(router.name))
            up = await asyncio.to_thread(daemons.established, directory, router)
            due = frozenset(one.ip for one in wanted.of_router(router.name))
            routers.append(RouterRow(router, daemon.pid if daemon else 0, up, due))
    supervisor = processes.read_pid(directory.kubelet_pid)
    housekeeping = controllers.state_of(directory) if lab.has_services else None
    pid = supervisor.pid if supervisor else 0
    return LabStatus(lab, pid, tuple(rows), tuple(routers), pods, wanted, housekeeping)


async def charted(directory: LabDirectory) -> Chart:
    """The lab's map as it is now. Raises ConfigError when there is no such lab."""
    found = await status(directory)
    async with opened(directory) as store:
        affinities = (await store.list(BlockAffinity)).items
        pools = (await store.list(IPPool)).items
    ready = {row.host.name: row.ready for row in found.nodes}
    return chart(found.lab, found.wanted, found.sessions, ready, affinities, pools)


async def wait_running(store: Store, wanted: Sequence[PodKey], seconds: float) -> list[Pod]:
    """Until all of these pods run; they. Raises Unavailable naming the first that does not, and why."""
    deadline = time.monotonic() + seconds
    while True:
        pods = {key_of(pod): pod for pod in (await store.list(Pod)).items}
        late = [key for key in wanted if key not in pods or pods[key].status.phase != "Running"]
        if not late:
            return [pods[key] for key in wanted]
        if time.monotonic() > deadline:
            why = pods[late[0]].status.message if late[0] in pods else "it is not in the datastore"
            raise Unavailable(f"{len(late)} pods do not run, {'/'.join(late[0])} first: {why or 'still pending'}")
        await asyncio.sleep(_POLL_SECONDS)


def endpoints(lab: Topology, pods: Iterable[Pod]) -> list[Endpoint]:
    """Who takes part in a matrix: the running pods that are not the cluster's own, in order of their names, and the
    outside host."""
    theirs = (pod for pod in pods if pod.namespace != dns.NAMESPACE)
    running = sorted((pod for pod in theirs if pod.status.phase == "Running"), key=key_of)
    out = lab.outside
    served = (("TCP", OUTSIDE_PORT), ("UDP", OUTSIDE_PORT))
    outside = Endpoint(OUTSIDE, netns.path(out.netns), str(out.ipv4.ip), str(out.ipv6.ip), served)
    return [*(_endpoint(lab, pod) for pod in running), outside]


def answering_nodes(lab: Topology) -> list[Endpoint]:
    """The nodes, in a lab where they answer: one whose pods are connected by plugins alone."""
    if not lab.blueprint.plugins_alone:
        return []
    served = (("TCP", NODE_PORT), ("UDP", NODE_PORT))
    return [replace(node_endpoint(node), ports=served, answers=True) for node in lab.nodes]


def node_endpoint(host: Host) -> Endpoint:
    """A process of a node, which answers nothing."""
    return Endpoint(host.name, netns.path(host.netns), str(host.ipv4.ip), str(host.ipv6.ip), answers=False)


def _endpoint(lab: Topology, pod: Pod) -> Endpoint:
    ips = [entry.ip for entry in pod.status.pod_ips]
    return Endpoint(
        name=f"{pod.namespace}/{pod.name}",
        netns_path=netns.path(netns_of(lab, pod)),
        ipv4=next((ip for ip in ips if ":" not in ip), ""),
        ipv6=next((ip for ip in ips if ":" in ip), ""),
        ports=answered_ports(pod),
        answers=not programs(pod),
    )
