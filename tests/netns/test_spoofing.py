"""Which sources a pod may send from, on real packets: its own, link-local ones, and those it is allowed."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import subprocess
from collections.abc import Iterator

import msgspec
import pytest
from town import (
    ICMP6,
    PODS,
    TCP,
    UDP,
    Probe,
    Town,
    built_town,
    endpoint,
    hang_up,
    made,
    until,
)

from tortie.calc.state import DesiredState
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.rp_filter import RpFilter
from tortie.kernel import netns, sysctl
from tortie.model.document import parse
from tortie.model.k8s import Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.workload import WorkloadEndpoint

pytestmark = pytest.mark.root

ALLOWED = {4: "10.9.0.0/16", 6: "2001:db8:9::/48"}
INSIDE = {4: "10.9.1.1", 6: "2001:db8:9:1::1"}
OUTSIDE = {4: "10.10.1.1", 6: "2001:db8:a::1"}
ANY = "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {%s}}"
SPOOFING = ANY % "workloadSourceSpoofing: Any, defaultEndpointToHostAction: Accept"
NO_SPOOFING = ANY % "defaultEndpointToHostAction: Accept"
ANTI, FROM, TO = "anti-spoofing", "no endpoint: from interface", "no endpoint: to interface"


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    yield from built_town()


def pods(town: Town, *prefixes: str, without: str = "") -> list[Resource]:
    """All in namespace red, which allows everything; p0 asks for the prefixes."""
    found: list[Resource] = [made(Namespace, "red"), made(ServiceAccount, "default", "red")]
    for pod in PODS:
        one = endpoint(town.parties[pod], "red", labels={"app": pod})
        assert isinstance(one, WorkloadEndpoint)
        if pod == "p0":
            spec = msgspec.structs.replace(one.spec, allow_spoofed_source_prefixes=prefixes)
            one = msgspec.structs.replace(one, spec=spec)
        if pod != without:
            found.append(one)
    return found


def apply(town: Town, *prefixes: str, felix: str = SPOOFING, more: str = "", without: str = "") -> DesiredState:
    resources = [*pods(town, *prefixes, without=without), *parse(felix), *(parse(more) if more else [])]
    return town.apply(resources)


_tokens = itertools.count()


def passes(town: Town, probe: Probe, claimed: str = "") -> bool:
    """Whether a datagram gets there, under the source that it claims."""
    token = f"spoof {next(_tokens)}".ljust(32).encode()
    with owning(town, probe, claimed), contextlib.closing(town.send(probe, token, claimed)):
        return until(lambda: token in set(town.arrived()))


def dropped(town: Town, probe: Probe, claimed: str, rule: str = ANTI) -> bool:
    """Whether this rule counts it, and it does not get there."""
    token = f"spoof {next(_tokens)}".ljust(32).encode()
    before = town.counters().get(rule, 0)
    with owning(town, probe, claimed), contextlib.closing(town.send(probe, token, claimed)):
        return until(lambda: town.counters().get(rule, 0) > before) and token not in set(town.arrived())


@contextlib.contextmanager
def owning(town: Town, probe: Probe, claimed: str) -> Iterator[None]:
    """The sender has the address for so long, so that its own kernel sends from it."""
    length = 32 if probe.version == 4 else 128
    words = [f"{claimed}/{length}", "dev", "lo", *(["nodad"] if probe.version == 6 else [])]
    if claimed:
        town.ip(probe.source, "addr", "add", *words)
    try:
        yield
    finally:
        if claimed:
            town.ip(probe.source, "addr", "del", *words[:3])


# --- allowed prefixes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_p66_an_allowed_prefix_passes_and_nothing_else_does(town: Town, version: int) -> None:
    apply(town, ALLOWED[version])
    for destination in ("X", "p1", "node"):
        probe = Probe("p0", destination, version, UDP, 53)
        assert passes(town, probe)
        assert passes(town, probe, INSIDE[version])
        assert dropped(town, probe, OUTSIDE[version])
        assert dropped(town, probe, str(town.parties["p2"].ips[version]))
    assert dropped(town, Probe("p1", "X", version, UDP, 53), INSIDE[version])  # who did not ask may not
    other = 10 - version
    assert dropped(town, Probe("p0", "X", other, UDP, 53), INSIDE[other])


@pytest.mark.parametrize("version", [4, 6])
def test_prefixes_may_overlap_be_single_addresses_and_be_everything(town: Town, version: int) -> None:
    single = {4: "192.0.2.77", 6: "2001:db8:77::77"}[version]
    inside = {4: "10.9.0.0/24", 6: "2001:db8:9::/64"}[version]
    apply(town, ALLOWED[version], inside, single, str(town.parties["p0"].ips[version]))
    probe = Probe("p0", "X", version, UDP, 53)
    assert passes(town, probe, INSIDE[version])
    assert passes(town, probe, single)
    assert dropped(town, probe, OUTSIDE[version])
    apply(town, {4: "0.0.0.0/0", 6: "::/0"}[version])
    assert passes(town, probe, OUTSIDE[version])
    apply(town)
    assert dropped(town, probe, INSIDE[version])
    assert "prefixes" not in town.table()


@pytest.mark.parametrize("version", [4, 6])
def test_policy_judges_the_source_that_is_there_and_knows_only_own_addresses(town: Town, version: int) -> None:
    """A peer that is named by a selector is no peer under a foreign source; egress policy holds all the same."""
    only_p0 = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: only-p0, namespace: red}
spec: {selector: app == 'p1', types: [Ingress], ingress: [{action: Allow, source: {selector: app == 'p0'}}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: not-81, namespace: red}
spec:
  selector: app == 'p0'
  types: [Egress]
  egress: [{action: Deny, protocol: UDP, destination: {ports: [81]}}, {action: Allow}]
"""
    apply(town, ALLOWED[version], more=only_p0)
    assert passes(town, Probe("p0", "p1", version, UDP, 53))
    ingress = f"tier/default|{town.parties['p1'].interface}|ingress"
    assert dropped(town, Probe("p0", "p1", version, UDP, 53), INSIDE[version], ingress)
    assert dropped(town, Probe("p0", "X", version, UDP, 81), INSIDE[version], "np/red/not-81|egress|0")


