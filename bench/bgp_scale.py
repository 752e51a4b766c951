"""A node of a large cluster: what 100 others with 10 blocks each tell it, over 100 sessions or through a reflector.

    peers 10.92.1.1 ... 10.92.1.100 ── one BIRD that plays them all ── veth ── node 10.92.9.1: the BIRD that is measured

That has the configuration which an agent would write for such a node, and in turn a bare one, with neither our filters
nor our priorities; both get the same 1,000 routes from the same daemon. Time is from starting it until all routes are
in the kernel; CPU and memory are those of the measured daemon alone, until then and while nothing happens.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bench import bare_bird
from bench.bare_bird import Session, until
from bench.fabric import address, plug
from bench.figures import Figure, Report, against, median
from bench.node import namespace
from bench.plugin import scratch
from bench.progress import Advance, alone
from tortie.bgp.sessions import DEFAULT_AS, ExplicitPeer, Router, Scope, sessions
from tortie.kernel import addresses
from tortie.kernel.netlink import Netlink
from tortie.render.bird import BirdConfig, Pool, render

NAME = "bgp_scale"
TITLE = "BGP: 100 nodes with 10 blocks each, told to one node; our configuration against a bare BIRD"
PEER = "bare BIRD"
NODES, BLOCKS = 100, 10
ROUNDS = 5
STEPS = 2 * ROUNDS
REST = 4.0
"""Seconds, two scans of the kernel's table, for which the daemon is watched with nothing to do."""
OWN = IPv4Address("10.92.9.1")
"""Greater, as text, than those of all peers: of a mesh session it is the one that dials."""
FIRST = IPv4Address("10.92.1.0")
"""The address before the first peer's."""
POOL = IPv4Network("10.128.0.0/12")
OWN_BLOCK = IPv4Network("10.143.0.0/26")
BLOCK_BITS = 26  # Calico's blocks
PREFIX_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds until all routes were in the kernel, seconds of CPU for it, MB at most; seconds of CPU in REST."""

    converged: float
    cpu: float
    memory: float
    rest: float


def peers(reflected: bool) -> list[IPv4Address]:
    return [FIRST + 1 + number for number in range(1 if reflected else NODES)]


def blocks(node: int) -> list[IPv4Network]:
    """Those of a node, from 0."""
    size = 1 << (32 - BLOCK_BITS)
    first = int(POOL.network_address) + node * BLOCKS * size
    return [IPv4Network((first + number * size, BLOCK_BITS)) for number in range(BLOCKS)]


# --- configurations -----------------------------------------------------------------------------------------------


def ours(reflected: bool) -> str:
    """As an agent has it, of the family that is measured."""
    me = Router(name="node", ipv4=OWN)
    others = () if reflected else [Router(name=f"peer{ip}", ipv4=ip) for ip in peers(reflected)]
    written = [ExplicitPeer(scope=Scope.GLOBAL, ip=ip, remote_as=DEFAULT_AS) for ip in peers(reflected) if reflected]
    config = BirdConfig(
        router_id=OWN,
        ipv4=OWN,
        blocks=(OWN_BLOCK,),
        pools=(Pool(cidr=POOL),),
        peers=sessions(me, others, written),
        connect_delay=0,
    )
    return render(config)


def bare(reflected: bool) -> str:
    own = f"protocol static {{ ipv4; route {OWN_BLOCK} blackhole; }}\n"
    return bare_bird.configuration(str(OWN), [Session(str(OWN), str(ip)) for ip in peers(reflected)], own)


def crowd(reflected: bool) -> str:
    """The peers: each tells of its own blocks, with its own address as the next hop; a reflector of everybody's."""
    nodes = range(NODES)
    routes = "".join(f"  route {block} blackhole;\n" for node in nodes for block in blocks(node))
    static = f"protocol static {{ ipv4;\n{routes}}}\n"
    if reflected:
        hops = "".join(f"  if net ~ {_spans(node)} then bgp_next_hop = {FIRST + 1 + node};\n" for node in nodes)
        told = f"filter reflected {{\n  if source != RTS_STATIC then reject;\n{hops}  accept;\n}}\n"
        one = Session(str(FIRST + 1), str(OWN), passive=True, channel="import none; export filter reflected;")
        return bare_bird.configuration(str(FIRST + 1), [one], static + told)
    each = [
        Session(
            str(ip),
            str(OWN),
            port=10000 + node,
            passive=True,
            more=f"router id {ip};",
            channel=f"import none; export where source = RTS_STATIC && net ~ {_spans(node)};",
        )
        for node, ip in enumerate(peers(reflected))
    ]
    return bare_bird.configuration("10.92.255.254", each, static)


