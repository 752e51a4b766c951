"""What a node must look like follows from what is in the datastore, not from how it came to be there."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache

import pytest

from tortie.base.addr import collapse, host_net, parse_ip, parse_net
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.model.document import convert, parse, shape
from tortie.model.ipam import BlockAffinity
from tortie.model.k8s import K8sNetworkPolicy, Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, NetworkSet, Profile, Tier
from tortie.model.service import EndpointSlice
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.rules import PolicyKey, SelectorSet, ServiceSet
from tortie.policy.selector import parse as selector
from tortie.render.match import denial, set_name
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import transaction

SEED = int(os.environ.get("TORTIE_SEED") or random.randrange(2**32))
"""Printed by what fails; TORTIE_SEED repeats a run."""

Identity = tuple[type[Resource], str, str]


def identity(resource: Resource) -> Identity:
    return type(resource), resource.namespace, resource.name


def namespace(name: str, **labels: str) -> Namespace:
    return convert(Namespace, {"metadata": {"name": name, "labels": labels}})


def pod(
    ns: str, name: str, ip: str = "10.244.1.10", node: str = "n1", profiles: Iterable[str] = (), **labels: str
) -> WorkloadEndpoint:
    """An endpoint; its IPv6 address ends as its IPv4 address does."""
    last = ip.rpartition(".")[2]
    body = {
        "metadata": {
            "name": f"{node}-k8s-{name}-eth0",
            "namespace": ns,
            "labels": {**labels, "projectcalico.org/namespace": ns, "projectcalico.org/orchestrator": "k8s"},
        },
        "spec": {
            "node": node,
            "pod": name,
            "endpoint": "eth0",
            "interfaceName": f"cali{ns}{name}",
            "ipNetworks": [f"{ip}/32", f"fd00:244::{last}/128"],
            "profiles": list(profiles) or [f"kns.{ns}", f"ksa.{ns}.default"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        },
    }
    return convert(WorkloadEndpoint, body)


def policy(ns: str, name: str, **spec: object) -> NetworkPolicy:
    return convert(NetworkPolicy, {"metadata": {"name": name, "namespace": ns}, "spec": spec})


def global_policy(name: str, **spec: object) -> GlobalNetworkPolicy:
    return convert(GlobalNetworkPolicy, {"metadata": {"name": name}, "spec": spec})


def tier(name: str, **spec: object) -> Tier:
    return convert(Tier, {"metadata": {"name": name}, "spec": spec})


def felix(name: str, **spec: object) -> FelixConfiguration:
    return convert(FelixConfiguration, {"metadata": {"name": name}, "spec": spec})


def cluster_of(*resources: Resource, node: str | None = "n1") -> Cluster:
    cluster = Cluster(node)
    for resource in resources:
        cluster.put(resource)
    return cluster


def members(state: DesiredState, text: str) -> set[str]:
    """The members of the set of a selector, as text."""
    return {str(member) for member in state.sets[SelectorSet(selector(text))]}


def settled(state: DesiredState) -> DesiredState:
    return replace(state, generation=0, proxy=replace(state.proxy, generation=0))


# --- any order, any detour -----------------------------------------------------------------------------------------

SETTINGS = """
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: n1, labels: {rack: r1}},
 spec: {bgp: {ipv4Address: 10.0.0.1/24, ipv6Address: "fd00:10::1/64"}}}
---
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: n2, labels: {rack: r1}},
 spec: {bgp: {ipv4Address: 10.0.0.2/24}}}
---
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: n3}, spec: {bgp: {ipv4Address: 10.0.0.3/24}}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: four}, spec: {cidr: 10.244.0.0/16, natOutgoing: true}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: six}, spec: {cidr: "fd00:244::/64"}}
---
{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default}, spec: {asNumber: 64600}}
---
{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: tor}, spec: {peerIP: 10.0.0.254, asNumber: 64999}}
---
{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: rack},
 spec: {nodeSelector: all(), peerSelector: rack == 'r1'}}
