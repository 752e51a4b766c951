"""Copies of Kubernetes' objects for Calico's programs on etcd: what they say, that they follow, and that nothing counts
twice where both are there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policy_oracles import World
from policy_places import Chance
from policy_rules import some_kubernetes_spec
from policy_worlds import some_probe, some_resources
from tortie.calc.cluster import Cluster
from tortie.calc.copies import POLICY_PREFIX
from tortie.controllers.copies import ALLOW, COPY_OF, changes, of_account, of_namespace, of_policy
from tortie.controllers.endpoints import EndpointLabels, followed
from tortie.controllers.mirror import PATTERNS, Mirror
from tortie.controllers.node_labels import KUBE_LABELS, NodeLabels, labelled
from tortie.model.document import convert, decode, encode, parse
from tortie.model.k8s import K8sNetworkPolicy, K8sNode, Namespace, Pod, ServiceAccount
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.node import ClusterInformation, ClusterInformationSpec, Node, NodeSpec, OrchRef
from tortie.model.policy import MAX_RULES, NetworkPolicy, NetworkPolicySpec, Profile, ProfileSpec
from tortie.model.workload import NETWORK, WorkloadEndpoint
from tortie.policy.rules import PolicyKey
from tortie.store.memory import MemoryStore

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: red}
spec:
  podSelector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: In, values: [b, a]}]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - {podSelector: {matchLabels: {app: client}}}
    - {namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchExpressions: [{key: x, operator: Exists}]}}
    - {namespaceSelector: {}}
    - {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}
    - {ipBlock: {cidr: 192.0.2.0/24}}
    - {ipBlock: {cidr: 198.51.100.0/24}}
    ports: [{port: 80}, {port: http}, {port: 8000, endPort: 8080}, {protocol: UDP}]
  egress:
  - {}
"""


def one(text: str) -> Any:
    (found,) = parse(text)
    return found


def test_a_policy_in_calicos_words() -> None:
    copy = of_policy(one(POLICY))
    assert (copy.name, copy.namespace) == ("knp.default.web", "red")
    assert copy.metadata.annotations == {COPY_OF: "NetworkPolicy red/web"}
    spec = copy.spec
    assert (spec.tier, spec.order, spec.types) == ("default", 1000.0, ("Ingress", "Egress"))
    assert spec.selector == "projectcalico.org/orchestrator == 'k8s' && app == 'web' && tier in { 'a', 'b' }"
    tcp = [rule for rule in spec.ingress if rule.protocol == "TCP"]
    assert len(spec.ingress) == 2 * len(tcp) == 10
    assert {rule.destination.ports for rule in tcp} == {(80, "http", "8000:8080")}
    assert {rule.destination.ports for rule in spec.ingress if rule.protocol == "UDP"} == {()}
    sources = [(rule.source.selector, rule.source.namespace_selector, rule.source.nets) for rule in tcp]
    kubernetes = "projectcalico.org/orchestrator == 'k8s'"
    assert sources == [
        (f"{kubernetes} && app == 'client'", "", ()),
        (f"{kubernetes} && has(x)", "team == 'blue'", ()),
        (kubernetes, "all()", ()),
        ("", "", ("10.0.0.0/8",)),
        ("", "", ("192.0.2.0/24", "198.51.100.0/24")),
    ]
    assert tcp[3].source.not_nets == ("10.1.0.0/16",)
    assert spec.egress == ALLOW


