"""flannel's leases in Kubernetes' Nodes: the manager over a store in memory, which lies, lags and goes, and a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from flannel_town import DUAL, MAC, MAC6, NET, OWN, P, Town, config, flannels, node
from msgspec.structs import replace

from flannel_watched import PATIENCE, Watched, soon
from tortie.base.errors import ConfigError, NotFound, Unavailable
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.manager import LeaseLost, Previous
from tortie.flannel.managers.kubernetes import KubernetesManager, node_name
from tortie.model.k8s import Container, K8sNode, K8sNodeSpec, Pod, PodSpec
from tortie.model.meta import Metadata
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore


@pytest.fixture
async def town() -> Town:
    found = Town()
    await found.create(node("n1", status={"conditions": [{"type": "Ready", "status": "True"}]}))
    return found


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net-conf.json"
    path.write_text(NET)
    return path


@pytest.fixture
def manager(town: Town, net: Path) -> KubernetesManager:
    return KubernetesManager(town, "n1", net)


@pytest.fixture
async def own(manager: KubernetesManager) -> Lease:
    return await manager.acquire(config(), OWN, Previous())


@pytest.fixture
async def watched(manager: KubernetesManager, own: Lease) -> AsyncIterator[Watched]:
    found = Watched(manager, own)
    yield found
    await found.close()


async def test_which_node_this_is() -> None:
    store = MemoryStore()
    assert await node_name({"NODE_NAME": "n1", "POD_NAME": "p"}, store) == "n1"
    with pytest.raises(ConfigError, match=r"^env variables POD_NAME and POD_NAMESPACE must be set"):
        await node_name({"POD_NAME": "p"}, store)
    variables = {"POD_NAME": "kube-flannel-ds-x", "POD_NAMESPACE": "kube-flannel"}
    with pytest.raises(ConfigError, match=r"^error retrieving pod spec for 'kube-flannel/kube-flannel-ds-x': "):
        await node_name(variables, store)
    spec = PodSpec(containers=(Container(name="flanneld"),))
    pod = await store.create(Pod(metadata=Metadata(name="kube-flannel-ds-x", namespace="kube-flannel"), spec=spec))
    with pytest.raises(ConfigError, match=r"^node name not present in pod spec 'kube-flannel/kube-flannel-ds-x'$"):
        await node_name(variables, store)
    await store.update(replace(pod, spec=replace(spec, node_name="n7")))
    assert await node_name(variables, store) == "n7"


async def test_network_is_in_a_file(town: Town, manager: KubernetesManager, tmp_path: Path) -> None:
    assert await manager.network() == config()
    with pytest.raises(NotFound, match=r"/nowhere: no such file"):
        await KubernetesManager(town, "n1", tmp_path / "nowhere").network()
    with pytest.raises(ConfigError, match=rf"^{tmp_path}: Is a directory$"):
        await KubernetesManager(town, "n1", tmp_path).network()


async def test_113_a_lease_is_four_annotations(manager: KubernetesManager, own: Lease, town: Town) -> None:
    assert own == Lease(IPv4Network("10.244.1.0/24"), None, OWN, node="n1")
    there = await town.get(K8sNode, "n1")
    assert there.metadata.annotations == {
        f"{P}backend-type": "vxlan",
        f"{P}backend-data": MAC,
        f"{P}public-ip": "192.0.2.1",
        f"{P}kube-subnet-manager": "true",
    }
    assert await manager.remembered(Attrs(OWN.public_ip)) == OWN
    assert await manager.acquire(config(), OWN, Previous(IPv4Network("10.244.9.0/24"))) == own
    again = await town.get(K8sNode, "n1")
    assert again.metadata.resource_version == there.metadata.resource_version, "nothing to write"


async def test_114_public_ip_overwrite(manager: KubernetesManager, town: Town) -> None:
    await town.put(node("n1", public_ip_overwrite="203.0.113.1"))
    assert (await manager.overrides()).published_ip == IPv4Address("203.0.113.1")
    lease = await manager.acquire(config(), OWN, Previous())
    assert lease.attrs.public_ip == IPv4Address("203.0.113.1")
    said = (await town.get(K8sNode, "n1")).metadata.annotations
    assert (said[f"{P}public-ip"], said[f"{P}public-ip-overwrite"]) == ("203.0.113.1", "203.0.113.1")


async def test_custom_prefix_also_remembers(town: Town, net: Path) -> None:
    manager = KubernetesManager(town, "n1", net, prefix="example.com/net")
    await manager.acquire(config(), OWN, Previous())
    assert f"example.com/net-{'backend-data'}" in (await town.get(K8sNode, "n1")).metadata.annotations
    assert await manager.remembered(Attrs()) == OWN
    assert await KubernetesManager(town, "n1", net).remembered(Attrs()) is None


async def test_ipv6_alone(town: Town, net: Path) -> None:
    await town.put(node("n1", "fd00:10:244:1::/64"))
    six = config('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48"}')
    attrs = Attrs(None, IPv6Address("2001:db8::1"), "vxlan", None, MAC6)
    lease = await KubernetesManager(town, "n1", net).acquire(six, attrs, Previous())
    assert lease == Lease(None, IPv6Network("fd00:10:244:1::/64"), attrs, node="n1")
    said = (await town.get(K8sNode, "n1")).metadata.annotations
    assert said.keys() == {P + key for key in ("backend-type", "backend-v6-data", "public-ipv6", "kube-subnet-manager")}


async def test_version_without_a_pod_cidr_is_not_published(
    manager: KubernetesManager, town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    both = Attrs(OWN.public_ip, IPv6Address("2001:db8::1"), "vxlan", MAC, MAC6)
    lease = await manager.acquire(config(DUAL), both, Previous())
    assert (lease.subnet6, lease.attrs) == (None, OWN)
    assert f"{P}public-ipv6" not in (await town.get(K8sNode, "n1")).metadata.annotations
    assert 'node "n1" has no IPv6 pod CIDR, and IPv6 is enabled' in caplog.text


async def test_the_kubelet_writes_at_the_same_time(manager: KubernetesManager, town: Town) -> None:
    town.others = [town.touch] * 5
    await manager.acquire(config(), OWN, Previous())
    there = await town.get(K8sNode, "n1")
    assert (there.status["beats"], there.metadata.annotations[f"{P}public-ip"]) == (5, "192.0.2.1")
    town.others = [town.touch] * 20
    with pytest.raises(Unavailable, match=r'^timeout contacting kube-api, failed to patch node "n1"'):
        await manager.acquire(config(), Attrs(IPv4Address("192.0.2.9")), Previous())


async def test_no_node_yet(manager: KubernetesManager, town: Town, own: Lease) -> None:
    await town.delete(K8sNode, "n1")
    for ask in (
        manager.overrides(),
        manager.remembered(OWN),
        manager.acquire(config(), OWN, Previous()),
        manager.tell_ready(),
    ):
        with pytest.raises(Unavailable, match=r'^there is no node "n1" in Kubernetes; NODE_NAME says'):
            await ask


async def test_readiness_is_a_condition(manager: KubernetesManager, own: Lease, town: Town, net: Path) -> None:
    await KubernetesManager(town, "n1", net, tells_ready=False).tell_ready()
    assert len((await town.get(K8sNode, "n1")).status["conditions"]) == 1
    town.others = [town.touch] * 2
    await manager.tell_ready()
    _, network = (await town.get(K8sNode, "n1")).status["conditions"]
    assert (network["type"], network["status"], network["reason"], network["message"]) == (
        "NetworkUnavailable",
        "False",
        "FlannelIsUp",
        "Flannel is running on this node",
    )
    before = (await town.get(K8sNode, "n1")).metadata.resource_version
    await manager.tell_ready()
    assert (await town.get(K8sNode, "n1")).metadata.resource_version == before


async def test_all_leases_for_people(manager: KubernetesManager, own: Lease, town: Town) -> None:
    await town.put(flannels("n2"))
    await town.put(node("n3"))
    found = await manager.leases()
    assert set(found) == {"n1", "n2"}
    assert found["n1"] == own


# --- neighbours ---------------------------------------------------------------------------------------------------


async def test_neighbours_come_change_and_go(manager: KubernetesManager, watched: Watched, town: Town) -> None:
    await soon(lambda: watched.shown == [{}])
    await town.put(flannels("n2"))
    await town.put(node("n9"))
    await watched.until("n2")
    assert watched.shown[-1]["n2"] == Lease(
        IPv4Network("10.244.2.0/24"), None, Attrs(IPv4Address("192.0.2.2"), None, "vxlan", MAC), node="n2"
    )
    shown = len(watched.shown)
    await town.touch("n2")
    await town.put(flannels("n2", public_ip="192.0.2.22"))
    await soon(lambda: len(watched.shown) > shown)
    assert len(watched.shown) == shown + 1, "a heartbeat is no news"
    assert watched.shown[-1]["n2"].attrs.public_ip == IPv4Address("192.0.2.22")
    await town.put(flannels("n2", backend_type="host-gw", backend_data="null"))
    await soon(lambda: watched.shown[-1]["n2"].attrs.backend_type == "host-gw")
    await town.put(node("n2"))
    await watched.until()
    await town.put(flannels("n2"))
    await watched.until("n2")
    await town.delete(K8sNode, "n2")
    await watched.until()
    assert manager.problems == ()


async def test_change_of_either_version_is_seen(town: Town, net: Path) -> None:
    manager = KubernetesManager(town, "n1", net)
    watched = Watched(manager, await manager.acquire(config(DUAL), OWN, Previous()))

    async def put(four: str, six: str) -> None:
        said = flannels("n2", public_ip=four, public_ipv6=six, backend_v6_data=MAC6)
        await town.put(replace(said, spec=K8sNodeSpec(pod_cidrs=("10.244.2.0/24", "fd00:10:244:2::/64"))))

    for four, six in (("192.0.2.2", "2001:db8::2"), ("192.0.2.3", "2001:db8::2"), ("192.0.2.3", "2001:db8::3")):
        await put(four, six)
        wanted = (IPv4Address(four), IPv6Address(six))

        def seen(wanted: Any = wanted) -> bool:
            attrs = watched.shown[-1]["n2"].attrs if watched.names else Attrs()
            return (attrs.public_ip, attrs.public_ipv6) == wanted

        await soon(seen)
    await watched.close()


async def test_pod_cidr_of_another_node_changes(watched: Watched, town: Town) -> None:
    await town.put(flannels("n2"))
    await watched.until("n2")
    await town.put(replace(flannels("n2"), spec=K8sNodeSpec(pod_cidrs=("10.244.77.0/24",))))
    await soon(lambda: watched.shown[-1]["n2"].subnet == IPv4Network("10.244.77.0/24"))


async def test_what_is_wrong_with_others_is_told(manager: KubernetesManager, watched: Watched, town: Town) -> None:
    await town.put(flannels("n2", public_ip="x"))
    await town.put(flannels("n3", public_ip="192.0.2.1"))
    await town.put(flannels("n4"))
    await watched.until("n3", "n4")
    unread, shared = manager.problems
    assert unread.startswith(f'node "n2": annotation {P}public-ip: "x" is not an IPv4 address')
    assert shared.startswith('nodes "n1", "n3" publish the same public IP 192.0.2.1: only one of them is reached; give')


async def test_away_and_back(manager: KubernetesManager, watched: Watched, town: Town) -> None:
    await town.put(flannels("n2"))
    await watched.until("n2")
    town.cut("connection refused")
    await soon(lambda: manager.problems)
    assert manager.problems == ("Kubernetes is away, other nodes count as they were: connection refused",)
    await asyncio.sleep(0.5)
    assert watched.names == {"n2"}
    await town.create(flannels("n3"))
    await MemoryStore.delete(town, K8sNode, "n2")
    town.away = ""
    await watched.until("n3")
    assert manager.problems == ()


async def test_history_is_lost(manager: KubernetesManager, watched: Watched, town: Town) -> None:
    for name in ("n2", "n3"):
        await town.put(flannels(name))
    await watched.until("n2", "n3")
    town.cut()
    await MemoryStore.delete(town, K8sNode, "n3")
    await town.put(flannels("n4"))
    await watched.until("n2", "n4")
    assert manager.problems == ()


async def test_empty_server_makes_nobody_forget(manager: KubernetesManager, watched: Watched, town: Town) -> None:
    """Emptied, or another cluster's: our own Node is missing, too."""
    for name in ("n2", "n3"):
        await town.put(flannels(name))
    await watched.until("n2", "n3")
    town.forgets = True
    town.cut()
    await soon(lambda: manager.problems)
    assert manager.problems[0].startswith(
        'node "n1" itself is missing from the list of nodes: 3 of 3 nodes are missing'
    )
    await asyncio.sleep(1)
    assert watched.names == {"n2", "n3"}
    town.forgets = False
    await soon(lambda: not manager.problems)
    assert watched.names == {"n2", "n3"}
    assert [set(each) for each in watched.shown if each] == [{"n2"}, {"n2", "n3"}]


