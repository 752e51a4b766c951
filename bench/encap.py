"""TCP from pod to pod of two nodes, bare, in VXLAN and in IPIP: by our agents, and through tunnels made by hand.

pod ─ veth ─ node1 ─ tunnel ═ veth ═ bridge ═ veth ═ tunnel ─ node2 ─ veth ─ pod

By hand there is a device, a route, for VXLAN a neighbour and an entry of its forwarding table for the other node, and
nothing else: no policy, no connection tracking. With one rule of that it is measured a second time, which tells the
price of stateful policy from the price of the tunnel. Ours are measured with flow tables, too. Where the kernel has no
such tunnels, or no flow tables, the row says so. Debian's has all:

    tools/stockvm -m 4096 -t 3600 -- .venv/bin/python -m bench.run encap
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bench import fabric, wire
from bench.fabric import NODES
from bench.figures import Report, against, median
from bench.node import Node, cluster_objects, namespace, pod_object, write
from bench.plugin import Pod, addresses, call, pod_name, scratch
from bench.progress import Advance, alone
from bench.throughput import ONE_RULE, POLICIES
from tortie.kernel import nft
from tortie.kernel.features import has_flow_tables
from tortie.model.document import parse

NAME = "encap"
TITLE = "Pod to pod through tunnels: our agents', against the same made by hand"
OURS, BARE, TRACKED = "ours", "tunnels made by hand", "by hand, with one rule of connection tracking"
FAST = "ours, with flow tables"
FLOW_TABLES = """
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: node.node1, annotations: {tortie.dev/flow-tables: Enabled}}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: node.node2, annotations: {tortie.dev/flow-tables: Enabled}}
"""
ROUNDS, SECONDS = 9, 2.0
TARGET = 0.97
UNDERLAY = 1500
NETS = ("10.91.1.0/24", "10.91.2.0/24")
"""Of the pods of each node, where everything is made by hand."""
ENDS = ("10.91.1.0", "10.91.2.0")
"""Addresses of the tunnels' own, as ours have them."""
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
VNI, PORT = 4096, 4789  # Felix's vxlanVNI and vxlanPort


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """How packets go between nodes. `overhead` is what it takes of the underlay's 1,500 bytes."""

    words: str
    kind: Literal["", "vxlan", "ipip"]
    overhead: int = 0


ENCAPSULATIONS = (
    Encapsulation("no tunnel", ""),
    Encapsulation("VXLAN", "vxlan", 50),
    Encapsulation("IPIP", "ipip", 20),
)
STEPS = ROUNDS * len(ENCAPSULATIONS)


@dataclass(frozen=True, slots=True)
class Side:
    """A pod on each of two nodes: their namespaces (paths), and the second one's address."""

    client: str
    server: str
    ip: str


