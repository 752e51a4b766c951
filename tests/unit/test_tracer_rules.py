"""What the tracer makes of single rules, hooks and translations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tortie.base.addr import parse_ip, parse_net
from tortie.calc.cluster import Cluster
from tortie.model.document import parse
from tortie.policy.verdict import Packet
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import Chain, Ruleset, Set
from tortie.testing.tracer import Host, NotUnderstood, Trace, Tracer
from tortie.testing.tracer.elements import elements_of
from tortie.testing.tracer.rule import parse_rule

HOST = Host(
    {parse_ip("192.0.2.1"): "eth0", parse_ip("2001:db8::1"): "eth0"},
    (
        (parse_net("10.0.0.1/32"), "cali1"),
        (parse_net("10.0.0.2/32"), "cali2"),
        (parse_net("0.0.0.0/0"), "eth0"),
        (parse_net("::/0"), "eth0"),
    ),
)
FORWARD = "type filter hook forward priority filter; policy accept;"
SETS = {
    "hosts": Set(
        "type ipv4_addr; flags interval;", frozenset({"10.0.0.0/24", "192.0.2.7", "198.51.100.1-198.51.100.5"})
    ),
    "ports": Set("type ipv4_addr . inet_proto . inet_service;", frozenset({"10.0.0.2 . 6 . 80"})),
    "nets": Set(
        "type ifname . ipv4_addr; flags interval;", frozenset({'"cali1" . 10.0.0.0/30', '"cali2" . 10.1.0.0/16'})
    ),
    "ways": Set("type ifname : verdict;", frozenset({'"cali1" : goto deny', '"eth0" : return'}), is_map=True),
    "moved": Set("type ipv4_addr : ipv4_addr;", frozenset({"203.0.113.5 : 10.0.0.2"}), is_map=True),
}


def packet(source: str = "10.0.0.1", destination: str = "10.0.0.2", protocol: int = 6, **more: Any) -> Packet:
    ports = {"source_port": 40000, "destination_port": 80} | more
    return Packet(parse_ip(source), parse_ip(destination), protocol, **ports)


def tracer(*rules: str, chains: Mapping[str, Chain] | None = None) -> Tracer:
    every = {"forward": Chain(rules, FORWARD), "deny": Chain(("counter drop",)), **(chains or {})}
    return Tracer(Ruleset(every, SETS), HOST)


def matched(rule: str, one: Packet, **more: Any) -> bool:
    return not tracer(f"{rule} drop").trace(one, **({"interface": "cali1"} | more)).allowed


TCP, ECHO = packet(), packet(protocol=1, icmp_type=8)
SIX = packet("2001:db8::5", "2001:db8::6", 58, icmp_type=135)


@pytest.mark.parametrize(
    ("rule", "one", "expected"),
    [
        ("ip saddr 10.0.0.1", TCP, True),
        ("ip saddr != 10.0.0.1", TCP, False),
        ("ip saddr 10.0.0.0/31", TCP, True),
        ("ip saddr 10.0.0.2-10.0.0.9", TCP, False),
        ("ip saddr { 10.0.0.0/31, 192.0.2.1 }", TCP, True),
        ("ip saddr @hosts", TCP, True),
        ("ip daddr @hosts", packet(destination="198.51.100.5"), True),
        ("ip daddr @hosts", packet(destination="198.51.100.6"), False),
        ("ip daddr != @hosts", packet(destination="198.51.100.6"), True),
        ("ip saddr 10.0.0.1", SIX, False),
        ("ip saddr != 10.0.0.1", SIX, False),  # there is no such thing in the packet
        ("ip6 saddr 2001:db8::/64", SIX, True),
        ("ip6 saddr 2001:db8::/64", TCP, False),
        ("meta nfproto ipv4", TCP, True),
        ("meta nfproto ipv6", TCP, False),
        ("meta l4proto 6", TCP, True),
        ("meta l4proto { tcp, udp }", TCP, True),
        ("meta l4proto != 17", TCP, True),
        ("ip protocol 6", TCP, True),
        ("th dport 80", TCP, True),
        ("th dport { 53, 80-90 }", TCP, True),
        ("th dport != { 53, 80-90 }", TCP, False),
        ("tcp dport 80", TCP, True),
        ("udp dport 80", TCP, False),
        ("udp dport != 80", TCP, False),
        ("th sport 40000-41000", TCP, True),
        ("th dport 0-65535", ECHO, False),
        ("ip daddr . meta l4proto . th dport @ports", TCP, True),
        ("ip daddr . meta l4proto . th dport != @ports", TCP, False),
        ("ip daddr . meta l4proto . th dport != @ports", ECHO, True),
        ("iifname . ip saddr @nets", TCP, True),
        ("iifname . ip saddr @nets", packet("10.0.0.4"), False),
        ('iifname "cali*"', TCP, True),
        ('iifname != "cali*"', TCP, False),
        ('iifname { "eth0", "cali*" }', TCP, True),
        ('oifname "cali2"', TCP, True),
        ("iif != 0", TCP, True),
        ("icmp type 8", ECHO, True),
        ("icmp type 8 icmp code 3", ECHO, False),
        ("icmp type != 8", ECHO, False),
        ("icmp type != 8", TCP, False),
        ("icmpv6 type { 133, 135 }", SIX, True),
        ("icmpv6 type nd-neighbor-solicit", SIX, True),
        ("tcp flags & (fin | syn | rst | ack) != syn", TCP, False),
        ("tcp flags syn", TCP, True),
        ("ct state new", TCP, True),
        ("ct state established,related", TCP, False),
        ("ct state { established, related, new }", TCP, True),
        ("ct status dnat", TCP, False),
        ("ct original ip daddr 10.0.0.2", TCP, True),
        ("fib daddr type local", TCP, False),
        ("fib saddr . iif oif missing", TCP, False),
        ("fib saddr . iif oif missing", packet("10.0.0.9"), True),
        ("meta mark & 0x00010000 == 0", TCP, True),
        ("meta mark set meta mark | 0x3 & 0x2 meta mark 0x2", TCP, True),
        ("limit rate 100/second burst 200 packets log group 86 snaplen 128", TCP, True),
        ("limit rate over 100/second burst 200 packets", TCP, False),
        ("meta l4proto 6 ct count over 20", TCP, False),
        ("counter log prefix \"a 'b': {, \"", TCP, True),
    ],
)
def test_a_rule_matches(rule: str, one: Packet, expected: bool) -> None:
    assert matched(rule, one) is expected


@pytest.mark.parametrize(
    "rule",
    [
        "queue num 1",
        "ip length 20 drop",
        "meta cpu 1 drop",
        "ct state != established,related drop",
        "ip saddr @nowhere drop",
        "jump nowhere",
        "th dport http drop",
        'drop comment "x" counter',
        "ip saddr",
        "meta mark & 0x1 drop",
    ],
)
def test_what_is_not_known_is_refused(rule: str) -> None:
    with pytest.raises(NotUnderstood) as refused:
        tracer(rule).trace(TCP, "cali1")
    assert any(word.strip("@") in str(refused.value) for word in rule.split())


def test_jump_comes_back_and_goto_does_not() -> None:
    chains = {"side": Chain(('ip saddr 10.9.9.9 counter drop comment "side"', "return", "drop"))}
    assert not tracer("jump side", 'counter drop comment "after"', chains=chains).trace(TCP, "cali1").allowed
    assert tracer("goto side", "drop", chains=chains).trace(TCP, "cali1").allowed
    assert not tracer("iifname vmap @ways", chains=chains).trace(TCP, "cali1").allowed
    assert tracer("iifname vmap @ways", "drop", chains=chains).trace(TCP, "eth0").allowed
    assert not tracer("iifname vmap @ways", "drop", chains=chains).trace(TCP, "cali2").allowed


def test_accept_ends_its_own_base_chain_alone() -> None:
    later = Chain(('counter drop comment "later"',), "type filter hook forward priority filter + 2; policy accept;")
    trace = tracer('accept comment "first"', chains={"later": later}).trace(TCP, "cali1")
    assert (trace.verdict, trace.rule) == ("drop", "later")
    assert trace.counters == {"later": 1}


def test_a_denial_is_named_by_the_rule_that_led_there() -> None:
    rule = 'th dport 80 counter meta mark set 0x5f1c0a3e goto denied comment "np/red/web|ingress|0"'
    denied = Chain(("limit rate 1/second log group 86", "reject with icmpx admin-prohibited"))
    found = tracer(rule, chains={"denied": denied}).trace(TCP, "cali1")
    assert (found.verdict, found.rule, found.mark) == ("reject", "np/red/web|ingress|0", 0x5F1C0A3E)


EVERYTHING = """
{apiVersion: v1, kind: Namespace, metadata: {name: red}}
---
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: n1}, spec: {bgp: {ipv4Address: 192.0.2.1/24}}}
---
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: n2}, spec: {bgp: {ipv4Address: 192.0.2.2/24}}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: four}
spec: {cidr: 10.244.0.0/17, natOutgoing: true, vxlanMode: Always}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: other}
spec: {cidr: 10.244.128.0/17, natOutgoing: true, ipipMode: Always}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default, annotations: {tortie.dev/established-flows: Cut}}
spec:
  natOutgoingAddress: 192.0.2.9
  natOutgoingExclusions: IPPoolsAndHostIPs
  workloadSourceSpoofing: Any
  externalNodesList: [198.51.100.0/24]
  logActionRateLimit: 10/second
  nftablesFilterDenyAction: Reject
  failsafeInboundHostPorts: [{protocol: TCP, port: 22, net: 0.0.0.0/0}, {protocol: UDP, port: 68}]
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: web, namespace: red, labels: {app: web, projectcalico.org/namespace: red}}
spec:
  node: n1
  pod: web
  interfaceName: cali0000000web
  profiles: [kns.red]
  ipNetworks: [10.244.1.10/32, "fd00:244::10/128"]
  ipNATs: [{internalIP: 10.244.1.10, externalIP: 203.0.113.7}]
  allowSpoofedSourcePrefixes: [10.9.0.0/16, 0.0.0.0/0]
  qosControls:
    {ingressPacketRate: 100, egressPacketRate: 100, ingressMaxConnections: 10, egressMaxConnections: 10, dscp: 46}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: one}
