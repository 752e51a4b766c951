"""Whatever the model admits, nft takes: generated resources, with names and numbers at their limits, go to the kernel.

One object that nft refuses would stop policy for every pod of a node; one that it reads as more than a name would be a
statement of its own. After each change the table must be what it would be had it been written anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tortie.calc.cluster import Cluster
from tortie.kernel import nft
from tortie.model.document import convert, problems, shape
from tortie.model.ipam import IPPool
from tortie.model.k8s import K8sNetworkPolicy
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration, Node
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, Profile, Tier
from tortie.model.workload import WorkloadEndpoint
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import TABLE, transaction

pytestmark = pytest.mark.root

EXAMPLES = int(os.environ.get("TORTIE_EXAMPLES") or 25)
Body = dict[str, Any]

word = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
short_names = word | st.just("x" * 63)
names = st.lists(word, min_size=1, max_size=3).map(".".join) | st.just("x" * 253) | st.just("0.0")
namespaces = st.sampled_from(["red", "default", "x" * 63, "0"])
tiers = st.sampled_from(["default", "sec", "x" * 63, "0", "missing", "drop"])
labels = st.dictionaries(st.sampled_from(["app", "a.b/c_d-e", "drop"]), st.sampled_from(["", "web", "a.b_c-d"]))
texts = st.text(max_size=40) | st.sampled_from(
    ['x" drop comment "', "%t %k %n %p", "$x", "x" * 200, "a\nflush ruleset"]
)

selectors = st.sampled_from(
    [
        *(
            "all()",
            "app == 'web'",
            "has(drop)",
            "a.b/c_d-e in {'', 'web', '\"; drop'}",
            "app not in {'x'}",
            "!has(app)",
        ),
        *(r"app == '\n{}; \"$x'", "app contains 'ü'", "has(app) || drop starts with 'w'"),
    ]
)


@st.composite
def nets(draw: st.DrawFn, version: int) -> str:
    from ipaddress import IPv4Network, IPv6Network

    kind, bits = (IPv4Network, 32) if version == 4 else (IPv6Network, 128)
    length = draw(st.sampled_from([0, 1, 8, bits - 1, bits]) | st.integers(0, bits))
    return str(kind((draw(st.integers(0, 2**bits - 1)), length), strict=False))


ports = st.integers(0, 65535) | st.sampled_from(["http", "0:65535", "1:1", "a.b_c-D", "drop", "65535"])


@st.composite
def sides(draw: st.DrawFn, version: int, with_ports: bool) -> Body:
    side: Body = {}
    for name, values in (
        ("nets", st.lists(nets(version), min_size=1, max_size=4)),
        ("notNets", st.lists(nets(version).filter(lambda net: not net.endswith("/0")), min_size=1, max_size=4)),
        ("selector", selectors),
        ("notSelector", selectors),
        ("namespaceSelector", st.sampled_from(["all()", "global()", "has(team)"])),
    ):
        if draw(st.integers(0, 3)) == 0:
            side[name] = draw(values)
    if with_ports:
        for name in ("ports", "notPorts"):
            if draw(st.integers(0, 2)) == 0:
                side[name] = draw(st.lists(ports, min_size=1, max_size=4))
    return side


@st.composite
def rules(draw: st.DrawFn) -> Body:
    version = draw(st.sampled_from([4, 6]))
    protocol = draw(st.sampled_from(["TCP", "UDP", "SCTP", "UDPLite", 1, 58, 4, 255, None, None]))
    rule: Body = {"action": draw(st.sampled_from(["Allow", "Deny", "Log", "Pass"]))}
    if protocol is not None:
        rule["protocol"] = protocol
    elif draw(st.booleans()):
        rule["notProtocol"] = draw(st.sampled_from(["TCP", 1, 255]))
    if protocol in (1, 58):
        version = 4 if protocol == 1 else 6
        for name in ("icmp", "notICMP"):
            if draw(st.booleans()):
                rule[name] = {"type": draw(st.integers(0, 254))}
                rule[name] |= {"code": draw(st.integers(0, 255))} if draw(st.booleans()) else {}
    if draw(st.integers(0, 3)) == 0:
        rule["ipVersion"] = version
    for name in ("source", "destination"):
        if draw(st.booleans()):
            rule[name] = draw(sides(version, protocol in ("TCP", "UDP", "SCTP")))
    return rule


@st.composite
def policies(draw: st.DrawFn) -> Resource:
    spec = {
        "tier": draw(tiers),
        "types": ["Ingress", "Egress"],
        "ingress": draw(st.lists(rules(), max_size=4)),
        "egress": draw(st.lists(rules(), max_size=4)),
    }
    if draw(st.booleans()):
        return shape(GlobalNetworkPolicy, {"metadata": {"name": draw(names)}, "spec": spec | {"selector": "all()"}})
    return shape(NetworkPolicy, {"metadata": {"name": draw(names), "namespace": draw(namespaces)}, "spec": spec})


@st.composite
def kubernetes_policies(draw: st.DrawFn) -> Resource:
    block = {"cidr": "10.0.0.0/8", "except": draw(st.lists(st.sampled_from(["10.0.0.0/9", "10.128.0.0/9"])))}
    peers = draw(st.lists(st.sampled_from([{"ipBlock": block}, {"podSelector": {}}, {"namespaceSelector": {}}])))
    rule = {"from": peers, "ports": [{"port": draw(st.sampled_from([80, "http"]))}]}
    metadata = {"name": draw(names), "namespace": draw(namespaces)}
    return shape(K8sNetworkPolicy, {"metadata": metadata, "spec": {"podSelector": {}, "ingress": [rule]}})


@st.composite
def endpoints(draw: st.DrawFn) -> Resource:
    number = draw(st.integers(0, 5))
    spec = {
        "node": draw(st.sampled_from(["n1", "n1", "n2"])),
        "interfaceName": draw(st.sampled_from([f"cali{number}", "cali.-_", "x" * 15, "drop"])),
        "ipNetworks": [f"10.0.0.{number}/32", f"fd00::{number:x}/128"],
        "profiles": draw(st.lists(st.sampled_from(["kns.red", "missing", 'x" drop', ""]), max_size=3)),
        "ports": [{"name": draw(st.sampled_from(["http", "", "drop", '"'])), "protocol": "TCP", "port": number}],
    }
    metadata = {"name": f"n1-k8s-p{number}-eth0", "namespace": draw(namespaces), "labels": draw(labels)}
    return shape(WorkloadEndpoint, {"metadata": metadata, "spec": spec})


@st.composite
def network_sets(draw: st.DrawFn) -> Resource:
    listed = draw(st.lists(nets(4) | nets(6), max_size=6))
    metadata = {"name": draw(st.sampled_from(["one", "two"])), "labels": draw(labels)}
    return shape(GlobalNetworkSet, {"metadata": metadata, "spec": {"nets": listed}})


@st.composite
def settings_of_felix(draw: st.DrawFn) -> Resource:
    spec = {
        "logPrefix": draw(texts),
        "defaultEndpointToHostAction": draw(st.sampled_from(["Drop", "Accept", "Return"])),
        "nftablesFilterDenyAction": draw(st.sampled_from(["Drop", "Reject"])),
        "natOutgoingAddress": draw(st.sampled_from(["", "192.0.2.1", "2001:db8::1", "fe80::1%x drop"])),
        "natOutgoingExclusions": draw(st.sampled_from(["IPPoolsOnly", "IPPoolsAndHostIPs"])),
        "vxlanPort": draw(st.sampled_from([0, 65535])),
    }
    return shape(FelixConfiguration, {"metadata": {"name": "default"}, "spec": spec})


@st.composite
def others(draw: st.DrawFn) -> Resource:
    version = draw(st.sampled_from([4, 6]))
    pool = {"cidr": draw(st.sampled_from([f"10.{draw(st.integers(0, 9))}.0.0/16", "fd00::/64"])), "natOutgoing": True}
    address = {"ipv4Address": "192.0.2.1/24"} if version == 4 else {"ipv6Address": "2001:db8::1/64"}
    kind, body = draw(
        st.sampled_from(
            [
                (IPPool, {"metadata": {"name": draw(names)}, "spec": pool}),
                (Node, {"metadata": {"name": draw(names)}, "spec": {"bgp": address}}),
                (Tier, {"metadata": {"name": draw(tiers)}, "spec": {"defaultAction": "Pass", "order": 1}}),
                (Profile, {"metadata": {"name": "kns.red"}, "spec": {"ingress": [draw(rules())]}}),
            ]
        )
    )
    return shape(kind, body)


admitted = st.one_of(
    policies(), kubernetes_policies(), endpoints(), network_sets(), settings_of_felix(), others()
).filter(lambda one: not any(problems(one)))


def test_whatever_the_model_admits_nft_takes(make_ns: Callable[..., Any]) -> None:
    ns = make_ns()
    pod = {
        "node": "n1",
        "interfaceName": "cali0",
        "ipNetworks": ["10.0.0.9/32", "fd00::9/128"],
        "profiles": ["kns.red"],
    }
    somebody = convert(WorkloadEndpoint, {"metadata": {"name": "n1-k8s-a-eth0", "namespace": "red"}, "spec": pod})

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )
    @given(st.lists(st.lists(admitted, min_size=1, max_size=6), min_size=1, max_size=4))
    def check(course: list[list[Resource]]) -> None:
        cluster, renderer, have = Cluster("n1"), NftRenderer(), None
        cluster.put(somebody)
        for changes in course:
            for one in changes:
                cluster.put(one)
            want = renderer.render(cluster.state())
            if script := transaction(want, have):
                nft.apply(script, ns.path)
            have = want
            assert ns.run("nft", "list", "tables").split() == ["table", *TABLE.split()]
            assert nft.contents(TABLE, ns.path) == nft.contents_of(transaction(want, None), TABLE)

    check()
