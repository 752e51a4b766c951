"""Single situations on real packets: what policy does around its rules, and what a change of it does to traffic."""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from msgspec import structs
from town import (
    HOST_ACTION,
    ICMP6,
    LOW_PORTS,
    PATIENCE,
    PODS,
    TCP,
    UDP,
    Probe,
    Town,
    built_town,
    endpoint,
    made,
    ping,
    until,
)

from tortie.calc.state import SERVICE_LOOP
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.nft import Nft, remains
from tortie.kernel import nft
from tortie.model.document import parse
from tortie.model.k8s import Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.workload import IPNAT
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import Ruleset, transaction

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    yield from built_town()


def open_to_all(town: Town, *documents: str, without: str = "") -> list[Resource]:
    """Every pod is in namespace red, which allows everything, under the label app=<its name>; and the documents."""
    pods = [endpoint(town.parties[pod], "red", labels={"app": pod}) for pod in PODS if pod != without]
    return [made(Namespace, "red"), made(ServiceAccount, "default", "red"), *pods, *parse("\n---\n".join(documents))]


def document(kind: str, name: str, spec: str, namespace: str = "") -> str:
    place = f", namespace: {namespace}" if namespace else ""
    return f"{{apiVersion: projectcalico.org/v3, kind: {kind}, metadata: {{name: {name}{place}}}, spec: {{{spec}}}}}"


def closed(pod: str, direction: str) -> str:
    """A policy that isolates a pod in one direction, and allows nothing."""
    return document(
        "NetworkPolicy", f"closed-{pod}-{direction.lower()}", f"selector: app == '{pod}', types: [{direction}]", "red"
    )


def felix(spec: str) -> str:
    return document("FelixConfiguration", "default", spec)


def end_of_tier(town: Town, pod: str, direction: str) -> str:
    return f"tier/default|{town.parties[pod].interface}|{direction}"


_tokens = itertools.count()


def arrives(town: Town, probe: Probe) -> bool:
    """Whether it gets there in time. Of a denial ask `denied_by`, which need not wait."""
    token = f"single {next(_tokens)}".ljust(32).encode()
    wanted = (
        (str(town.parties[probe.source].ips[probe.version]), str(probe.source_port)) if probe.protocol == TCP else token
    )
    with contextlib.closing(town.send(probe, token)):
        return until(lambda: wanted in set(town.arrived()))


def denied_by(town: Town, probe: Probe, rule: str, claimed: str = "") -> bool:
    """Whether it is this rule that drops it, and it does not get there."""
    token = f"single {next(_tokens)}".ljust(32).encode()
    before = town.counters().get(rule, 0)
    with contextlib.closing(town.send(probe, token, claimed)):
        counted = until(lambda: town.counters().get(rule, 0) > before)
    return counted and not {token, (claimed, str(probe.source_port))} & set(town.arrived())


@pytest.mark.parametrize("version", [4, 6])
def test_p65_a_pod_sends_from_its_own_addresses_only(town: Town, version: int) -> None:
    town.apply(open_to_all(town, felix("defaultEndpointToHostAction: Accept")))
    assert arrives(town, Probe("p0", "X", version, UDP, 53))
    foreign = "203.0.113.9" if version == 4 else "2001:db8:99::9"
    for address in (foreign, str(town.parties["p1"].ips[version])):
        town.ip(
            "p0",
            "addr",
            "add",
            f"{address}/{32 if version == 4 else 128}",
            "dev",
            "lo",
            *(["nodad"] if version == 6 else []),
        )
        try:
            for destination in ("X", "p2", "node"):
                assert denied_by(town, Probe("p0", destination, version, UDP, 53), "anti-spoofing", address)
        finally:
            town.ip("p0", "addr", "del", f"{address}/{32 if version == 4 else 128}", "dev", "lo")
    assert arrives(town, Probe("p0", "X", version, TCP, 80))