def test_a_rule_that_cannot_be_converted_is_left_out_and_isolates_all_the_same() -> None:
    bad = convert(
        K8sNetworkPolicy,
        {
            "metadata": {"name": "p", "namespace": "red"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
        },
    )
    (rule,) = bad.spec.ingress
    (peer,) = rule.from_
    assert peer.ip_block is not None
    wrong = replace(peer, ip_block=replace(peer.ip_block, cidr="10.0.0.0/99"))
    bad = replace(bad, spec=replace(bad.spec, ingress=(replace(rule, from_=(wrong,)), rule)))
    copy = of_policy(bad)
    assert copy.spec.types == ("Ingress",)
    assert [each.source.nets for each in copy.spec.ingress] == [("10.0.0.0/8",)]


def test_a_thousand_networks_fit() -> None:
    """What a copy says must be readable again: a list that is too long would hide every policy."""
    peers = [{"ipBlock": {"cidr": f"10.{i // 256}.{i % 256}.0/24"}} for i in range(3000)]
    spec = {"podSelector": {}, "ingress": [{"from": peers}], "policyTypes": ["Ingress"]}
    copy = of_policy(convert(K8sNetworkPolicy, {"metadata": {"name": "p", "namespace": "red"}, "spec": spec}))
    assert len(copy.spec.ingress) == 12
    assert sum(len(rule.source.nets) for rule in copy.spec.ingress) == 3000
    assert decode(NetworkPolicy, encode(copy)) == copy


@pytest.mark.parametrize("seed", range(12))
def test_copies_mean_the_same_and_nothing_counts_twice(seed: int) -> None:
    rng = Chance(f"copies {seed}")
    world = list(some_resources(rng))
    pods = [each for each in world if isinstance(each, WorkloadEndpoint)]
    extra = [
        convert(
            K8sNetworkPolicy,
            {
                "metadata": {"name": f"more{i}", "namespace": rng.choice(pods).namespace},
                "spec": some_kubernetes_spec(rng),
            },
        )
        for i in range(3)
    ]
    copied: dict[type[Resource], Any] = {
        Namespace: of_namespace, ServiceAccount: of_account, K8sNetworkPolicy: of_policy,
    }  # fmt: skip
    names = {f"{POLICY_PREFIX}{each.name}": each.name for each in world}
    originals = [*world, *(each for each in extra if each.name not in names)]
    copies = [copied[type(each)](each) for each in originals if type(each) in copied]
    others = [each for each in originals if type(each) not in copied]
    by_originals, by_copies = World(originals), World([*others, *copies])
    both, reverse = World([*originals, *copies]), World([*copies, *reversed(originals)])
    assert copies
    for _ in range(60):
        probe = some_probe(rng, hosts=by_originals.has_hosts)
        expected = by_originals.judged(probe)
        assert by_copies.judged(probe).arrives == expected.arrives, probe
        assert both.judged(probe) == reverse.judged(probe) == expected, probe


def test_the_original_counts_while_it_is_there_and_the_copy_after_it() -> None:
    """Also when the copy is old: what the original no longer allows is not allowed."""
    pod = convert(
        WorkloadEndpoint,
        {
            "metadata": {
                "name": "n-k8s-a-eth0",
                "namespace": "red",
                "labels": {"projectcalico.org/namespace": "red", "projectcalico.org/orchestrator": "k8s"},
            },
            "spec": {
                "node": "n", "orchestrator": "k8s", "pod": "a", "endpoint": "eth0", "interfaceName": "cali1",
                "ipNetworks": ["10.0.0.1/32"], "profiles": ["kns.red", "ksa.red.default"],
            },
        },
    )  # fmt: skip
    namespace = Namespace(metadata=Metadata(name="red", labels={"new": "yes"}))
    old = of_namespace(Namespace(metadata=Metadata(name="red", labels={"old": "yes"})))
    policy = convert(K8sNetworkPolicy, {"metadata": {"name": "p", "namespace": "red"}, "spec": {"podSelector": {}}})
    stale = replace(of_policy(policy), spec=replace(of_policy(policy).spec, ingress=ALLOW))
    cluster = Cluster("n")
    native, copy = PolicyKey("knp", "red", "p"), PolicyKey("np", "red", "knp.default.p")

    def enforced() -> set[PolicyKey]:
        return {key for key in cluster.state().policies if key.kind != "profile"}

    def rules() -> object:
        (consulted,) = cluster.state().endpoints.values()
        return dict(consulted.policy.profiles)["kns.red"]

    cluster.put(pod)
    for each in (stale, old, policy, namespace):
        cluster.put(each)
    assert enforced() == {native}
    cluster.put(stale)
    assert enforced() == {native}
    cluster.drop(NetworkPolicy, "red", "knp.default.p")
    cluster.drop(Profile, "", "kns.red")
    assert enforced() == {native}
    assert rules() is not None
    for each in (stale, old):
        cluster.put(each)
    cluster.drop(K8sNetworkPolicy, "red", "p")
    cluster.drop(Namespace, "", "red")
    assert enforced() == {copy}
    assert rules() is not None
    cluster.drop(NetworkPolicy, "red", "knp.default.p")
    cluster.drop(Profile, "", "kns.red")
    assert enforced() == set()
    assert rules() is None


# --- following --------------------------------------------------------------------------------------------------------


def namespace(name: str, value: str = "a") -> Namespace:
    return Namespace(metadata=Metadata(name=name, labels={"v": value}))


def account(name: str, value: str = "a") -> ServiceAccount:
    return ServiceAccount(metadata=Metadata(name=name, namespace="red", labels={"v": value}))


def policy(name: str, value: str = "a") -> K8sNetworkPolicy:
    spec = {"podSelector": {"matchLabels": {"v": value}}}
    return convert(K8sNetworkPolicy, {"metadata": {"name": name, "namespace": "red"}, "spec": spec})


MAKE: dict[type[Resource], Any] = {Namespace: namespace, ServiceAccount: account, K8sNetworkPolicy: policy}
COPY: dict[type[Resource], Any] = {Namespace: of_namespace, ServiceAccount: of_account, K8sNetworkPolicy: of_policy}
MINE = (
    Profile(metadata=Metadata(name="kns.mine", annotations={"who": "me"}), spec=ProfileSpec(egress=ALLOW)),
    Profile(metadata=Metadata(name="own", annotations={COPY_OF: "Namespace own"})),
    NetworkPolicy(metadata=Metadata(name="knp.default.mine", namespace="red"), spec=NetworkPolicySpec()),
    NetworkPolicy(metadata=Metadata(name="mine", namespace="red"), spec=NetworkPolicySpec()),
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "drop", "spoil", "lose", "pass"]),
        st.sampled_from([Namespace, ServiceAccount, K8sNetworkPolicy]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["x", "y"]),
    ),
    max_size=25,
)