async def test_list_without_half_of_the_nodes(manager: KubernetesManager, watched: Watched, town: Town) -> None:
    every = {f"n{i}" for i in range(2, 40)}
    for name in every:
        await town.put(flannels(name))
    await watched.until(*every)
    town.hidden = {f"n{i}" for i in range(2, 20)}
    town.cut()
    await soon(lambda: any("and is there: 18 of 39 nodes are missing" in line for line in manager.problems))
    assert watched.names == every
    town.hidden = set()
    await soon(lambda: not manager.problems)
    assert watched.names == every


async def test_many_nodes_went_while_nobody_looked(manager: KubernetesManager, watched: Watched, town: Town) -> None:
    every = {f"n{i}" for i in range(2, 40)}
    for name in every:
        await town.put(flannels(name))
    await watched.until(*every)
    town.cut("away")
    for i in range(2, 20):
        await MemoryStore.delete(town, K8sNode, f"n{i}")
    town.away = ""
    await watched.until(*(f"n{i}" for i in range(20, 40)))
    assert manager.problems == ()


async def test_older_lists_are_not_taken_at_once(manager: KubernetesManager, watched: Watched, town: Town) -> None:
    for name in ("n2", "n3"):
        await town.put(flannels(name))
    await watched.until("n2", "n3")
    town.revision, town.hidden = "1", {"n3"}
    town.cut()
    await soon(lambda: any("are listed as of revision 1, and" in line for line in manager.problems))
    assert watched.names == {"n2", "n3"}
    town.revision, town.hidden = "", set()
    await soon(lambda: not manager.problems)