spec: {node: n1, interfaceName: eth0, expectedIPs: [192.0.2.1]}
---
{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: all}, spec: {node: n1, interfaceName: "*"}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: some}
spec:
  types: [Ingress, Egress]
  applyOnForward: true
  ingress: [{action: Log}, {action: Pass}]
  egress: [{action: Deny, protocol: 47}]
---
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: staged}
spec: {tier: alone, types: [Ingress, Egress], ingress: [{action: Log}, {action: Allow, protocol: SCTP}]}
"""


def test_all_that_the_renderer_writes_is_understood() -> None:
    cluster = Cluster("n1")
    for resource in parse(EVERYTHING):
        cluster.put(resource)
    assert not cluster.problems
    ruleset = NftRenderer().render(cluster.state(), {"eth0": frozenset({parse_ip("192.0.2.1")})})
    for chain in ruleset.chains.values():
        for rule in chain.rules:
            parse_rule(rule)
    for declared in ruleset.sets.values():
        elements_of(declared)
    tracer = Tracer(ruleset, HOST)
    denied = "tier/default|cali0000000web|egress"
    assert tracer.trace(packet("10.244.1.10", "10.0.0.2"), "cali0000000web").rule == denied
    assert tracer.trace(packet("10.0.0.1", "10.244.1.10"), "cali1").rule == "no endpoint: from interface"
    # What is left of a connection whose entry was deleted.
    assert "in the middle of a connection" in tracer.trace(packet("192.0.2.1", "10.0.0.2"), tcp="ack").rule


def hooks(trace: Trace) -> list[str]:
    return [line.hook for line in trace.lines]


@pytest.mark.parametrize(
    ("source", "destination", "interface", "expected"),
    [
        ("10.0.0.1", "10.0.0.2", "cali1", ["prerouting", "forward", "postrouting"]),
        ("10.0.0.1", "198.51.100.9", "cali1", ["prerouting", "forward", "postrouting"]),
        ("198.51.100.9", "10.0.0.1", "eth0", ["prerouting", "forward", "postrouting"]),
        ("10.0.0.1", "192.0.2.1", "cali1", ["prerouting", "input"]),
        ("192.0.2.1", "10.0.0.1", "", ["output", "postrouting"]),
        ("192.0.2.1", "198.51.100.9", "", ["output", "postrouting"]),
        ("127.0.0.1", "127.0.0.1", "", ["output", "postrouting", "prerouting", "input"]),
    ],
)
def test_every_packet_takes_its_own_hooks(source: str, destination: str, interface: str, expected: list[str]) -> None:
    names = ("prerouting", "input", "forward", "output", "postrouting")
    chains = {name: Chain(("counter",), f"type filter hook {name} priority filter; policy accept;") for name in names}
    trace = Tracer(Ruleset(chains, {}), HOST).trace(packet(source, destination), interface)
    assert hooks(trace) == expected


def test_hooks_run_by_priority_and_see_connections_from_tracking_on() -> None:
    chains = {
        "b": Chain(("ct state new counter",), "type filter hook prerouting priority mangle; policy accept;"),
        "a": Chain(("ct state invalid counter",), "type filter hook prerouting priority raw + 1; policy accept;"),
        "c": Chain(("ct state new counter",), "type filter hook prerouting priority -90; policy accept;"),
    }
    trace = Tracer(Ruleset(chains, {}), HOST).trace(TCP, "cali1")
    assert [line.chain for line in trace.lines] == ["a", "b", "c"]


def test_what_is_not_tracked_meets_no_nat() -> None:
    chains = {
        "raw": Chain(("notrack",), "type filter hook prerouting priority raw; policy accept;"),
        "nat": Chain(("dnat ip to 10.0.0.2",), "type nat hook prerouting priority dstnat; policy accept;"),
        "forward": Chain(("ct state untracked counter drop",), FORWARD),
    }
    trace = Tracer(Ruleset(chains, {}), HOST).trace(packet(destination="198.51.100.9"), "cali1")
    assert (trace.tracked, trace.verdict, [line.chain for line in trace.lines]) == (False, "drop", ["raw", "forward"])


NAT = {
    "dst": Chain(("dnat ip to ip daddr map @moved",), "type nat hook prerouting priority dstnat; policy accept;"),
    "out": Chain(("dnat ip to ip daddr map @moved",), "type nat hook output priority -100; policy accept;"),
    "src": Chain(
        ('oifname "eth0" counter masquerade comment "out"', "ip saddr 10.0.0.2 snat ip to 203.0.113.5:1024"),
        "type nat hook postrouting priority srcnat + 10; policy accept;",
    ),
}


def test_a_destination_is_replaced_once_and_routed_anew() -> None:
    rule = "ct status dnat ip daddr 10.0.0.2 ct original ip daddr 203.0.113.5 counter"
    chains = {**NAT, "forward": Chain((rule,), FORWARD)}
    trace = Tracer(Ruleset(chains, SETS), HOST).trace(packet("198.51.100.9", "203.0.113.5"), "eth0")
    assert (trace.allowed, str(trace.destination), trace.interface) == (True, "10.0.0.2", "cali2")
    assert [line.chain for line in trace.lines] == ["dst", "forward"]
    sent = Tracer(Ruleset(chains, SETS), HOST).trace(packet("192.0.2.1", "203.0.113.5"))
    assert (str(sent.destination), sent.interface) == ("10.0.0.2", "cali2")


def test_a_source_is_replaced() -> None:
    out = Tracer(Ruleset({"src": NAT["src"]}, SETS), HOST).trace(packet("10.0.0.2", "198.51.100.9"), "cali2")
    assert (str(out.source), out.counters) == ("192.0.2.1", {"out": 1})
    looped = Tracer(Ruleset({"src": NAT["src"]}, SETS), HOST).trace(packet("10.0.0.2", "10.0.0.1"), "cali2")
    assert str(looped.source) == "203.0.113.5"


def test_what_is_established_meets_no_nat() -> None:
    trace = Tracer(Ruleset(NAT, SETS), HOST).trace(packet("10.0.0.2", "198.51.100.9"), "cali2", state="established")
    assert trace.lines == ()


def test_a_base_chain_may_drop_by_policy() -> None:
    chains = {"forward": Chain(("th dport 443 accept",), FORWARD.replace("policy accept", "policy drop"))}
    trace = Tracer(Ruleset(chains, {}), HOST).trace(TCP, "cali1")
    assert (trace.verdict, trace.rule) == ("drop", "")


def test_a_trace_can_be_read() -> None:
    trace = tracer("jump side", chains={"side": Chain(('th dport 80 counter drop comment "web"',))}).trace(TCP, "cali1")
    assert str(trace) == (
        "packet 10.0.0.1 > 10.0.0.2 protocol 6 port 40000 > 80\n"
        "forward     forward  rule jump side (verdict jump side)\n"
        'forward     side  rule th dport 80 counter drop comment "web" (verdict drop)\n'
        "drop by web"
    )
