"""IPAM over a store: how addresses and blocks are given back, and repaired. Many situations are Calico's."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from ipam_cluster import FAMILIES, Cluster, Family, nets
from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError, Conflict, NotFound, Unavailable
from tortie.ipam import affinity as claims
from tortie.ipam import names
from tortie.ipam.affinity import ClaimedElsewhere, NotEmpty
from tortie.ipam.assign import Ipam
from tortie.ipam.block import Release
from tortie.ipam.ledger import Ledger
from tortie.ipam.owner import Owner
from tortie.model.ipam import (
    BlockAffinity,
    IPAMBlock,
    IPAMHandle,
    IPPool,
)
from tortie.model.meta import Metadata, changed
from tortie.store.memory import MemoryStore


@pytest.fixture(params=FAMILIES, ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture
async def cluster() -> Any:
    cluster = Cluster()
    await cluster.node("node1", "node2", "node3")
    yield cluster
    assert [str(each) for each in await cluster.findings()] == []


# --------------------------------------------------------------------------------------------------------- release


async def test_release_with_wrong_sequence_or_handle(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    (ip,) = (await cluster.got(family, 1)).ips
    block = await cluster.store.get(IPAMBlock, names.block_name(ip.network))
    sequence = block.spec.sequence_number_for_allocation["0"]
    ipam = cluster.ipam()
    for wrong in (Release(ip.ip, "other"), Release(ip.ip, "h", sequence + 1)):
        released = await ipam.release_ips([wrong])
        assert isinstance(released.error, Conflict)
        assert released.done == ()
        assert await ipam.ips_by_handle("h") == (ip.ip,)
    released = await ipam.release_ips([Release(ip.ip, "h\r\neth0", sequence)])
    assert (released.error, len(released.done), released.not_allocated) == (None, 1, ())
    assert await cluster.handles() == {}
    await ipam.assign_ip(ip.ip, handle="h", attrs={})
    assert isinstance((await ipam.release_ips([Release(ip.ip, "h", sequence)])).error, Conflict)


async def test_release_of_what_is_not_there(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    (ip,) = (await cluster.got(family, 1)).ips
    outside = parse_ip("1.1.1.1")
    asked = [Release(ip.ip), Release(ip.ip + 1), Release(family.ip(200)), Release(family.ip(130)), Release(outside)]
    released = await cluster.ipam().release_ips(asked)
    assert released.error is None
    assert set(released.not_allocated) == {each.ip for each in asked[1:]}
    assert len(released.done) == 5
    with pytest.raises(NotFound):
        await cluster.ipam().release_by_handle("never")


async def test_release_after_the_pool_has_gone(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    (ip,) = (await cluster.got(family, 1)).ips
    await cluster.store.delete(IPPool, "pool")
    assert await cluster.ipam().release_pool_affinities(family.net(8)) == ()
    assert await cluster.blocks() == {ip.network: None}
    assert await cluster.affinities() == {}
    assert (await cluster.ipam().release_ips([Release(ip.ip)])).not_allocated == ()
    assert await cluster.blocks() == {}


async def test_addresses_of_one_handle_in_many_blocks(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8), block_size=family.host_bits - 2)
    await cluster.got(family, 10)
    assert sorted(next(iter((await cluster.handles()).values())).values()) == [2, 4, 4]
    assert len(await cluster.ipam().ips_by_handle("h")) == 10
    await cluster.ipam().release_by_handle("h")
    assert await cluster.handles() == {}
    assert len(await cluster.blocks()) == 3


async def test_handle_that_counts_too_many_goes_with_its_release(cluster: Cluster) -> None:
    await cluster.pool("10.0.0.0/24")
    await cluster.got(FAMILIES[0], 1)
    handle = await cluster.store.get(IPAMHandle, "h")
    counts = {cidr: count + 3 for cidr, count in handle.spec.block.items()} | {"10.9.9.0/26": 1}
    await cluster.store.update(replace(handle, spec=replace(handle.spec, block=counts)))
    findings = await cluster.findings()
    assert len(findings) == 2
    assert all(each.harmless for each in findings)
    await cluster.ipam().release_by_handle("h")
    assert await cluster.handles() == {}


class Told(MemoryStore):
    """Counts what is asked of it, with a moment's delay as a datastore has. While `held`, no block is written."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.held: asyncio.Event | None = None

    async def _note(self, call: str) -> None:
        self.calls[call] += 1
        await asyncio.sleep(0)
        if self.held is not None and call == "update IPAMBlock":
            await self.held.wait()

    async def get(self, kind: Any, name: str, namespace: str = "") -> Any:
        await self._note(f"get {kind.KIND.kind}")
        return await super().get(kind, name, namespace)

    async def update(self, obj: Any) -> Any:
        await self._note(f"update {obj.KIND.kind}")
        return await super().update(obj)