async def test_after_a_restore_life_goes_on(town: Town, net: Path) -> None:
    """The server has gone back for good: what it has counts after a while, and who is not there has gone."""
    now = [0.0]
    manager = KubernetesManager(town, "n1", net, clock=lambda: now[0])
    watched = Watched(manager, await manager.acquire(config(), OWN, Previous()))
    for name in ("n2", "n3"):
        await town.put(flannels(name))
    await watched.until("n2", "n3")
    await MemoryStore.delete(town, K8sNode, "n3")
    await watched.until("n2")
    town.revision = "1"
    town.cut()
    await soon(lambda: any("as of revision 1" in line for line in manager.problems))
    await town.put(flannels("n4"))
    assert watched.names == {"n2"}
    now[0] = 11.0
    await watched.until("n2", "n4")
    await watched.close()


async def test_server_is_away_when_it_begins(town: Town, net: Path) -> None:
    await town.put(flannels("n2"))
    manager = KubernetesManager(town, "n1", net)
    own = await manager.acquire(config(), OWN, Previous())
    town.away = "connection refused"
    watched = Watched(manager, own)
    await asyncio.sleep(0.4)
    assert watched.shown == []
    town.away = ""
    await watched.until("n2")
    await watched.close()


async def test_what_is_known_outlives_a_new_address(manager: KubernetesManager, watched: Watched, town: Town) -> None:
    """The daemon begins anew with another address, over the same manager."""
    await town.put(flannels("n2"))
    await watched.until("n2")
    await watched.close()
    town.forgets = True
    again = Watched(manager, Lease(None, None, OWN))
    await again.until("n2")
    await again.close()


