"""The tour that `make demo` takes: a cluster, pods, policy, faults and clean-up. Every step checks what it shows."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tortie.base.errors import TortieError
from tortie.ipam.names import handle_name
from tortie.ipam.ready import ready_handle
from tortie.lab import agents, cluster, demo_services, dns, network, node_cni, processes
from tortie.lab.demo_cni import CniTour
from tortie.lab.demo_racks import Racks
from tortie.lab.guide import PATIENCE, CheckFailed, Guide, demand, pods_of
from tortie.lab.machine import check_machine
from tortie.lab.matrix import Pair, diff, render_changes
from tortie.lab.places import opened
from tortie.lab.podspec import PodKey
from tortie.lab.probe import Endpoint, Losses, ping_steadily, probe
from tortie.lab.topology import OUTSIDE, topology
from tortie.lab.verdicts import Compared, compared
from tortie.model.ipam import IPAMHandle
from tortie.model.k8s import Pod
from tortie.model.workload import WorkloadEndpoint

NAME = "demo"
EXAMPLES = Path(__file__).parents[3] / "examples" / NAME
PODS = "pods.yaml"
POLICIES = ("1-kubernetes-policy.yaml", "2-calico-policy.yaml", "3-global-policy.yaml")
ADDRESSES = "4-addresses.yaml"
PROTECTION = ("../host-protection/1-policy.yaml", "../host-protection/2-nodes.yaml")
FEATURES = EXAMPLES.parent / "cases" / "feature-control.json"
FIXED = ("blue/ledger", "10.244.77.7")
FLOATING = ("blue/shop", "203.0.113.7")
"""Pods of that manifest, and the addresses that they ask for."""
ALLOWED: Pair = ("blue/api-1", "green/db")
DENIED: Pair = ("red/client", "green/db")
CURIOUS = "red/client"
"""The pod that looks outside."""
NAME_SERVERS = ("coredns-1", "coredns-2")

_PING_INTERVAL = 0.01
_PING_SECONDS = 0.5  # before the agent is killed, and after it is back


class Tour(Guide):
    """The lab `demo`."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, topology(NAME), EXAMPLES)

    async def take(self) -> None:
        """The whole tour; the lab is still there afterwards."""
        await self.bring_up()
        pods = await self.start_pods()
        before = await self.measure_open()
        await self.foretell()
        after = await self.apply_policies()
        self.show_changes(before, after)
        await self.reach_outside(pods)
        await self.explain()
        await self.watch(pods)
        await self.protect_nodes()
        await self.kill_an_agent(pods)
        await self.ask_for_addresses(pods)
        await demo_services.show(self)
        await self.delete_pods()

    # --- the stations -----------------------------------------------------------------------------------------------

    async def bring_up(self) -> None:
        self.title("A cluster: three nodes, each a network namespace with an agent and BIRD")
        self.say(f"$ tortie lab up --name demo --netconf {FEATURES.relative_to(EXAMPLES.parents[1])}")
        began = time.monotonic()
        with self.check("the lab is up and every BGP session is established", vital=True):
            await cluster.up(self.lab, self.directory, self.steps, json.loads(FEATURES.read_text()))
        self.say(f"from nothing in {time.monotonic() - began:.1f} s")

    async def start_pods(self) -> list[Pod]:
        self.title("Pods: three namespaces and nine pods, connected by the CNI plugin")
        with self.check("the manifests are applied", vital=True):
            await self.tortie("apply", "-f", PODS)
        with self.check("all pods run, each with an IPv4 and an IPv6 address", vital=True):
            async with opened(self.directory) as store:
                pods = await cluster.wait_running(store, manifest_pods(PODS), PATIENCE)
            short = [pod.title for pod in pods if len(pod.status.pod_ips) != 2]
            demand(not short, f"{', '.join(short)} lack an address")
        for node in self.lab.nodes:
            here = [f"{spoken(pod)} {pod.status.pod_ip}" for pod in pods if pod.spec.node_name == node.name]
            self.say(f"{node.name}: {', '.join(here)}")
        return pods

    async def measure_open(self) -> Compared:
        """Over IPv4, as it is before there is any policy; IPv6 is checked too."""
        self.title("Who reaches whom: real packets between all pods and the outside host")
        found = {}
        for version in (4, 6):
            with self.check(f"over IPv{version} every pod reaches every pod and the outside", vital=True):
                found[version] = await compared(self.directory, "tcp", version)
                results = found[version].matrix.results.items()
                closed = [
                    f"{' to '.join(pair)}: {one}" for pair, one in results if pair[0] != OUTSIDE and not one.passed
                ]
                demand(not closed, "; ".join(closed[:3]))
        self.show_matrix(found[4])
        return found[4]

    async def foretell(self) -> None:
        self.title("Before anything is applied: what a policy would change, from the manifests alone")
        with self.check("tortie diff names what the first policy closes"):
            changes = await self.tortie("diff", "--before", PODS, "--after", PODS, "--after", POLICIES[0], status=1)
            demand("green/db  everything but tcp 5432" in changes, changes)
            self.say(changes.rstrip())

    async def apply_policies(self) -> Compared:
        self.title("Policies: Kubernetes' NetworkPolicy, Calico's NetworkPolicy and GlobalNetworkPolicy")
        for manifest in POLICIES:
            with self.check(f"{manifest} is applied"):
                await self.tortie("apply", "-f", manifest)
        found = {}
        for version in (4, 6):
            with self.check(f"over IPv{version} packets and policy agree on every pair", vital=True):
                found[version] = await self.settled(version)
                wrong = [" to ".join(pair) for pair in found[version].disagreements]
                demand(not wrong, f"they disagree on {'; '.join(wrong[:3])}")
        self.show_matrix(found[4])
        return found[4]

    def show_changes(self, before: Compared, after: Compared) -> None:
        changes = diff(before.matrix, after.matrix)
        with self.check("the database answers the API servers and nobody else"):
            reached = {
                pair[0] for pair, result in after.matrix.results.items() if pair[1] == "green/db" and result.passed
            }
            demand(reached == {"blue/api-1", "blue/api-2"}, f"it answers {', '.join(sorted(reached))}")
        self.say(f"what changed on {len(changes)} pairs, and why:")
        self.show(render_changes(changes, after.verdicts.why))

    async def reach_outside(self, pods: Sequence[Pod]) -> None:
        self.title("Out of the cluster: the outside host sees the node, not the pod")
        pod = next(pod for pod in pods if spoken(pod) == CURIOUS)
        host = self.lab.node(pod.spec.node_name)
        source, outside = self._endpoint(pod), cluster.endpoints(self.lab, [])[0]
        for version, address in ((4, host.ipv4.ip), (6, host.ipv6.ip)):
            with self.check(f"{CURIOUS} on {host.name} goes out over IPv{version} as {address}"):
                result = await probe(source, outside, "tcp", version)
                demand(result.detail == f"seen as {address}", f"the outside host: {result}")
        last = self.directory.outside_log.read_text().splitlines()[-1]
        self.say(f"$ tortie lab logs outside\n{last}")

    async def explain(self) -> None:
        self.title("Why: the rule that decides, asked for by name")
        for (source, to), word in ((ALLOWED, "allow"), (DENIED, "den")):
            answer = ""
            with self.check(f"tortie explain {source} {to}"):
                answer = await self.tortie("explain", source, to, "--port", "5432")
                demand(word in answer.lower(), f"it does not say so: {answer}")
            self.say(answer.rstrip())

    async def watch(self, pods: Sequence[Pod]) -> None:
        self.title("Turned away: what is dropped is told as it happens, with its rule")
        source, to = (next(pod for pod in pods if spoken(pod) == name) for name in DENIED)
        with self.check("tortie watch drops tells of a connection that is denied"):
            seen = asyncio.create_task(self.tortie("watch", "drops", "--pod", DENIED[1], "--count", "1"), name="watch")
            deadline = time.monotonic() + PATIENCE
            while not seen.done() and time.monotonic() < deadline:
                await probe(self._endpoint(source), self._endpoint(to))
            seen.cancel()
            told = await seen if seen.done() else ""
            demand(all(name in told for name in (*DENIED, "end of tier default")), told or "it tells nothing")
            self.say(told.rstrip())

    async def protect_nodes(self) -> None:
        self.title("The nodes themselves: host endpoints, with a way back in")
        with self.check("the nodes are closed to the outside but for SSH, and still speak BGP"):
            await self.tortie("apply", *(word for name in PROTECTION for word in ("-f", name)))
            closed = await self.tortie("explain", OUTSIDE, "node1", "--port", "9091", "-4")
            demand("denied" in closed, closed)
            self.say(closed.rstrip())
            opened_ = await self.tortie("explain", OUTSIDE, "node1", "--port", "22", "-4")
            demand("allowed" in opened_, opened_)
            peers = await self.tortie("node", "status", "--lab", NAME)
            demand("Established" in peers, peers)
        with self.check("and are open again without them"):
            await self.tortie("delete", *(word for name in reversed(PROTECTION) for word in ("-f", name)))
            opened_ = await self.tortie("explain", OUTSIDE, "node1", "--port", "9091", "-4")
            demand("allowed" in opened_, opened_)

    async def kill_an_agent(self, pods: Sequence[Pod]) -> None:
        self.title("A fault: an agent is killed while its pods talk")
        one = next(pod for pod in pods if spoken(pod) == CURIOUS)
        other = next(pod for pod in pods if pod.spec.node_name != one.spec.node_name and pod.namespace == "blue")
        stop = asyncio.Event()
        address = other.status.pod_ip
        pings = asyncio.create_task(
            ping_steadily(self._endpoint(one).netns_path, address, _PING_INTERVAL, stop), name="pings"
        )
        with self.check(f"the agent of {one.spec.node_name} is killed with SIGKILL, and is back"):
            await asyncio.sleep(_PING_SECONDS)
            await self._kill(one.spec.node_name)
        await asyncio.sleep(_PING_SECONDS)
        stop.set()
        with self.check(f"meanwhile {spoken(one)} pinged {spoken(other)} every 10 ms and lost nothing"):
            losses: Losses = await pings
            demand(losses.lost == 0, str(losses))
        self.say(str(losses))

    async def ask_for_addresses(self, pods: Sequence[Pod]) -> None:
        self.title("Addresses: one asked for, one that floats, and where all of them are")
        with self.check(f"{ADDRESSES} is applied and its pods run"):
            await self.tortie("apply", "-f", ADDRESSES)
            async with opened(self.directory) as store:
                ledger, shop = await cluster.wait_running(store, manifest_pods(ADDRESSES), PATIENCE)
        name, address = FIXED
        with self.check(f"{name} has the address {address} that it asks for"):
            demand(ledger.status.pod_ip == address, f"it has {ledger.status.pod_ip}")
            self.say((await self.tortie("ipam", "explain", address)).rstrip())
        name, address = FLOATING
        source = next(pod for pod in pods if pod.spec.node_name != shop.spec.node_name and pod.namespace == "red")
        with self.check(
            f"{spoken(source)} on {source.spec.node_name} reaches {name} on {shop.spec.node_name} at {address}"
        ):
            await self._reached(source, Endpoint(name, "", address, ports=(("tcp", 80),)))
        with self.check("the fixed address and the floating one's pool are in the books"):
            books = await self.tortie("ipam", "show", "--show-blocks")
            demand("203.0.113.0/26" in books, books)
            self.show(Text(books.rstrip(), "dim", no_wrap=True, overflow="crop"))  # wider than many a window

    async def _reached(self, source: Pod, to: Endpoint) -> None:
        """A route takes a moment to get to another node. Raises CheckFailed."""
        deadline = time.monotonic() + PATIENCE
        while not (result := await probe(self._endpoint(source), to)).passed:
            demand(time.monotonic() < deadline, str(result))

    async def delete_pods(self) -> None:
        self.title("Away with it")
        with self.check("the manifests are deleted, policies first, and the name servers"):
            for manifest in (ADDRESSES, *reversed(POLICIES), PODS):
                await self.tortie("delete", "-f", manifest)
            await self.tortie("delete", "pods", *NAME_SERVERS, "-n", dns.NAMESPACE)
        with self.check("no pod's namespace, endpoint or address is left"):
            await self.until(lambda: not [name for name in network.namespaces(NAME) if "-pod-" in name])
            async with opened(self.directory) as store:
                left = [one.title for kind in (WorkloadEndpoint, IPAMHandle) for one in (await store.list(kind)).items]
                ready = {f"IPAMHandle {handle_name(ready_handle(node.name))}" for node in self.lab.nodes}
                left = [title for title in left if title not in ready]
            demand(not left, f"the datastore still has {', '.join(left[:3])}")

    def tear_down(self) -> None:
        with self.check("the lab is taken down: no namespace, process, mount or file is left"):
            network.destroy(self.directory)
            left = network.leftovers(self.directory)
            demand(not left, "; ".join(left))

    # --- pieces -----------------------------------------------------------------------------------------------------

    async def _kill(self, node: str) -> None:
        """Kills the agent of a node and waits for the next one to be ready. Raises CheckFailed."""
        pid_file, socket = self.directory.agent_pid(node), self.directory.agent_socket(node)
        first = processes.read_pid(pid_file)
        demand(first is not None, "it is not running")
        assert first is not None
        first.signal(signal.SIGKILL)
        await first.ended()
        await self.until(lambda: processes.read_pid(pid_file) is not None and agents.state_of(socket).ready)

    def _endpoint(self, pod: Pod) -> Endpoint:
        return cluster.endpoints(self.lab, [pod])[0]


