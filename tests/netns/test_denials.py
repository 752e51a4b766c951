"""Every way to be denied, on real packets: the kernel tells of each packet which rule it was, and counts the same."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
from town import ICMP, ICMP6, LOW_PORTS, PODS, TCP, UDP, Probe, Town, built_town, endpoint, hang_up, made, until

from tortie.calc.qos import QOS, controls
from tortie.kernel import headers, nft
from tortie.kernel.nflog import Logged, Reader
from tortie.model.document import parse
from tortie.model.k8s import Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.workload import WorkloadEndpoint
from tortie.render.denials import GROUP, number
from tortie.render.match import fit
from tortie.render.ruleset import TABLE

pytestmark = pytest.mark.root

LONG = "-".join(["long"] * 30)
POLICIES = """
{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: sec}, spec: {order: 1}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: sec.LONG},
 spec: {tier: sec, selector: "app == 'p1'", types: [Ingress], ingress: [
  {action: Deny, protocol: UDP, destination: {ports: [53]}},
  {action: Deny, protocol: ICMP}, {action: Deny, protocol: ICMPv6}, {action: Pass, protocol: TCP}]}}
---
{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: web, namespace: red},
 spec: {selector: "app in {'p1', 'p2'}", types: [Ingress, Egress],
  ingress: [{action: Deny, protocol: TCP, destination: {ports: [80]}}, {action: Allow, protocol: UDP}],
  egress: [{action: Deny, protocol: UDP, destination: {ports: [9090]}}, {action: Allow}]}}
---
{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default},
 spec: {nftablesFilterDenyAction: ACTION}}
"""
FEW = {"egressPacketRate": "1", "egressPacketBurst": "5", "ingressMaxConnections": "1"}


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    yield from built_town()


def build(town: Town, action: str = "Drop", more: str = "") -> None:
    """p0 is free, p1 and p2 have policies, p3 has no profile and limits, p4 has an interface and no endpoint."""
    limits, _ = controls({QOS + name: value for name, value in FEW.items()})
    resources: list[Resource] = [made(Namespace, "red"), made(ServiceAccount, "default", "red")]
    for name in PODS[:4]:
        one = endpoint(town.parties[name], "red", labels={"app": name})
        assert isinstance(one, WorkloadEndpoint)
        if name == "p3":
            one = msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, profiles=(), qos_controls=limits))
        resources.append(one)
    town.apply([*resources, *parse(POLICIES.replace("LONG", LONG).replace("ACTION", action) + more)])


def told(reader: Reader, count: int) -> list[Logged]:
    """So many, and what comes within a moment besides."""
    found: list[Logged] = []
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and len(found) < count:
        select.select([reader], [], [], 0.5)
        found += [one for one in reader.read() if isinstance(one, Logged)]
    time.sleep(0.15)  # longer than the kernel gathers: one too many would be a mistake, too
    return found + [one for one in reader.read() if isinstance(one, Logged)]


@pytest.mark.parametrize("action", ["Drop", "Reject"])
@pytest.mark.parametrize("version", [4, 6])
def test_each_packet_is_told_with_the_rule_that_denies_it(town: Town, version: int, action: str) -> None:
    build(town, action)
    icmp = (ICMP, 8) if version == 4 else (ICMP6, 128)
    rule = f"gnp/sec.{LONG}|ingress|"
    p = {name: town.parties[name].interface for name in PODS}
    expected = {
        Probe("p0", "p1", version, UDP, 53): f"{rule}0",
        Probe("X", "p1", version, *icmp): f"{rule}{1 if version == 4 else 2}",
        Probe("p0", "p1", version, UDP, 80): f"tier/sec|{p['p1']}|ingress",
        Probe("p0", "p1", version, TCP, 80): "np/red/web|ingress|0",
        Probe("p0", "p1", version, TCP, 8080): f"tier/default|{p['p1']}|ingress",
        Probe("p1", "X", version, UDP, 9090): "np/red/web|egress|0",
        Probe("X", "p3", version, UDP, 80): f"no-profile|{p['p3']}|ingress",
        Probe("p0", "node", version, UDP, 80): "pod to its own host: defaultEndpointToHostAction",
        Probe("p0", "X", version, UDP, 4789): "VXLAN from a pod",
        Probe("p4", "X", version, UDP, 80): "no endpoint: from interface",
    }
    for probe, name in expected.items():
        with Reader(GROUP, town.node.netns) as reader, contextlib.closing(town.send(probe, b"x" * 32)):
            found = told(reader, 1)
        assert found, f"nothing is told of {name}"
        one, *more = found
        assert one.mark == number(fit(name)), name
        assert {each.mark for each in more} <= {one.mark}  # TCP tries again
        seen = headers.read(one.payload)
        assert (seen.destination, seen.protocol) == (town.parties[probe.destination].ips[version], probe.protocol)
        assert seen.ports == (None if probe.protocol in icmp else (probe.source_port, probe.what))
        assert seen.icmp == ((icmp[1], 0) if probe.protocol in icmp else None)


OPEN = """
---
{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: open, namespace: red},
 spec: {selector: "app == 'p3'", types: [Ingress, Egress], ingress: [{action: Allow}], egress: [{action: Allow}]}}
