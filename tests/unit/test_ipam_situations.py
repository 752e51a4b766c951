"""Situations that Calico's own tests of IPAM have, by their numbers in the list of all: each is here, or named here.

37 38 40 41 42 43   here, through the plugin `calico-ipam`, as the agent serves it
39   test_ipam_assign.py    test_disabled_pool_is_left_for_the_other
44   here
45   test_ipam_assign.py    test_borrowing_and_strict_affinity
46   here, and test_ipam_assign.py    test_blocks_per_host
47   test_ipam_assign.py    test_block_limit_of_a_request_prevents_borrowing
48   test_ipam_assign.py    test_more_than_the_pool; its words here
49   here, and test_ipam_assign.py    test_own_addresses_first_then_borrowed
50   here, and test_ipam_assign.py    test_reservations
51   here, and test_ipam_assign.py    test_explicit_address_outside_pools_or_uses
52 53   test_ipam_release.py    test_release_with_wrong_sequence_or_handle; 53 here
54   here, and test_ipam_release.py    test_affinity_goes_when_the_pool_no_longer_selects_the_node
55   here, and test_ipam_release.py    test_anothers_empty_block_is_taken_after_a_minute
56   here, and test_ipam_release.py    test_claiming_a_network
57   here, and test_ipam_gc.py    test_cooldown_ends_for_what_has_rested_only
58   here
59   here, and test_ipam_names.py    test_long_affinity_is_cut_and_stays_unique
60   test_ipam_gc.py    test_leak_is_released_after_the_grace_period, test_node_that_is_gone_has_no_grace,
     test_handle_is_released_as_a_whole_or_not_at_all
61   here, and test_vm_addresses.py    test_recreated_pod_gets_the_same_addresses, test_migration,
     test_addresses_go_with_the_machine_and_its_last_pod
62   test_tunnel_addresses.py    test_address_of_a_pool_that_is_none_any_more_is_replaced,
     test_address_that_a_pod_has_is_left_to_it
65   test_admission.py    test_rules_of_pools
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import test_admission
import test_ipam_assign
import test_ipam_gc
import test_ipam_names
import test_ipam_release
import test_tunnel_addresses
import test_vm_addresses

from ipam_cluster import Cluster, matches, nets
from tortie.agent.cni.ipam import IpamServer
from tortie.agent.holdings import Holdings
from tortie.agent.netconf import read_netconf
from tortie.agent.pending import Pending
from tortie.agent.stock import Stock
from tortie.agent.upgrade import AffinityLabels
from tortie.agent.view import View
from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError, Conflict, Exists, NotFound, Unavailable
from tortie.cni.spec import Call
from tortie.controllers.ipam_gc import IpamGc
from tortie.ipam.block import WINDOWS, WINDOWS_RESERVED, Release, held_slots
from tortie.ipam.names import AFFINITY_TYPE, HOSTNAME_HASH, IP_VERSION
from tortie.ipam.search import BlockLimit, NoBlock
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPPool
from tortie.model.k8s import Namespace, VirtualMachine
from tortie.model.meta import Metadata, changed
from tortie.model.node import Node

K8S = {"name": "net", "policy": {"type": "k8s"}}
ELSEWHERE = {
    "test_admission": test_admission,
    "test_ipam_assign": test_ipam_assign,
    "test_ipam_gc": test_ipam_gc,
    "test_ipam_names": test_ipam_names,
    "test_ipam_release": test_ipam_release,
    "test_tunnel_addresses": test_tunnel_addresses,
    "test_vm_addresses": test_vm_addresses,
}


def test_every_situation_has_a_test_here_or_where_the_list_says() -> None:
    listed: set[str] = set()
    for rows, said in re.findall(r"^(\d\d(?: \d\d)*) +(.*?)(?=^\d\d|\Z)", __doc__ or "", re.M | re.S):
        file, named = "", 0
        for word in re.findall(r"\btest_\w+(?:\.py)?", said):
            if word.endswith(".py"):
                file = word.removesuffix(".py")
            else:
                assert callable(getattr(ELSEWHERE[file], word)), word
                named += 1
        for row in rows.split():
            here = any(name.startswith(f"test_situation_{row}_") for name in globals())
            assert here or (named and not said.startswith("here")), row
            listed.add(row)
    assert listed == {str(row) for row in (*range(37, 63), 65)}


class Desk(Cluster):
    """A cluster with node1, and the plugin `calico-ipam` on it."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    @property
    def holdings(self) -> Holdings:
        ipam = self.ipam()
        view = View("node1", self.store, lambda state: None)
        stock = Stock("node1", ipam, view.known, matches, most=0)
        pending = Pending(self.directory / "pending", stock.handle, self.store, view, ipam)
        return Holdings("node1", self.store, ipam, stock, pending, self.directory / "cni/ipam_upgraded")

    async def call(self, command: str, container: str = "c1", ip: str = "", pod: str = "", **ipam: Any) -> Any:
        args = ";".join((*([f"IP={ip}"] if ip else ()), *_pod_args(pod)))
        conf = {"name": "net", "type": "calico", "policy": {"type": "k8s"}, "ipam": {"type": "calico-ipam", **ipam}}
        call = Call(
            command, container, "/run/netns/x", "eth0", args_text=args, conf=conf, cni_version="1.0.0", network="net"
        )
        answer = await IpamServer(self.holdings).answer(call)
        return json.loads(answer) if answer else None

    async def add(self, container: str = "c1", ip: str = "", **ipam: Any) -> list[str]:
        """The addresses that the plugin prints. With each goes a route."""
        result: Mapping[str, Any] = await self.call("ADD", container, ip, **ipam)
        found = [each["address"] for each in result["ips"]]
        assert [each["dst"] for each in result["routes"]] == found
        return found

    async def remove(self, container: str = "c1") -> None:
        assert await self.call("DEL", container) is None