def test_p67_where_spoofing_is_disabled_who_asks_for_it_is_absent(town: Town) -> None:
    apply(town)
    cluster, stages = town.cluster, [town.nft, town.routes]
    for resource in (*pods(town, *ALLOWED.values()), *parse(NO_SPOOFING)):
        cluster.put(resource)
    state = cluster.state()
    assert cluster.problems == {
        "WorkloadEndpoint red/p0": "spec.allowSpoofedSourcePrefixes: sources of others are allowed only where "
        "FelixConfiguration says workloadSourceSpoofing: Any"
    }
    assert cluster.endpoint(("red", "p0")) is not None
    assert town.parties["p0"].interface not in state.endpoints
    assert not converge(stages, state)
    try:
        for version in (4, 6):
            town.ip(
                "node", "route", "replace", str(town.parties["p0"].ips[version]), "dev", town.parties["p0"].interface
            )
            for claimed in ("", INSIDE[version]):
                assert dropped(town, Probe("p0", "X", version, UDP, 53), claimed, FROM)
            assert dropped(town, Probe("X", "p0", version, UDP, 53), "", TO)
    finally:  # and as soon as it is enabled it is there
        for resource in parse(SPOOFING):
            cluster.put(resource)
        assert not converge(stages, cluster.state())
        assert not cluster.problems
    assert passes(town, Probe("p0", "X", 4, UDP, 53), INSIDE[4])
    assert passes(town, Probe("X", "p0", 6, UDP, 53))


# --- established connections --------------------------------------------------------------------------------------


