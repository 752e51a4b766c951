"""What our programs take while there is nothing to do: CPU and wake-ups of an agent, alone and with BIRD, of `tortie
proxy`, `tortie controllers` and flanneld, all at the same time on one SQLite file.

    node1: agent, pods, VXLAN     node3: tortie proxy     node5: tortie controllers, and the peer
    node2: agent with BIRD        node4: flanneld

The peer is the least that a Python program can do which looks at something ten times a second: it does not even look.
What children that have ended took is counted, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.figures import Report, against, median
from bench.node import TORTIE, Node, NotReady, cluster_objects, namespace, pod_object, program_environment, write
from bench.plugin import Pods, call, pod_name, scratch
from bench.progress import Advance, alone
from bench.services import service, slice_of
from tortie.kernel import netns
from tortie.model.bgp import BGPConfiguration, BGPConfigurationSpec
from tortie.model.document import parse
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata, Resource

NAME = "idle"
TITLE = "With nothing to do"
PEER = "a Python program that wakes up ten times a second"
PODS, SERVICES, POLICIES = 20, 100, 20
WITH_BIRD = "an agent with BIRD"
AGENTS, OTHERS = ("an agent", WITH_BIRD), ("proxy", "flanneld", "controllers")
SUBNET = "10.91.4.0/24"
SETTLE, SECONDS, ROUNDS = 20.0, 30.0, 5
"""Seconds until all that began has come to rest, and of a round: twice as long as the longest pause between two looks
that cost something."""
STEPS = 1 + ROUNDS
MEASURED = (("CPU", "ms/s", 2.5), ("wake-ups", "/s", 1.5))
"""What, its unit, and how many times the peer's at most."""
POLICY = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {{name: p{0}, namespace: default}}
spec: {{selector: all(), types: [Ingress], ingress: [{{action: Allow, source: {{nets: [10.{0}.0.0/16]}}}}]}}
"""
SLEEPER = """
import asyncio
async def main():
    while True:
        await asyncio.sleep(0.1)
asyncio.run(main())
"""
TICK = os.sysconf("SC_CLK_TCK")


class Taken(NamedTuple):
    """By a process so far: seconds of CPU, and how often its threads went to sleep."""

    cpu: float
    wake_ups: int


def taken(pid: int) -> Taken:
    cpu, wake_ups = 0.0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        cpu += int((task / "schedstat").read_text().split()[0]) / 1e9
        words = (task / "status").read_text().split()
        wake_ups += int(words[words.index("voluntary_ctxt_switches:") + 1])
    ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]  # cutime, cstime
    return Taken(cpu + sum(map(int, ended)) / TICK, wake_ups)


# --- who is looked at ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def programs() -> Iterator[dict[str, int]]:
    """Each with its process. Raises PluginFailed, NotReady."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(scratch("idle")))
        prefix = f"tb-{directory.name[-8:]}"
        datastore = directory / "store.db"
        write(datastore, _objects())
        found: dict[str, int] = {}
        for number, name in enumerate(AGENTS, 1):
            path = _place(stack, f"{prefix}{number}", number)
            node = Node(f"node{number}", path, datastore, directory)
            stack.enter_context(node.agent(ipv4=f"192.0.2.{number}/24", bgp=name == WITH_BIRD))
            found[name] = node.pid
            if number == 1:
                pods = stack.enter_context(contextlib.closing(Pods(f"{prefix}-")))
                for _ in range(PODS):
                    call(node.network(), "ADD", pods.fresh())
        conf = directory / "net-conf.json"
        conf.write_text(json.dumps({"Network": "10.91.0.0/16", "Backend": {"Type": "vxlan"}}))
        for number, name in enumerate(OTHERS, len(AGENTS) + 1):
            own = directory / f"node{number}"
            own.mkdir()
            path = _place(stack, f"{prefix}{number}", number)
            command = [str(TORTIE), *_words(name, str(datastore), own, conf, f"node{number}")]
            found[name] = stack.enter_context(_running(command, path, own / "log", NODE_NAME=f"node{number}"))
        found[PEER] = stack.enter_context(_running([sys.executable, "-c", SLEEPER], path, directory / "peer.log"))
        yield found


