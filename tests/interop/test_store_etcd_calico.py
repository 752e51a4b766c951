"""One etcd, two kinds of clients: etcdctl puts what Calico writes and we read it, and reads what we wrote."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from calico_pairs import PAIRS, RESOURCES
from etcd_server import Etcd, needs_etcd, running
from store_words import pool, seen, take
from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError, Exists, NotFound, NotSupported
from tortie.ipam.assign import Ipam
from tortie.ipam.names import affinity_name
from tortie.model.apiconfig import ApiConfig
from tortie.model.document import parse as parse_documents
from tortie.model.ipam import (
    BlockAffinity,
    BlockAffinitySpec,
    IPAMBlock,
    IPAMConfig,
    IPAMConfigSpec,
    IPAMHandle,
    IPAMHandleSpec,
    IPPool,
)
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.node import Node
from tortie.model.policy import GlobalNetworkPolicy, NetworkSet, NetworkSetSpec, Profile
from tortie.model.service import EndpointSlice
from tortie.policy.selector import parse
from tortie.store.etcd import layout
from tortie.store.etcd.store import EtcdStore

pytestmark = needs_etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
async def store(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    await asyncio.to_thread(etcd.ctl, "del", "--prefix", "")
    store = EtcdStore(ApiConfig(etcd_endpoints=etcd.url))
    yield store
    await store.close()


async def put(etcd: Etcd, key: str, value: str) -> None:
    await asyncio.to_thread(etcd.ctl, "put", "--", key, value)


async def stored(etcd: Etcd, key: str) -> str:
    return (await asyncio.to_thread(etcd.ctl, "get", "--print-value-only", key)).strip()


def same(found: Resource, expected: Resource) -> bool:
    """Identity and revision aside."""
    bare = {"uid": "", "creation_timestamp": None, "resource_version": ""}
    return changed(found, **bare) == changed(expected, **bare)


async def test_what_is_put_is_read_listed_and_watched(etcd: Etcd, store: EtcdStore) -> None:
    start = (await store.list(IPPool)).revision
    for key, value, _ in PAIRS.values():
        await put(etcd, key, value)
    for what, (_, _, obj) in PAIRS.items():
        kind = type(obj)
        assert same(await store.get(kind, obj.name, obj.namespace), obj), what
        assert any(same(one, obj) for one in (await store.list(kind)).items), what
        async with aclosing(store.watch(kind, start)) as watch:
            expected = [each for _, _, each in PAIRS.values() if type(each) is kind]
            assert all(map(same, [event.object for event in await take(watch, len(expected))], expected)), what


async def test_what_we_write_is_where_calico_looks(etcd: Etcd, store: EtcdStore) -> None:
    for what, (key, value, obj) in PAIRS.items():
        made = await store.create(obj)
        assert same(made, obj), what
        found = json.loads(await stored(etcd, key))
        if "kind" in found:
            assert (found["kind"], found["metadata"]["name"]) == (obj.KIND.kind, obj.name)
            assert found["metadata"]["uid"] == made.metadata.uid
            assert "resourceVersion" not in found["metadata"]
        else:
            assert found == json.loads(value), what
        with pytest.raises(Exists):
            await store.create(obj)
        assert await store.get(type(obj), obj.name, obj.namespace) == made, what
        assert await store.delete(type(obj), obj.name, obj.namespace) == made
        assert await stored(etcd, key) == "", what


async def test_an_update_keeps_what_calico_wrote(etcd: Etcd, store: EtcdStore) -> None:
    key = f"{RESOURCES}ippools/p"
    value = {"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p", "novel": [1]}}
    await put(etcd, key, json.dumps(value | {"spec": {"cidr": "10.0.0.0/16", "novel": {"x": 1}}, "status": {"y": 2}}))
    found = await store.get(IPPool, "p")
    await store.update(replace(found, spec=replace(found.spec, nat_outgoing=True)))
    now = json.loads(await stored(etcd, key))
    assert now["metadata"]["novel"] == [1]
    assert now["spec"] == {"cidr": "10.0.0.0/16", "novel": {"x": 1}, "natOutgoing": True}
    assert now["status"] == {"y": 2}

    block = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30"
    await put(etcd, block, json.dumps(json.loads(PAIRS["block"][1]) | {"novel": 3}))
    read = await store.get(IPAMBlock, "10-0-0-0-30")
    await store.update(replace(read, spec=replace(read.spec, deleted=True)))
    now = json.loads(await stored(etcd, block))
    assert (now["novel"], now["deleted"]) == (3, True)


async def test_affinities_of_nodes_whose_names_are_too_long(store: EtcdStore) -> None:
    host, net = "n" * 63 + ".x" * 94, parse_net("10.0.0.0/26")
    name = affinity_name(host, net)
    spec = BlockAffinitySpec(cidr=str(net), node=host, state="confirmed", type="host")
    made = await store.create(BlockAffinity(metadata=Metadata(name=name), spec=spec))
    assert await store.get(BlockAffinity, name) == made
    new = await store.update(replace(made, spec=replace(made.spec, state="pendingDeletion")))
    assert await store.delete(BlockAffinity, name) == new


async def test_handles_are_found_whatever_their_spelling(etcd: Etcd, store: EtcdStore) -> None:
    """Objects are named in lower case, keys are spelt as the handle: those of others are found, too."""
    handle = IPAMHandle(metadata=Metadata(name="net.abc"), spec=IPAMHandleSpec(handle_id="Net.ABC", block={}))
    with pytest.raises(NotFound):
        await store.get(IPAMHandle, "net.abc")
    made = await store.create(handle)
    assert await store.get(IPAMHandle, "net.abc") == made
    with pytest.raises(Exists):
        await store.create(handle)
    for spelling in ("OTHER.x", "othER.y"):
        await put(etcd, f"/calico/ipam/v2/handle/{spelling}", '{"block":{"10.0.0.0/26":2},"deleted":false}')
        found = await store.get(IPAMHandle, spelling.lower())
        assert found.spec.handle_id == spelling
        again = await store.update(replace(found, spec=replace(found.spec, block={"10.0.0.0/26": 1})))
        assert again.spec.block == {"10.0.0.0/26": 1}
        assert await store.delete(IPAMHandle, spelling.lower()) == again
        assert await stored(etcd, f"/calico/ipam/v2/handle/{spelling}") == ""


async def test_ipams_configuration_under_another_key(etcd: Etcd, store: EtcdStore) -> None:
    key = f"{RESOURCES}ipamconfigurations/default"
    spec = {"strictAffinity": True, "maxBlocksPerHost": 4}
    await put(etcd, key, json.dumps({"kind": "IPAMConfiguration", "metadata": {"name": "default"}, "spec": spec}))
    found = await store.get(IPAMConfig, "default")
    assert (found.spec.strict_affinity, found.spec.max_blocks_per_host) == (True, 4)
    assert (await store.list(IPAMConfig)).items == (found,)
    with pytest.raises(Exists):
        await store.create(IPAMConfig(metadata=Metadata(name="default"), spec=IPAMConfigSpec()))
    new = await store.update(replace(found, spec=replace(found.spec, max_blocks_per_host=5)))
    assert json.loads(await stored(etcd, layout.CONFIG)) == {
        "strict_affinity": True, "auto_allocate_blocks": True, "maxBlocksPerHost": 5,
    }  # fmt: skip
    assert await store.get(IPAMConfig, "default") == new


async def test_the_default_profile_is_always_there(store: EtcdStore) -> None:
    found = await store.get(Profile, "projectcalico-default-allow")
    assert [rule.action for rule in (*found.spec.ingress, *found.spec.egress)] == ["Allow", "Allow"]
    assert (await store.list(Profile)).items == (found,)
    with pytest.raises(Exists):
        await store.create(Profile(metadata=Metadata(name="projectcalico-default-allow")))
    for call in (store.update(found), store.delete(Profile, found.name)):
        with pytest.raises(NotSupported, match=r"is not supported on Profile\(projectcalico-default-allow\)"):
            await call


async def test_what_cannot_be_read_hides_nothing_else(
    etcd: Etcd, store: EtcdStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out of lists and watches, with one warning; a get says why; it may become readable and back."""
    made = await store.create(pool("good"))
    key, bad = f"{RESOURCES}ippools/bad", '{"metadata":{"name":"bad"},"spec":{"cidr":"10.0.0.0/8","ipipMode":"Novel"}}'
    async with aclosing(store.watch(IPPool, made.metadata.resource_version)) as watch:
        with caplog.at_level(logging.WARNING):
            await put(etcd, key, bad)
            await put(etcd, f"{RESOURCES}ippools/a/strange/key", "x")
            await store.create(pool("other"))
            assert seen(await take(watch, 1)) == [("ADDED", "other")]
            for _ in range(2):
                assert [one.name for one in (await store.list(IPPool)).items] == ["good", "other"]
        warnings = [record.getMessage() for record in caplog.records if record.name == "tortie.store.etcd.store"]
        assert len(warnings) == 1
        assert key in warnings[0]
        with pytest.raises(NotSupported, match="Novel"):
            await store.get(IPPool, "bad")
        await put(etcd, key, bad.replace("Novel", "Never"))
        await put(etcd, key, bad)
        await asyncio.to_thread(etcd.ctl, "del", key)
        await store.delete(IPPool, "good")
        told = [("ADDED", "bad"), ("DELETED", "bad"), ("DELETED", "good")]
        assert seen(await take(watch, 3)) == told