def tcp_segment(town: Town, source: str, destination: str, ports: tuple[int, int], flags: int) -> bytes:
    """A TCP header with nothing after it (RFC 9293), sequence 1."""
    head = struct.pack("!HHIIBBHHH", *ports, 1, 1, 5 << 4, flags, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, TCP, len(head))
    total = sum(struct.unpack(f"!{len(pseudo + head) // 2}H", pseudo + head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = 0xFFFF & ~((total & 0xFFFF) + (total >> 16))
    return head[:16] + struct.pack("!H", checksum) + head[18:]


def test_nobody_speaks_up_in_a_connection_of_somebody_else(town: Town) -> None:
    """p2 sends what would belong to p1's connection. It is dropped before connection tracking sees it."""
    apply(town, felix=NO_SPOOFING)
    probe = Probe("p1", "X", 4, TCP, 7777)
    mine, theirs = str(town.parties["p1"].ips[4]), str(town.parties["X"].ips[4])
    with socket_between(town, probe) as connection:
        before = town.counters().get(ANTI, 0)
        reset = tcp_segment(town, mine, theirs, (probe.source_port, probe.what), 0x14)  # RST, ACK
        with (
            town.parties["p2"].open(4, socket.SOCK_RAW, TCP) as raw,
            owning(town, Probe("p2", "X", 4, TCP, 7777), mine),
        ):
            raw.bind((mine, 0))
            raw.sendto(reset, (theirs, 0))
        assert until(lambda: town.counters().get(ANTI, 0) > before)
        assert connection.send(b"still here") == 10


@contextlib.contextmanager
def socket_between(town: Town, probe: Probe) -> Iterator[socket.socket]:
    """A connection to a listener of its own, open while the block lasts."""
    listener = town.parties[probe.destination].open(probe.version, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", probe.what))
    listener.listen()
    with town.parties[probe.source].open(probe.version, socket.SOCK_STREAM) as connection:
        connection.setblocking(True)
        connection.settimeout(5)
        hang_up(connection)
        connection.bind(("", probe.source_port))
        connection.connect((str(town.parties[probe.destination].ips[probe.version]), probe.what))
        yield connection
    listener.close()


@pytest.mark.parametrize("version", [4, 6])
def test_an_established_connection_ends_with_its_endpoint(town: Town, version: int) -> None:
    """What is established may pass without policy, but not to or from an interface that nobody knows any more."""
    apply(town)
    probe = Probe("X", "p3", version, TCP, 7777)
    with socket_between(town, probe) as connection:
        connection.send(b"a")
        apply(town, without="p3")
        for ip in town.parties["p3"].ips.values():
            town.ip("node", "route", "replace", str(ip), "dev", town.parties["p3"].interface)
        before = town.counters().get(TO, 0)
        connection.send(b"b")
        assert until(lambda: town.counters().get(TO, 0) > before)
    apply(town)


# --- what a host without an address may say -----------------------------------------------------------------------


def raw_frame(town: Town, pod: str, frame: bytes, kind: int) -> None:
    with netns.entered(town.parties[pod].netns):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(kind))
    with raw:
        raw.sendto(frame, ("eth0", kind, 0, 0, b"\xee" * 6))


def ipv4(source: str, destination: str, payload: bytes, protocol: int) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", 0xFFFF & ~total) + head[12:] + payload


def ipv6(source: str, destination: str, payload: bytes, protocol: int) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 255)
    return head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination) + payload