def _pod_args(pod: str) -> tuple[str, ...]:
    return ("K8S_POD_NAMESPACE=red", f"K8S_POD_NAME={pod}") if pod else ()


class VmDesk(Desk, test_vm_addresses.Farm):
    """The same with virtual machines."""


@pytest.fixture
async def desk(tmp_path: Path) -> Any:
    desk = Desk(tmp_path)
    await desk.node("node1", "node2", "node3")
    yield desk
    assert [str(each) for each in await desk.findings()] == []


# --- through the plugin


@pytest.mark.parametrize(
    ("conf", "masks"),
    [
        ({}, [26]),
        ({"assign_ipv4": "false", "assign_ipv6": "true"}, [122]),
        ({"assign_ipv4": "true", "assign_ipv6": "true"}, [26, 122]),
    ],
)
async def test_situation_37_the_plugin_as_it_comes(desk: Desk, conf: dict[str, str], masks: list[int]) -> None:
    await desk.pool("192.168.0.0/16", "four")
    await desk.pool("fd80:24e2:f998:72d6::/64", "six")
    assert [int(each.partition("/")[2]) for each in await desk.add(**conf)] == masks
    await desk.remove()
    await desk.remove()
    assert await desk.handles() == {}


@pytest.mark.parametrize("gone", ["four", "six"])
async def test_situation_38_a_family_without_pool(desk: Desk, gone: str) -> None:
    await desk.pool("192.168.0.0/16", "four")
    await desk.pool("fd80:24e2:f998:72d6::/64", "six")
    await desk.store.delete(IPPool, gone)
    with pytest.raises(ConfigError, match="cannot find a qualified ippool"):
        await desk.add(assign_ipv4="true", assign_ipv6="true")
    assert await desk.handles() == {}


async def test_situation_40_a_pool_that_there_is_not(desk: Desk) -> None:
    await desk.pool("192.168.0.0/16")
    with pytest.raises(ConfigError, match=re.escape("192.169.1.0/24) does not exist")):
        await desk.add(ipv4_pools=["192.169.1.0/24"])


async def test_situation_41_an_address_by_name(desk: Desk) -> None:
    await desk.pool("192.168.0.0/16")
    assert await desk.add(ip="192.168.123.123") == ["192.168.123.123/32"]
    with pytest.raises(Exists):
        await desk.add("c2", ip="192.168.123.123")
    await desk.remove()
    assert await desk.add("c2", ip="192.168.123.123") == ["192.168.123.123/32"]


async def test_situation_42_an_address_of_a_pool_for_tunnels(desk: Desk) -> None:
    await desk.pool("192.168.0.0/16", allowed_uses=("Tunnel",))
    with pytest.raises(ConfigError, match='does not have allowedUses "Workload"'):
        await desk.add(ip="192.168.123.123")


async def test_situation_43_del_of_nothing_and_of_an_old_handle(desk: Desk) -> None:
    await desk.remove()
    await desk.pool("192.168.0.0/16")
    await desk.ipam().assign_ip(parse_ip("192.168.0.9"), handle="c1", attrs={})
    await desk.remove()
    assert await desk.handles() == {}


