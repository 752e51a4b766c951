"""Custom resources of Calico's to our values and back; what we do not know of them survives."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.ipam.names import affinity_name, handle_name, machine_handle
from tortie.model.bgpfilter import BGPFilter
from tortie.model.closed_rules import unknown_conditions
from tortie.model.document import parse
from tortie.model.ipam import (
    BlockAffinity,
    BlockAffinitySpec,
    IPAMBlock,
    IPAMBlockSpec,
    IPAMConfig,
    IPAMConfigSpec,
    IPAMHandle,
    IPAMHandleSpec,
    IPPool,
)
from tortie.model.meta import NAME, Metadata, Resource, changed
from tortie.model.node import FelixConfiguration
from tortie.model.policy import GlobalNetworkPolicy, NetworkSet, NetworkSetSpec
from tortie.store.kube import crd
from tortie.store.kube.decoding import Refused, blank
from tortie.store.kube.forms import Custom
from tortie.store.kube.overlay import merge_patch, overlaid

V1, V3 = crd.V1, crd.V3


def read(kind, document, layout=V1):
    return crd.from_document(kind, json.dumps(document).encode(), layout)


def written(kind, document, change, layout=V1):
    """The document after our update of it."""
    form = Custom(kind, layout)
    old, _ = form.read(json.dumps(document).encode())
    return form.written(copy.deepcopy(document), old, change(old))


POOL = {
    "apiVersion": "crd.projectcalico.org/v1",
    "kind": "IPPool",
    "metadata": {
        "name": "default-ipv4-ippool",
        "uid": "3c0a1b2e-4d5f-4a6b-8c7d-0123456789ab",
        "resourceVersion": "811",
        "generation": 2,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {
            "projectcalico.org/metadata": json.dumps(
                {"uid": "x", "creationTimestamp": "2025-12-31T00:00:00Z", "labels": {"zone": "a"}, "strange": 1}
            )
        },
        "managedFields": [{"manager": "calico"}],
    },
    "spec": {"cidr": "10.0.0.0/16", "blockSize": 26, "ipipMode": "Never", "natOutgoing": True, "future": {"a": 1}},
}
"""As a cluster has it, with fields that no version has yet."""


def test_what_users_see_of_a_resource_is_in_its_annotation():
    pool, unknown = read(IPPool, POOL)
    assert (pool.name, pool.labels, pool.metadata.annotations) == ("default-ipv4-ippool", {"zone": "a"}, {})
    assert pool.metadata.creation_timestamp == "2025-12-31T00:00:00Z"
    assert pool.metadata.resource_version == "811"
    assert (pool.spec.cidr, pool.spec.block_size, pool.spec.nat_outgoing) == ("10.0.0.0/16", 26, True)
    assert unknown == ("spec.future",)


def test_a_uid_is_turned_byte_by_byte():
    uid = POOL["metadata"]["uid"]
    pool, _ = read(IPPool, POOL)
    assert pool.metadata.uid == crd.shown_uid(uid) != uid
    assert crd.shown_uid(pool.metadata.uid) == uid
    assert crd.shown_uid("01800000-0000-4000-8101-0000000000f0") == "80010000-0000-4000-8180-00000000000f"
    assert crd.shown_uid("no uuid") == "no uuid"


def test_an_update_leaves_what_is_not_known():
    new = written(IPPool, POOL, lambda pool: changed(pool, labels={"zone": "b"}))
    inner = json.loads(new["metadata"]["annotations"]["projectcalico.org/metadata"])
    assert inner["labels"] == {"zone": "b"}
    assert (inner["strange"], inner["creationTimestamp"]) == (1, "2025-12-31T00:00:00Z")
    assert new["spec"] == POOL["spec"], "what is not changed is as it was, future fields too"
    assert {k: v for k, v in new["metadata"].items() if k != "annotations"} == {
        k: v for k, v in POOL["metadata"].items() if k != "annotations"
    }


def test_an_update_changes_and_takes_away_what_is_known():
    def change(pool):
        spec = msgspec.structs.replace(pool.spec, nat_outgoing=False, block_size=None, node_selector="all()")
        return msgspec.structs.replace(pool, spec=spec)

    new = written(IPPool, POOL, change)
    assert new["spec"] == {"cidr": "10.0.0.0/16", "ipipMode": "Never", "future": {"a": 1}, "nodeSelector": "all()"}
    assert new["metadata"] == POOL["metadata"]


def test_an_update_without_a_change_is_the_same_document():
    assert written(IPPool, POOL, lambda pool: changed(pool, uid="forged", resource_version="")) == POOL


def test_labels_that_somebody_else_put_on_the_resource_stay_there():
    document = copy.deepcopy(POOL)
    document["metadata"]["labels"] = {"argocd": "yes", "projectcalico.org/owned": "x"}
    pool, _ = read(IPPool, document)
    assert pool.labels == {"zone": "a", "projectcalico.org/owned": "x"}
    new = written(IPPool, document, lambda pool: changed(pool, labels={"projectcalico.org/owned": "y"}))
    assert new["metadata"]["labels"] == {"argocd": "yes", "projectcalico.org/owned": "y"}


def test_a_resource_written_by_hand_has_its_own_labels():
    document = copy.deepcopy(POOL)
    document["metadata"] |= {"annotations": {"note": "by hand"}, "labels": {"zone": "c"}}
    pool, _ = read(IPPool, document)
    assert (pool.labels, pool.metadata.annotations) == ({"zone": "c"}, {"note": "by hand"})
    document["metadata"]["annotations"]["projectcalico.org/metadata"] = "{no json"
    assert read(IPPool, document)[0].name == "default-ipv4-ippool"


def test_a_new_resource_has_metadata_in_the_annotation_and_ours_beside():
    labels = {"zone": "a", "projectcalico.org/hostname-hash": "H"}
    affinity = BlockAffinity(
        metadata=Metadata(name="n1-10-0-0-0-26", labels=labels, resource_version="7", uid="u"),
        spec=BlockAffinitySpec(cidr="10.0.0.0/26", node="n1", state="confirmed", type="host"),
    )
    document = crd.to_document(affinity, V1)
    assert document["apiVersion"] == "crd.projectcalico.org/v1"
    assert document["metadata"]["labels"] == {"projectcalico.org/hostname-hash": "H"}
    inner = json.loads(document["metadata"]["annotations"]["projectcalico.org/metadata"])
    assert inner == {"creationTimestamp": None, "labels": labels}
    assert set(document["metadata"]) == {"name", "annotations", "labels"}
    assert document["spec"] == {
        "cidr": "10.0.0.0/26", "node": "n1", "state": "confirmed", "type": "host", "deleted": "false"
    }  # fmt: skip


@pytest.mark.parametrize(("stored", "deleted"), [("true", True), ("false", False), (True, True), (False, False)])
def test_an_affinity_says_deleted_as_text(stored, deleted):
    document = {
        "metadata": {"name": "a", "resourceVersion": "5"},
        "spec": {"cidr": "10.0.0.0/26", "node": "n", "state": "pending", "deleted": stored, "type": ""},
    }
    affinity, unknown = read(BlockAffinity, document)
    assert (affinity.spec.deleted, unknown) == (deleted, ())
    new = written(BlockAffinity, document, lambda one: msgspec.structs.replace(
        one, spec=msgspec.structs.replace(one.spec, state="confirmed", deleted=not deleted)))  # fmt: skip
    assert new["spec"]["deleted"] == ("false" if deleted else "true")
    assert new["spec"]["state"] == "confirmed"


def test_blocks_are_written_with_what_upstreams_schema_requires():
    block = IPAMBlock(metadata=Metadata(name="10-0-0-0-30"), spec=IPAMBlockSpec(cidr="10.0.0.0/30"))
    assert {"allocations", "unallocated", "attributes", "strictAffinity", "deleted", "cidr"} <= set(
        crd.to_document(block, V1)["spec"]
    )
    config = IPAMConfig(metadata=Metadata(name="default"), spec=IPAMConfigSpec(strict_affinity=True))
    assert crd.to_document(config, V1)["spec"] == {"strictAffinity": True, "autoAllocateBlocks": True}
    assert (crd.to_document(config, V3)["kind"], V3.place(IPAMConfig).plural) == (
        "IPAMConfiguration", "ipamconfigurations")  # fmt: skip


BLOCK = {
    "apiVersion": "crd.projectcalico.org/v1",
    "kind": "IPAMBlock",
    "metadata": {"name": "10-0-0-0-30", "resourceVersion": "9",
                 "annotations": {"projectcalico.org/metadata": '{"creationTimestamp":null}'}},
    "spec": {
        "affinity": "host:n1", "allocations": [0, None, 1, None], "unallocated": [1, 3], "cidr": "10.0.0.0/30",
        "attributes": [{"handle_id": "h1", "secondary": {"node": "n1"}, "future": 7}, {"handle_id": "h2"}],
        "deleted": False, "sequenceNumber": 18446744073709551615, "strictAffinity": False,
        "sequenceNumberForAllocation": {"0": 5},
    },
}  # fmt: skip


def test_a_block_of_upstreams_is_read_and_written_back():
    block, unknown = read(IPAMBlock, BLOCK)
    assert block.spec.allocations == (0, None, 1, None)
    assert block.spec.sequence_number == 2**64 - 1
    assert unknown == ("spec.attributes[0].future",)

    def release(one):
        left = {"allocations": (0, None, None, None), "unallocated": (1, 3, 2), "attributes": one.spec.attributes[:1]}
        return msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, **left))

    new = written(IPAMBlock, BLOCK, release)
    assert new["spec"]["allocations"] == [0, None, None, None]
    assert new["spec"]["attributes"] == [{"handle_id": "h1", "secondary": {"node": "n1"}, "future": 7}]


def test_a_rule_with_an_unknown_condition_lets_nothing_through():
    sunday = {"nets": ["10.0.0.0/8"], "onlyOnSundays": True}
    rules = [{"action": action, "source": sunday} for action in ("Deny", "Allow", "Pass")]
    policy = {"metadata": {"name": "p", "resourceVersion": "3"}, "spec": {"selector": "all()", "ingress": rules}}
    found, _ = read(GlobalNetworkPolicy, policy)
    deny, *others = found.spec.ingress
    assert deny.source.nets == ("10.0.0.0/8",)
    assert [(rule.action, rule.source.selector) for rule in others] == [("Allow", "!all()"), ("Pass", "!all()")]
    assert len(list(unknown_conditions(found))) == 2
    moved = written(GlobalNetworkPolicy, policy, lambda one: replace(one, spec=replace(one.spec, order=7)))
    assert (moved["spec"]["ingress"], moved["spec"]["order"]) == (rules, 7)
    shorter = written(
        GlobalNetworkPolicy, policy, lambda one: replace(one, spec=replace(one.spec, ingress=one.spec.ingress[1:]))
    )
    assert shorter["spec"]["ingress"] == rules[1:]


def test_a_filter_with_an_unknown_condition_is_refused_and_settings_are_not():
    rule = {"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In", "onlyOnSundays": True}
    routes = {"metadata": {"name": "p", "resourceVersion": "3"}, "spec": {"importV4": [rule]}}
    with pytest.raises(Refused, match=r"^spec.importV4\[0\].onlyOnSundays: is not known") as refusal:
        read(BGPFilter, routes)
    assert (refusal.value.metadata.name, refusal.value.metadata.resource_version) == ("p", "3")
    felix, unknown = read(FelixConfiguration, {"metadata": {"name": "default"},
                                               "spec": {"logSeverityScreen": "Info", "newThing": 1}})  # fmt: skip
    assert (felix.spec.log_severity_screen, unknown) == ("Info", ("spec.newThing",))
    with pytest.raises(Refused, match=r"^spec.cidr"):
        read(IPPool, {"metadata": {"name": "p"}, "spec": {"cidr": 5}})
    with pytest.raises(Refused):
        crd.from_document(IPPool, b"{", V1)


def test_nulls_are_fields_left_out():
    document = {"metadata": {"name": "s", "namespace": "red", "labels": None, "annotations": None,
                             "creationTimestamp": None}, "spec": {"nets": None}}  # fmt: skip
    found, unknown = read(NetworkSet, document)
    assert (found.spec.nets, unknown) == ((), ())
    assert read(NetworkSet, {"metadata": {"name": "s"}, "spec": None})[0].spec == NetworkSetSpec()


def test_the_v3_layout_has_everything_as_it_is():
    document = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool",
                "metadata": POOL["metadata"] | {"annotations": {"a": "b"}, "labels": {"zone": "a"}},
                "spec": {"cidr": "10.0.0.0/16", "future": 1}}  # fmt: skip
    pool, _ = read(IPPool, document, V3)
    assert (pool.metadata.uid, pool.labels, pool.metadata.annotations) == (
        POOL["metadata"]["uid"], {"zone": "a"}, {"a": "b"})  # fmt: skip
    new = written(IPPool, document, lambda one: changed(one, labels={}), V3)
    assert "labels" not in new["metadata"]
    assert new["spec"] == document["spec"]
    affinity = BlockAffinity(metadata=Metadata(name="a"), spec=BlockAffinitySpec(cidr="10.0.0.0/26", node="n"))
    assert crd.to_document(affinity, V3)["spec"]["deleted"] is False


def test_every_handle_has_a_name_that_kubernetes_takes_and_its_own_back():
    names = ["k8s-pod-network.4f0c", "My_Net.4F0C", "vxlan-tunnel-addr-n1", "a" * 300, "_.-x", "über",
             machine_handle("k8s-pod-network", "red", "db" * 80)]  # fmt: skip
    stored = [crd.stored_name(IPAMHandle, handle_name(name)) for name in names]
    assert all(NAME.match(name) and len(name) <= 253 for name in stored)
    assert len(set(stored)) == len(names)
    for name in names:
        handle = IPAMHandle(metadata=Metadata(name=handle_name(name)), spec=IPAMHandleSpec(handle_id=name))
        back, _ = read(IPAMHandle, crd.to_document(handle, V1))
        assert (back.name, back.spec.handle_id) == (handle_name(name), name)
    assert crd.stored_name(BlockAffinity, affinity_name("n" * 253, parse_net("10.0.0.0/26"))) == affinity_name(
        "n" * 253, parse_net("10.0.0.0/26")
    )


@pytest.mark.parametrize("kind", crd.CUSTOM)
@pytest.mark.parametrize("layout", [V1, V3])
def test_every_kind_has_a_place_and_can_be_gone(kind, layout):
    gone = blank(kind, Metadata(name="x", resource_version="3"))
    assert gone.name == "x"
    assert layout.place(kind).object("x", "red").startswith(f"/apis/{layout.version}/")


def examples() -> list[Resource]:
    """Calico's kinds in the examples, as a user writes them."""
    files = sorted((Path(__file__).parents[2] / "examples").rglob("*.y*ml"))
    found = [one for file in files if "kind:" in file.read_text() for one in _parsed(file)]
    return [one for one in found if type(one) in crd.CUSTOM]