@pytest.mark.parametrize("version", [4, 6])
def test_an_interface_without_an_endpoint_is_closed_both_ways(town: Town, version: int) -> None:
    """P70. What the host itself sends goes out, but no answer comes in."""
    from_it, to_it = "no endpoint: from interface", "no endpoint: to interface"
    town.apply(open_to_all(town, felix("defaultEndpointToHostAction: Accept"), without="p4"))
    for ip in town.parties["p4"].ips.values():
        town.ip("node", "route", "replace", str(ip), "dev", town.parties["p4"].interface)
    for source in ("p0", "X"):
        assert denied_by(town, Probe(source, "p4", version, UDP, 80), to_it)
    for destination in ("p0", "X", "node"):
        assert denied_by(town, Probe("p4", destination, version, UDP, 80), from_it)
    before = town.counters().get(from_it, 0)
    with contextlib.closing(town.send(Probe("node", "p4", version, TCP, 80), b"")) as asked:
        assert until(lambda: town.counters().get(from_it, 0) > before)
        assert not select.select([], [asked], [], 0)[1]
    town.apply(open_to_all(town, felix("defaultEndpointToHostAction: Accept")))
    assert arrives(town, Probe("p4", "p0", version, UDP, 80))
    assert arrives(town, Probe("X", "p4", version, TCP, 80))