def missing(one: Encapsulation) -> str:
    """Why it cannot be measured on this kernel, "" if it can."""
    if not one.kind:
        return ""
    with namespace(f"tb-{os.getpid()}-try") as path:
        words = ["ip", "-n", Path(path).name, "link", "add", "try", *_type(one, 0).split()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return f"this kernel has no {one.kind}: {done.stderr.strip()}" if done.returncode else ""


# --- by hand ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def by_hand(one: Encapsulation, prefix: str, rules: str = "") -> Iterator[Side]:
    with fabric.nodes(prefix) as hosts, fabric.pods(prefix, hosts) as places:
        client, _, server = places
        ends = (Path(place.netns).name for place in (client, server))
        commands = [f"ip -n {end} link set eth0 mtu {UNDERLAY - one.overhead}" for end in ends]
        for node, host in enumerate(hosts):
            commands += _tunnel(one, Path(host).name, node) if one.kind else ()
            if rules:
                nft.apply(rules, host)
        for command in commands:
            subprocess.run(command.split(), check=True, timeout=30)
        yield Side(client.netns, server.netns, server.ip)


def _tunnel(one: Encapsulation, host: str, node: int) -> Iterator[str]:
    """Commands that give a node, 0 or 1, a device, and behind it the other node's pods."""
    other = 1 - node
    ip = f"ip -n {host}"
    mac = f"address {MACS[node]} " if one.kind == "vxlan" else ""
    yield f"{ip} link add tunnel {mac}mtu {UNDERLAY - one.overhead} {_type(one, node)}"
    yield f"{ip} address add {ENDS[node]}/32 dev tunnel"
    yield f"{ip} link set tunnel up"
    if one.kind == "ipip":
        yield f"{ip} route replace {NETS[other]} via {NODES[other]} dev tunnel onlink"
        return
    yield f"bridge -n {host} fdb add {MACS[other]} dev tunnel dst {NODES[other]}"
    yield f"{ip} neighbour add {ENDS[other]} lladdr {MACS[other]} dev tunnel nud permanent"
    yield f"{ip} route replace {NETS[other]} via {ENDS[other]} dev tunnel onlink"


def _type(one: Encapsulation, node: int) -> str:
    if one.kind == "ipip":
        return f"type ipip local {NODES[node]} remote any"
    return f"type vxlan id {VNI} local {NODES[node]} dstport {PORT} nolearning"


# --- ours ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours(one: Encapsulation, prefix: str, directory: Path, settings: str = "") -> Iterator[Side]:
    """Two agents on a pool that is encapsulated so, with policies and `settings` in YAML, and a pod on each."""
    datastore = directory / f"{prefix}.db"
    pods = [pod_object(pod_name(i), f"node{i}", role=role) for i, role in ((1, "client"), (2, "server"))]
    write(datastore, (*cluster_objects(one.kind), *parse(POLICIES), *parse(settings), *pods))
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(fabric.nodes(prefix))
        made = []
        for number, (path, ip) in enumerate(zip(hosts, NODES, strict=True), 1):
            node = Node(f"node{number}", path, datastore, directory / prefix)
            stack.enter_context(node.agent(ipv4=f"{ip}/{fabric.PREFIX_LENGTH}", bgp=True))
            network = node.network()
            network = replace(network, conf={**network.conf, "mtu": UNDERLAY - one.overhead})
            pod = stack.enter_context(namespace(f"{prefix}-pod{number}"))
            _, answer = call(network, "ADD", Pod(pod_name(number), pod))
            made.append((pod, addresses(answer)[0]))
        (client, _), (server, ip) = made
        yield Side(client, server, ip)


def measure(advance: Advance) -> Report:
    """Raises PluginFailed, NotReady, NoTraffic."""
    report = Report(NAME, TITLE)
    for one in ENCAPSULATIONS:
        words = f"TCP, 1 stream, {one.words}"
        why = missing(one)
        if why:
            report.missing[words] = why
            for _ in range(ROUNDS):
                advance(f"{NAME}: {one.words}")
            continue
        samples = sampled(one, advance)
        report.samples |= {f"{words}, {side}, Gbit/s": values for side, values in samples.items()}
        found = {side: median(values) for side, values in samples.items()}
        report.figures.append(against(words, found[OURS], "Gbit/s", BARE, found[BARE], at_least=TARGET))
        report.figures.append(against(f"{words}, tracked", found[OURS], "Gbit/s", TRACKED, found[TRACKED]))
        if FAST in found:
            fast = f"{words}, flow tables"
            report.figures.append(against(fast, found[FAST], "Gbit/s", BARE, found[BARE], at_least=TARGET))
        else:
            report.missing[f"{words}, flow tables"] = "this kernel has no flow tables (nft_flow_offload)"
    return report


def sampled(one: Encapsulation, advance: Advance) -> dict[str, list[float]]:
    """What each side moves, in turn."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(scratch("encap")))
        prefix = f"tb-{directory.name[-8:]}"
        sides = {
            OURS: stack.enter_context(ours(one, f"{prefix}o", directory)),
            BARE: stack.enter_context(by_hand(one, f"{prefix}b")),
            TRACKED: stack.enter_context(by_hand(one, f"{prefix}t", ONE_RULE)),
        }
        if has_flow_tables():
            sides[FAST] = stack.enter_context(ours(one, f"{prefix}f", directory, FLOW_TABLES))
        for side in sides.values():
            wire.await_path(side.client, side.server, side.ip)
        samples: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(ROUNDS):
            for name in list(sides) if number % 2 else list(sides)[::-1]:
                side = sides[name]
                samples[name].append(wire.tcp_throughput(side.client, side.server, side.ip, SECONDS))
            advance(f"{NAME}: {one.words}")
        return samples


if __name__ == "__main__":
    sys.exit(alone(NAME))
