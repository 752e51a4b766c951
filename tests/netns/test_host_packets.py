"""Host endpoints on real packets: what each class of their policy decides, and which rule counts it.

The numbers P.. are those of the catalogue of Calico's packet-level situations. X is outside behind eth0, Z behind eth1,
the host itself is `node`, and p0 and p1 are its pods.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from host_town import NODE_PORT, OWN, HostTown, built_host_town
from town import PATIENCE, TCP, UDP, Probe, until

from tortie.dataplane.interfaces import host_interfaces
from tortie.render.ruleset import TABLE

pytestmark = [pytest.mark.root, pytest.mark.parametrize("version", [4, 6])]


@pytest.fixture(scope="module")
def town() -> Iterator[HostTown]:
    yield from built_host_town()


def document(kind: str, name: str, spec: str, labels: str = "", namespace: str = "") -> str:
    more = f", namespace: {namespace}" if namespace else ""
    metadata = f"{{name: {name}, labels: {{{labels}}}{more}}}"
    return f"{{apiVersion: projectcalico.org/v3, kind: {kind}, metadata: {metadata}, spec: {{{spec}}}}}"


def hep(interface: str = "eth0", name: str = "uplink", profiles: str = "", ips: str = "") -> str:
    spec = f"node: node, interfaceName: '{interface}', profiles: [{profiles}], expectedIPs: [{ips}]"
    return document("HostEndpoint", name, spec, "role: host")


OPEN = "projectcalico-default-allow"


def gnp(name: str, rules: str, more: str = "", types: str = "Ingress", selector: str = "role == 'host'") -> str:
    """`more` are its other fields: applyOnForward, ..."""
    spec = f'{more + ", " if more else ""}selector: "{selector}", types: [{types}], {types.lower()}: [{rules}]'
    return document("GlobalNetworkPolicy", name, spec)


FORWARD = "applyOnForward: true"
PRE_DNAT = "applyOnForward: true, preDNAT: true"
UNTRACKED = "applyOnForward: true, doNotTrack: true"

CLOSED_POD = document("NetworkPolicy", "closed", "selector: app == 'p0', types: [Ingress]", namespace="red")


def felix(spec: str) -> str:
    return document("FelixConfiguration", "default", spec)


def rule(policy: str, index: int = 0, direction: str = "ingress") -> str:
    return f"gnp/{policy}|{direction}|{index}"


def ports(action: str, *numbers: int, end: str = "destination", protocol: str = "TCP") -> str:
    return f"{{action: {action}, protocol: {protocol}, {end}: {{ports: [{', '.join(map(str, numbers))}]}}}}"


END = "hep/uplink|{}|{}|tier/default"
NOBODY = "hep/uplink|normal|{}|no-profile"
PORT = "failsafe|{}|port"
KNS = "profile/kns.red|ingress|0"


def test_p75_a_pod_at_its_own_host_is_no_host_endpoint_s_business(town: HostTown, version: int) -> None:
    town.hold(hep("*", "all"), felix("defaultEndpointToHostAction: Return"))
    probe = Probe("p0", "node", version, TCP, 8080)
    assert town.arrives(probe, "profile/kns.red|egress|0")
    with town.rules_of_its_own("input", 'tcp dport 9090 counter drop comment "own"'):
        assert town.denied(Probe("p0", "node", version, TCP, 9090), "own", OWN)


def test_p76_a_pod_s_own_policy_comes_first_and_knows_no_failsafe(town: HostTown, version: int) -> None:
    nets = "198.51.100.1/32" if version == 4 else '"2001:db8:51::1/128"'
    closed = f"{{action: Deny, destination: {{nets: [{nets}]}}}}, {{action: Allow}}"
    town.hold(felix("defaultEndpointToHostAction: Accept"), gnp("pods", closed, types="Egress", selector="app == 'p0'"))
    assert town.denied(Probe("p0", "node", version, TCP, 22), rule("pods", 0, "egress"))
    assert town.arrives(Probe("p1", "node", version, TCP, 22))


def test_p77_without_a_host_endpoint_nothing_is_there(town: HostTown, version: int) -> None:
    town.hold(gnp("idle", "{action: Deny}"))
    assert town.arrives(Probe("X", "node", version, TCP, 80))
    listed = town.nft_run("list", "table", *TABLE.split())
    assert "host" not in listed.replace("workload-to-host", "").replace("pod to its own host", "").replace(
        "defaultEndpointToHostAction", ""
    )
    assert "failsafe" not in listed


def test_p78_nothing_said_is_nothing_allowed_but_the_failsafes(town: HostTown, version: int) -> None:
    town.hold(hep())
    assert town.arrives(Probe("X", "node", version, TCP, 22), PORT.format("ingress"))
    assert town.denied(Probe("X", "node", version, TCP, 80), NOBODY.format("ingress"))
    assert town.arrives(Probe("node", "X", version, UDP, 53), PORT.format("egress"))
    assert town.denied(Probe("node", "X", version, TCP, 8080), NOBODY.format("egress"))


def test_p79_what_is_forwarded_is_not_the_host_s_own(town: HostTown, version: int) -> None:
    town.hold(hep())
    assert town.arrives(Probe("p0", "X", version, TCP, 80), "profile/kns.red|egress|0")
    assert town.arrives(Probe("X", "p0", version, TCP, 80), KNS)


def test_p80_a_profile_opens_the_host(town: HostTown, version: int) -> None:
    town.hold(hep(profiles=OPEN))
    assert town.arrives(Probe("X", "node", version, TCP, 80), f"profile/{OPEN}|ingress|0")
    assert town.arrives(Probe("node", "X", version, TCP, 80), f"profile/{OPEN}|egress|0")


def test_p81_a_policy_isolates_and_answers_come_back(town: HostTown, version: int) -> None:
    town.hold(hep(profiles=OPEN), gnp("web", ports("Allow", 8080)))
    assert town.denied(Probe("X", "node", version, TCP, 80), END.format("normal", "ingress"))
    assert town.arrives(Probe("X", "node", version, TCP, 8080), rule("web"))
    assert town.exchange(Probe("node", "X", version, TCP, 80))


def test_p82_normal_policy_leaves_forwarded_traffic_alone(town: HostTown, version: int) -> None:
    town.hold(hep(profiles=OPEN), gnp("closed", "{action: Deny}"))
    assert town.arrives(Probe("X", "p0", version, TCP, 8080), KNS)
    assert town.denied(Probe("X", "node", version, TCP, 80), rule("closed"))


def test_p83_forward_policy_sees_the_translated_port(town: HostTown, version: int) -> None:
    town.hold(hep(profiles=OPEN), gnp("aof", f"{ports('Deny', 8080)}, {{action: Allow}}", FORWARD))
    assert town.denied(Probe("X", "node", version, TCP, NODE_PORT), rule("aof"))
    assert town.arrives(Probe("X", "p0", version, TCP, 80), rule("aof", 1))


def test_p84_and_not_the_one_before(town: HostTown, version: int) -> None:
    town.hold(hep(profiles=OPEN), gnp("aof", ports("Allow", NODE_PORT), FORWARD))
    assert town.denied(Probe("X", "node", version, TCP, NODE_PORT), END.format("forward", "ingress"))


def test_p85_policy_before_translation_sees_the_node_port(town: HostTown, version: int) -> None:
    town.hold(hep(profiles=OPEN), gnp("pre", ports("Deny", NODE_PORT), PRE_DNAT))
    assert town.denied(Probe("X", "node", version, TCP, NODE_PORT), rule("pre"))
    assert town.arrives(Probe("X", "p0", version, TCP, 8080), KNS)


def test_p86_allowed_before_translation_still_meets_the_pod_s_policy(town: HostTown, version: int) -> None:
    town.hold(hep(), gnp("pre", "{action: Allow}", PRE_DNAT), gnp("aof", "{action: Deny}", FORWARD), CLOSED_POD)
    end = f"tier/default|{town.parties['p0'].interface}|ingress"
    assert town.denied(Probe("X", "node", version, TCP, NODE_PORT), end)


def test_p87_and_no_later_class_of_the_host(town: HostTown, version: int) -> None:
    town.hold(hep(), gnp("pre", ports("Allow", NODE_PORT, 9090), PRE_DNAT), gnp("aof", "{action: Deny}", FORWARD))
    assert town.arrives(Probe("X", "node", version, TCP, NODE_PORT), rule("pre"))
    assert town.arrives(Probe("X", "node", version, TCP, 9090), rule("pre"))  # nor normal policy, for the host itself
    assert town.denied(Probe("X", "p0", version, TCP, 8080), rule("aof"))


def test_p88_no_end_of_tier_before_translation(town: HostTown, version: int) -> None:
    town.hold(hep(), gnp("pre", ports("Deny", 81), PRE_DNAT), gnp("web", ports("Allow", 80)))
    assert town.arrives(Probe("X", "node", version, TCP, 80), rule("web"))
    assert town.denied(Probe("X", "node", version, TCP, 81), rule("pre"))


def untracked_web() -> tuple[str, ...]:
    return (
        gnp("in", ports("Allow", 9999), UNTRACKED),
        gnp("out", ports("Allow", 9999, end="source"), UNTRACKED, types="Egress"),
    )


def test_p89_untracked_both_ways(town: HostTown, version: int) -> None:
    town.hold(hep(), *untracked_web())
    probe = Probe("X", "node", version, TCP, 9999)
    assert town.exchange(probe)
    assert town.counters()[rule("in")] >= 2  # every packet of it
    assert town.counters()[rule("out", 0, "egress")] >= 1
    assert town.tracked(version, 9999) == []
    assert town.exchange(Probe("X", "node", version, TCP, 22))
    assert town.tracked(version, 22)  # the look itself works


def test_p90_untracked_one_way_has_no_answers(town: HostTown, version: int) -> None:
    town.hold(hep(profiles=OPEN), untracked_web()[0])
    before = town.counters().get("hep/uplink|normal|egress|invalid", 0)
    assert not town.exchange(Probe("X", "node", version, TCP, 9999))
    assert town.counters()["hep/uplink|normal|egress|invalid"] > before


def test_p91_failsafes_come_before_untracked_policy(town: HostTown, version: int) -> None:
    town.hold(
        hep(),
        gnp("in", "{action: Deny}", UNTRACKED),
        gnp("out", "{action: Deny}", UNTRACKED, types="Egress"),
    )
    assert town.exchange(Probe("X", "node", version, TCP, 22))
    assert town.exchange(Probe("node", "X", version, TCP, 179))
    assert town.denied(Probe("X", "node", version, TCP, 80), rule("in"))
    assert town.denied(Probe("node", "X", version, TCP, 80), rule("out", 0, "egress"))


def test_p92_pass_only_decides_nothing(town: HostTown, version: int) -> None:
    town.hold(hep(), gnp("aof", "{action: Pass}", FORWARD))
    assert town.arrives(Probe("X", "Z", version, TCP, 80), rule("aof"))
    assert town.arrives(Probe("X", "p0", version, TCP, 80), KNS)
    with town.rules_of_its_own("forward", 'iifname "eth0" oifname "eth1" counter drop comment "own"'):
        assert town.denied(Probe("X", "Z", version, TCP, 80), "own", OWN)
        assert town.arrives(Probe("X", "p0", version, TCP, 80), KNS)


def test_p93_forward_policy_of_all_interfaces_is_that_of_pods_interfaces_too(town: HostTown, version: int) -> None:
    town.hold(hep("*", "all"), gnp("aof", f"{ports('Deny', 9090)}, {{action: Allow}}", FORWARD))
    assert town.denied(Probe("p0", "p1", version, TCP, 9090), rule("aof"))
    assert town.arrives(Probe("p0", "p1", version, TCP, 8080), rule("aof", 1))


def test_p93_in_the_other_direction(town: HostTown, version: int) -> None:
    town.hold(hep("*", "all"), gnp("aof", f"{ports('Deny', 9090)}, {{action: Allow}}", FORWARD, types="Egress"))
    assert town.denied(Probe("p0", "p1", version, TCP, 9090), rule("aof", 0, "egress"))
    assert town.arrives(Probe("p0", "p1", version, TCP, 8080), rule("aof", 1, "egress"))


def test_p94_no_untracked_policy_on_all_interfaces(town: HostTown, version: int) -> None:
    town.hold(hep("*", "all", OPEN), gnp("raw", "{action: Deny}", UNTRACKED), problems=1)
    assert town.arrives(Probe("X", "node", version, TCP, 80), f"profile/{OPEN}|ingress|0")
    assert "doNotTrack on HostEndpoint all" in town.cluster.problems


def test_p95_a_host_endpoint_of_its_own_takes_the_place_of_the_general_one(town: HostTown, version: int) -> None:
    town.hold(hep("*", "all"), hep("eth0", "uplink", OPEN))
    assert town.arrives(Probe("X", "node", version, TCP, 80), f"profile/{OPEN}|ingress|0")
    assert town.denied(Probe("Z", "node", version, TCP, 80), "hep/all|normal|ingress|no-profile")


def test_p96_the_lowest_name_wins(town: HostTown, version: int) -> None:
    town.hold(hep("eth0", "z"), hep("eth0", "m", OPEN))
    assert town.arrives(Probe("X", "node", version, TCP, 80), f"profile/{OPEN}|ingress|0")
    address = '"2001:db8:51::1"' if version == 6 else "198.51.100.1"
    town.hold(hep("eth0", "z", OPEN), hep("", "m", ips=address))
    assert town.denied(Probe("X", "node", version, TCP, 80), "hep/m|normal|ingress|no-profile")


def test_p97_loopback_is_an_interface(town: HostTown, version: int) -> None:
    town.hold(hep("*", "all"))
    assert town.denied(Probe("lo", "lo", version, TCP, 80), "hep/all|normal|egress|no-profile")
    town.hold(hep("*", "all"), felix("interfaceExclude: 'kube-ipvs0,/^l.$/'"))
    assert town.arrives(Probe("lo", "lo", version, TCP, 80))
    assert town.denied(Probe("X", "node", version, TCP, 80), "hep/all|normal|ingress|no-profile")


@pytest.mark.parametrize("action", ["Drop", "Reject"])
def test_p98_egress_policy_asks_about_the_real_destination(town: HostTown, version: int, action: str) -> None:
    nets = "192.0.2.9/32" if version == 4 else '"2001:db8:2::9/128"'
    town.hold(
        hep("*", "all"),
        gnp("out", f"{{action: Deny, destination: {{nets: [{nets}]}}}}, {{action: Allow}}", types="Egress"),
        felix(f"nftablesFilterDenyAction: {action}"),
    )
    assert town.denied(Probe("node", "V", version, TCP, 80), rule("out", 0, "egress"))
    virtual = "10.96.0.10/32" if version == 4 else '"2001:db8:96::10/128"'
    town.hold(
        hep("*", "all"),
        gnp("out", f"{{action: Deny, destination: {{nets: [{virtual}]}}}}, {{action: Allow}}", types="Egress"),
        felix(f"nftablesFilterDenyAction: {action}"),
    )
    assert town.arrives(Probe("node", "V", version, TCP, 80), rule("out", 1, "egress"))


def test_p99_p100_the_source_decides_which_a_service_kept_or_did_not(town: HostTown, version: int) -> None:
    only = str(town.parties["X"].ips[version])
    policy = f"selector: app == 'p0', types: [Ingress], ingress: [{{action: Allow, source: {{nets: ['{only}']}}}}]"
    town.hold(document("NetworkPolicy", "only-x", policy, namespace="red"))
    assert town.arrives(Probe("X", "node", version, TCP, NODE_PORT), "np/red/only-x|ingress|0")
    end = f"tier/default|{town.parties['p0'].interface}|ingress"
    assert town.denied(Probe("Z", "node", version, TCP, NODE_PORT), end)  # in the place of a node that masquerades


def test_p101_a_pod_that_reaches_itself_by_a_service_is_its_own_source(town: HostTown, version: int) -> None:
    policy = "selector: app == 'p0', types: [Ingress], ingress: [{action: Allow, source: {selector: app == 'p1'}}]"
    town.hold(document("NetworkPolicy", "only-p1", policy, namespace="red"))
    end = f"tier/default|{town.parties['p0'].interface}|ingress"
    assert town.denied(Probe("p0", "node", version, TCP, NODE_PORT), end)
    assert town.arrives(Probe("p1", "node", version, TCP, NODE_PORT), "np/red/only-p1|ingress|0")


def test_p111_the_classes_of_hosts_are_nothing_to_pods(town: HostTown, version: int) -> None:
    town.hold(
        gnp("pre", "{action: Deny}", PRE_DNAT, selector="has(app)"),
        gnp("raw", "{action: Deny}", UNTRACKED, selector="has(app)"),
    )
    assert town.arrives(Probe("p0", "p1", version, TCP, 8080), KNS)


# --- beyond the catalogue --------------------------------------------------------------------------------------------


def test_the_host_reaches_its_pods_whatever_it_may_do_outside(town: HostTown, version: int) -> None:
    town.hold(hep("*", "all"), gnp("out", "{action: Deny}", types="Egress"), CLOSED_POD)
    assert town.arrives(Probe("node", "p0", version, TCP, 8080))
    assert town.denied(Probe("node", "X", version, TCP, 8080), rule("out", 0, "egress"))


def test_what_the_host_translates_is_judged_where_it_leaves(town: HostTown, version: int) -> None:
    """Before it is translated the way to V is by eth0; to Z, which is behind V, by eth1."""
    town.hold(hep("eth0", "uplink"), hep("eth1", "second", OPEN))
    assert town.arrives(Probe("node", "V", version, TCP, 80), f"profile/{OPEN}|egress|0")
    town.hold(hep("eth0", "uplink", OPEN), hep("eth1", "second"))
    assert town.denied(Probe("node", "V", version, TCP, 80), "hep/second|normal|egress|no-profile")


def test_a_pod_s_translated_packets_are_not_the_host_s(town: HostTown, version: int) -> None:
    town.hold(hep("*", "all"))
    assert town.arrives(Probe("p0", "V", version, TCP, 80))
    assert town.denied(Probe("node", "V", version, TCP, 80), "hep/all|normal|egress|no-profile")


def test_forward_policy_where_packets_leave(town: HostTown, version: int) -> None:
    town.hold(hep("eth1", "uplink"), gnp("aof", f"{ports('Deny', 9090)}, {{action: Allow}}", FORWARD, types="Egress"))
    assert town.denied(Probe("X", "Z", version, TCP, 9090), rule("aof", 0, "egress"))
    assert town.arrives(Probe("X", "Z", version, TCP, 80), rule("aof", 1, "egress"))
    assert town.arrives(Probe("Z", "X", version, TCP, 9090))  # nothing is said about what comes in there


def test_failsafes_of_one_s_own(town: HostTown, version: int) -> None:
    near = "198.51.100.0/24" if version == 4 else "2001:db8:51::/64"
    ports = f"failsafeInboundHostPorts: [{{protocol: tcp, port: 80, net: '{near}'}}]"
    town.hold(hep(), hep("eth1", "other"), felix(ports))
    assert town.arrives(Probe("X", "node", version, TCP, 80), PORT.format("ingress"))
    assert town.denied(Probe("Z", "node", version, TCP, 80), "hep/other|normal|ingress|no-profile")
    assert town.denied(Probe("X", "node", version, TCP, 22), NOBODY.format("ingress"))
    assert town.arrives(Probe("node", "X", version, UDP, 53), PORT.format("egress"))


def test_no_failsafes_at_all(town: HostTown, version: int) -> None:
    town.hold(hep(), felix("failsafeInboundHostPorts: [], failsafeOutboundHostPorts: []"))
    assert town.denied(Probe("X", "node", version, TCP, 22), NOBODY.format("ingress"))
    assert town.denied(Probe("node", "X", version, UDP, 53), NOBODY.format("egress"))


def test_a_closed_host_still_has_neighbours(town: HostTown, version: int) -> None:
    """Of IPv6: without them not even a failsafe is of use. ARP is not policy's to see."""
    closed = (gnp("in", "{action: Deny}", UNTRACKED), gnp("out", "{action: Deny}", UNTRACKED, types="Egress"))
    town.hold(hep(), *closed, gnp("pre", "{action: Deny}", PRE_DNAT), felix("failsafeOutboundHostPorts: []"))
    for party in ("node", "X"):
        town.ip(party, "neigh", "flush", "dev", "eth0")
    assert town.exchange(Probe("X", "node", version, TCP, 22))