def conversation(town: Town, source: str, destination: str, version: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of an established TCP connection, blocking."""
    server = town.parties[destination].open(version, socket.SOCK_STREAM)
    server.bind(("", 0))
    server.listen(1)
    client = town.parties[source].open(version, socket.SOCK_STREAM)
    for one in (server, client):
        one.settimeout(PATIENCE)
    client.connect((str(town.parties[destination].ips[version]), server.getsockname()[1]))
    accepted = server.accept()[0]
    accepted.settimeout(PATIENCE)
    server.close()
    return client, accepted


def talk(one: socket.socket, other: socket.socket) -> bool:
    """Whether both hear each other."""
    for speaker, listener in ((one, other), (other, one)):
        speaker.sendall(b"word")
        if listener.recv(16) != b"word":
            return False
    return True


@pytest.mark.parametrize("whole", [False, True], ids=["update", "restart"])
@pytest.mark.parametrize("version", [4, 6])
def test_p72_an_established_flow_outlives_a_new_denial(town: Town, version: int, whole: bool) -> None:
    """And P04: so do its answers."""
    town.apply(open_to_all(town))
    client, server = conversation(town, "p0", "p1", version)
    with client, server:
        assert talk(client, server)
        town.apply(open_to_all(town, closed("p1", "Ingress"), closed("p0", "Egress")), whole=whole)
        assert talk(client, server)
        assert denied_by(town, Probe("p0", "p1", version, TCP, 80), end_of_tier(town, "p0", "egress"))
        assert denied_by(town, Probe("p2", "p1", version, TCP, 80), end_of_tier(town, "p1", "ingress"))
        assert talk(server, client)


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_and_its_host(town: Town, version: int) -> None:
    """P16, P74, P76: by default a pod does not reach its host; the host reaches its pod, whatever the policy."""
    closed_both = [closed("p0", "Ingress"), closed("p0", "Egress")]
    for documents in ([], closed_both):
        town.apply(open_to_all(town, *documents))
        assert arrives(town, Probe("node", "p0", version, UDP, 80))
        client, server = conversation(town, "node", "p0", version)
        with client, server:
            assert talk(client, server)
        assert ping(town.node, town.parties["p0"].ips[version])
    assert denied_by(town, Probe("p0", "node", version, TCP, 80), end_of_tier(town, "p0", "egress"))
    assert denied_by(town, Probe("p1", "node", version, TCP, 80), HOST_ACTION)
    assert denied_by(town, Probe("p1", "node", version, UDP, 80), HOST_ACTION)
    for action in ("Accept", "Return"):
        town.apply(open_to_all(town, felix(f"defaultEndpointToHostAction: {action}"), *closed_both))
        assert arrives(town, Probe("p1", "node", version, TCP, 80))
        assert denied_by(town, Probe("p0", "node", version, TCP, 80), end_of_tier(town, "p0", "egress"))


def lone_reset(town: Town, source: str, destination: str) -> None:
    """A TCP RST of no connection, which connection tracking calls invalid."""
    ends = [town.parties[name].ips[4].packed for name in (source, destination)]
    port = next(LOW_PORTS)

    def segment(checksum: int) -> bytes:
        return struct.pack("!HHIIBBHHH", port, 80, 1, 1, 5 << 4, 0x04, 1024, checksum, 0)

    total = sum(struct.unpack("!16H", b"".join(ends) + struct.pack("!BBH", 0, TCP, 20) + segment(0)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    with town.parties[source].open(4, socket.SOCK_RAW, TCP) as raw:
        raw.sendto(segment(0xFFFF & ~total), (str(town.parties[destination].ips[4]), 0))


def test_p71_what_connection_tracking_calls_invalid_is_dropped(town: Town) -> None:
    town.apply(open_to_all(town))
    before = town.counters()
    lone_reset(town, "p0", "p1")
    lone_reset(town, "X", "p1")
    assert until(lambda: town.counters().get("invalid", 0) == before.get("invalid", 0) + 2)
    town.apply(open_to_all(town, felix("disableConntrackInvalidCheck: true")))
    allowed = "profile/kns.red|ingress|0"
    before = town.counters()
    lone_reset(town, "X", "p1")
    assert until(lambda: town.counters().get(allowed, 0) == before.get(allowed, 0) + 1)


POOLS = {
    4: "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: four}, spec: {cidr: 10.244.0.0/16%s}}",
    6: "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: six}, spec: {cidr: 'fd00:244::/64'%s}}",
}
NAT = ", natOutgoing: true"


def seen_as(town: Town, source: str, destination: str, version: int) -> str:
    """The address that the destination sees; it answers, and the answer comes back."""
    server = town.parties[destination].open(version, socket.SOCK_DGRAM)
    client = town.parties[source].open(version, socket.SOCK_DGRAM)
    with server, client:
        server.bind((str(town.parties[destination].ips[version]), 0))
        for one in (server, client):
            one.settimeout(PATIENCE)
        client.bind((str(town.parties[source].ips[version]), 0))
        client.connect(server.getsockname())
        client.send(b"who am I?")
        _, peer = server.recvfrom(64)
        server.sendto(b"you", peer)
        assert client.recv(64) == b"you"
        return str(peer[0])


@pytest.mark.parametrize("version", [4, 6])
def test_p102_outgoing_addresses_are_replaced(town: Town, version: int) -> None:
    node, pod = (str(town.parties[name].ips[version]) for name in ("node", "p0"))
    for options in (NAT, NAT + ", disabled: true"):  # disabled is about giving out addresses
        town.apply(open_to_all(town, POOLS[version] % options))
        assert seen_as(town, "p0", "X", version) == node
        assert seen_as(town, "p0", "p1", version) == pod
        assert seen_as(town, "X", "p0", version) == str(town.parties["X"].ips[version])
    town.apply(open_to_all(town, POOLS[version] % ""))
    assert seen_as(town, "p0", "X", version) == pod
    addresses = "ipv4Address: 198.51.100.9/24, ipv6Address: '2001:db8:51::9/64'"
    host = document("Node", "other", f"bgp: {{{addresses}}}")
    town.apply(open_to_all(town, POOLS[version] % NAT, host))
    assert seen_as(town, "p0", "X", version) == node
    town.apply(open_to_all(town, POOLS[version] % NAT, host, felix("natOutgoingExclusions: IPPoolsAndHostIPs")))
    assert seen_as(town, "p0", "X", version) == pod
    assert seen_as(town, "p0", "Y", version) == node


@pytest.mark.parametrize("version", [4, 6])
def test_p103_policy_sees_what_a_floating_ip_leads_to(town: Town, version: int) -> None:
    floating, own = {4: "203.0.113.5", 6: "2001:db8:77::5"}[version], town.parties["p0"].ips[version]
    policy = document(
        "NetworkPolicy",
        "web",
        "selector: app == 'p0', ingress: [{action: Allow, protocol: TCP, destination: {ports: [8080]}}]",
        "red",
    )
    others = open_to_all(town, policy, felix("floatingIPs: Enabled"), without="p0")
    pod = endpoint(town.parties["p0"], "red", labels={"app": "p0"})
    nat = IPNAT(internal_ip=str(own), external_ip=floating)
    pod = structs.replace(pod, spec=structs.replace(pod.spec, ip_nats=(nat,)))
    town.ip("X", "route", "add", floating, "via", "198.51.100.1" if version == 4 else "2001:db8:51::1")
    try:
        town.apply([*others, pod])
        with town.parties["X"].open(version, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE)
            client.connect((floating, 8080))
            assert client.getpeername()[0] == floating
        dropped, before = end_of_tier(town, "p0", "ingress"), town.counters()
        with town.parties["X"].open(version, socket.SOCK_STREAM) as client:
            client.connect_ex((floating, 80))
            assert until(lambda: town.counters().get(dropped, 0) > before.get(dropped, 0))
    finally:
        town.ip("X", "route", "del", floating)


@pytest.mark.parametrize("version", [4, 6])
def test_p104_nothing_is_forwarded_to_a_service_that_is_not_there(town: Town, version: int) -> None:
    net, unused = {4: ("10.96.0.0/12", "10.96.77.7"), 6: ("fd00:96::/112", "fd00:96::7")}[version]
    told = document("BGPConfiguration", "default", f"serviceClusterIPs: [{{cidr: '{net}'}}]")
    town.ip("X", "route", "add", net, "via", "198.51.100.1" if version == 4 else "2001:db8:51::1")

    def counted() -> int:
        return town.counters().get(SERVICE_LOOP, 0)

    def send(party: str) -> None:
        with town.parties[party].open(version, socket.SOCK_DGRAM) as one:
            one.bind((str(town.parties[party].ips[version]), 0))
            one.sendto(b"?", (unused, 80))

    try:
        for mode in ("Drop", "Reject"):
            town.apply(open_to_all(town, told, felix(f"serviceLoopPrevention: {mode}")))
            for party in ("X", "p0"):
                before = counted()
                send(party)
                assert until(lambda before=before: counted() == before + 1)  # type: ignore[misc]
            assert arrives(town, Probe("X", "p0", version, UDP, 80))
            assert arrives(town, Probe("p0", "X", version, UDP, 80))
        for documents in ((told, felix("serviceLoopPrevention: Disabled")), ()):
            town.apply(open_to_all(town, *documents))
            assert "service-loops" not in town.table()
    finally:
        town.ip("X", "route", "del", net)


def test_p73_neighbour_discovery_is_not_subject_to_policy(town: Town) -> None:
    """The pod finds its gateway and the host finds the pod, though nothing else may pass. A pod's RA does not."""
    town.apply(open_to_all(town, closed("p0", "Egress"), closed("p0", "Ingress")))
    gateway, denied = "fe80::ecee:eeff:feee:eeee", end_of_tier(town, "p0", "egress")
    town.ip("p0", "neigh", "del", gateway, "dev", "eth0")
    try:
        # That the denial counts it says that the gateway was found: the packet got as far as that.
        assert denied_by(town, Probe("p0", "X", 6, UDP, 80), denied)
    finally:
        town.ip("p0", "neigh", "replace", gateway, "lladdr", "ee:ee:ee:ee:ee:ee", "dev", "eth0")
    town.ip("node", "-6", "neigh", "flush", "dev", town.parties["p0"].interface)
    assert arrives(town, Probe("node", "p0", 6, UDP, 80))
    before = town.counters().get(denied, 0)
    with town.parties["p0"].open(6, socket.SOCK_RAW, ICMP6) as advertiser:
        advertiser.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), (str(town.parties["node"].ips[6]), 0))
    assert until(lambda: town.counters().get(denied, 0) == before + 1)


