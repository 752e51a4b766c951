"""What `explain` says of a connection: every station, what is translated on the way, and by which road it goes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from situations import NODES, PODS, base, calico, cluster_of, felix, gnp, gns, np, tier

from tortie.base.errors import ConfigError, NotFound
from tortie.calc.explain import Explainer, Explanation
from tortie.cli.explain import Question, explained
from tortie.cli.main import main
from tortie.model.document import parse

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: red}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: red, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.244.1.10], conditions: {ready: true}}
- {addresses: [10.244.2.10]}
- {addresses: [10.244.1.11], conditions: {ready: false}}
ports: [{name: http, port: 8080, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: red, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
endpoints: [{addresses: ["fd00:244:1::10"], conditions: {ready: true}}]
ports: [{name: http, port: 8080, protocol: TCP}]
"""
BLOCKS = """
{apiVersion: crd.projectcalico.org/v1, kind: BlockAffinity, metadata: {name: n2-10-244-2-0-26},
 spec: {cidr: 10.244.2.0/26, node: n2, state: confirmed}}
"""
PLAIN = NODES.replace("vxlanMode: Always, ", "")
TUNNELS = NODES.replace('::1/64"}}', '::1/64"}, ipv4VXLANTunnelAddr: 10.244.1.0}').replace(
    '::2/64"}}', '::2/64"}, ipv4VXLANTunnelAddr: 10.244.2.0}'
)
"""The nodes, whose ends of their tunnels are there."""


def explainer(*documents: str, pods: str = PODS, nodes: str = NODES) -> Explainer:
    resources = [*parse(nodes), *parse(pods), *(one for text in documents for one in parse(text))]
    return Explainer(cluster_of(resources), resources)


def told(
    asked: Explainer,
    source: str,
    destination: str,
    port: int = 80,
    protocol: str = "tcp",
    version: int = 4,
    **more: object,
) -> Explanation:
    (one,) = asked.parties(source, protocol, port)
    (other,) = asked.parties(destination, protocol, port)
    return asked.explain(one, other, protocol, port, version, **more)  # type: ignore[arg-type]


def stations(explanation: Explanation) -> list[tuple[str, str, bool]]:
    return [(step.hook, step.node, step.allowed) for step in explanation.steps]


# --- who can be asked about ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "node", "interface"),
    [
        ("red/a", "red/a", "n1", "cali00000000a"),
        ("10.244.1.10", "red/a", "n1", "cali00000000a"),
        ("n1", "n1", "n1", ""),
        ("node/n2", "n2", "n2", ""),
        ("10.0.0.2", "10.0.0.2", "n2", ""),
        ("fd00:10::2", "fd00:10::2", "n2", ""),
        ("198.51.100.9", "198.51.100.9", "", ""),
    ],
)
def test_words_for_parties(text: str, name: str, node: str, interface: str) -> None:
    party = explainer().party(text)
    assert (party.name, party.node, party.interface) == (name, node, interface)


def test_a_node_whose_name_has_dots() -> None:
    node = calico("Node", "host-1.example.com", "bgp: {ipv4Address: 10.0.0.7/24}")
    assert explainer(node).party("host-1.example.com").node == "host-1.example.com"
    assert explainer(node).party("node/host-1.example.com").ip(4) is not None


def test_a_pod_comes_before_a_node_of_its_name() -> None:
    pods = PODS.replace("namespace: red", "namespace: default", 1).replace("pod: a", "pod: n1", 1)
    asked = explainer(pods=pods)
    assert asked.party("n1").interface == "cali00000000a"
    assert asked.party("node/n1").interface == ""