async def test_what_is_not_known_is_said_once(etcd: Etcd, store: EtcdStore, caplog: pytest.LogCaptureFixture) -> None:
    spec = {"cidr": "10.0.0.0/16", "novel": 1}
    for name in ("a", "b"):
        await put(etcd, f"{RESOURCES}ippools/{name}", json.dumps({"metadata": {"name": name}, "spec": spec}))
    rules = [{"action": "Deny"}, {"action": "Allow", "source": {"domains": ["a.org"]}}]
    for name in ("x", "y"):
        value = {"metadata": {"name": name}, "spec": {"selector": "all()", "ingress": rules}}
        await put(etcd, f"{RESOURCES}globalnetworkpolicies/{name}", json.dumps(value))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await store.list(IPPool)
            for policy in (await store.list(GlobalNetworkPolicy)).items:
                assert policy.spec.ingress[1].source.selector == "!all()"
    closed = "spec.ingress[1]: source.domains: not known to this version, so that it matches nothing"
    assert [record.getMessage() for record in caplog.records if record.name == "tortie.store.etcd.store"] == [
        f"etcd key {RESOURCES}ippools/a: spec.novel: not known to this version, without effect",
        f"etcd key {RESOURCES}globalnetworkpolicies/x: {closed}",
        f"etcd key {RESOURCES}globalnetworkpolicies/y: {closed}",
    ]
    policy = await store.get(GlobalNetworkPolicy, "x")
    await store.update(replace(policy, metadata=replace(policy.metadata, labels={"a": "b"})))
    now = json.loads(await stored(etcd, f"{RESOURCES}globalnetworkpolicies/x"))
    assert (now["spec"]["ingress"], now["metadata"]["labels"]) == (rules, {"a": "b"}), "nothing was lost"
    for one in (await store.list(GlobalNetworkPolicy)).items:
        await store.delete(GlobalNetworkPolicy, one.name)