def test_p68_a_pod_sends_no_tunnelled_packets_unless_it_may(town: Town) -> None:
    def encapsulated(destination: str) -> None:
        with town.parties["p0"].open(4, socket.SOCK_RAW, 4) as tunnel:
            tunnel.sendto(bytes(20), (str(town.parties[destination].ips[4]), 0))

    town.apply(open_to_all(town, felix("defaultEndpointToHostAction: Accept")))
    for destination in ("X", "p1", "node"):
        assert denied_by(town, Probe("p0", destination, 4, UDP, 4789), "VXLAN from a pod")
        before = town.counters().get("IPIP from a pod", 0)
        encapsulated(destination)
        assert until(lambda before=before: town.counters().get("IPIP from a pod", 0) == before + 1)  # type: ignore[misc]
    town.apply(open_to_all(town, felix("allowVXLANPacketsFromWorkloads: true, allowIPIPPacketsFromWorkloads: true")))
    allowed = "profile/kns.red|egress|0"
    before = town.counters().get(allowed, 0)
    encapsulated("X")
    town.send(Probe("p0", "X", 4, UDP, 4789), b"").close()
    assert until(lambda: town.counters().get(allowed, 0) == before + 2)


@pytest.mark.parametrize("version", [4, 6])
def test_reject_tells_the_pod(town: Town, version: int) -> None:
    town.apply(open_to_all(town, felix("nftablesFilterDenyAction: Reject"), closed("p1", "Ingress")))
    probe = Probe("p0", "p1", version, TCP, 80)
    with contextlib.closing(town.send(probe, b"")) as asked:
        assert select.select([], [asked], [], PATIENCE)[1]
        assert asked.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    town.apply(open_to_all(town, closed("p1", "Ingress")))
    with contextlib.closing(town.send(replace(probe, source_port=next(LOW_PORTS)), b"")) as asked:
        assert not select.select([], [asked], [], 0.1)[1]