async def test_situation_44_labels_of_old_affinities_once(desk: Desk) -> None:
    await desk.pool("192.168.0.0/16")

    async def unlabelled(cidr: str) -> str:
        await desk.ipam().claim_affinity(parse_net(cidr))
        name = f"node1-{cidr.translate(str.maketrans('./', '--'))}"
        await desk.store.update(changed(await desk.store.get(BlockAffinity, name), labels={}))
        return name

    marker = desk.directory / "cni/ipam_upgraded"
    first = await unlabelled("192.168.1.0/26")
    await desk.add(ip="192.168.123.1")
    labels = (await desk.store.get(BlockAffinity, first)).labels
    assert set(labels) == {AFFINITY_TYPE, HOSTNAME_HASH, IP_VERSION}
    assert marker.exists()
    assert marker.parent.stat().st_mode & 0o777 == 0o755
    second = await unlabelled("192.168.2.0/26")
    await desk.add("c2", ip="192.168.123.2")
    assert (await desk.store.get(BlockAffinity, second)).labels == {}


async def test_situation_44_labelling_is_tried_again_until_it_is_given_up(desk: Desk, tmp_path: Path) -> None:
    class Never:
        """An Ipam whose affinities change whenever they are written."""

        attempts = 0

        async def label_affinities(self) -> bool:
            self.attempts += 1
            return False

    never, marker = Never(), tmp_path / "marker"
    await AffinityLabels(never, marker, patience=0.5).ensure()  # type: ignore[arg-type]
    assert never.attempts == 3  # at 0, 0.1 and 0.3 s
    assert not marker.exists()


async def test_situation_61_a_virtual_machine(tmp_path: Path) -> None:
    desk = VmDesk(tmp_path)
    await desk.node("node1")
    await desk.store.create(Namespace(metadata=Metadata(name="red")))
    await desk.pool("192.168.0.0/16")
    instance = await desk.machine()
    source, target, other = (f"virt-launcher-db-{letter}" for letter in "xyz")
    await desk.pod(source, instance)
    await desk.pod(target, instance, migration="job")
    await desk.pod(other, instance)
    first = await desk.call("ADD", "c1", pod=source)
    assert len(first["ips"]) == len(first["routes"]) == 1
    assert list(await desk.handles()) == ["net.vmi.red.db"]
    second = await desk.call("ADD", "c2", pod=target)
    assert (second["ips"], second.get("routes", [])) == (first["ips"], [])
    (ip,) = first["ips"]
    conf = read_netconf(Call("CHECK", "c2", args_text=";".join(_pod_args(target)), conf=K8S, network="net"))
    assert await desk.holdings.held_by("c2", conf) == (parse_ip(ip["address"].partition("/")[0]),)
    for container, pod in (("c1", source), ("c2", target)):
        await desk.call("DEL", container, pod=pod)
    assert await desk.call("ADD", "c3", pod=other) == first
    await desk.store.delete(VirtualMachine, "db", "red")
    await desk.call("DEL", "c3", pod=other)
    assert await desk.handles() == {}


async def test_an_add_of_a_machine_that_fails_later_is_undone(tmp_path: Path) -> None:
    desk = VmDesk(tmp_path)
    await desk.node("node1")
    await desk.store.create(Namespace(metadata=Metadata(name="red")))
    await desk.pool("192.168.0.0/16")
    name = "virt-launcher-db-x"
    await desk.pod(name, await desk.machine())
    conf = read_netconf(Call("ADD", "c1", args_text=";".join(_pod_args(name)), conf=K8S, network="net"))
    (ip,) = await desk.holdings.take("c1", conf, "")
    await desk.holdings.give_back("c1", conf, (ip.ip,))
    assert await desk.owners(str(ip.ip)) == ("", "")
    assert await desk.holdings.take("c2", conf, "") == (ip,)


# --- blocks


async def test_situation_46_two_blocks_of_four(desk: Desk) -> None:
    await desk.config(strict_affinity=True, max_blocks_per_host=2)
    await desk.pool("10.0.0.0/28", block_size=30)
    got = await desk.ipam().auto_assign(9, handle="h", attrs={})
    assert len(got.v4.ips) == 8
    assert isinstance(got.v4.error, BlockLimit)
    with pytest.raises(Unavailable, match="limit of 2 blocks"):
        await desk.add()