async def pods(cluster: Cluster, count: int) -> tuple[Told, Ipam]:
    """A desk at which so many handles, h0 to h9 and on, hold one address each."""
    store = cluster.store = Told()
    await cluster.node("node1")
    await cluster.pool("10.0.0.0/24", block_size=26)
    ipam = cluster.ipam()
    for number in range(count):
        await ipam.auto_assign(1, handle=f"h{number}", attrs={})
    store.calls.clear()
    return store, ipam


async def test_those_that_go_at_once_are_one_write_of_their_block(cluster: Cluster) -> None:
    store, ipam = await pods(cluster, 80)
    await asyncio.gather(*(ipam.release_by_handle(f"h{number}") for number in range(80)))
    assert await cluster.handles() == {}
    # The first goes alone, since nobody waits yet; the others lie in two blocks.
    assert store.calls["update IPAMBlock"] == 3
    assert store.calls["get IPAMConfig"] == 2


async def test_each_of_those_that_go_at_once_is_told_its_own(cluster: Cluster) -> None:
    store, ipam = await pods(cluster, 4)
    bad = await store.get(IPAMHandle, "h2")
    await store.update(replace(bad, spec=replace(bad.spec, block=bad.spec.block | {"none": 1})))
    names = ("h0", "h1", "never", "h2", "h3", "h3")
    said = await asyncio.gather(*map(ipam.release_by_handle, names), return_exceptions=True)
    assert [type(one).__name__ for one in said] == [
        "NoneType", "NoneType", "NotFound", "ConfigError", "NoneType", "NoneType",
    ]  # fmt: skip
    assert list(await cluster.handles()) == ["h2"]
    await store.update(replace(await store.get(IPAMHandle, "h2"), spec=bad.spec))
    assert [str(ip) for ip in await ipam.ips_by_handle("h2")] == ["10.0.0.2"], "nothing of it was touched"


@pytest.mark.parametrize("who", [0, 1, 2], ids=["the first", "who goes for all", "one that waits"])
async def test_one_of_those_that_go_at_once_gives_up(cluster: Cluster, who: int) -> None:
    """Whoever writes for all may be cancelled half-way: the others are released all the same."""
    store, ipam = await pods(cluster, 6)
    tasks = [asyncio.create_task(ipam.release_by_handle(f"h{number}")) for number in range(6)]
    store.held = asyncio.Event()
    async with asyncio.timeout(5):
        while store.calls["update IPAMBlock"] < (2 if who == 1 else 1):
            await asyncio.sleep(0.001)
            if who == 1 and store.calls["update IPAMBlock"] == 1:
                store.held.set()  # the first goes on
                store.held = asyncio.Event()
        tasks[who].cancel()
        await asyncio.wait([tasks[who]])
        store.held.set()
        said = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one).__name__ for one in said].count("NoneType") == 5
    assert isinstance(said[who], asyncio.CancelledError)
    left = await cluster.handles()
    assert list(left) in ([], [f"h{who}"])
    for handle in left:  # as the runtime's next DEL does
        await ipam.release_by_handle(handle)
    assert await cluster.handles() == {}