def test_rejected_rather_than_dropped(town: HostTown, version: int) -> None:
    town.hold(hep(), felix("nftablesFilterDenyAction: Reject"))
    with town.parties["X"].open(version, socket.SOCK_DGRAM) as asking:
        asking.settimeout(PATIENCE)
        asking.connect((str(town.node.ips[version]), 80))
        asking.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(1)


def test_what_is_established_outlives_a_new_policy(town: HostTown, version: int) -> None:
    town.hold(hep(profiles=OPEN))
    with town.parties["X"].open(version, socket.SOCK_DGRAM) as sender:
        sender.bind((str(town.parties["X"].ips[version]), 30333))
        destination = str(town.node.ips[version]), 9090
        sender.sendto(b"first", destination)
        answering = next(
            made for made, family, protocol in town.node.sockets.values()
            if (family, protocol) == (version, UDP) and made.getsockname()[1] == 9090
        )  # fmt: skip
        answering.settimeout(3)
        try:
            _, peer = answering.recvfrom(100)
            answering.sendto(b"answer", peer)
            town.hold(hep())
            sender.sendto(b"second", destination)
            assert answering.recvfrom(100)[0] == b"second"
        finally:
            answering.setblocking(False)
    assert town.denied(Probe("X", "node", version, UDP, 9090), NOBODY.format("ingress"))