---
{apiVersion: projectcalico.org/v3, kind: BlockAffinity, metadata: {name: n1-a},
 spec: {cidr: 10.244.1.0/26, node: n1, state: confirmed}}
---
{apiVersion: projectcalico.org/v3, kind: BlockAffinity, metadata: {name: n2-a},
 spec: {cidr: 10.244.2.0/26, node: n2, state: confirmed}}
---
{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {logPrefix: ours}}
---
{apiVersion: projectcalico.org/v3, kind: Profile, metadata: {name: extra},
 spec: {labelsToApply: {zone: z1}, ingress: [{action: Deny, protocol: UDP}]}}
"""

SELECTORS = ("app == 'web'", "has(tier)", "!has(tier)", "tier != 'x'", "app in {'web', 'db'}", "all()", "zone == 'z1'")
NAMESPACES, TIERS = ("red", "blue"), ("sec", "default", "late", "ghost")


@cache
def fixed() -> tuple[Resource, ...]:
    return tuple(parse(SETTINGS))


def some_labels(rng: random.Random) -> dict[str, str]:
    return {key: rng.choice(("web", "db", "x")) for key in ("app", "tier") if rng.random() < 0.7}


def some_rule(rng: random.Random) -> dict[str, object]:
    rule: dict[str, object] = {"action": rng.choice(("Allow", "Deny", "Pass", "Log"))}
    source: dict[str, object] = {}
    if rng.random() < 0.7:
        source[rng.choice(("selector", "notSelector"))] = rng.choice(SELECTORS)
    if rng.random() < 0.3:
        source["namespaceSelector"] = rng.choice(("all()", "team == 'red'", "global()"))
    if rng.random() < 0.3:
        rule.update({"protocol": "TCP", "destination": {"ports": rng.choice(([80], ["http"], ["http", "1:9"]))}})
    return {**rule, "source": source}


def some_spec(rng: random.Random) -> dict[str, object]:
    return {
        "tier": rng.choice(TIERS),
        "selector": rng.choice(SELECTORS),
        "types": rng.sample(("Ingress", "Egress"), rng.randint(1, 2)),
        "order": rng.choice((None, 1, 5, 5, 1000)),
        "ingress": [some_rule(rng) for _ in range(rng.randint(0, 2))],
        "egress": [some_rule(rng) for _ in range(rng.randint(0, 2))],
    }


def some_resources(rng: random.Random) -> Iterator[Resource]:
    """One version of everything there may be; names repeat from call to call, what is in them does not."""
    yield from fixed()
    for name in NAMESPACES:
        yield namespace(name, team=rng.choice(NAMESPACES))
        account = {"metadata": {"name": "default", "namespace": name, "labels": some_labels(rng)}}
        yield convert(ServiceAccount, account)
        for i in range(2):
            yield policy(name, f"np{i}", **some_spec(rng))
        peer = {"podSelector": {"matchLabels": some_labels(rng)}}
        knp = {"podSelector": {"matchLabels": some_labels(rng)}, "ingress": [{"from": [peer]}]}
        yield convert(K8sNetworkPolicy, {"metadata": {"name": "np0", "namespace": name}, "spec": knp})
        nets = {"nets": rng.sample(("198.51.100.0/24", "198.51.100.9/32", "10.244.1.10/32"), 2)}
        yield convert(
            NetworkSet, {"metadata": {"name": "ns", "namespace": name, "labels": some_labels(rng)}, "spec": nets}
        )
        for i in range(3):
            profiles = rng.sample(("extra", f"kns.{name}", "missing"), 2)
            node = rng.choice(("n1", "n1", "n2"))
            # Of the same name on either node, with one of few addresses, so that members and interfaces collide.
            endpoint = pod(name, f"p{i}", f"10.244.1.{rng.randint(10, 14)}", node, profiles, **some_labels(rng))
            yield replace_name(endpoint, f"p{i}")
    for name in TIERS[:3]:
        yield tier(name, order=rng.choice((None, 10, 20)), defaultAction=rng.choice(("Deny", "Pass")))
    for i in range(2):
        yield global_policy(f"gnp{i}", namespaceSelector=rng.choice(("", "all()", "team == 'red'")), **some_spec(rng))
    nets = {"nets": rng.sample(("0.0.0.0/0", "198.51.100.0/25", "2001:db8::/32"), 2)}
    yield convert(GlobalNetworkSet, {"metadata": {"name": "gns", "labels": some_labels(rng)}, "spec": nets})


def replace_name(endpoint: WorkloadEndpoint, name: str) -> WorkloadEndpoint:
    body = {"name": name, "namespace": endpoint.namespace, "labels": endpoint.labels}
    return convert(WorkloadEndpoint, {"metadata": body, "spec": endpoint.spec})


@pytest.mark.parametrize("run", range(16))
def test_the_order_of_arrival_does_not_matter(run: int) -> None:
    rng = random.Random(f"{SEED} {run}")
    cluster, final = Cluster("n1"), dict[Identity, Resource]()
    states: list[DesiredState] = []
    for _ in range(3):  # each object comes three times, differently, and some go in between
        versions = list(some_resources(rng))
        rng.shuffle(versions)
        for resource in versions:
            cluster.put(resource)
            final[identity(resource)] = resource
            if rng.random() < 0.15:
                gone = rng.choice(list(final))
                del final[gone]
                cluster.drop(*gone)
            if rng.random() < 0.1:
                states.append(cluster.state())
    fresh = Cluster("n1")
    for resource in rng.sample(list(final.values()), len(final)):
        fresh.put(resource)
    assert cluster.problems == fresh.problems == {}
    found, expected = settled(cluster.state()), settled(fresh.state())
    for field in DesiredState.__dataclass_fields__:
        assert getattr(found, field) == getattr(expected, field), f"{field} (TORTIE_SEED={SEED}, run {run})"
    assert [one.generation for one in states] == list(range(1, len(states) + 1))


@pytest.mark.parametrize("run", range(6))
def test_states_that_are_equal_render_equally_and_each_change_leads_there(run: int) -> None:
    """Rendering with a memory gives what rendering without one gives, and drops what is gone."""
    rng = random.Random(f"{SEED} {run} render")
    cluster, renderer = Cluster("n1"), NftRenderer()
    present: dict[Identity, Resource] = {}
    for _ in range(4):
        for resource in some_resources(rng):
            if rng.random() < 0.6:
                cluster.put(resource)
                present[identity(resource)] = resource
            elif present:
                gone = rng.choice(list(present))
                del present[gone]
                cluster.drop(*gone)
        state = cluster.state()
        rendered, again = renderer.render(state), NftRenderer().render(state)
        assert rendered == again, f"TORTIE_SEED={SEED}, run {run}"
        assert transaction(again, rendered) == ""


# --- a change changes what it concerns and nothing else --------------------------------------------------------------


def small() -> Cluster:
    return cluster_of(
        namespace("red"),
        pod("red", "db", "10.244.1.10", app="db"),
        policy(
            "red",
            "db",
            selector="app == 'db'",
            ingress=[{"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'web'"}}],
        ),
    )


def test_a_new_pod_costs_its_own_chains_and_its_elements() -> None:
    cluster, renderer = small(), NftRenderer()
    first = cluster.state()
    before = renderer.render(first)
    cluster.put(pod("red", "w", "10.244.1.20", app="web"))
    second = cluster.state()
    after = renderer.render(second)

    peers = SelectorSet(selector("projectcalico.org/namespace == 'red' && app == 'web'"))
    s4, s6 = set_name(peers, 4), set_name(peers, 6)
    assert transaction(after, before) == (
        "add chain inet tortie fw-caliredw\n"
        "add chain inet tortie tw-caliredw\n"
        f"add set inet tortie {s4} {{ type ipv4_addr; elements = {{ 10.244.1.20 }} }}\n"
        f"add set inet tortie {s6} {{ type ipv6_addr; elements = {{ fd00:244::20 }} }}\n"
        'add set inet tortie sources4 { type ifname . ipv4_addr; elements = { "caliredw" . 10.244.1.20 } }\n'
        'add set inet tortie sources6 { type ifname . ipv6_addr; elements = { "caliredw" . fd00:244::20 } }\n'
        'add set inet tortie workloads { type ifname; elements = { "caliredw" } }\n'
        "add chain inet tortie fw-caliredw {\n"
        "  ct state established,related return\n"
        f"  ct state invalid {denial('invalid', 'dropped')}\n"
        "  meta mark set meta mark & 0xfffcffff\n"
        f"  udp dport 4789 {denial('VXLAN from a pod', 'dropped')}\n"
        f"  meta l4proto 4 {denial('IPIP from a pod', 'dropped')}\n"
        "  meta mark set meta mark & 0xfffdffff\n"
        "  jump po-profile/kns.red\n"
        "  meta mark & 0x00010000 != 0 return\n"
        f"  {denial('no-profile|caliredw|egress')}\n"
        "}\n"
        "add chain inet tortie tw-caliredw {\n"
        "  ct state established,related return\n"
        f"  ct state invalid {denial('invalid', 'dropped')}\n"
        "  meta mark set meta mark & 0xfffcffff\n"
        "  meta mark set meta mark & 0xfffdffff\n"
        "  jump pi-profile/kns.red\n"
        "  meta mark & 0x00010000 != 0 return\n"
        f"  {denial('no-profile|caliredw|ingress')}\n"
        "}\n"
        'add map inet tortie from-workload { type ifname : verdict; elements = { "caliredw" : goto fw-caliredw } }\n'
        'add map inet tortie to-workload { type ifname : verdict; elements = { "caliredw" : goto tw-caliredw } }\n'
    )
    assert second.endpoints["calireddb"].policy is first.endpoints["calireddb"].policy
    key = PolicyKey("np", "red", "db")
    assert second.policies[key] is first.policies[key]
    for name in ("fw-calireddb", "tw-calireddb", "pi-np/red/db", "po-profile/kns.red"):
        assert after.chains[name] is before.chains[name], name


def test_a_pod_elsewhere_costs_its_elements_only() -> None:
    cluster, renderer = small(), NftRenderer()
    before = renderer.render(cluster.state())
    cluster.put(pod("red", "w", "10.244.2.20", "n2", app="web"))
    lines = transaction(renderer.render(cluster.state()), before).splitlines()
    assert [line.partition(" elements = ")[2] for line in lines] == ["{ 10.244.2.20 } }", "{ fd00:244::20 } }"]


def test_what_goes_away_takes_only_its_own_along() -> None:
    cluster, renderer = small(), NftRenderer()
    before = renderer.render(cluster.state())
    added = pod("red", "w", "10.244.1.20", app="web")
    cluster.put(added)
    between = renderer.render(cluster.state())
    cluster.drop(*identity(added))
    after = renderer.render(cluster.state())
    assert after == before
    lines = transaction(after, between).splitlines()
    assert all(line.startswith(("delete element", "flush chain", "delete chain")) for line in lines)
    assert {word for line in lines for word in line.split() if "-cali" in word} == {"fw-caliredw", "tw-caliredw"}


def test_nothing_changed_is_the_very_same() -> None:
    cluster = small()
    first = cluster.state()
    cluster.put(policy("blue", "other", selector="all()", ingress=[{"action": "Deny"}]))  # selects nobody here
    cluster.put(pod("red", "db", "10.244.1.10", app="db"))  # said again
    second = cluster.state()
    assert second.endpoints["calireddb"].policy is first.endpoints["calireddb"].policy
    assert second.policies.keys() == first.policies.keys()
    assert all(second.policies[key] is first.policies[key] for key in first.policies)
    assert all(second.sets[ref] is first.sets[ref] for ref in first.sets)
    assert transaction(NftRenderer().render(second), NftRenderer().render(first)) == ""


def test_only_policies_of_local_pods_are_active_and_only_their_sets_are_kept() -> None:
    cluster = small()
    far = pod("red", "far", "10.244.2.9", "n2", app="far")
    cluster.put(far)
    deny = {"action": "Deny", "source": {"selector": "app == 'x'"}}
    cluster.put(policy("red", "far", selector="app == 'far'", ingress=[deny]))
    key = PolicyKey("np", "red", "far")
    assert key not in cluster.state().policies
    assert len(cluster.state().sets) == 1
    cluster.put(pod("red", "near", "10.244.1.9", app="far"))
    assert key in cluster.state().policies
    assert len(cluster.state().sets) == 2
    cluster.drop(WorkloadEndpoint, "red", "n1-k8s-near-eth0")
    assert key not in cluster.state().policies
    assert len(cluster.state().sets) == 1


# --- what moves what -------------------------------------------------------------------------------------------------


def test_a_namespaces_labels_move_its_pods_and_network_sets_in_and_out() -> None:
    text = "pcns.team == 'red'"
    allow = {"action": "Allow", "source": {"namespaceSelector": "team == 'red'"}}
    partner = {"metadata": {"name": "partner", "namespace": "blue"}, "spec": {"nets": ["198.51.100.0/24"]}}
    cluster = cluster_of(
        namespace("red", team="red"),
        namespace("blue"),
        pod("red", "db", "10.244.1.10", app="db"),
        pod("blue", "w", "10.244.1.20"),
        convert(NetworkSet, partner),
        policy("red", "db", selector="app == 'db'", ingress=[allow]),
    )
    red = {"10.244.1.10/32", "fd00:244::10/128"}
    blue = {"10.244.1.20/32", "fd00:244::20/128", "198.51.100.0/24"}
    assert members(cluster.state(), text) == red
    cluster.put(namespace("blue", team="red"))
    assert members(cluster.state(), text) == red | blue
    cluster.put(namespace("red", team="other"))
    assert members(cluster.state(), text) == blue
    cluster.drop(Namespace, "", "blue")
    assert members(cluster.state(), text) == set()


def test_a_namespaces_labels_move_policies() -> None:
    cluster = small()
    cluster.put(global_policy("g", namespaceSelector="team == 'red'", ingress=[{"action": "Deny"}]))
    key = PolicyKey("gnp", "", "g")
    assert key not in cluster.state().policies
    cluster.put(namespace("red", team="red"))
    assert key in cluster.state().policies
    cluster.put(namespace("red"))
    assert key not in cluster.state().policies


def test_an_endpoint_that_changes_its_address_and_its_labels_at_once() -> None:
    cluster = small()
    text = "(projectcalico.org/namespace == 'red' && app == 'web')"
    cluster.put(pod("red", "w", "10.244.1.20", app="web"))
    assert members(cluster.state(), text) == {"10.244.1.20/32", "fd00:244::20/128"}
    cluster.put(pod("red", "w", "10.244.1.21", app="web"))
    assert members(cluster.state(), text) == {"10.244.1.21/32", "fd00:244::21/128"}
    cluster.put(pod("red", "w", "10.244.1.22", app="no"))
    assert members(cluster.state(), text) == set()
    cluster.put(pod("red", "w", "10.244.1.23", app="web"))
    cluster.put(pod("red", "v", "10.244.1.23", app="web"))
    cluster.drop(WorkloadEndpoint, "red", "n1-k8s-w-eth0")
    assert members(cluster.state(), text) == {"10.244.1.23/32", "fd00:244::23/128"}


def test_a_profile_that_is_missing_is_known_to_be() -> None:
    cluster = small()
    cluster.drop(Namespace, "", "red")
    profiles = cluster.state().endpoints["calireddb"].policy.profiles
    assert profiles == (("kns.red", None), ("ksa.red.default", None))
    cluster.put(namespace("red"))
    profiles = cluster.state().endpoints["calireddb"].policy.profiles
    assert [name for name, rules in profiles if rules is not None] == ["kns.red"]
    cluster.drop(Profile, "", "projectcalico-default-allow")  # always there, whatever the datastore says
    cluster.put(pod("red", "db", profiles=("projectcalico-default-allow",)))
    assert cluster.state().endpoints["calireddb"].policy.profiles[0][1] is not None


def test_the_order_of_tiers_follows_their_objects() -> None:
    cluster = small()
    for name in ("aa", "bb"):
        cluster.put(tier(name, order=10))
        cluster.put(global_policy(name, tier=name, ingress=[{"action": "Pass"}]))

    def order() -> list[str]:
        return [f"{one.name} {one.default_action}" for one in cluster.state().endpoints["calireddb"].policy.ingress]

    assert order() == ["aa Deny", "bb Deny", "default Deny"]
    cluster.put(tier("aa", order=20, defaultAction="Pass"))
    assert order() == ["bb Deny", "aa Pass", "default Deny"]
    cluster.put(tier("bb"))
    assert order() == ["aa Pass", "default Deny", "bb Deny"]
    cluster.drop(Tier, "", "aa")
    assert order() == ["default Deny", "bb Deny", "aa Deny"]


def test_a_policy_that_cannot_be_read_is_reported_and_counts_as_absent() -> None:
    cluster = small()
    key = PolicyKey("np", "red", "db")
    assert key in cluster.state().policies
    cluster.put(policy("red", "db", selector="app == web"))
    assert key not in cluster.state().policies
    assert list(cluster.problems) == ["NetworkPolicy red/db"]
    assert "put quotes" in cluster.problems["NetworkPolicy red/db"]
    cluster.put(policy("red", "db", selector="app == 'db'"))
    assert key in cluster.state().policies
    assert cluster.problems == {}
    cluster.put(policy("red", "db", selector="app == web"))
    cluster.drop(NetworkPolicy, "red", "db")
    assert cluster.problems == {}
    assert key not in cluster.state().policies


def test_an_address_of_another_ip_version_than_its_slice_is_in_no_set_and_is_said() -> None:
    cluster = small()
    rule = {"action": "Allow", "source": {"services": {"name": "web", "namespace": "red"}}}
    cluster.put(policy("red", "db", selector="app == 'db'", ingress=[rule]))
    metadata = {"name": "web-1", "namespace": "red", "labels": {"kubernetes.io/service-name": "web"}}
    ends = [{"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::1"]}]
    cluster.put(shape(EndpointSlice, {"metadata": metadata, "addressType": "IPv4", "endpoints": ends}))
    members = [ip for ref, found in cluster.state().sets.items() if isinstance(ref, ServiceSet) for ip in found]
    assert members == [host_net(parse_ip("10.0.0.1"))]
    assert cluster.problems == {
        "an address of EndpointSlice red/web-1": '"fd00::1": must be IPv4 by the slice\'s addressType'
    }
    cluster.put(policy("red", "db", selector="app == 'db'"))
    cluster.state()
    assert cluster.problems == {}


def test_a_protocol_that_is_none_does_not_come_to_mean_any() -> None:
    """A datastore that others write to may hold what admission would refuse."""
    rule = {"action": "Allow", "protocol": "NONSENSE"}
    body = {"metadata": {"name": "db", "namespace": "red"}, "spec": {"selector": "all()", "ingress": [rule]}}
    cluster = small()
    cluster.put(shape(NetworkPolicy, body))  # without the checks of admission
    assert list(cluster.problems) == ["NetworkPolicy red/db"]


# --- what is not policy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "owned"),
    [
        ({"state": "confirmed"}, True),
        ({}, True),
        ({"state": "pending"}, False),
        ({"state": "pendingDeletion"}, False),
        ({"state": "confirmed", "deleted": True}, False),
        ({"state": "confirmed", "node": "n2"}, False),
        ({"state": "confirmed", "type": "virtual"}, False),
    ],
)
def test_a_block_is_the_nodes_when_its_affinity_is_confirmed(claim: dict[str, object], owned: bool) -> None:
    body = {"metadata": {"name": "n1-a"}, "spec": {"cidr": "10.244.1.0/26", "node": "n1", **claim}}
    cluster = cluster_of(convert(BlockAffinity, body))
    assert cluster.state().blocks == ((parse_net("10.244.1.0/26"),) if owned else ())
    cluster.drop(BlockAffinity, "", "n1-a")
    assert cluster.state().blocks == ()


def test_an_affinity_that_becomes_pending_is_no_block_any_more() -> None:
    body = {"metadata": {"name": "n1-a"}, "spec": {"cidr": "10.244.1.0/26", "node": "n1", "state": "confirmed"}}
    cluster = cluster_of(convert(BlockAffinity, body))
    assert len(cluster.state().blocks) == 1
    body["spec"] = {"cidr": "10.244.1.0/26", "node": "n1", "state": "pending"}
    cluster.put(convert(BlockAffinity, body))
    assert cluster.state().blocks == ()


def test_the_nodes_own_configuration_wins_over_the_default_one() -> None:
    cluster = cluster_of(felix("default", defaultEndpointToHostAction="Accept", logPrefix="ours"))
    assert (cluster.settings().endpoint_to_host, cluster.settings().log_prefix) == ("Accept", "ours")
    cluster.put(felix("node.n2", defaultEndpointToHostAction="Return"))
    assert cluster.settings().endpoint_to_host == "Accept"
    cluster.put(felix("node.n1", defaultEndpointToHostAction="Return", logPrefix="mine"))
    assert (cluster.settings().endpoint_to_host, cluster.settings().log_prefix) == ("Return", "mine")
    cluster.drop(FelixConfiguration, "", "node.n1")
    assert cluster.settings().endpoint_to_host == "Accept"
    cluster.drop(FelixConfiguration, "", "default")
    assert cluster.settings() == Cluster("n1").settings()


def test_what_the_nodes_own_configuration_leaves_out_is_as_by_default() -> None:
    cluster = cluster_of(felix("default", defaultEndpointToHostAction="Accept", disableConntrackInvalidCheck=True))
    cluster.put(felix("node.n1", logPrefix="mine", disableConntrackInvalidCheck=False))
    settings = cluster.settings()
    assert settings.log_prefix == "mine"
    assert settings.endpoint_to_host == "Accept"
    assert settings.drop_invalid  # False is a value, too


def test_defaults_are_calicos() -> None:
    settings = Cluster("n1").settings()
    assert (settings.endpoint_to_host, settings.deny, settings.log_prefix) == ("Drop", "Drop", "calico-packet")
    assert (settings.drop_invalid, settings.allow_vxlan, settings.allow_ipip) == (True, False, False)
    assert (settings.vxlan_port, settings.nat_exclude_hosts, settings.nat_address) == (4789, False, None)
    assert settings.priority == {4: 1024, 6: 1024}


def test_of_two_endpoints_on_one_interface_the_lowest_name_wins() -> None:
    first, second = pod("red", "p", "10.244.1.11", app="x"), pod("red", "p", "10.244.1.12", app="y")
    named = [replace_name(first, "b"), replace_name(second, "a")]
    for order in (named, named[::-1]):
        (local,) = cluster_of(*order).state().endpoints.values()
        assert local.key == ("red", "a")
        assert local.ips[0] == parse_ip("10.244.1.12")


def test_with_no_node_every_endpoint_is_local() -> None:
    pods = [pod("red", "p", "10.244.1.11"), pod("red", "q", "10.244.2.11", "n2")]
    assert len(cluster_of(*pods, node=None).state().endpoints) == 2
    assert list(cluster_of(*pods).state().endpoints) == ["caliredp"]


def test_a_network_set_of_everything_holds_everything() -> None:
    everything = {"metadata": {"name": "w", "labels": {"net": "w"}}, "spec": {"nets": ["0.0.0.0/0", "::/0"]}}
    cluster = small()
    cluster.put(convert(GlobalNetworkSet, everything))
    cluster.put(global_policy("g", ingress=[{"action": "Allow", "source": {"selector": "net == 'w'"}}]))
    nets = [parse_net(text) for text in members(cluster.state(), "net == 'w'")]
    assert collapse(nets) == [parse_net("0.0.0.0/0"), parse_net("::/0")]