def _objects() -> Iterator[Resource]:
    """Without a mesh: no other node has a BIRD."""
    yield from cluster_objects("vxlan")
    yield BGPConfiguration(
        metadata=Metadata(name="default"), spec=BGPConfigurationSpec(node_to_node_mesh_enabled=False)
    )
    yield from (pod_object(pod_name(number), "node1") for number in range(1, PODS + 1))
    for number in range(POLICIES):
        yield from parse(POLICY.format(number))
    for number in range(SERVICES):
        yield service(number)
        yield slice_of(number, f"10.90.200.{number + 1}")
    flannel = f"node{len(AGENTS) + 1 + OTHERS.index('flanneld')}"
    yield K8sNode(metadata=Metadata(name=flannel), spec=K8sNodeSpec(pod_cidr=SUBNET, pod_cidrs=(SUBNET,)))


def _place(stack: contextlib.ExitStack, name: str, number: int) -> str:
    """A network namespace with a link that has the address of a node."""
    path = stack.enter_context(namespace(name))
    for words in (
        ("link", "add", "eth0", "type", "veth", "peer", "name", "far"),
        ("address", "add", f"192.0.2.{number}/24", "dev", "eth0"),
        ("link", "set", "far", "up"),
        ("link", "set", "eth0", "up"),
    ):
        subprocess.run(["ip", "-n", name, *words], check=True)
    return path


def _words(name: str, datastore: str, own: Path, conf: Path, node: str) -> tuple[str, ...]:
    if name == "flanneld":
        kube = ("-kube-subnet-mgr", "-datastore", datastore, "-net-config-path", str(conf))
        return (name, *kube, "-subnet-file", str(own / "subnet.env"), "-iface", "eth0", "-ip-masq")
    if name == "controllers":
        return (name, "--datastore", datastore, "--status-file", str(own / "status.json"))
    here = ("--datastore", datastore, "--node", node, "--run-dir", str(own), "--lib-dir", str(own))
    return (name, *here, "--services", "on", "--cluster-cidr", "10.90.0.0/16")


@contextlib.contextmanager
def _running(command: list[str], path: str, log: Path, **environment: str) -> Iterator[int]:
    with netns.entered(path), log.open("wb") as output:
        every = program_environment() | environment
        process = subprocess.Popen(command, stdout=output, stderr=output, env=every)
    try:
        yield process.pid
        if process.poll() is not None:
            raise NotReady(f"{command[1]} has ended: {log.read_text(errors='replace')[-1000:]}")
    finally:
        process.terminate()
        process.wait(30)


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(advance: Advance) -> Report:
    """Raises PluginFailed, NotReady."""
    report = Report(NAME, TITLE)
    with programs() as every:
        time.sleep(SETTLE)
        advance(f"{NAME}: all of them rest")
        for number in range(ROUNDS):
            before = {name: taken(pid) for name, pid in every.items()}
            time.sleep(SECONDS)
            for name, pid in every.items():
                now = taken(pid)
                took = 1000 * (now.cpu - before[name].cpu), now.wake_ups - before[name].wake_ups
                for (what, unit, _), value in zip(MEASURED, took, strict=True):
                    report.samples.setdefault(f"{name}: {what}, {unit}", []).append(value / SECONDS)
            advance(f"{NAME}: round {number + 1}")
    for name in (*AGENTS, *OTHERS):
        for what, unit, most in MEASURED:
            mine, theirs = (median(report.samples[f"{who}: {what}, {unit}"]) for who in (name, PEER))
            report.figures.append(against(f"{name}: {what}", mine, unit, PEER, theirs, at_most=most))
    return report


if __name__ == "__main__":
    sys.exit(alone(NAME))