async def put(store: MemoryStore, wanted: Resource) -> None:
    have = {each.name: each for each in (await store.list(type(wanted))).items}
    await (store.update(wanted) if wanted.name in have else store.create(wanted))


@given(EDITS)
@settings(max_examples=80, deadline=None)
async def test_any_changes_end_with_exactly_the_right_copies(edits: list[tuple[str, type[Resource], str, str]]) -> None:
    store = MemoryStore()
    mirrors = [Mirror(store, pattern) for pattern in PATTERNS]
    for each in MINE:
        await store.create(each)
    for verb, kind, name, value in edits:
        wanted = MAKE[kind](name, value)
        copy = COPY[kind](wanted)
        known = {each.name for each in (await store.list(kind)).items}
        copies = {each.name: each for each in (await store.list(type(copy))).items}
        if verb == "put":
            await put(store, wanted)
        elif verb == "drop" and name in known:
            await store.delete(kind, name, wanted.namespace)
        elif verb == "spoil" and copy.name in copies:
            await store.update(replace(copies[copy.name], spec=type(copy.spec)()))
        elif verb == "lose" and copy.name in copies:
            await store.delete(type(copy), copy.name, copy.namespace)
        elif verb == "pass":
            for mirror in mirrors:
                await mirror.run_once()
    for mirror in mirrors:
        assert await mirror.run_once() == 0
    wanted_copies = {
        COPY[kind](each).title: COPY[kind](each) for kind in MAKE for each in (await store.list(kind)).items
    }
    stored = [*(await store.list(Profile)).items, *(await store.list(NetworkPolicy)).items]
    mine = {each.title for each in MINE}
    assert {each.title for each in stored} == wanted_copies.keys() | mine
    for each in stored:
        if each.title in wanted_copies:
            assert (each.spec, each.metadata.annotations[COPY_OF]) == (
                wanted_copies[each.title].spec,
                wanted_copies[each.title].metadata.annotations[COPY_OF],
            )
    before = [each.metadata.resource_version for each in stored]
    for mirror in mirrors:
        await mirror.run_once()
    after = [*(await store.list(Profile)).items, *(await store.list(NetworkPolicy)).items]
    assert [each.metadata.resource_version for each in after] == before  # nothing is written twice


def test_what_upstreams_controllers_made_becomes_a_copy() -> None:
    theirs = Profile(metadata=Metadata(name="kns.red", resource_version="5", annotations={"old": "kept"}))
    (change,) = changes([of_namespace(namespace("red"))], [theirs], "kns.")
    assert change.verb == "update"
    assert change.copy.metadata.annotations == {"old": "kept", COPY_OF: "Namespace red"}
    assert change.copy.metadata.resource_version == "5"