"""


def test_limits_tell_too(town: Town) -> None:
    """A connection too many is reset, and told; packets too many are dropped before any policy."""
    build(town, more=OPEN)
    p3 = town.parties["p3"]
    with Reader(GROUP, town.node.netns) as reader:
        with contextlib.ExitStack() as stack:
            both = [stack.enter_context(town.parties["p0"].open(4, socket.SOCK_STREAM)) for _ in range(2)]
            for one in both:
                hang_up(one)
                one.setblocking(True)
            both[0].connect((str(p3.ips[4]), 80))
            with pytest.raises(ConnectionRefusedError):
                both[1].connect((str(p3.ips[4]), 80))
            assert {one.mark for one in told(reader, 1)} == {number(f"qos|{p3.interface}|ingress|connections")}
        with p3.open(4, socket.SOCK_DGRAM) as out:
            for _ in range(40):
                out.sendto(b"x", (str(town.parties["X"].ips[4]), 80))
        assert {one.mark for one in told(reader, 30)} == {number(f"qos|{p3.interface}|egress|packet-rate")}


def test_what_no_policy_forbids_tells_as_well(town: Town) -> None:
    """Packets that only a raw socket sends."""
    build(town)
    x = str(town.parties["X"].ips[4])

    def lone_reset() -> None:
        ends = b"".join(town.parties[name].ips[4].packed for name in ("p0", "X"))
        port = next(LOW_PORTS)
        segment = struct.pack("!HHIIBBH", port, 80, 1, 1, 5 << 4, 0x04, 1024)
        total = sum(struct.unpack("!16H", ends + struct.pack("!BBH", 0, TCP, 20) + segment + bytes(4)))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        with town.parties["p0"].open(4, socket.SOCK_RAW, TCP) as raw:
            raw.sendto(segment + struct.pack("!HH", 0xFFFF & ~total, 0), (x, 0))

    def tunnel() -> None:
        with town.parties["p0"].open(4, socket.SOCK_RAW, 4) as raw:
            raw.sendto(bytes(20), (x, 0))

    def spoof() -> None:
        town.ip("p0", "addr", "add", "203.0.113.5/32", "dev", "lo")
        try:
            town.send(Probe("p0", "X", 4, UDP, 80), b"x", "203.0.113.5").close()
        finally:
            town.ip("p0", "addr", "del", "203.0.113.5/32", "dev", "lo")

    for doing, name in ((lone_reset, "invalid"), (tunnel, "IPIP from a pod"), (spoof, "anti-spoofing")):
        with Reader(GROUP, town.node.netns) as reader:
            doing()
            assert [one.mark for one in told(reader, 1)] == [number(name)]


def test_what_is_told_is_what_is_counted(town: Town) -> None:
    """Of everything that can be sent, as long as it is no more than the kernel tells."""
    build(town)
    before = counted(town)
    with Reader(GROUP, town.node.netns) as reader, contextlib.ExitStack() as stack:
        for version, source, destination, port in itertools.product((4, 6), PODS, (*PODS[:3], "X"), (53, 80)):
            if source != destination:
                stack.enter_context(contextlib.closing(town.send(Probe(source, destination, version, UDP, port), b"x")))
        found: Counter[int] = Counter()

        def agrees() -> bool:
            found.update(one.mark for one in reader.read() if isinstance(one, Logged))
            return dict(found) == {mark: now for mark, now in (counted(town) - before).items() if now}

        assert until(agrees, 5), (found, counted(town) - before)
    assert sum(found.values()) > 20
    assert len(found) >= 4


def counted(town: Town) -> Counter[int]:
    """What rules that deny have counted, by their numbers."""
    denying: Counter[int] = Counter()
    for rule in nft.rules(TABLE, town.node.netns):
        words = [one for one in rule["expr"] if isinstance(one, dict)]
        if any(one.get("goto", {}).get("target") in ("denied", "dropped", "refused") for one in words):
            (counter,) = (one["counter"]["packets"] for one in words if "counter" in one)
            denying[number(rule["comment"])] += counter
    return denying