def test_p31_log_counts_and_leads_on(town: Town) -> None:
    rules = "selector: app == 'p1', ingress: [{action: Log}, {action: Allow, protocol: UDP}]"
    town.apply(open_to_all(town, document("NetworkPolicy", "n", rules, "red")))
    before = Counter(town.counters())
    assert arrives(town, Probe("p0", "p1", 4, UDP, 80))
    assert denied_by(town, Probe("p0", "p1", 4, TCP, 80), end_of_tier(town, "p1", "ingress"))
    after = Counter(town.counters())
    after.subtract(before)
    assert (after["np/red/n|ingress|0"], after["np/red/n|ingress|1"]) == (2, 1)


def test_p106_the_table_stays_without_an_agent_and_a_new_one_writes_the_same(town: Town) -> None:
    resources = open_to_all(town, closed("p1", "Ingress"), POOLS[4] % NAT)
    town.apply(resources)
    town.nft = Nft(town.node.netns)  # knows nothing; the old one is gone
    table = town.table()
    assert denied_by(town, Probe("p0", "p1", 4, TCP, 80), end_of_tier(town, "p1", "ingress"))
    assert arrives(town, Probe("p0", "p2", 6, TCP, 80))
    town.apply(resources)
    assert town.table() == table
    assert not town.nft.plan(town.cluster.state())