def test_a_host_endpoint_that_goes_leaves_nothing(town: HostTown, version: int) -> None:
    town.hold()
    before = town.table()
    town.hold(hep("*", "all"), hep(), *untracked_web(), gnp("pre", "{action: Deny}", PRE_DNAT), problems=1)
    assert town.table() != before
    town.hold()
    assert town.table() == before
    assert town.arrives(Probe("X", "node", version, TCP, 80))


def test_named_by_its_address(town: HostTown, version: int) -> None:
    address = '"2001:db8:2::1"' if version == 6 else "192.0.2.1"
    town.hold(hep("", ips=address))
    assert town.denied(Probe("Z", "node", version, TCP, 80), NOBODY.format("ingress"))
    assert town.arrives(Probe("X", "node", version, TCP, 80))


def test_an_address_in_the_sets_of_policy(town: HostTown, version: int) -> None:
    """What other policies say about the labels of a host endpoint holds of its expectedIPs, named ports included."""
    x = str(town.parties["X"].ips[version])
    far = (
        f"node: elsewhere, interfaceName: eth0, expectedIPs: ['{x}'], ports: [{{name: web, protocol: TCP, port: 9090}}]"
    )
    policy = """selector: app == 'p0', types: [Ingress, Egress],
        ingress: [{action: Allow, source: {selector: role == 'far', namespaceSelector: global()}}],
        egress: [{action: Allow, protocol: TCP, destination: {ports: [web], selector: role == 'far',
                  namespaceSelector: global()}}]"""
    town.hold(
        document("HostEndpoint", "far", far, "role: far"), document("NetworkPolicy", "far", policy, namespace="red")
    )
    assert town.arrives(Probe("X", "p0", version, TCP, 80), "np/red/far|ingress|0")
    assert town.arrives(Probe("p0", "X", version, TCP, 9090), "np/red/far|egress|0")
    end = f"tier/default|{town.parties['p0'].interface}|"
    assert town.denied(Probe("Z", "p0", version, TCP, 80), f"{end}ingress")
    assert town.denied(Probe("p0", "X", version, TCP, 80), f"{end}egress")