def _parsed(file: Path) -> list[Resource]:
    try:
        return parse(file.read_text())
    except ConfigError:  # not every example is of resources
        return []


@pytest.mark.parametrize("layout", [V1, V3])
def test_what_users_write_comes_back_the_same(layout):
    found = examples()
    assert len({type(one) for one in found}) > 5
    for one in found:
        back, unknown = read(type(one), crd.to_document(one, layout), layout)
        assert unknown == ()
        if isinstance(one, IPAMConfig):  # autoAllocateBlocks is always said
            continue
        assert back == one


def test_the_group_that_is_asked_for():
    assert crd.layout_of("projectcalico.org/v3") is crd.layout_of("projectcalico.org") is V3
    assert crd.layout_of("crd.projectcalico.org/v1") is V1
    assert crd.layout_of("example.org") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", "a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)


def without_nulls(value):
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return value


def applied(stored, patch):
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(stored) if isinstance(stored, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = applied(result.get(name), value)
    return result


@given(st.dictionaries(st.sampled_from("abcd"), JSON), st.dictionaries(st.sampled_from("abcd"), JSON))
def test_a_merge_patch_makes_the_one_of_the_other(stored, wanted):
    stored, wanted = without_nulls(stored), without_nulls(wanted)
    assert applied(stored, merge_patch(stored, wanted)) == wanted
    assert merge_patch(stored, stored) == {}


@given(st.dictionaries(st.sampled_from("abcd"), JSON), st.dictionaries(st.sampled_from("abcd"), JSON))
def test_what_is_laid_over_is_there_and_what_is_not_known_stays(old, new):
    stored = {**old, "theirs": {"x": 1}}
    result = overlaid(stored, old, new)
    assert result == {**new, "theirs": {"x": 1}}
    assert overlaid(stored, old, old) is stored