async def test_situation_48_words(desk: Desk) -> None:
    await desk.pool("192.168.1.0/24")
    share = (await desk.ipam().auto_assign(257, handle="h", attrs={})).v4
    text = "Assigned 256 out of 257 requested IPv4 addresses; No IPs available in pools: [192.168.1.0/24]"
    assert (str(share), share.error) == (text, None)


async def test_situation_49_one_borrowed(desk: Desk) -> None:
    await desk.pool("192.168.1.0/25")
    a, b = desk.ipam("node1"), desk.ipam("node2")
    first = await a.auto_assign(1, handle="a1", attrs={})
    second = await b.auto_assign(1, handle="b1", attrs={})
    more = await a.auto_assign(64, handle="a2", attrs={})
    counts = [sum(ip.network == each.v4.ips[0].network for ip in more.ips) for each in (first, second)]
    assert counts == [63, 1]


async def test_situation_50_reserved(desk: Desk) -> None:
    await desk.pool("192.168.1.0/26")
    await desk.reserve("192.168.1.1/32", "192.168.1.32/30", "192.168.1.17/32")
    got = await desk.ipam().auto_assign(64, handle="h", attrs={})
    assert len(got.ips) == 58
    reserved = {"192.168.1.1", "192.168.1.17", *(f"192.168.1.{i}" for i in range(32, 36))}
    assert not reserved & {str(each.ip) for each in got.ips}


async def test_situation_51_outside_and_twice(desk: Desk) -> None:
    await desk.pool("192.168.1.0/24")
    with pytest.raises(ConfigError, match="is not in a configured pool"):
        await desk.ipam().assign_ip(parse_ip("1.1.1.1"), handle="h", attrs={})
    await desk.ipam().assign_ip(parse_ip("192.168.1.1"), handle="h", attrs={})
    with pytest.raises(Exists, match="already assigned"):
        await desk.ipam().assign_ip(parse_ip("192.168.1.1"), handle="h", attrs={})


async def test_situation_53_given_again(desk: Desk) -> None:
    await desk.pool("192.168.1.0/24")
    ip = parse_ip("192.168.1.1")

    async def sequence() -> int:
        (block,) = (await desk.store.list(IPAMBlock)).items
        return block.spec.sequence_number_for_allocation["1"]

    await desk.ipam().assign_ip(ip, handle="h", attrs={})
    old = await sequence()
    await desk.ipam().release_by_handle("h")
    await desk.ipam().claim_affinity(parse_net("192.168.1.0/26"))
    await desk.ipam().assign_ip(ip, handle="h", attrs={})
    assert await sequence() != old
    refused = await desk.ipam().release_ips([Release(ip, "h", old)])
    assert isinstance(refused.error, Conflict)
    assert (await desk.ipam().attributes_of(ip)).handle_id == "h"


async def test_situation_54_pool_that_selects_the_node_no_more(desk: Desk) -> None:
    await desk.pool("192.168.1.0/24")
    got = await desk.ipam().auto_assign(3, handle="h", attrs={})
    await desk.edit_pool(node_selector="rack == 'z'")
    for left, each in zip((2, 1, 0), got.ips, strict=True):
        await desk.ipam().release_ips([Release(each.ip)])
        assert bool(await desk.affinities()) is bool(await desk.blocks()) is bool(left)


@pytest.mark.parametrize(("age", "reclaimed"), [(59, False), (60, True)])
async def test_situation_55_anothers_empty_block(desk: Desk, age: int, reclaimed: bool) -> None:
    await desk.config(strict_affinity=True)
    await desk.pool("192.168.1.0/26")
    await desk.ipam("node1").claim_affinity(parse_net("192.168.1.0/26"))
    desk.now += timedelta(seconds=age)
    got = await desk.ipam("node2").auto_assign(1, handle="h", attrs={})
    assert bool(got.ips) is reclaimed
    assert set(await desk.affinities()) == {("node2" if reclaimed else "node1", parse_net("192.168.1.0/26"))}


async def test_situation_56_claiming_a_network(desk: Desk) -> None:
    await desk.pool("10.0.0.0/16")
    await desk.ipam("node1").claim_affinity(parse_net("10.0.0.64/26"))
    claimed, failed = await desk.ipam("node2").claim_affinity(parse_net("10.0.0.0/24"))
    assert (len(claimed), failed) == (3, (parse_net("10.0.0.64/26"),))
    with pytest.raises(ConfigError, match="smaller than a block"):
        await desk.ipam("node2").claim_affinity(parse_net("10.0.0.0/27"))