def test_an_interface_that_comes_later_is_covered_from_its_first_packet(town: HostTown, version: int) -> None:
    """No change of the table is needed: the general host endpoint is the default of the dispatch."""
    town.hold(hep("*", "all"))
    table = town.table()
    town.ip("node", "link", "add", "late", "type", "veth", "peer", "late", "netns", f"{town.name}-Z")
    try:
        address = ("203.0.113.{}/24", "2001:db8:113::{}/64")[version == 6]
        for party, last in (("node", 1), ("Z", 9)):
            town.ip(party, "addr", "add", address.format(last), "dev", "late", *(["nodad"] if version == 6 else []))
            town.ip(party, "link", "set", "late", "up")
        late = town.parties["Z"].open(version, socket.SOCK_DGRAM)
        with late:
            before = town.counters().get("hep/all|normal|ingress|no-profile", 0)
            late.sendto(b"?", (address.format(1).partition("/")[0], 80))

            assert until(lambda: town.counters().get("hep/all|normal|ingress|no-profile", 0) > before)
        assert town.table() == table
    finally:
        town.ip("node", "link", "del", "late")


def test_interfaces_are_read_with_their_addresses(town: HostTown, version: int) -> None:
    found = host_interfaces(town.node.netns)
    assert town.node.ips[version] in found["eth0"]
    assert found.keys() >= {"lo", "eth0", "eth1"}
    assert not any(name.startswith("cali") for name in found)