def _spans(node: int) -> str:
    return f"[ {', '.join(map(str, blocks(node)))} ]"


# --- measuring ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def places(prefix: str) -> Iterator[tuple[str, str]]:
    """The namespaces (paths) of the node and of all its peers."""
    with namespace(f"{prefix}-node") as node, namespace(f"{prefix}-peers") as others:
        with Netlink(others) as nl:
            plug(nl, "node", node)
            index = address(nl, "node", f"{FIRST + 1}/{PREFIX_LENGTH}")
            for ip in peers(False)[1:]:
                addresses.add_address(nl, index, f"{ip}/{PREFIX_LENGTH}")
        with Netlink(node) as nl:
            address(nl, "eth0", f"{OWN}/{PREFIX_LENGTH}")
        yield node, others


def measured(text: str, directory: Path, node: str) -> Measured:
    """A start with this configuration. Raises NotReady."""
    began = time.perf_counter()
    with bare_bird.running(text, directory, "node", node) as bird:
        until(lambda: len(bare_bird.routes(node)) == NODES * BLOCKS, f"{NODES * BLOCKS} routes in the kernel", 0.02)
        converged = time.perf_counter() - began
        cpu = bare_bird.cpu(bird)
        time.sleep(REST)
        return Measured(converged, cpu, bare_bird.memory(bird), bare_bird.cpu(bird) - cpu)


def flushed(path: str) -> None:
    """What BIRD leaves in the kernel on purpose goes, so that the next one finds nothing."""
    subprocess.run(["ip", "-n", Path(path).name, "route", "flush", "protocol", "bird"], check=True)


def figures(words: str, mine: list[Measured], theirs: list[Measured]) -> Iterator[Figure]:
    for name, what, unit in (
        ("converged", "all routes in the kernel", "s"),
        ("cpu", "CPU until then", "s"),
        ("memory", "memory", "MB"),
        ("rest", f"CPU of {REST:g} s at rest", "s"),
    ):
        value, peer = (median([getattr(one, name) for one in samples]) for samples in (mine, theirs))
        yield against(f"{words}: {what}", value, unit, PEER, peer)


def measure(advance: Advance) -> Report:
    """Raises NotReady, ConfigError."""
    report = Report(NAME, TITLE)
    with scratch("bgp") as name, places(f"tb-{Path(name).name[-8:]}") as (node, others):
        directory = Path(name)
        for reflected, words in ((False, f"{NODES} sessions"), (True, "a reflector")):
            texts = {"ours": ours(reflected), PEER: bare(reflected)}
            found: dict[str, list[Measured]] = {side: [] for side in texts}
            for number in range(ROUNDS):
                for side in list(texts) if number % 2 else list(texts)[::-1]:
                    with bare_bird.running(crowd(reflected), directory, "peers", others):
                        found[side].append(measured(texts[side], directory, node))
                    flushed(node)
                advance(f"{NAME}: {words}")
            report.figures += figures(words, found["ours"], found[PEER])
            for side, samples in found.items():
                for what in Measured.__slots__:
                    report.samples[f"{words}, {what}, {side}"] = [getattr(one, what) for one in samples]
    return report


if __name__ == "__main__":
    sys.exit(alone(NAME))