async def test_affinity_goes_when_the_pool_no_longer_selects_the_node(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    share = await cluster.got(family, 3)
    await cluster.edit_pool(node_selector='rack == "1"')
    for i, ip in enumerate(share.ips):
        assert await cluster.affinities() == {("node1", ip.network): "confirmed"}, i
        await cluster.ipam().release_ips([Release(ip.ip)])
    assert await cluster.affinities() == {}
    assert await cluster.blocks() == {}


async def test_next_assignment_leaves_pools_that_no_longer_select_the_node(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(6), "old")
    await cluster.pool(family.net(6, 64), "new", disabled=True)
    await cluster.got(family, 1, handle="old")
    await cluster.ipam().release_by_handle("old")
    assert set(await cluster.blocks()) == {family.net(6)}
    await cluster.edit_pool("old", node_selector='rack == "1"')
    await cluster.edit_pool("new", disabled=False)
    await cluster.got(family, 1)
    assert await cluster.blocks() == {family.net(6, 64): "host:node1"}


async def test_cooldown(cluster: Cluster, family: Family) -> None:
    await cluster.config(ip_cooldown_seconds=30)
    await cluster.pool(family.net(1), block_size=family.host_bits - 1)
    ipam = cluster.ipam()
    old, live = (await cluster.got(family, 2)).ips
    await ipam.release_ips([Release(old.ip)])
    before = await cluster.store.get(IPAMBlock, names.block_name(old.network))
    with pytest.raises(Unavailable, match="in cooldown"):
        await ipam.attributes_of(old.ip)
    assert (await cluster.got(family, 1)).ips == ()
    cluster.now += timedelta(hours=1)
    (again,) = (await cluster.got(family, 1, handle="later")).ips
    assert again == old
    assert await ipam.ips_by_handle("h") == (live.ip,)
    assert (await cluster.store.get(IPAMBlock, before.name)).metadata.uid == before.metadata.uid


# ------------------------------------------------------------------------------------------------------ affinities


async def test_anothers_empty_block_is_taken_after_a_minute(cluster: Cluster, family: Family) -> None:
    await cluster.config(strict_affinity=True)
    await cluster.pool(family.net(6))
    await cluster.got(family, 1, "node1", "a")
    await cluster.ipam("node1").release_by_handle("a")
    cluster.now += timedelta(seconds=59)
    assert (await cluster.got(family, 1, "node2")).ips == ()
    cluster.now += timedelta(seconds=1)
    assert len((await cluster.got(family, 1, "node2")).ips) == 1
    assert await cluster.affinities() == {("node2", family.net(6)): "confirmed"}
    cluster.now += timedelta(hours=1)
    assert (await cluster.got(family, 1, "node3")).ips == ()


async def test_claiming_a_network(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    await cluster.ipam("node1").claim_affinity(family.net(6, 64))
    ours, others = await cluster.ipam("node2").claim_affinity(family.net(8))
    assert (len(ours), others) == (3, (family.net(6, 64),))
    assert (await cluster.ipam("node2").claim_affinity(family.net(8)))[0] == ours
    with pytest.raises(ConfigError, match="smaller than a block"):
        await cluster.ipam("node2").claim_affinity(family.net(5))
    with pytest.raises(ConfigError, match="not within any configured pools"):
        await cluster.ipam("node2").claim_affinity(family.net(6, 256))


async def test_releasing_affinities(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    ipam = cluster.ipam()
    (ip,) = (await cluster.got(family, 1)).ips
    await ipam.claim_affinity(family.net(8))
    with pytest.raises(NotEmpty):
        await ipam.release_affinity(ip.network, require_empty=True)
    with pytest.raises(ClaimedElsewhere):
        await cluster.ipam("node2").release_affinity(ip.network, require_empty=False)
    (error,) = await ipam.release_host_affinities(require_empty=True)
    assert isinstance(error, NotEmpty)
    assert await cluster.affinities() == {("node1", ip.network): "confirmed"}
    assert await ipam.release_host_affinities(require_empty=False) == ()
    assert await cluster.affinities() == {}
    assert await cluster.blocks() == {ip.network: None}
    await cluster.got(family, 1, "node2", "borrower", **family.pools(family.net(8)))
    await ipam.release_by_handle("h")
    assert ip.network not in await cluster.blocks()


async def test_release_of_a_block_that_was_used_meanwhile(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(6))
    await cluster.ipam().claim_affinity(family.net(6))
    ledger = Ledger(cluster.store, lambda: cluster.now)
    seen = (await ledger.block(family.net(6))).spec.sequence_number
    await cluster.got(family, 1)
    await cluster.ipam().release_by_handle("h")
    with pytest.raises(Conflict, match="has changed"):
        await claims.release(ledger, Owner("node1"), family.net(6), require_empty=True, sequence=seen)
    assert await cluster.ipam().host_blocks() == (family.net(6),)
    await claims.release(ledger, Owner("node1"), family.net(6), require_empty=True, sequence=seen + 2)
    assert await cluster.blocks() == {}


@pytest.mark.parametrize("state", ["pending", "pendingDeletion"])
@pytest.mark.parametrize("left", ["ours", "nothing", "anothers"])
async def test_next_use_repairs_what_a_crash_left(cluster: Cluster, family: Family, state: Any, left: str) -> None:
    await cluster.pool(family.net(8))
    (net,) = nets(await cluster.got(family, 1))
    affinity = await cluster.store.get(BlockAffinity, names.affinity_name("node1", net))
    await cluster.store.update(replace(affinity, spec=replace(affinity.spec, state=state)))
    block = await cluster.store.get(IPAMBlock, names.block_name(net))
    if left == "nothing":
        await cluster.ipam().release_by_handle("h")
        await cluster.store.delete(IPAMBlock, block.name)
    elif left == "anothers":
        await cluster.store.update(replace(block, spec=replace(block.spec, affinity="host:node2")))
        labels = {"name": names.affinity_name("node2", net)}
        theirs = replace(affinity.spec, node="node2", state="confirmed")
        await cluster.store.create(BlockAffinity(metadata=Metadata(**labels), spec=theirs))
    assert await cluster.ipam().host_blocks() == ()
    (now,) = nets(await cluster.got(family, 1, handle="next"))
    assert (now == net) == (left != "anothers")
    assert await cluster.ipam().host_blocks() == (now,)
    assert ("node1", net) in await cluster.affinities() or left == "anothers"


async def test_deletion_that_calico_began_is_finished(cluster: Cluster) -> None:
    await cluster.pool("10.0.0.0/26")
    await cluster.got(FAMILIES[0], 1)
    await cluster.ipam().release_by_handle("h")
    block = await cluster.store.get(IPAMBlock, "10-0-0-0-26")
    await cluster.store.update(replace(block, spec=replace(block.spec, deleted=True)))
    affinity = await cluster.store.get(BlockAffinity, "node1-10-0-0-0-26")
    await cluster.store.update(replace(affinity, spec=replace(affinity.spec, deleted=True)))
    assert await cluster.ipam().host_blocks() == ()
    assert len((await cluster.got(FAMILIES[0], 1, "node2")).ips) == 1
    assert await cluster.blocks() == {parse_net("10.0.0.0/26"): "host:node2"}
    with pytest.raises(ClaimedElsewhere):
        await cluster.ipam("node1").release_affinity(parse_net("10.0.0.0/26"), require_empty=True)
    assert await cluster.affinities() == {("node2", parse_net("10.0.0.0/26")): "confirmed"}


async def test_labels_of_an_old_affinity(cluster: Cluster) -> None:
    await cluster.pool("10.0.0.0/24")
    await cluster.got(FAMILIES[0], 1)
    (affinity,) = (await cluster.store.list(BlockAffinity)).items
    await cluster.store.update(changed(affinity, labels={"mine": "1"}))
    await cluster.ipam("node2").label_affinities()
    await cluster.ipam().label_affinities()
    (labelled,) = (await cluster.store.list(BlockAffinity)).items
    assert labelled.labels == {"mine": "1"} | affinity.labels


async def test_long_host_names(cluster: Cluster, family: Family) -> None:
    hosts = ["h" * 251 + end for end in "ab"]
    await cluster.node(*hosts)
    await cluster.pool(family.net(8))
    for host in hosts:
        (net,) = nets(await cluster.got(family, 1, host))
        assert await cluster.ipam(host).host_blocks() == (net,)
    assert len(await cluster.affinities()) == 2