def test_what_someone_else_did_to_the_table_is_repaired(town: Town) -> None:
    resources = open_to_all(town, closed("p1", "Ingress"))
    state = town.apply(resources)
    table = town.table()
    for damage in ("flush chain inet tortie forward", "delete table inet tortie",
                   'delete element inet tortie to-workload { "cali00000000p1" }'):  # fmt: skip
        nft.apply(f"{damage}\n", town.node.netns)
        town.nft.forget()
        assert converge([town.nft], state) == []
        assert town.table() == table
    nft.apply("add table inet other\n", town.node.netns)  # what is not ours stays
    town.apply(resources, whole=True)
    assert nft.list_json(["list", "table", "inet", "other"], town.node.netns)
    nft.apply("delete table inet other\n", town.node.netns)


def test_a_rule_about_any_protocol_can_be_listed(town: Town) -> None:
    """What nft cannot list nobody can count or compare. It knows some protocols to have no ports."""
    services = "destination: {services: {name: any, namespace: red}}"
    rules = ", ".join(f"{{action: Allow, protocol: {number}, {services}}}" for number in range(1, 256))
    town.apply(open_to_all(town, document("GlobalNetworkPolicy", "every", f"types: [Egress], egress: [{rules}]")))
    assert "every|egress|254" in town.table()


BURST = 20


class Flood:
    """Datagrams from p0 to p1 and, through NAT, to X: of flows that last and, with every burst, of a new one."""

    def __init__(self, town: Town, version: int) -> None:
        self.sent = self.seen = 0
        self._town, self._version = town, version
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flood")
        self._lasting = self._speaker()
        self._receivers = [town.parties[name].open(version, socket.SOCK_DGRAM) for name in ("p1", "X")]
        for receiver, name in zip(self._receivers, ("p1", "X"), strict=True):
            receiver.bind((str(town.parties[name].ips[version]), 0))

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait for what is still on its way."""
        self._over.set()
        self._thread.join()
        until(self._all_seen, 0.5)
        for one in (self._lasting, *self._receivers):
            one.close()

    def _speaker(self) -> socket.socket:
        return self._town.parties["p0"].open(self._version, socket.SOCK_DGRAM)

    def _run(self) -> None:
        while not self._over.is_set():
            with self._speaker() as brief:
                for receiver in self._receivers:
                    for speaker in (brief, *[self._lasting] * BURST):
                        speaker.sendto(b"tick", receiver.getsockname())
                        self.sent += 1
            self._all_seen()

    def _all_seen(self) -> bool:
        for receiver in self._receivers:
            with contextlib.suppress(BlockingIOError):
                while receiver.recv(64):
                    self.seen += 1
        return self.seen == self.sent


CHANGES = 40


def two_rulesets(town: Town, version: int) -> tuple[Ruleset, Ruleset]:
    """What the node is like with and without a policy for a pod that has nothing to do with the flood."""
    rendered = []
    for documents in ([], [closed("p3", "Ingress")]):
        town.apply(open_to_all(town, POOLS[version] % NAT, *documents))
        rendered.append(NftRenderer().render(town.cluster.state()))
    return rendered[0], rendered[1]


@pytest.mark.parametrize("version", [4, 6])
def test_a_change_of_policy_costs_others_no_packet(town: Town, version: int) -> None:
    before, after = two_rulesets(town, version)
    scripts = (transaction(before, after), transaction(after, before))
    with Flood(town, version) as flood:
        for i in range(CHANGES):
            nft.apply(scripts[i % 2], town.node.netns)
    assert flood.sent > 1000
    assert flood.seen == flood.sent


@pytest.mark.parametrize("version", [4, 6])
def test_p107_a_restart_costs_no_packet(town: Town, version: int) -> None:
    """An agent that knows nothing writes everything anew."""
    rulesets = two_rulesets(town, version)
    try:
        with Flood(town, version) as flood:
            for i in range(CHANGES):
                nft.apply(transaction(rulesets[i % 2], remains(town.node.netns)), town.node.netns)
    finally:
        town.nft = Nft(town.node.netns)
    assert flood.sent > 1000
    assert flood.seen == flood.sent
