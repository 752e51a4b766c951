"""A lab from the outside: bringing it up, asking how it is, taking it down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from tortie.base.errors import ConfigError, Exists, Unavailable
from tortie.cni.install import build_stub
from tortie.cni.spec import compact_json
from tortie.kernel import netns
from tortie.lab import agents, kubelet, network, processes
from tortie.lab.agents import AgentState
from tortie.lab.machine import check_machine
from tortie.lab.objects import initial_objects
from tortie.lab.places import netns_of, opened
from tortie.lab.podspec import PodKey, answered_ports, key_of, programs
from tortie.lab.probe import Endpoint
from tortie.lab.sandbox import conflist_document
from tortie.lab.state import LabDirectory, write_whole
from tortie.lab.steps import Step, Steps
from tortie.lab.topology import OUTSIDE, OUTSIDE_PORT, Host, Topology, names
from tortie.model.k8s import Pod
from tortie.model.store import Store

_POLL_SECONDS = 0.1
_PATIENCE = (30.0, 3.0)  # seconds to wait for agents and BGP: for the lab, and for each node


# --- up and down --------------------------------------------------------------------------------------------------


async def up(lab: Topology, directory: LabDirectory, steps: Steps, netconf: Mapping[str, object] | None = None) -> None:
    """Brings the lab up, or makes what it lacks, until every agent is ready and all BGP sessions are established.

    `netconf` is added to the CNI plugin's configuration of a lab that is not up yet.

    Raises ConfigError when a lab of that name is another one, Unavailable when something does not come up in time: then
    the lab stays as it is, to be looked at. Cancelled, it takes away what it began.
    """
    check_machine()
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
            await wait_established(directory, lab.nodes, steps)
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
    wanted = {lab.fabric, *(host.netns for host in lab.hosts)}
    alive = all(processes.read_pid(directory.agent_pid(node.name)) for node in lab.nodes)
    return alive and wanted <= set(network.namespaces(lab.name))


async def _make(lab: Topology, directory: LabDirectory, steps: Steps, netconf: Mapping[str, object] | None) -> None:
    nodes = "1 node" if len(lab.nodes) == 1 else f"{len(lab.nodes)} nodes"
    with steps.step(f"network of {nodes}, a gateway and an outside host"):
        # Others go by the directory's lab.json: it is there before anything else is.
        directory.write(lab)
        if not directory.conflist.exists():
            write_whole(directory.conflist, compact_json(conflist_document(netconf)) + "\n")
        await _to_the_end(lambda: network.build(lab))
    with steps.step("datastore and CNI plugins"):
        await _to_the_end(lambda: build_stub(directory.bin))
        async with opened(directory) as store:
            for resource in initial_objects(lab, uuid4().hex):
                with suppress(Exists):
                    await store.create(resource)
        kubelet.start(directory)


async def _to_the_end(work: Callable[[], object]) -> None:
    """Runs it in a thread. Cancelled, waits for the thread all the same: what is taken away must not be made again."""
    thread = asyncio.create_task(asyncio.to_thread(work), name="work of lab up")
    try:
        await asyncio.shield(thread)
    finally:
        await asyncio.wait([thread])


def _check_same(have: Topology, want: Topology) -> None:
    if have != want:
        text = f"with {len(have.nodes)} nodes and the pools {have.pool} and {have.pool6}"
        raise ConfigError(f'lab "{have.name}" is there already {text}; take it down first, or choose another --name')


async def wait_established(directory: LabDirectory, nodes: Sequence[Host], steps: Steps) -> None:
    """Until every agent is ready and has all its BGP sessions. Raises Unavailable saying what is missing."""
    deadline = time.monotonic() + _PATIENCE[0] + _PATIENCE[1] * len(nodes)
    with steps.step(f"agents of {len(nodes)} nodes") as step:
        await _wait(directory, nodes, lambda state: state.ready, step, deadline)
    sessions = 2 * (len(nodes) - 1)  # one per family with each of the others
    with steps.step(f"{sessions * len(nodes) // 2} BGP sessions") as step:
        await _wait(directory, nodes, lambda state: state.established >= sessions, step, deadline)


async def _wait(
    directory: LabDirectory, nodes: Sequence[Host], good: Callable[[AgentState], bool], step: Step, deadline: float
) -> None:
    late = list(nodes)
    while True:
        states = await ask_agents(directory, late)
        late = [node for node in late if not good(states[node.name])]
        if not late:
            step.note("")
            return
        who = names(node.name for node in late)
        step.note(f"waiting for {who}")
        if time.monotonic() > deadline:
            why, logs = states[late[0].name].why, directory.agent_log(late[0].name)
            last = logs.read_text(errors="replace").rstrip().rpartition("\n")[2] if logs.exists() else "it is not there"
            raise Unavailable(f"{who} not ready in time{why and ': '}{why}; {logs} ends with: {last}")
        await asyncio.sleep(_POLL_SECONDS)


async def ask_agents(directory: LabDirectory, nodes: Sequence[Host]) -> dict[str, AgentState]:
    """How the agents are, by node."""
    asked = (asyncio.to_thread(agents.state_of, directory.agent_socket(node.name)) for node in nodes)
    return dict(zip((node.name for node in nodes), await asyncio.gather(*asked), strict=True))


# --- what there is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node and its agent. `pid` is 0 when no agent runs."""

    host: Host
    pid: int
    state: AgentState
    pods: int


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab at one instant. `kubelet` is its pid, or 0."""

    lab: Topology
    kubelet: int
    nodes: tuple[NodeRow, ...]
    pods: tuple[Pod, ...]

    @property
    def healthy(self) -> bool:
        sessions = 2 * (len(self.nodes) - 1)
        nodes = all(row.pid and row.state.ready and row.state.established >= sessions for row in self.nodes)
        return bool(self.kubelet) and nodes


async def status(directory: LabDirectory) -> LabStatus:
    """Raises ConfigError when there is no such lab."""
    lab = directory.read()
    async with opened(directory) as store:
        pods = (await store.list(Pod)).items
    states = await ask_agents(directory, lab.nodes)
    rows = []
    for node in lab.nodes:
        agent = processes.read_pid(directory.agent_pid(node.name))
        count = sum(pod.spec.node_name == node.name and not pod.finished for pod in pods)
        rows.append(NodeRow(node, agent.pid if agent else 0, states[node.name], count))
    supervisor = processes.read_pid(directory.kubelet_pid)
    return LabStatus(lab, supervisor.pid if supervisor else 0, tuple(rows), pods)


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
    """Who takes part in a matrix: the running pods, in order of their names, and the outside host."""
    running = sorted((pod for pod in pods if pod.status.phase == "Running"), key=key_of)
    out = lab.outside
    served = (("TCP", OUTSIDE_PORT), ("UDP", OUTSIDE_PORT))
    outside = Endpoint(OUTSIDE, netns.path(out.netns), str(out.ipv4.ip), str(out.ipv6.ip), served)
    return [*(_endpoint(lab, pod) for pod in running), outside]


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