def spoken(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.name}"


def manifest_pods(manifest: str) -> list[PodKey]:
    """The pods of one of the demo's manifests. Raises NotFound where the examples were not installed."""
    return pods_of(EXAMPLES / manifest)


def tour(keep: bool = False, cni: str = "") -> int:
    """Takes the tour, or that of a CNI network; the exit status. Whatever happens, the labs are gone afterwards, unless
    they are to be kept. Raises NotSupported, NotFound, ConfigError where there can be none."""
    console = Console(highlight=False)
    parts: tuple[Tour, Racks] | tuple[CniTour]
    if cni:
        parts = (CniTour(console, cni),)
        node_cni.check(parts[0].lab)
        about = f"Tortie: pods on a network of CNI plugins alone, {cni}, on one machine, in network namespaces"
    else:
        manifest_pods(PODS)
        parts = (Tour(console), Racks(console))
        about = "Tortie: Calico's network for Kubernetes, on one machine, in network namespaces"
    check_machine(not cni)
    console.print(Text(about, "bold"))
    _clear(parts)  # what an earlier tour may have left
    began = time.monotonic()
    try:
        for part in parts:
            with suppress(CheckFailed, TortieError):  # counted and said where it happened
                asyncio.run(part.take())
            if keep:
                again = f"tortie lab down --name {part.lab.name}"
                console.print(f"the lab stays; take it away with: {again}", style="dim")
            else:
                part.tear_down()
    except KeyboardInterrupt:
        _clear(parts)
        console.print("interrupted: everything is taken away")
        return 130  # 128 + SIGINT, as a shell has it
    except BaseException:
        _clear(parts)
        raise
    console.print(f"{time.monotonic() - began:.0f} s", style="dim")
    failed = sum(part.failed for part in parts)
    console.print(f"demo: {sum(part.checks for part in parts)} checks, {failed} failed")
    return 1 if failed else 0


def _clear(parts: Iterable[Guide]) -> None:
    for part in parts:
        network.destroy(part.directory)