# --- the own Node, kept -------------------------------------------------------------------------------------------


@pytest.fixture
async def kept(manager: KubernetesManager, own: Lease, watched: Watched) -> AsyncIterator[asyncio.Task[None]]:
    await soon(lambda: watched.shown)
    task = asyncio.ensure_future(manager.keep(own))
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def said(town: Town) -> dict[str, str]:
    return (await MemoryStore.get(town, K8sNode, "n1")).metadata.annotations


async def until_said(town: Town, wanted: dict[str, str]) -> None:
    for _ in range(500):
        with suppress(NotFound):
            if (await said(town)).items() >= wanted.items():
                return
        await asyncio.sleep(0.01)
    raise AssertionError(await said(town))


async def test_annotations_come_again(
    manager: KubernetesManager, kept: asyncio.Task[None], town: Town, own: Lease
) -> None:
    there = await said(town)
    await town.put(node("n1"))
    await until_said(town, there)
    await town.put(node("n1", **{**flannel_words(there), "public_ip_overwrite": "203.0.113.7"}))
    await until_said(town, {f"{P}public-ip": "203.0.113.7"})
    assert manager.problems == ()


def flannel_words(annotations: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix(P).replace("-", "_"): value for name, value in annotations.items()}


async def test_node_that_was_made_anew(manager: KubernetesManager, kept: asyncio.Task[None], town: Town) -> None:
    await manager.tell_ready()
    there = await said(town)
    await town.delete(K8sNode, "n1")
    await soon(lambda: manager.problems)
    assert manager.problems[0].startswith('there is no node "n1" in Kubernetes: other nodes do not know the way')
    await town.create(node("n1"))
    await until_said(town, there)
    for _ in range(500):
        status = (await town.get(K8sNode, "n1")).status or {}
        if [one["reason"] for one in status.get("conditions", ())] == ["FlannelIsUp"]:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError(status)
    assert not kept.done()
    await soon(lambda: manager.problems == ())


