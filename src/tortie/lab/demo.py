"""The tour that `make demo` takes: a cluster, pods, policy, faults and clean-up. Every step checks what it shows."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from tortie.base.errors import NotFound, TortieError
from tortie.lab import agents, cluster, network, processes
from tortie.lab.machine import check_machine
from tortie.lab.matrix import Pair, diff, render, render_changes
from tortie.lab.places import opened
from tortie.lab.podspec import PodKey, key_of
from tortie.lab.probe import Endpoint, Losses, ping_steadily, probe
from tortie.lab.state import LabDirectory
from tortie.lab.steps import Steps
from tortie.lab.topology import OUTSIDE, topology
from tortie.lab.verdicts import Compared, compared
from tortie.model.document import parse
from tortie.model.ipam import IPAMHandle
from tortie.model.k8s import Pod
from tortie.model.workload import WorkloadEndpoint

NAME = "demo"
EXAMPLES = Path(__file__).parents[3] / "examples" / NAME
PODS = "pods.yaml"
POLICIES = ("1-kubernetes-policy.yaml", "2-calico-policy.yaml", "3-global-policy.yaml")
ALLOWED: Pair = ("blue/api-1", "green/db")
DENIED: Pair = ("red/client", "green/db")
CURIOUS = "red/client"
"""The pod that looks outside."""

_PATIENCE = 20.0  # seconds that pods, policies and a restarted agent may take
_PING_INTERVAL = 0.01
_PING_SECONDS = 0.5  # before the agent is killed, and after it is back
_POLL_SECONDS = 0.1
_INDENT = 2


class CheckFailed(Exception):
    """What was to be shown is not so."""


class Tour:
    """The lab `demo`, a console, and how many checks there were."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps = Steps(console)
        self.directory = LabDirectory(NAME)
        self.lab = topology(NAME)
        self.checks = 0
        self.failed = 0

    @contextmanager
    def check(self, words: str, *, vital: bool = False) -> Iterator[None]:
        """Counts; what goes wrong inside is said and the tour goes on, unless nothing after it would make sense."""
        self.checks += 1
        try:
            with self.steps.step(words):
                yield
        except (CheckFailed, TortieError) as error:
            self.failed += 1
            self.console.print(Padding(Text(str(error), "red"), (0, _INDENT)))
            if vital:
                raise

    async def take(self) -> None:
        """The whole tour; the lab is still there afterwards."""
        await self.bring_up()
        pods = await self.start_pods()
        before = await self.measure_open()
        after = await self.apply_policies()
        self.show_changes(before, after)
        await self.reach_outside(pods)
        await self.explain()
        await self.kill_an_agent(pods)
        await self.delete_pods(pods)

    # --- the stations -----------------------------------------------------------------------------------------------

    async def bring_up(self) -> None:
        self.title("A cluster: three nodes, each a network namespace with an agent and BIRD")
        self.say("$ tortie lab up --name demo")
        began = time.monotonic()
        with self.check("the lab is up and every BGP session is established", vital=True):
            await cluster.up(self.lab, self.directory, self.steps)
        self.say(f"from nothing in {time.monotonic() - began:.1f} s")

    async def start_pods(self) -> list[Pod]:
        self.title("Pods: three namespaces and nine pods, connected by the CNI plugin")
        with self.check("the manifests are applied", vital=True):
            await self.tortie("apply", "-f", PODS)
        with self.check("all pods run, each with an IPv4 and an IPv6 address", vital=True):
            async with opened(self.directory) as store:
                pods = await cluster.wait_running(store, manifest_pods(), _PATIENCE)
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

    async def apply_policies(self) -> Compared:
        self.title("Policies: Kubernetes' NetworkPolicy, Calico's NetworkPolicy and GlobalNetworkPolicy")
        for manifest in POLICIES:
            with self.check(f"{manifest} is applied"):
                await self.tortie("apply", "-f", manifest)
        found = {}
        for version in (4, 6):
            with self.check(f"over IPv{version} packets and policy agree on every pair", vital=True):
                found[version] = await self._settled(version)
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

    async def delete_pods(self, pods: Sequence[Pod]) -> None:
        self.title("Away with it")
        with self.check("the manifests are deleted, policies first"):
            for manifest in (*reversed(POLICIES), PODS):
                await self.tortie("delete", "-f", manifest)
        with self.check("no pod's namespace, endpoint or address is left"):
            await self._until(lambda: not [name for name in network.namespaces(NAME) if "-pod-" in name])
            async with opened(self.directory) as store:
                left = [one.title for kind in (WorkloadEndpoint, IPAMHandle) for one in (await store.list(kind)).items]
            demand(not left, f"the datastore still has {', '.join(left[:3])}")

    def tear_down(self) -> None:
        with self.check("the lab is taken down: no namespace, process, mount or file is left"):
            network.destroy(self.directory)
            left = network.leftovers(self.directory)
            demand(not left, "; ".join(left))

    # --- pieces -----------------------------------------------------------------------------------------------------

    async def tortie(self, *words: str) -> str:
        """Runs the command line beside the examples as a user would; its output. Raises CheckFailed."""
        self.say(f"$ tortie {' '.join(words)}")
        process = await asyncio.create_subprocess_exec(
            *agents.command(),
            *words,
            cwd=EXAMPLES,
            env=os.environ | {"TORTIE_LAB": NAME, "COLUMNS": str(self.console.width - 2 * _INDENT)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output = (await process.communicate())[0].decode(errors="replace")
        except asyncio.CancelledError:
            process.kill()
            await process.communicate()
            raise
        demand(process.returncode == 0, f"exit status {process.returncode}: {output.strip()}")
        return output

    async def _settled(self, version: int) -> Compared:
        """The first comparison without a disagreement, or after some time the last one: policy takes a moment."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            found = await compared(self.directory, "tcp", version)
            if not found.disagreements or time.monotonic() > deadline:
                return found

    async def _kill(self, node: str) -> None:
        """Kills the agent of a node and waits for the next one to be ready. Raises CheckFailed."""
        pid_file, socket = self.directory.agent_pid(node), self.directory.agent_socket(node)
        first = processes.read_pid(pid_file)
        demand(first is not None, "it is not running")
        assert first is not None
        first.signal(signal.SIGKILL)
        await first.ended()
        await self._until(lambda: processes.read_pid(pid_file) is not None and agents.state_of(socket).ready)

    async def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not await asyncio.to_thread(condition):
            demand(time.monotonic() < deadline, f"still not so after {_PATIENCE:.0f} s")
            await asyncio.sleep(_POLL_SECONDS)

    def _endpoint(self, pod: Pod) -> Endpoint:
        return cluster.endpoints(self.lab, [pod])[0]

    def title(self, text: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{text}[/bold]", align="left")

    def show_matrix(self, found: Compared) -> None:
        self.show(render(found.matrix, found.verdicts.expected, self.console.width - 2 * _INDENT))

    def say(self, text: str) -> None:
        self.show(Text(text, "dim"))

    def show(self, what: RenderableType) -> None:
        self.console.print(Padding(what, (0, _INDENT)))


def demand(good: bool, otherwise: str) -> None:
    """Raises CheckFailed with what is so instead."""
    if not good:
        raise CheckFailed(otherwise)


def spoken(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.name}"


def manifest_pods() -> list[PodKey]:
    """The pods of the demo's manifest. Raises NotFound where the examples were not installed."""
    try:
        text = (EXAMPLES / PODS).read_text()
    except FileNotFoundError:
        raise NotFound(f"{EXAMPLES} is not there: the demo is run from a checkout of the sources") from None
    return [key_of(resource) for resource in parse(text, PODS) if isinstance(resource, Pod)]


def tour(keep: bool = False) -> int:
    """Takes the tour; the exit status. Whatever happens, the lab is gone afterwards, unless it is to be kept."""
    console = Console(highlight=False)
    check_machine()
    manifest_pods()
    guide = Tour(console)
    console.print(Text("Tortie: Calico's network for Kubernetes, on one machine, in network namespaces", "bold"))
    network.destroy(guide.directory)  # what an earlier tour may have left
    began = time.monotonic()
    try:
        asyncio.run(guide.take())
    except (CheckFailed, TortieError):
        pass  # counted and said where it happened
    except KeyboardInterrupt:
        network.destroy(guide.directory)
        console.print("interrupted: everything is taken away")
        return 130  # 128 + SIGINT, as a shell has it
    except BaseException:
        network.destroy(guide.directory)
        raise
    if keep:
        console.print(f"the lab stays; take it away with: tortie lab down --name {NAME}", style="dim")
    else:
        guide.tear_down()
    console.print(f"{time.monotonic() - began:.0f} s", style="dim")
    console.print(f"demo: {guide.checks} checks, {guide.failed} failed")
    return 1 if guide.failed else 0