async def test_an_endpoint_that_cannot_be_read_costs_no_other(
    etcd: Etcd, store: EtcdStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, with its place; a watch tells of the others; who writes the slice again leaves it there."""
    key = layout.keys(EndpointSlice, "s", "red")[0].decode()
    ends: list[object] = [{"addresses": ["10.0.0.1"]}, {"addresses": "10.0.0.2"}, {"addresses": ["10.0.0.3"]}]
    value = {"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": ends, "ports": [{"port": 80}]}
    start = (await store.list(EndpointSlice)).revision
    with caplog.at_level(logging.WARNING):
        await put(etcd, key, json.dumps(value))
        async with aclosing(store.watch(EndpointSlice, start)) as watch:
            assert seen(await take(watch, 1)) == [("ADDED", "s")]
        (found,) = (await store.list(EndpointSlice)).items
    assert [one.addresses for one in found.endpoints] == [("10.0.0.1",), ("10.0.0.3",)]
    assert [record.getMessage() for record in caplog.records if record.name == "tortie.store.etcd.store"] == [
        f'etcd key {key}: endpoints[1].addresses: "10.0.0.2" must be a list; endpoints[1] is left out'
    ]
    await store.update(replace(found, ports=()))
    now = json.loads(await stored(etcd, key))
    assert (now["endpoints"], now.get("ports", [])) == (ends, [])


async def test_what_is_too_large_is_said(store: EtcdStore) -> None:
    nets = tuple(f"2001:db8::{number:x}/128" for number in range(100_000))
    large = NetworkSet(metadata=Metadata(name="large", namespace="red"), spec=NetworkSetSpec(nets=nets))
    with pytest.raises(ConfigError, match="too large for etcd"):
        await store.create(large)
    assert (await store.list(NetworkSet)).items == ()


KUBERNETES = """
{apiVersion: v1, kind: Namespace, metadata: {name: red}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: red}}
---
{apiVersion: v1, kind: Secret, metadata: {name: bgp, namespace: red}, stringData: {password: p}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: red}, spec: {nodeName: n1, containers: [{name: c}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: red}, spec: {ports: [{port: 80}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: red}, spec: {podSelector: {}}}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: l, namespace: red}, spec: {holderIdentity: x}}
"""


async def test_kubernetes_objects_are_ours_alone(etcd: Etcd, store: EtcdStore) -> None:
    for obj in parse_documents(KUBERNETES):
        made = await store.create(obj)
        assert (await store.list(type(obj))).items == (made,)
        place = f"{obj.namespace}/{obj.name}" if obj.namespace else obj.name
        found = json.loads(await stored(etcd, f"/tortie/v1/{obj.KIND.key}/{place}"))
        assert (found["apiVersion"], found["kind"]) == (obj.KIND.api_version, obj.KIND.kind)
    assert await asyncio.to_thread(etcd.ctl, "get", "--prefix", "--keys-only", "/calico/") == ""


async def test_addresses_are_assigned_over_it(etcd: Etcd, store: EtcdStore) -> None:
    """IPAM whole, eight nodes at once: no address twice, and the records are Calico's."""

    def matches(text: str, labels: Mapping[str, str]) -> bool:
        return parse(text).matches(labels)

    await store.create(pool("main", "10.7.0.0/20"))
    for number in range(8):
        await store.create(Node(metadata=Metadata(name=f"n{number}")))
    ipams = [Ipam(store, f"n{number}", lambda: datetime.now(UTC), matches) for number in range(8)]

    async def assign(ipam: Ipam, handle: str) -> str:
        (address,) = await ipam.all_or_nothing(await ipam.auto_assign(1, handle=handle, attrs={"node": handle}))
        return str(address)

    tasks = (assign(ipam, f"net.n{n}-{i}") for n, ipam in enumerate(ipams) for i in range(4))
    addresses = await asyncio.gather(*tasks)
    assert len(set(addresses)) == 32
    blocks = await asyncio.to_thread(
        etcd.ctl, "get", "--prefix", "--keys-only", "/calico/ipam/v2/assignment/ipv4/block/"
    )
    assert len(blocks.split()) == 8
    state = await asyncio.to_thread(etcd.ctl, "get", "--prefix", "--print-value-only", "/calico/ipam/v2/host/n3/")
    assert json.loads(state) == {"state": "confirmed", "deleted": False}
    handles = (await store.list(IPAMHandle)).items
    assert sorted(one.spec.handle_id for one in handles) == sorted(f"net.n{n}-{i}" for n in range(8) for i in range(4))