async def test_a_policy_that_cannot_be_copied_keeps_nobody_waiting_and_its_copy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    mirror = Mirror(store, PATTERNS[2])
    big = await store.create(policy("big"))
    assert await mirror.run_once() == 0
    peers = [{"podSelector": {"matchLabels": {"n": f"l{i}"}}} for i in range(MAX_RULES + 1)]
    spec = {"podSelector": {}, "ingress": [{"from": peers}]}
    await store.update(convert(K8sNetworkPolicy, {"metadata": {"name": "big", "namespace": "red"}, "spec": spec}))
    await store.create(policy("small"))
    for _ in range(2):
        await mirror.run_once()
    assert {each.name for each in (await store.list(NetworkPolicy)).items} == {"knp.default.big", "knp.default.small"}
    assert caplog.text.count("NetworkPolicy red/big: spec: needs 1025 rules") == 1
    assert big.spec.ingress == ()


async def test_a_locked_datastore_is_left_alone() -> None:
    store = MemoryStore()
    await store.create(
        ClusterInformation(metadata=Metadata(name="default"), spec=ClusterInformationSpec(datastore_ready=False))
    )
    await store.create(namespace("red"))
    assert [await Mirror(store, pattern).run_once() for pattern in PATTERNS] == [0, 0, 0]
    assert (await store.list(Profile)).items == ()


# --- labels -----------------------------------------------------------------------------------------------------------


def pod(name: str, **labels: str) -> Pod:
    body = {"containers": [{"name": "c"}], "nodeName": "n1", "serviceAccountName": "bot"}
    return convert(Pod, {"metadata": {"name": name, "namespace": "red", "labels": labels}, "spec": body})


def endpoint(of: str, node: str = "n1", orchestrator: str = "k8s", **more: Any) -> WorkloadEndpoint:
    metadata = {"name": f"{node}-k8s-{of}-eth0", "namespace": "red", **more}
    spec = {"node": node, "orchestrator": orchestrator, "pod": of, "endpoint": "eth0", "profiles": ["kns.red"]}
    return convert(WorkloadEndpoint, {"metadata": metadata, "spec": spec})


async def test_endpoints_follow_their_pods() -> None:
    store = MemoryStore()
    await store.create(pod("a", app="web"))
    moved = endpoint("a", "n2")
    one_profile = endpoint("a", "n1")
    one_profile = replace(
        changed(one_profile, annotations={NETWORK: "lan"}), spec=replace(one_profile.spec, profiles=("lan",))
    )
    assert list(followed([moved, one_profile, endpoint("a", orchestrator="cni"), endpoint("b")], [pod("a")])) == []
    await store.create(endpoint("a"))
    controller = EndpointLabels(store)
    assert await controller.run_once() == 0
    stored = await store.get(WorkloadEndpoint, "n1-k8s-a-eth0", "red")
    assert stored.labels == {
        "app": "web", "projectcalico.org/namespace": "red", "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "bot",
    }  # fmt: skip
    assert stored.spec.service_account_name == "bot"
    assert await controller.run_once() == 0
    assert await store.get(WorkloadEndpoint, "n1-k8s-a-eth0", "red") == stored


LABELS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xy"), max_size=4)


@given(LABELS, st.lists(LABELS, min_size=1, max_size=5))
def test_labels_of_kubernetes_come_and_go_and_own_ones_stay(own: dict[str, str], said: list[dict[str, str]]) -> None:
    node = Node(metadata=Metadata(name="n", labels=own))
    ever: set[str] = set()
    for labels in said:
        node = labelled(node, labels)
        assert labels.items() <= node.labels.items()
        assert labelled(node, labels) == node
        ever |= labels.keys()
    assert {key: value for key, value in node.labels.items() if key not in ever} == {
        key: value for key, value in own.items() if key not in ever
    }
    assert node.labels.keys() <= own.keys() | said[-1].keys()


@pytest.mark.parametrize("note", ["", "[]", "{", "null", '"x"'])
def test_a_spoilt_note_of_labels_counts_as_none(note: str) -> None:
    node = Node(metadata=Metadata(name="n", labels={"own": "1"}, annotations={KUBE_LABELS: note}))
    assert labelled(node, {"k": "v"}).labels == {"own": "1", "k": "v"}


async def test_nodes_by_their_reference() -> None:
    store = MemoryStore()
    await store.create(
        Node(metadata=Metadata(name="n1"), spec=NodeSpec(orch_refs=(OrchRef(node_name="k1", orchestrator="k8s"),)))
    )
    await store.create(Node(metadata=Metadata(name="host", labels={"own": "1"})))
    await store.create(K8sNode(metadata=Metadata(name="k1", labels={"zone": "z"})))
    controller = NodeLabels(store)
    assert await controller.run_once() == 0
    assert (await store.get(Node, "n1")).labels == {"zone": "z"}
    assert (await store.get(Node, "host")).labels == {"own": "1"}