VXLAN_POOLS = (
    document("IPPool", "four", "cidr: 10.244.0.0/16, vxlanMode: Always"),
    document("IPPool", "six", "cidr: 'fd00:244::/64', vxlanMode: Always"),
)


@pytest.mark.parametrize(("party", "rule"), [("X", "VXLAN from no node"), ("Z", "VXLAN from a node")])
def test_p69_vxlan_comes_from_nodes_only(town: HostTown, version: int, party: str, rule: str) -> None:
    net = "192.0.2.0/24" if version == 4 else "2001:db8:2::/64"
    town.hold(*VXLAN_POOLS, felix(f"externalNodesList: ['{net}']"))
    before = town.counters().get(rule, 0)
    with town.parties[party].open(version, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"?", (str(town.node.ips[version]), 4789))
        assert until(lambda: town.counters().get(rule, 0) > before)
    assert town.tracked(version, 4789) == []
    town.hold()
    assert "tunnels" not in town.table()


def test_ip_in_ip_comes_from_nodes_only(town: HostTown, version: int) -> None:
    """It carries IPv4, over IPv4."""
    town.hold(document("IPPool", "old", "cidr: 10.244.0.0/16, ipipMode: Always"))
    before = town.counters().get("IPIP from no node", 0)
    with town.parties["X"].open(version, socket.SOCK_RAW, socket.IPPROTO_IPIP) as sender:
        sender.sendto(b"?", (str(town.node.ips[version]), 0))
        if version == 4:
            assert until(lambda: town.counters().get("IPIP from no node", 0) > before)
            return
    assert town.arrives(Probe("X", "node", version, UDP, 80))  # which came later
    assert town.counters().get("IPIP from no node", 0) == before


def test_nobody_can_bring_the_accept_mark_along(town: HostTown, version: int) -> None:
    """A process with CAP_NET_ADMIN gives its packets any mark; this one means something here. The interface that it
    sends by has no untracked policy."""
    town.hold(hep(), untracked_web()[1], hep("eth1", "quiet").replace("role: host", "role: quiet"))
    with town.node.open(version, socket.SOCK_DGRAM) as marked:
        marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x10000)
        before = town.counters().get("hep/quiet|normal|egress|no-profile", 0)
        with pytest.raises(PermissionError):
            marked.sendto(b"?", (str(town.parties["Z"].ips[version]), 80))
        assert town.counters()["hep/quiet|normal|egress|no-profile"] > before