async def test_situation_57_cooldown_by_address(desk: Desk) -> None:
    await desk.config(ip_cooldown_seconds=30)
    await desk.pool("10.0.0.0/26")
    got = await desk.ipam().auto_assign(3, handle="h", attrs={"type": "x"})
    old, young, _ = (each.ip for each in got.ips)
    await desk.ipam().release_ips([Release(old)])
    desk.now += timedelta(hours=1)
    await desk.ipam().release_ips([Release(young)])
    (before,) = (await desk.store.list(IPAMBlock)).items
    await IpamGc(desk.store, lambda: desk.now, matches).run_once()
    (after,) = (await desk.store.list(IPAMBlock)).items
    assert after.metadata.uid == before.metadata.uid
    assert [slot for slot, held in held_slots(after.spec) if held.released_at] == [1]
    assert 0 in after.spec.unallocated


# --- Windows


async def test_situation_58_windows_keeps_four_of_each_block(desk: Desk) -> None:
    await desk.pool("10.0.0.0/24")
    share = (await desk.ipam().auto_assign(256, handle="h", attrs={}, kept=WINDOWS)).v4
    assert len(share.ips) == 240
    assert {int(each.ip) % 64 for each in share.ips} == set(range(3, 63))
    assert str(share).endswith(f"No IPs available in pools: [10.0.0.0/24]; HostReservedAttr: {WINDOWS_RESERVED}")
    for block in (await desk.store.list(IPAMBlock)).items:
        kept = [(slot, held.secondary) for slot, held in held_slots(block.spec) if held.handle_id == WINDOWS_RESERVED]
        assert kept == [(slot, {"note": "windows host rsvd"}) for slot in (0, 1, 2, 63)]


async def test_situation_58_a_block_of_which_windows_keeps_all_is_of_no_use(desk: Desk) -> None:
    await desk.pool("10.0.0.0/24", "small", block_size=30)
    with pytest.raises(ConfigError, match=r"no IPv4 pool has blocks of /29 or larger"):
        await desk.ipam().auto_assign(1, handle="h", attrs={}, kept=WINDOWS)
    assert (WINDOWS.max_prefixlen(32), WINDOWS.max_prefixlen(128)) == (29, 125)
    await desk.pool("10.1.0.0/24", "large", block_size=29)
    with pytest.raises(ConfigError, match=r"the given pool \(10.0.0.0/24\) does not exist, or is not enabled"):
        await desk.ipam().auto_assign(1, handle="h", attrs={}, kept=WINDOWS, pools4=("small",))
    got = await desk.ipam().auto_assign(256, handle="h", attrs={}, kept=WINDOWS)
    assert (len(got.ips), {int(each.ip) % 8 for each in got.ips}) == (20 * 4, {3, 4, 5, 6})


async def test_a_block_that_windows_alone_uses_is_empty(desk: Desk) -> None:
    await desk.pool("10.0.0.0/24")
    await desk.ipam().auto_assign(1, handle="h", attrs={}, kept=WINDOWS)
    await desk.ipam().release_by_handle("h")
    await desk.ipam().release_host_affinities(require_empty=True)
    assert (await desk.blocks(), await desk.affinities()) == ({}, {})


async def test_a_block_is_ensured_for_each_family_that_keeps_something(desk: Desk) -> None:
    await desk.pool("10.0.0.0/24", "four")
    await desk.pool("fd80::/120", "six")
    four, none = await desk.ipam().ensure_block(WINDOWS)
    assert (four in await desk.blocks(), none) == (True, None)
    assert await desk.ipam().ensure_block(WINDOWS, WINDOWS) == (four, (await desk.ipam().host_blocks())[-1])
    assert len(await desk.blocks()) == 2
    await desk.ipam().auto_assign(60, handle="h", attrs={}, kept=WINDOWS)
    assert await desk.ipam().ensure_block(WINDOWS) == (four, None), "a full one will do"
    assert await desk.handles() == {"h": {str(four): 60}}


async def test_no_block_to_be_ensured(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="cannot find a qualified ippool"):
        await desk.ipam().ensure_block(WINDOWS)
    await desk.pool("10.0.0.0/26")
    await desk.ipam("node2").ensure_block(WINDOWS)
    with pytest.raises(NoBlock, match="failed to find or claim an IPv4 block"):
        await desk.ipam().ensure_block(WINDOWS)


# --- names


