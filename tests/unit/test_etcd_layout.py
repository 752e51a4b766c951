"""Where etcd keeps what, and how: Calico's keys and JSON, both ways, and what of them must not get lost."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_pairs import PAIRS, RESOURCES
from tortie.base.errors import ConfigError, NotSupported
from tortie.calc.cluster import Cluster
from tortie.ipam.names import affinity_name, block_name
from tortie.model.bgpfilter import BGPFilter
from tortie.model.closed_rules import MARK
from tortie.model.ipam import (
    BlockAffinity,
    BlockAffinitySpec,
    IPAMBlock,
    IPAMBlockSpec,
    IPAMConfig,
    IPAMHandle,
    IPAMHandleSpec,
    IPPool,
)
from tortie.model.k8s import Namespace, Pod
from tortie.model.kinds import KINDS
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.node import Node
from tortie.model.policy import EntityRule, GlobalNetworkPolicy, NetworkPolicy, Profile, Rule
from tortie.model.service import EndpointSlice
from tortie.model.staged import StagedNetworkPolicy
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.selector import parse
from tortie.store import foreign
from tortie.store.etcd import layout


def test_grpc_is_loaded_only_for_who_asks_an_etcd() -> None:
    code = "import sys, tortie.store, tortie.store.place, tortie.store.etcd.layout; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0


SLICE = b"/tortie/v1/endpointslices.discovery.k8s.io/red/s"


def as_stored(obj: Resource, uid: str) -> Resource:
    return changed(obj, uid=uid if isinstance(obj, layout.IPAM) else obj.metadata.uid, resource_version="9")


@pytest.mark.parametrize("what", PAIRS)
def test_what_calico_writes_is_read(what: str) -> None:
    key, value, obj = PAIRS[what]
    found = layout.read(type(obj), key.encode(), value.encode(), 9, 3)
    assert found == as_stored(obj, found.metadata.uid)
    assert layout.identity(type(obj), key.encode()) == (obj.namespace, obj.name)


@pytest.mark.parametrize("what", PAIRS)
def test_what_is_written_is_what_calico_reads(what: str) -> None:
    key, value, obj = PAIRS[what]
    assert layout.key(obj) == key.encode()
    assert leaves(json.loads(layout.value(obj))) == leaves(json.loads(value))


def leaves(value: object) -> object:
    """JSON without what Calico writes though it is empty, and we leave out."""
    if isinstance(value, dict):
        kept = {name: leaves(inner) for name, inner in value.items()}
        return {name: inner for name, inner in kept.items() if name not in ("source", "destination") or inner}
    return [leaves(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("what", PAIRS)
def test_names_lead_to_the_key(what: str) -> None:
    key, _, obj = PAIRS[what]
    found = layout.keys(type(obj), obj.name, obj.namespace)
    if isinstance(obj, IPAMHandle):
        assert found[0] == key.lower().encode(), "the spelling of a handle is not in its name"
    else:
        assert key.encode() in found


@pytest.mark.parametrize("kind", KINDS)
def test_spans_hold_the_keys_of_their_kind_and_of_no_other(kind: type[Resource]) -> None:
    first, end = layout.span(kind)
    mine = [layout.key(obj) for _, _, obj in PAIRS.values() if type(obj) is kind]
    if not issubclass(kind, layout.IPAM):
        mine += layout.keys(kind, "default", "red")
        if kind.KIND.namespaced:
            inner, outer = layout.span(kind, "red")
            assert first < inner <= mine[-1] < outer < end
            assert not inner <= layout.keys(kind, "default", "red-2")[0] < outer
    assert all(first <= key < end for key in mine)
    for other in KINDS:
        if other is not kind and not issubclass(other, layout.IPAM):
            key = layout.keys(other, "default", "red")[0]
            assert not first <= key < end
            assert layout.identity(kind, key) is None


def test_kubernetes_kinds_are_under_our_own_prefix() -> None:
    assert layout.keys(Pod, "a", "red") == (b"/tortie/v1/pods/red/a",)
    assert layout.keys(Namespace, "red") == (b"/tortie/v1/namespaces/red",)
    ours = [kind for kind in KINDS if kind.KIND.api_version != "projectcalico.org/v3"]
    assert len(ours) >= 10
    assert all(layout.span(kind)[0].startswith(b"/tortie/v1/") for kind in ours)
    theirs = [kind for kind in KINDS if kind not in ours]
    assert all(layout.span(kind)[0].startswith(b"/calico/") for kind in theirs)


def test_what_lies_between_is_nothing() -> None:
    for kind, key in (
        (BlockAffinity, b"/calico/ipam/v2/host/node1"),
        (BlockAffinity, b"/calico/ipam/v2/host/node1/ipv6/block/10.0.0.0-26"),
        (IPAMBlock, b"/calico/ipam/v2/assignment/ipv4/block/10.0.0.1-26"),
        (IPAMBlock, b"/calico/ipam/v2/assignment/ipv4/block/x"),
        (IPPool, f"{RESOURCES}ippools/a/b".encode()),
        (IPPool, f"{RESOURCES}ippools/".encode()),
        (NetworkPolicy, f"{RESOURCES}networkpolicies/a".encode()),
    ):
        assert layout.identity(kind, key) is None


def test_an_affinity_without_a_state_is_one() -> None:
    found = layout.read(BlockAffinity, b"/calico/ipam/v2/host/n/ipv4/block/10.0.0.0-26", b"", 9, 3)
    assert (found.spec.state, found.spec.owns, found.spec.node, found.spec.cidr) == ("", True, "n", "10.0.0.0/26")


def test_old_fields_of_blocks_are_understood() -> None:
    value = (
        b'{"cidr":"10.0.0.0/31","hostAffinity":"n","allocations":[0,null],"unallocated":[1],"attributes":[{"handle_id":"h",'
        b'"secondary":null}],"strictAffinity":false,"sequenceNumberForAllocation":null}'
    )
    found = layout.read(IPAMBlock, b"/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-31", value, 9, 3)
    assert found.spec.affinity == "host:n"
    assert found.spec.attributes[0].handle_id == "h"


def test_the_other_spellings_of_ipams_configuration() -> None:
    assert [key.decode() for key in layout.keys(IPAMConfig, "default")] == [
        "/calico/ipam/v2/config", f"{RESOURCES}ipamconfigs/default", f"{RESOURCES}ipamconfigurations/default",
    ]  # fmt: skip
    for word, kind in (("ipamconfigs", "IPAMConfig"), ("ipamconfigurations", "IPAMConfiguration")):
        head = f'{{"kind":"{kind}","apiVersion":"projectcalico.org/v3","metadata":{{"name":"default"}},'
        value = head + '"spec":{"strictAffinity":true,"maxBlocksPerHost":4}}'
        found = layout.read(IPAMConfig, f"{RESOURCES}{word}/default".encode(), value.encode(), 9, 3)
        assert (found.name, found.spec.strict_affinity, found.spec.max_blocks_per_host) == ("default", True, 4)


def test_records_have_an_identity_that_lasts_until_they_are_deleted() -> None:
    key, value, _ = PAIRS["handle"]
    uids = [
        layout.read(IPAMHandle, key.encode(), value.encode(), *at).metadata.uid for at in ((9, 3), (12, 3), (20, 15))
    ]
    assert uids[0] == uids[1] != uids[2]


def test_names_that_do_not_fit_what_they_name() -> None:
    block = IPAMBlock(metadata=Metadata(name="mine"), spec=IPAMBlockSpec(cidr="10.0.0.0/26"))
    with pytest.raises(ConfigError, match=r'^IPAMBlock: metadata\.name: is "mine" and must be "10-0-0-0-26"$'):
        layout.key(block)
    handle = IPAMHandle(metadata=Metadata(name="x"), spec=IPAMHandleSpec(handle_id="Y"))
    with pytest.raises(ConfigError, match='must be "y"'):
        layout.key(handle)


@given(st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,12}[a-z0-9])?", fullmatch=True), st.integers(0, 2**26 - 1), st.booleans())
def test_every_affinity_is_found_by_its_name(host: str, number: int, six: bool) -> None:
    net = ip_network((number << 102 if six else number << 6, 122 if six else 26))
    affinity = BlockAffinity(
        metadata=Metadata(name=affinity_name(host, net)), spec=BlockAffinitySpec(cidr=str(net), node=host, type="host")
    )
    assert layout.key(affinity) in layout.keys(BlockAffinity, affinity.name)
    assert layout.identity(BlockAffinity, layout.key(affinity)) == ("", affinity.name)
    assert layout.net_of(block_name(net)) == net


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_escaping_goes_both_ways(name: str) -> None:
    assert "/" not in layout.escaped(name)
    assert layout.unescaped(layout.escaped(name)) == name


# What this version does not know ------------------------------------------------------------------------------------


def test_what_a_newer_version_wrote_survives_an_update() -> None:
    value = json.dumps(
        {
            "kind": "NetworkPolicy",
            "apiVersion": "projectcalico.org/v3",
            "metadata": {
                "name": "p",
                "namespace": "red",
                "creationTimestamp": None,
                "novel": 1,
                "labels": {"a": "1", "b": "2"},
            },
            "spec": {
                "order": 5,
                "selector": "all()",
                "ingress": [
                    {"action": "Allow", "source": {"nets": ["10.0.0.0/8"], "domains": ["a.org"]}, "destination": {}},
                    {"action": "Deny", "novel": {"deep": [1, 2]}},
                ],
                "novel": {"x": [1]},
            },
            "status": {"seen": True},
        }
    ).encode()  # fmt: skip
    key = f"{RESOURCES}networkpolicies/red/p".encode()
    found = layout.read(NetworkPolicy, key, value, 9, 3)
    assert (found.spec.order, len(found.spec.ingress), found.labels) == (5, 2, {"a": "1", "b": "2"})

    new = changed(found, labels={"a": "1"})
    rules = (new.spec.ingress[1], new.spec.ingress[0])
    new = msgspec.structs.replace(new, spec=msgspec.structs.replace(new.spec, order=None, ingress=rules))
    stored = json.loads(layout.value_over(value, found, new))
    assert stored["metadata"]["novel"] == 1
    assert stored["metadata"]["labels"] == {"a": "1"}, "what is known and taken away is gone"
    assert "order" not in stored["spec"]
    assert stored["spec"]["novel"] == {"x": [1]}
    assert stored["spec"]["ingress"][0]["novel"] == {"deep": [1, 2]}, "it moved with its rule"
    assert stored["spec"]["ingress"][1]["source"]["domains"] == ["a.org"]
    assert stored["status"] == {"seen": True}
    assert layout.read(NetworkPolicy, key, json.dumps(stored).encode(), 10, 3) == changed(new, resource_version="10")


def test_a_changed_rule_keeps_what_narrows_it() -> None:
    """Dropping a condition that we do not know would let more through than was meant."""
    before = {"ingress": [{"action": "Allow", "protocol": "TCP"}, {"action": "Deny"}]}
    stored = {"ingress": [{"action": "Allow", "protocol": "TCP", "novel": "narrow"}, {"action": "Deny"}]}
    after = {"ingress": [{"action": "Allow", "protocol": "UDP"}, {"action": "Deny"}]}
    assert foreign.kept(stored, before, after)["ingress"][0] == {
        "action": "Allow",
        "protocol": "UDP",
        "novel": "narrow",
    }
    shorter = {"ingress": [{"action": "Allow", "protocol": "TCP"}]}
    assert foreign.kept(stored, before, shorter)["ingress"] == [stored["ingress"][0]]
    longer = {"ingress": [{"action": "Log"}, *before["ingress"]]}
    assert foreign.kept(stored, before, longer)["ingress"] == [{"action": "Log"}, *stored["ingress"]]


STRICT = {
    "ingress": [
        {"action": "Allow", "protocol": "TCP", "source": {"nets": ["10.0.0.0/8"], "domains": ["a.org"]}},
        {"action": "Deny", "protocol": "TCP", "novel": 1},
        {"action": "Pass", "novel": {"deep": 1}, "metadata": {"annotations": {"a": "b"}}},
        {"action": "Allow", "protocol": "UDP", "empty": {}, "metadata": {"novel": "for people"}},
    ],
    "egress": [{"action": "Log", "novel": 1}],
}


def strict(kind: type[Resource], **spec: object) -> tuple[bytes, bytes]:
    name = "red/p" if kind.KIND.namespaced else "p"
    return f"{RESOURCES}{kind.KIND.plural}/{name}".encode(), json.dumps({"spec": STRICT | spec}).encode()


@pytest.mark.parametrize("kind", [NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, Profile])
def test_rules_with_conditions_that_are_not_known_let_nothing_through(kind: type[Resource]) -> None:
    key, value = strict(kind)
    found = layout.read(kind, key, value, 9, 3)
    closed, deny, passed, plain = found.spec.ingress  # type: ignore[attr-defined]
    assert (closed.action, closed.source, closed.protocol) == ("Allow", EntityRule(selector="!all()"), None)
    assert closed.metadata.annotations == {MARK: "source.domains"}
    assert (deny.action, deny.protocol, deny.source) == ("Deny", "TCP", EntityRule()), "broader than it was meant"
    assert passed.source == EntityRule(selector="!all()")
    assert passed.metadata.annotations == {"a": "b", MARK: "novel"}
    assert (plain.protocol, plain.source) == ("UDP", EntityRule()), "what says nothing is no condition"
    assert found.spec.egress[0].metadata is None  # type: ignore[attr-defined]
    assert json.loads(layout.value_over(value, found, found))["spec"].items() >= STRICT.items(), "nothing is lost"


def test_a_closed_rule_is_opened_again_wherever_it_goes() -> None:
    key, value = strict(NetworkPolicy)
    found = layout.read(NetworkPolicy, key, value, 9, 3)
    one, two, three, four = found.spec.ingress

    def written(*rules: Rule) -> list[dict[str, object]]:
        new = msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, ingress=rules))
        stored: list[dict[str, object]] = json.loads(layout.value_over(value, found, new))["spec"]["ingress"]
        return stored

    theirs = STRICT["ingress"]
    assert written(three, one) == [theirs[2], theirs[0]]
    assert written(two, three, four) == theirs[1:]
    other = msgspec.structs.replace(four, protocol="TCP")
    assert written(one, two, three, other)[0] == theirs[0]
    changed_one = msgspec.structs.replace(one, action="Deny")
    assert written(changed_one, two, three, four)[0]["source"] == {"selector": "!all()", "domains": ["a.org"]}


def test_a_selector_that_is_not_known_counts_for_every_rule() -> None:
    key, value = strict(NetworkPolicy, novelSelector="all()")
    found = layout.read(NetworkPolicy, key, value, 9, 3)
    assert [rule.source.selector for rule in found.spec.ingress] == ["!all()", "", "!all()", "!all()"]


@pytest.mark.parametrize("kind", [NetworkPolicy, GlobalNetworkPolicy])
def test_closed_rules_are_told_of_and_match_nothing(kind: type[Resource]) -> None:
    key, value = strict(kind)
    found = layout.read(kind, key, value, 9, 3)
    cluster = Cluster("n1")
    cluster.put(found)
    assert cluster.problems[f"a rule of {found.title}"] == (
        "spec.ingress[0]: source.domains: not known to this version, so that it matches nothing; "
        "spec.ingress[2]: novel: not known to this version, so that it matches nothing"
    )
    for labels in ({}, {"a": "b"}, {"projectcalico.org/namespace": "red"}):
        assert not parse(found.spec.ingress[0].source.selector).matches(labels)
    cluster.drop(kind, found.namespace, found.name)
    assert not cluster.problems


def test_filters_of_routes_with_conditions_that_are_not_known_are_not_read() -> None:
    value = b'{"spec":{"exportV4":[{"action":"Accept","novel":1}]}}'
    with pytest.raises(NotSupported, match=r"exportV4\[0\]\.novel: is not known to this version"):
        layout.read(BGPFilter, f"{RESOURCES}bgpfilters/f".encode(), value, 9, 3)


def test_nulls_are_fields_that_are_not_given() -> None:
    value = (
        b'{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"w","labels":null},'
        b'"spec":{"node":"n","ports":null,"ipNetworks":null}}'
    )
    found = layout.read(WorkloadEndpoint, f"{RESOURCES}workloadendpoints/red/w".encode(), value, 9, 3)
    assert (found.labels, found.spec.ports, found.spec.node) == ({}, (), "n")


def test_what_cannot_be_read_is_said() -> None:
    key = f"{RESOURCES}ippools/a".encode()
    for value, message in (
        (b"", "is no JSON"),
        (b"[1]", "is not an object"),
        (b'{"metadata":{"name":"a"},"spec":{"cidr":7}}', r"spec\.cidr: .*: upgrade"),
        (b'{"metadata":{"name":"a"},"spec":{"cidr":"10.0.0.0/8","ipipMode":"Sometimes"}}', "Sometimes.*: upgrade"),
    ):
        with pytest.raises(NotSupported, match=message):
            layout.read(IPPool, key, value, 9, 3)


def test_the_key_says_the_name() -> None:
    found = layout.read(Node, f"{RESOURCES}nodes/n1".encode(), b'{"metadata":{"name":"other"},"spec":{}}', 9, 3)
    assert found.name == "n1"


def test_a_policys_note_of_its_name_is_not_shown() -> None:
    key, value, _ = PAIRS["global policy"]
    found = layout.read(GlobalNetworkPolicy, key.encode(), value.encode(), 9, 3)
    assert found.metadata.annotations == {}
    noted = changed(found, annotations={"mine": "1"})
    stored = json.loads(layout.value_over(value.encode(), found, noted))
    assert stored["metadata"]["annotations"] == {
        "mine": "1", "projectcalico.org/metadata": '{"name":"default.deny"}',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"endpoints": [{"addresses": [5]}]}, "endpoints[1].addresses[0]: 5 must be text: put it in quotes"),
        ({"endpoints": [{"addresses": "10.0.0.3"}]}, 'endpoints[1].addresses: "10.0.0.3" must be a list'),
        ({"endpoints": [None]}, "endpoints[1]: is empty, must be a mapping"),
        ({"ports": [{"port": 1, "protocol": "QUIC"}]}, 'ports[1].protocol: "QUIC" is not one of TCP, UDP, SCTP'),
    ],
)
def test_what_cannot_be_read_of_a_slice_costs_no_other_endpoint(bad: dict[str, list[object]], why: str) -> None:
    """As in Kubernetes. What is null, or has a field of tomorrow's, is no misfit."""
    good = {"endpoints": [{"addresses": ["10.0.0.1"], "zone": None}, {"addresses": ["10.0.0.2"], "novel": 1}],
            "ports": [{"port": 80}]}  # fmt: skip
    ((field, (one,)),) = bad.items()
    first, *others = good[field]
    document = {"metadata": {"name": "s", "namespace": "red"}, "addressType": "IPv4"}
    stored = json.dumps(document | good | {field: [first, one, *others]}).encode()
    told: layout.Paths = []
    found = layout.read(EndpointSlice, SLICE, stored, 9, 3, told)
    assert [one.addresses for one in found.endpoints] == [("10.0.0.1",), ("10.0.0.2",)]
    assert [one.port for one in found.ports] == [80]
    assert told == [f"{why}; {field}[1] is left out"]


def test_what_a_slice_is_about_must_be_readable() -> None:
    with pytest.raises(NotSupported, match='addressType: "IPv9" is not one of'):
        layout.read(EndpointSlice, SLICE, b'{"addressType": "IPv9", "endpoints": [5]}', 9, 3)
    with pytest.raises(NotSupported, match='endpoints: "none" must be a list'):
        layout.read(EndpointSlice, SLICE, b'{"addressType": "IPv4", "endpoints": "none"}', 9, 3)