def udp(payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", 68, 67, 8 + len(payload), 0) + payload


ICMPV6 = struct.pack("!BBHI", 135, 0, 0, 0)


@pytest.mark.parametrize(
    ("frame", "kind", "stopped"),
    [
        (ipv4("0.0.0.0", "255.255.255.255", udp(), UDP), 0x0800, False),
        (ipv4("0.0.0.0", "224.0.0.22", b"\x16\x00\x00\x00", 2), 0x0800, False),
        (ipv4("0.0.0.0", "10.244.1.11", udp(), UDP), 0x0800, True),
        (ipv4("10.244.1.12", "255.255.255.255", udp(), UDP), 0x0800, True),
        (ipv4("169.254.9.9", "198.51.100.9", udp(), UDP), 0x0800, True),
        (ipv6("::", "ff02::1:ff00:1", ICMPV6, ICMP6), 0x86DD, False),
        (ipv6("::", "ff02::16", ICMPV6, ICMP6), 0x86DD, False),
        (ipv6("fe80::1", "ff02::2", ICMPV6, ICMP6), 0x86DD, False),
        (ipv6("fe80:0:0:1::1", "ff02::2", ICMPV6, ICMP6), 0x86DD, True),
        (ipv6("::", "ff02::1", udp(), UDP), 0x86DD, True),
        (ipv6("::", "2001:db8:51::9", ICMPV6, ICMP6), 0x86DD, True),
        (ipv6("fd00:244::12", "ff02::1", ICMPV6, ICMP6), 0x86DD, True),
    ],
)  # fmt: skip
def test_on_its_link_a_host_without_an_address_may_ask_for_one(
    town: Town, frame: bytes, kind: int, stopped: bool
) -> None:
    """The same as the kernel's own reverse-path test lets through, which is asked as well, one rule before."""
    apply(town, felix=NO_SPOOFING)
    fib = """
table inet oracle
delete table inet oracle
table inet oracle { chain asked {
  type filter hook prerouting priority raw - 10;
  iifname "cali*" fib saddr . iif oif 0 counter
  }
}
"""
    run = ["nsenter", f"--net={town.node.netns}", "nft"]
    subprocess.run([*run, "-f", "-"], input=fib, text=True, check=True, timeout=30)
    try:
        before = town.counters().get(ANTI, 0)
        raw_frame(town, "p0", frame, kind)
        settle(town)
        assert (town.counters().get(ANTI, 0) > before) == stopped
        listed = subprocess.run([*run, "list", "table", "inet", "oracle"], capture_output=True, text=True, check=True)
        assert ("packets 0 " not in listed.stdout) == stopped
    finally:
        subprocess.run([*run, "delete", "table", "inet", "oracle"], check=True, timeout=30)


def settle(town: Town) -> None:
    """Whatever was sent before has been judged: a packet behind it has arrived."""
    assert passes(town, Probe("p0", "p1", 4, UDP, 9090))


def test_of_two_endpoints_with_one_address_the_first_interface_sends_from_it(town: Town) -> None:
    resources = pods(town)
    stolen = tuple(f"{ip}/{ip.max_prefixlen}" for ip in town.parties["p1"].ips.values())
    for at, one in enumerate(resources):
        if isinstance(one, WorkloadEndpoint) and one.name == "p2":
            spec = msgspec.structs.replace(one.spec, ip_networks=(*one.spec.ip_networks, *stolen))
            resources[at] = msgspec.structs.replace(one, spec=spec)
    town.apply([*resources, *parse(NO_SPOOFING)])
    for version in (4, 6):
        assert passes(town, Probe("p1", "X", version, UDP, 53))
        assert dropped(town, Probe("p2", "X", version, UDP, 53), str(town.parties["p1"].ips[version]))


# --- the kernel's own filter --------------------------------------------------------------------------------------


def test_where_the_host_filters_by_reverse_path_it_lets_through_what_is_allowed(town: Town) -> None:
    """A host without a default route, on which the loose filter, too, would drop it."""
    stage, interface = RpFilter(town.node.netns), town.parties["p0"].interface
    other = town.parties["p1"].interface
    with netns.entered(town.node.netns):
        before = sysctl.read("net/ipv4/conf/default/rp_filter")
        for name in ("default", interface, other):
            sysctl.write(f"net/ipv4/conf/{name}/rp_filter", 1)
    try:
        state = apply(town, ALLOWED[4])
        assert not passes(town, Probe("p0", "p1", 4, UDP, 53), INSIDE[4])
        assert str(stage.plan(state)) == f"sysctl -w net/ipv4/conf/{interface}/rp_filter=0"
        assert converge([stage], state) == []
        assert not stage.plan(state)
        assert passes(town, Probe("p0", "p1", 4, UDP, 53), INSIDE[4])
        state = apply(town)
        assert str(RpFilter(town.node.netns).plan(state)) == f"sysctl -w net/ipv4/conf/{interface}/rp_filter=1"
        assert converge([stage], state) == []
        assert not stage.plan(state)
    finally:
        with netns.entered(town.node.netns):
            for name in ("default", interface, other):
                sysctl.write(f"net/ipv4/conf/{name}/rp_filter", int(before))