async def test_situation_59_long_names_of_hosts(desk: Desk) -> None:
    await desk.pool("10.0.0.0/24")
    one, other = "h" * 252, "h" * 251 + "i"
    await desk.node(one, other)
    for host in (one, other):
        await desk.ipam(host).auto_assign(1, handle=host[-1], attrs={})
    affinities = (await desk.store.list(BlockAffinity)).items
    assert len({each.name for each in affinities}) == 2
    assert all(len(each.name) <= 253 for each in affinities)
    for host in (one, other):
        (net,) = await desk.ipam(host).host_blocks()
        assert (await desk.blocks())[net] == f"host:{host}"


# --- what a process remembers of its blocks


async def test_block_at_hand_serves_until_it_is_full_and_others_are_looked_at_again(desk: Desk) -> None:
    """One process, whose memory must not cost it what others give back."""
    await desk.config(strict_affinity=True, max_blocks_per_host=2)
    await desk.pool("10.0.0.0/24", block_size=30)
    ipam = desk.ipam()
    first = await ipam.auto_assign(4, handle="one", attrs={})
    second = await ipam.auto_assign(4, handle="two", attrs={})
    assert len(nets(first.v4) | nets(second.v4)) == 2
    with pytest.raises(Unavailable):
        await ipam.all_or_nothing(await ipam.auto_assign(1, handle="three", attrs={}))
    await desk.ipam().release_ips([Release(first.ips[2].ip)])  # another process: ours does not know
    again = await ipam.all_or_nothing(await ipam.auto_assign(1, handle="three", attrs={}))
    assert again == (first.ips[2],)
    await ipam.release_by_handle("two")
    assert nets((await ipam.auto_assign(1, handle="four", attrs={})).v4) == nets(second.v4)


async def test_block_at_hand_that_was_lost_is_no_error(desk: Desk) -> None:
    await desk.pool("10.0.0.0/25")
    ipam = desk.ipam()
    (ip,) = (await ipam.auto_assign(1, handle="one", attrs={})).ips
    await ipam.release_by_handle("one")
    await desk.ipam().release_host_affinities(require_empty=True)
    await desk.ipam("node2").claim_affinity(ip.network)
    (other,) = (await ipam.auto_assign(1, handle="two", attrs={})).ips
    assert other.network != ip.network


async def test_pool_that_is_closed_is_left_at_once(desk: Desk) -> None:
    await desk.pool("10.0.0.0/24", "one")
    ipam = desk.ipam()
    await ipam.auto_assign(1, handle="one", attrs={})
    await desk.pool("10.1.0.0/24", "two")
    await desk.edit_pool("one", disabled=True)
    (ip,) = (await ipam.auto_assign(1, handle="two", attrs={})).ips
    assert ip.network.subnet_of(parse_net("10.1.0.0/24"))  # type: ignore[type-var]


async def test_places_of_another_size_are_never_claimed_whatever_is_remembered(desk: Desk) -> None:
    """A pool that came in the place of one with larger blocks, one of which is still in use."""
    await desk.pool("10.0.0.0/26", "old", block_size=27)
    await desk.ipam("node2").assign_ip(parse_ip("10.0.0.1"), handle="h", attrs={})
    await desk.ipam("node2").release_host_affinities(require_empty=False)
    await desk.store.delete(IPPool, "old")
    await desk.pool("10.0.0.0/26", "new", block_size=30)
    ipam = desk.ipam()
    got = [await ipam.auto_assign(4, handle=f"h{i}", attrs={}) for i in range(9)]
    taken = {ip.network for each in got for ip in each.ips}
    assert len(taken) == 8
    assert all(net.subnet_of(parse_net("10.0.0.32/27")) for net in taken)  # type: ignore[arg-type]


async def test_many_nodes_find_places_of_their_own(desk: Desk) -> None:
    await desk.pool("10.0.0.0/24", block_size=28)
    for _ in range(2):
        for node in ("node1", "node2", "node3"):
            ipam = desk.ipam(node)
            for i in range(3):
                handle = f"{node}-{i}-{len(await desk.handles())}"
                await ipam.all_or_nothing(await ipam.auto_assign(9, handle=handle, attrs={}))
    assert sum(sum(counts.values()) for counts in (await desk.handles()).values()) == 2 * 3 * 3 * 9


async def test_the_node_must_be_registered(desk: Desk) -> None:
    await desk.pool("10.0.0.0/24")
    await desk.store.delete(Node, "node1")
    with pytest.raises(NotFound, match="there is no Node node1"):
        await desk.add()