@pytest.mark.parametrize(
    ("text", "error"),
    [("red/nobody", NotFound), ("nobody", NotFound), ("300.1.2.3", ConfigError), ("10.0.0.0/8", ConfigError),
     ("fd00::/64", ConfigError), ("node:n1", ConfigError), ("svc/red/web", NotFound),
     ("gns/none", NotFound), ("netset/red/none", NotFound), ("node/n9", NotFound),
     ("svc/web:80", ConfigError), ("svc/", ConfigError)],
)  # fmt: skip
def test_nobody(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        explainer().party(text)


def test_network_sets_stand_for_their_networks() -> None:
    asked = explainer(gns("ext", "198.51.100.0/24, 203.0.113.7/32", "bad: 'true'"))
    parties = asked.parties("gns/ext")
    assert {party.name: party.sets for party in parties} == {
        "198.51.100.1": ("gns/ext",),
        "203.0.113.7": ("gns/ext",),
    }
    assert asked.party("198.51.100.9").sets == ("gns/ext",)
    assert asked.party("192.0.2.1").sets == ()
    with pytest.raises(ConfigError, match=r"198\.51\.100\.1, 203\.0\.113\.7"):
        asked.party("gns/ext")


def test_a_port_by_its_name() -> None:
    asked = explainer()
    assert asked.port(asked.party("red/a"), "tcp", "http") == 8080
    with pytest.raises(ConfigError, match=r'"https".*are http'):
        asked.port(asked.party("red/a"), "tcp", "https")
    with pytest.raises(ConfigError, match="no udp ports"):
        asked.port(asked.party("red/a"), "udp", "http")


# --- services -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["svc/red/web", "svc/red/web:http", "10.96.0.10"])
def test_a_service_is_each_of_its_ready_backends(text: str) -> None:
    asked = explainer(SERVICE)
    assert [party.name for party in asked.parties(text, "tcp", 80)] == ["red/a", "blue/d"]
    closed = np("selector: app == 'web', ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]")
    asked = explainer(SERVICE, closed)
    source = asked.party("red/b")
    near, far = (asked.explain(source, to, "tcp", 80, 4) for to in asked.parties(text, "tcp", 80))
    assert stations(near) == [("prerouting", "n1", True), ("egress", "n1", True), ("ingress", "n1", False)]
    assert stations(far) == [("prerouting", "n1", True), ("egress", "n1", True), ("ingress", "n2", True)]
    assert "10.244.1.10:8080" in near.steps[0].reason
    assert "one of 2 backends" in near.steps[0].reason
    assert near.port == 80


def test_policy_sees_the_port_behind_the_service() -> None:
    opened = np("selector: app == 'web', ingress: [{action: Allow, protocol: TCP, destination: {ports: [http]}}]")
    asked = explainer(SERVICE, opened)
    to = asked.parties("svc/red/web:http", "tcp", 0)[0]
    for version in (4, 6):
        explanation = asked.explain(asked.party("red/b"), to, "tcp", 80, version)
        assert explanation.allowed
        assert explanation.steps[-1].rule == "np/red/n|ingress|0"


def test_a_pod_that_reaches_itself_by_a_service_leaves_and_comes_back() -> None:
    closed = np("selector: app == 'web', ingress: [{action: Allow, source: {selector: app == 'db'}}]")
    asked = explainer(SERVICE, closed)
    to = asked.parties("svc/red/web", "tcp", 80)[0]
    explanation = asked.explain(asked.party("red/a"), to, "tcp", 80, 4)
    assert stations(explanation) == [("prerouting", "n1", True), ("egress", "n1", True), ("ingress", "n1", False)]
    assert stations(told(asked, "red/a", "red/a")) == [("inside the pod", "n1", True)]


def test_a_process_and_somebody_outside_at_a_service() -> None:
    asked = explainer(SERVICE)
    near, far = asked.parties("svc/red/web", "tcp", 80)
    node, outside = asked.party("n1"), asked.party("198.51.100.9")
    assert stations(asked.explain(node, near, "tcp", 80, 4)) == [("output", "n1", True), ("ingress", "n1", True)]
    assert stations(asked.explain(node, far, "tcp", 80, 4)) == [("output", "n1", True), ("ingress", "n2", True)]
    assert stations(asked.explain(outside, far, "tcp", 80, 4)) == [("prerouting", "n2", True), ("ingress", "n2", True)]


@pytest.mark.parametrize(("protocol", "port", "why"), [("tcp", 81, "80/TCP \\(http\\)"), ("sctp", 80, "no port 80")])
def test_a_port_that_a_service_does_not_have(protocol: str, port: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        explainer(SERVICE).parties("svc/red/web", protocol, port)
    with pytest.raises(NotFound, match="no ready backend"):
        explainer(SERVICE).parties("svc/red/web", "udp", 53)


# --- translation and routes ---------------------------------------------------------------------------------------

FLOATING = PODS.replace(
    "    mac: 02:00:00:00:00:0a\n",
    "    mac: 02:00:00:00:00:0a\n    ipNATs: [{internalIP: 10.244.1.10, externalIP: 203.0.113.5}]\n",
)


def test_a_floating_ip_leads_to_its_pod() -> None:
    asked = explainer(
        np("selector: app == 'web', ingress: [{action: Allow, source: {nets: [198.51.100.0/24]}}]"), pods=FLOATING
    )
    outside = told(asked, "198.51.100.9", "203.0.113.5")
    assert stations(outside) == [("prerouting", "n1", True), ("ingress", "n1", True)]
    assert "203.0.113.5 leads to red/a" in outside.steps[0].reason
    same_node = told(asked, "red/b", "203.0.113.5")
    assert stations(same_node) == [("prerouting", "n1", True), ("egress", "n1", True), ("ingress", "n1", False)]


def test_a_floating_ip_of_another_node_is_outside_until_the_packet_is_there() -> None:
    """The pod's node translates; on the way there the sender's egress policy sees the floating IP, and natOutgoing
    gives the packet the sender's node's address."""
    denied = gnp(
        "selector: app == 'client', types: [Egress], egress: [{action: Deny, destination: {nets: [203.0.113.5/32]}}]"
    )
    asked = explainer(denied, pods=FLOATING)
    assert stations(told(asked, "blue/d", "203.0.113.5")) == [("egress", "n2", False)]
    only_n2 = np("selector: app == 'web', ingress: [{action: Allow, source: {nets: [10.0.0.2/32]}}]")
    explanation = told(explainer(only_n2, pods=FLOATING), "blue/d", "203.0.113.5")
    assert stations(explanation) == [
        ("egress", "n2", True),
        ("postrouting", "n2", True),
        ("prerouting", "n1", True),
        ("ingress", "n1", True),
    ]


def test_a_pod_at_its_own_floating_ip() -> None:
    explanation = told(explainer(pods=FLOATING), "red/a", "203.0.113.5")
    assert [step.hook for step in explanation.steps] == ["prerouting", "egress", "ingress", "postrouting"]
    assert "203.0.113.5" in explanation.steps[-1].reason


def test_routes_say_whose_block_it_is() -> None:
    asked = explainer(BLOCKS, nodes=PLAIN)
    explanation = told(asked, "red/a", "blue/d")
    leaving, arriving = explanation.routes
    assert (leaving.node, str(leaving.block), leaving.owner, leaving.interface) == (
        "n1",
        "10.244.2.0/26",
        "n2",
        "cali00000000a",
    )
    assert leaving.words == "block of n2"
    assert (arriving.node, arriving.out) == ("n2", "cali00000000d")
    assert told(explainer(BLOCKS), "red/a", "blue/d").routes[0].words == "block of n2, in VXLAN"
    assert [route.out for route in told(asked, "red/a", "red/b").routes] == ["cali00000000b"]
    assert [route.words for route in told(asked, "red/a", "198.51.100.9").routes] == ["out of the cluster"]
    closed = explainer(BLOCKS, gnp("selector: all(), types: [Egress]"))
    assert told(closed, "red/a", "blue/d").routes == ()


def test_the_road_is_the_tunnel_that_is_used_between_these_nodes() -> None:
    def words(nodes: str, *more: str) -> str:
        return told(explainer(BLOCKS, *more, nodes=nodes), "red/a", "blue/d").routes[0].words

    assert words(TUNNELS) == "block of n2, in VXLAN by vxlan.calico, which takes 50 bytes of each"
    settings = "kind: FelixConfiguration, metadata: {name: default}, spec: {vxlanMTU: 1400}"
    assert (
        words(TUNNELS, f"{{apiVersion: projectcalico.org/v3, {settings}}}")
        == "block of n2, in VXLAN by vxlan.calico, MTU 1400"
    )
    cross = TUNNELS.replace("vxlanMode: Always", "vxlanMode: CrossSubnet")
    assert words(cross) == "block of n2, without VXLAN: n2 is in the subnet of n1"


def test_a_node_speaks_to_pods_in_a_tunnel_from_the_tunnels_address() -> None:
    from_host = np("selector: app == 'web', ingress: [{action: Allow, source: {nets: [10.0.0.2/32]}}]")
    from_tunnel = np("selector: app == 'web', ingress: [{action: Allow, source: {nets: [10.244.2.0/32]}}]")
    assert not told(explainer(from_host, nodes=TUNNELS), "n2", "red/a").allowed
    assert told(explainer(from_tunnel, nodes=TUNNELS), "n2", "red/a").allowed
    assert told(explainer(from_host, nodes=PLAIN), "n2", "red/a").allowed
    assert explainer(nodes=TUNNELS).party("10.244.2.0").node == "n2"


# --- what fires on the way ----------------------------------------------------------------------------------------


def notes(explanation: Explanation) -> list[tuple[str, str]]:
    return [(note.rule, note.text) for step in explanation.steps for note in step.notes]


def test_log_rules_passes_and_tiers_on_the_way() -> None:
    policies = (
        tier("sec", "order: 100"),
        tier("quiet", "order: 200, defaultAction: Pass"),
        gnp("tier: sec, order: 1, selector: all(), ingress: [{action: Log}, {action: Log, protocol: UDP}]", "sec.a"),
        gnp("tier: sec, order: 2, selector: all(), ingress: [{action: Pass}]", "sec.b"),
        gnp("tier: quiet, selector: all(), ingress: [{action: Deny, protocol: SCTP}]", "quiet.c"),
        np("selector: all(), ingress: [{action: Log}, {action: Deny}, {action: Log}]"),
    )
    explanation = told(explainer(*policies), "blue/d", "red/a")
    assert notes(explanation) == [
        ("gnp/sec.a|ingress|0", "Log by rule 0 (ingress) of gnp/sec.a"),
        ("gnp/sec.b|ingress|0", "Pass by rule 0 (ingress) of gnp/sec.b: on to the next tier"),
        ("", "tier quiet: no rule matched, and its defaultAction is Pass"),
        ("np/red/n|ingress|0", "Log by rule 0 (ingress) of np/red/n"),
    ]
    assert explanation.decisive.rule == "np/red/n|ingress|1"


def test_what_staged_policies_would_do() -> None:
    staged = calico("StagedGlobalNetworkPolicy", "later", "order: 1, selector: app == 'web', ingress: [{action: Deny}]")
    explanation = told(explainer(staged), "blue/d", "red/a")
    assert explanation.allowed
    ((rule, text),) = notes(explanation)
    assert rule == ""
    assert text.startswith("pending: would be denied: Deny by rule 0 (ingress)")
    assert notes(told(explainer(staged), "blue/d", "red/b")) == []


def test_guards_come_before_policy() -> None:
    asked = explainer()
    explanation = told(asked, "red/a", "blue/d", 4789, "udp")
    assert (explanation.allowed, explanation.decisive.rule) == (False, "VXLAN from a pod")
    assert told(asked, "red/a", "blue/d", 0, "4").decisive.rule == "IPIP from a pod"
    allowed = explainer(felix("allowVXLANPacketsFromWorkloads: true"))
    assert told(allowed, "red/a", "blue/d", 4789, "udp").allowed


@pytest.mark.parametrize(("protocol", "allowed"), [("udplite", True), ("136", True), ("udp", False), ("UDPLite", True)])
def test_protocols_by_name_and_number(protocol: str, allowed: bool) -> None:
    asked = explainer(np("selector: app == 'web', ingress: [{action: Allow, protocol: UDPLite}]"))
    assert told(asked, "blue/d", "red/a", 80, protocol).allowed is allowed
    with pytest.raises(ConfigError, match="not a protocol"):
        told(asked, "blue/d", "red/a", 80, "carrier-pigeon")


def test_source_ports_and_icmp_types_are_asked() -> None:
    asked = explainer(
        np("selector: app == 'web', ingress: [{action: Allow, protocol: TCP, source: {ports: [123]}},"
           " {action: Allow, protocol: ICMP, icmp: {type: 3, code: 4}}]")
    )  # fmt: skip
    assert not told(asked, "blue/d", "red/a").allowed
    assert told(asked, "blue/d", "red/a", source_port=123).allowed
    assert not told(asked, "blue/d", "red/a", 0, "icmp").allowed
    assert told(asked, "blue/d", "red/a", 0, "icmp", icmp=(3, 4)).allowed
    assert told(asked, "blue/d", "red/a", 0, "icmp").icmp == (8, 0)
    assert told(asked, "blue/d", "red/a", 0, "icmp", 6).icmp == (128, 0)
    assert told(asked, "blue/d", "red/a", 0, "tcp").icmp is None


# --- as it is typed -----------------------------------------------------------------------------------------------


def typed(asked: Explainer, destination: str, port: str, protocol: str = "tcp") -> list[tuple[str, int, int]]:
    question = Question("red/b", destination, port, protocol, 40000, None, (4, 6))
    return [(one.destination.name, one.port, one.version) for one in explained(question, asked)]


def test_ports_by_number_and_by_name() -> None:
    asked = explainer(SERVICE)
    assert typed(asked, "red/a", "8080") == [("red/a", 8080, 4), ("red/a", 8080, 6)]
    assert typed(asked, "red/a", "http") == [("red/a", 8080, 4), ("red/a", 8080, 6)]
    everybody = [("red/a", 80, 4), ("red/a", 80, 6), ("blue/d", 80, 4)]
    for destination, port in (("svc/red/web", "http"), ("svc/red/web", "80"), ("svc/red/web:http", "5")):
        assert typed(asked, destination, port) == everybody
    for destination, port in (("red/a", "pg"), ("svc/red/web", "pg"), ("red/a", "65536"), ("10.0.0.1", "http")):
        with pytest.raises(ConfigError):
            typed(asked, destination, port)


# --- hosts --------------------------------------------------------------------------------------------------------

HEP = "{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: %s}, spec: {node: %s, %s}}"
ETH0 = HEP % ("uplink", "n1", "interfaceName: eth0")
BY_IP = HEP % ("by-ip", "n1", "expectedIPs: [10.0.0.1]")
EVERY = HEP % ("all", "n1", "interfaceName: '*'")


def hooks(explanation: Explanation) -> Iterable[tuple[str, bool]]:
    return [(step.hook, step.allowed) for step in explanation.steps]


def test_a_host_endpoint_without_policy_closes_the_host_but_not_what_it_forwards() -> None:
    asked = explainer(ETH0)
    assert hooks(told(asked, "198.51.100.9", "n1")) == [("host normal ingress", False)]
    ssh = told(asked, "198.51.100.9", "n1", 22)
    assert (ssh.allowed, ssh.decisive.rule) == (True, "failsafe|ingress|port")
    assert hooks(told(asked, "n1", "198.51.100.9", 443)) == [("host normal egress", False)]
    assert hooks(told(asked, "198.51.100.9", "red/a")) == [("ingress", True)]
    assert hooks(told(asked, "198.51.100.9", "n2")) == [("no pod", True)]


def test_the_classes_of_a_host_endpoint_in_their_order() -> None:
    allow = "selector: has(host), types: [Ingress], ingress: [{action: Allow}]"
    labelled = ETH0.replace("name: uplink", "name: uplink, labels: {host: a}")
    forward = gnp(f"applyOnForward: true, {allow}", "f")
    assert hooks(told(explainer(labelled, forward), "198.51.100.9", "red/a")) == [
        ("host forward ingress", True),
        ("ingress", True),
    ]
    before = gnp(f"applyOnForward: true, preDNAT: true, {allow}", "p")
    assert hooks(told(explainer(labelled, forward, before), "198.51.100.9", "red/a")) == [
        ("host preDNAT ingress", True),
        ("ingress", True),
    ]
    raw = gnp(f"applyOnForward: true, doNotTrack: true, {allow}", "r")
    assert hooks(told(explainer(labelled, raw, before), "198.51.100.9", "n1")) == [("host untracked ingress", True)]
    denying = gnp("applyOnForward: true, selector: has(host), types: [Egress], egress: [{action: Deny}]", "d")
    assert hooks(told(explainer(labelled, denying), "red/a", "198.51.100.9")) == [
        ("egress", True),
        ("host forward egress", False),
    ]


def test_which_host_endpoint_it_is_said_to_be() -> None:
    for documents, name, why in (
        ((ETH0,), "uplink", "if it goes by eth0"),
        ((ETH0, BY_IP), "by-ip", "which has the node's address"),
        ((EVERY,), "all", "which is for every interface"),
        ((EVERY, ETH0), "uplink", "if it goes by eth0"),
    ):
        reason = told(explainer(*documents), "198.51.100.9", "n1").decisive.reason
        assert reason.endswith(f"host endpoint {name}, {why}")


def test_the_host_endpoint_for_every_interface_is_asked_at_pods_too() -> None:
    """P93: between two pods of one node."""
    rules = "ingress: [{action: Deny, protocol: TCP, destination: {ports: [5432]}}, {action: Allow}]"
    labelled = EVERY.replace("name: all", "name: all, labels: {host: a}")
    asked = explainer(labelled, gnp(f"applyOnForward: true, selector: has(host), {rules}"))
    assert hooks(told(asked, "red/a", "red/b", 5432)) == [("host forward ingress", False)]
    assert told(asked, "red/a", "red/b", 80).allowed


def test_translation_is_asked_about_before_it_happens_at_pods_too() -> None:
    labelled = EVERY.replace("name: all", "name: all, labels: {host: a}")
    rules = "types: [Ingress], ingress: [{action: Deny, protocol: TCP, destination: {ports: [81]}}, {action: Allow}]"
    before = gnp(f"applyOnForward: true, preDNAT: true, selector: has(host), {rules}", "p")
    forward = gnp("applyOnForward: true, selector: has(host), types: [Ingress], ingress: [{action: Deny}]", "f")
    asked = explainer(labelled, before, forward, SERVICE)
    assert hooks(told(asked, "red/a", "red/b", 81)) == [("host preDNAT ingress", False)]
    expected = [("host preDNAT ingress", True), ("egress", True), ("ingress", True)]
    assert hooks(told(asked, "red/a", "red/b")) == expected
    assert hooks(told(asked, "red/a", "n1", 81)) == [("host preDNAT ingress", False)]
    first, second, *_ = asked.explain(
        asked.party("red/b"), asked.parties("svc/red/web", "tcp", 80)[0], "tcp", 80, 4
    ).steps
    assert (first.hook, second.hook) == ("host preDNAT ingress", "prerouting")


def test_a_node_to_itself_goes_over_lo() -> None:
    """P97: of host endpoints only the one for every interface is about that."""
    assert hooks(told(explainer(EVERY), "n1", "n1")) == [("host normal egress", False)]
    assert hooks(told(explainer(ETH0), "n1", "n1")) == [("no pod", True)]
    labelled = EVERY.replace("name: all", "name: all, labels: {host: a}")
    opened = gnp("selector: has(host), types: [Egress], egress: [{action: Allow}]")
    assert hooks(told(explainer(labelled, opened), "n1", "n1")) == [
        ("host normal egress", True),
        ("host normal ingress", False),
    ]


def test_a_pod_and_its_own_host() -> None:
    dropped = told(explainer(), "red/a", "n1")
    assert hooks(dropped) == [("egress", True), ("input", False)]
    assert dropped.decisive.rule == "pod to its own host: defaultEndpointToHostAction"
    for action in ("Accept", "Return"):
        assert told(explainer(felix(f"defaultEndpointToHostAction: {action}"), EVERY), "red/a", "n1").allowed
    discovery = told(explainer(), "red/a", "n1", 0, "icmp", 6, icmp=(135, 0))
    assert hooks(discovery) == [("input", True)]
    assert hooks(told(explainer(), "n1", "red/a")) == [("ingress", True)]
    assert hooks(told(explainer(), "n1", "n2")) == [("no pod", True)]


def test_the_base_cluster_is_what_others_use() -> None:
    assert Explainer(cluster_of(base())).party("red/a").is_pod


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--protocol", "ICMP", "--port", "80"], "--port: is for protocols that have ports, not for ICMP"),
        (["--protocol", "udp", "--icmp-type", "8"], "--icmp-type: is for icmp, not for udp"),
        (["--output", "xml"], '--output: "xml" is not one of text, json'),
    ],
)
def test_options_that_do_not_go_together(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "red/a", "red/b", *words, "--datastore", "memory:"]) == 2
    assert told in capsys.readouterr().err