async def test_another_pod_cidr_ends_it(manager: KubernetesManager, kept: asyncio.Task[None], town: Town) -> None:
    there = await town.get(K8sNode, "n1")
    await town.update(replace(there, spec=K8sNodeSpec()))
    await soon(lambda: manager.problems == ('node "n1" pod cidr not assigned',), lambda: str(manager.problems))
    assert not kept.done()
    there = await town.get(K8sNode, "n1")
    await town.update(replace(there, spec=K8sNodeSpec(pod_cidrs=("10.244.200.0/24",))))
    with pytest.raises(LeaseLost, match=r'^node "n1" has got another pod CIDR: 10.244.200.0/24, it was 10.244.1.0/24$'):
        await asyncio.wait_for(kept, PATIENCE)
    assert manager.problems == ('node "n1" has got another pod CIDR: 10.244.200.0/24, it was 10.244.1.0/24',)


async def test_two_machines_of_one_name_do_not_write_all_the_time(town: Town, net: Path) -> None:
    managers, tasks = [KubernetesManager(town, "n1", net) for _ in range(2)], []
    for number, manager in enumerate(managers):
        own = await manager.acquire(config(), Attrs(IPv4Address(f"192.0.2.{number + 1}"), None, "host-gw"), Previous())
        tasks += [asyncio.ensure_future(manager.keep(own)), Watched(manager, own)]
    before = int((await town.get(K8sNode, "n1")).metadata.resource_version)
    await asyncio.sleep(2.5)
    written = int((await town.get(K8sNode, "n1")).metadata.resource_version) - before
    assert 1 <= written <= 5
    assert any("is published by somebody else, too: another machine of that name?" in line
               for manager in managers for line in manager.problems)  # fmt: skip
    for task in tasks:
        if isinstance(task, Watched):
            await task.close()
        else:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_operators_word_is_no_rival(
    manager: KubernetesManager, kept: asyncio.Task[None], town: Town, own: Lease
) -> None:
    await town.put(node("n1", **{**flannel_words(await said(town)), "public_ip_overwrite": "203.0.113.7"}))
    await until_said(town, {f"{P}public-ip": "203.0.113.7"})
    assert manager.problems == ()


async def test_without_neighbours_the_node_is_looked_at(town: Town, net: Path) -> None:
    """As with the alloc backend, which watches nobody."""
    manager = KubernetesManager(town, "n1", net)
    own = await manager.acquire(config(), OWN, Previous())
    there = await said(town)
    await town.put(node("n1"))
    task = asyncio.ensure_future(manager.keep(own))
    await until_said(town, there)
    town.away = "away"
    await asyncio.sleep(0.1)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert town.lists == 0


# --- the embedded datastore ---------------------------------------------------------------------------------------


async def test_nodes_of_a_lab(tmp_path: Path, net: Path) -> None:
    store = SqliteStore(tmp_path / "lab.db")
    for name in ("n1", "n2"):
        await store.create(node(name))
    managers = {name: KubernetesManager(store, name, net) for name in ("n1", "n2")}
    leases = {
        name: await manager.acquire(config(), Attrs(IPv4Address(f"192.0.2.{name[1:]}"), None, "host-gw"), Previous())
        for name, manager in managers.items()
    }
    watched = {name: Watched(manager, leases[name]) for name, manager in managers.items()}
    await watched["n1"].until("n2")
    await watched["n2"].until("n1")
    assert watched["n1"].shown[-1]["n2"] == leases["n2"]
    for each in watched.values():
        await each.close()
    await managers["n1"].close()
