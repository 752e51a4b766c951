"""The agent's decisions and its picture of the cluster, without a kernel: the datastore is the one in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tortie.agent import view as views
from tortie.agent.cni.collect import elsewhere, is_stale, valid_containers
from tortie.agent.endpoints import follow_pods
from tortie.agent.holdings import Holding
from tortie.agent.registration import registered
from tortie.agent.view import Progress, View
from tortie.base.errors import ConfigError, Unavailable
from tortie.base.logs import Seldom
from tortie.calc.cluster import INPUTS
from tortie.calc.state import DesiredState
from tortie.cni.spec import CniError
from tortie.model.k8s import Container, Pod, PodSpec
from tortie.model.meta import Metadata, changed
from tortie.model.store import Listing
from tortie.model.workload import NETWORK, WorkloadEndpoint, WorkloadEndpointSpec, endpoint_name
from tortie.store.memory import MemoryStore

NODE = "node1"


def endpoint(name: str, container: str = "c") -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(
        orchestrator="k8s", node=NODE, pod=name, container_id=container, interface_name=f"cali{name}", endpoint="eth0"
    )
    return WorkloadEndpoint(metadata=Metadata(name=name, namespace="red"), spec=spec)


# --- the picture --------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A view that follows a store, and the states it has told of."""

    store: MemoryStore = field(default_factory=MemoryStore)
    states: list[DesiredState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.view = View(NODE, self.store, self.states.append)

    @property
    def interfaces(self) -> set[str]:
        return set(self.states[-1].endpoints)

    async def settle(self) -> None:
        await asyncio.sleep(5 * views.QUIET)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    one = Watched()
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(one.view.follow(kind)) for kind in INPUTS]
        await one.view.in_sync.wait()
        yield one
        for task in following:
            task.cancel()


async def test_what_journal_and_snapshot_both_have_goes_with_its_deletion() -> None:
    one = Watched()
    stored = await one.store.create(endpoint("a"))
    one.view.restore([stored], {})
    one.view.put_ahead(endpoint("a"))
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(one.view.follow(kind)) for kind in INPUTS]
        await one.view.in_sync.wait()
        one.view.confirm(stored)
        await one.settle()
        assert one.interfaces == {"calia"}
        one.view.drop(await one.store.delete(WorkloadEndpoint, "a", "red"))
        await one.settle()
        assert one.interfaces == set()
        for task in following:
            task.cancel()


async def test_nothing_is_told_before_every_kind_is_known() -> None:
    one = Watched()
    await one.store.create(endpoint("a"))
    async with asyncio.TaskGroup() as tasks:
        some = [tasks.create_task(one.view.follow(kind)) for kind in INPUTS[:-1]]
        await one.settle()
        assert one.view.put(await one.store.create(endpoint("b"))) is None
        assert one.states == []
        some.append(tasks.create_task(one.view.follow(INPUTS[-1])))
        await one.settle()
        assert one.interfaces == {"calia", "calib"}
        for task in some:
            task.cancel()


async def test_what_the_agent_writes_itself_is_there_at_once(watched: Watched) -> None:
    """And what it deletes is gone at once, though the store's answer has the revision of the last write."""
    stored = await watched.store.create(endpoint("a"))
    state = watched.view.put(stored)
    assert state is not None
    assert set(state.endpoints) == {"calia"}
    state = watched.view.drop(await watched.store.delete(WorkloadEndpoint, "a", "red"))
    assert state is not None
    assert set(state.endpoints) == set()
    await watched.settle()  # the watch comes to tell of both
    assert watched.interfaces == set()
    assert all(len(state.endpoints) <= 1 for state in watched.states)


async def test_pods_that_come_together_are_one_state(watched: Watched) -> None:
    """Who comes while another is being attached waits for it a moment; who comes alone or last does not wait."""
    alone = watched.view.put_ahead(endpoint("a"))
    assert alone == watched.states[-1].generation
    told = len(watched.states)
    with watched.view.attaching():
        first = watched.view.put_ahead(endpoint("b"))
        second = watched.view.put_ahead(endpoint("c"))
        assert len(watched.states) == told
    last = watched.view.put_ahead(endpoint("d"))
    assert first == second == last == watched.states[-1].generation
    assert len(watched.states) == told + 1
    assert watched.interfaces == {"calia", "calib", "calic", "calid"}
    await asyncio.sleep(2 * views.GATHER)
    assert len(watched.states) == told + 1


async def test_pod_waits_for_no_attachment_that_hangs(watched: Watched) -> None:
    told = len(watched.states)
    with watched.view.attaching():
        generation = watched.view.put_ahead(endpoint("a"))
        for _ in range(1000):
            if len(watched.states) > told:
                break
            await asyncio.sleep(views.GATHER / 3)
    assert generation == watched.states[-1].generation
    assert watched.interfaces == {"calia"}


async def test_watch_that_is_ahead_has_told_it_already(watched: Watched) -> None:
    stored = await watched.store.create(endpoint("a"))
    await watched.settle()
    told = len(watched.states)
    assert watched.view.put(stored) is watched.states[-1]
    assert len(watched.states) == told
    assert "calia" in watched.view.interfaces
    watched.view.drop(await watched.store.delete(WorkloadEndpoint, "a", "red"))
    assert "calia" not in watched.view.interfaces
    told = len(watched.states)
    await watched.settle()  # the watch tells of the deletion, too
    assert len(watched.states) == told


async def test_watch_that_is_behind_undoes_nothing(watched: Watched) -> None:
    first = await watched.store.create(endpoint("a", "first"))
    second = await watched.store.update(endpoint("a", "second"))
    watched.view.put(second)
    watched.view.put(first)
    assert watched.view.cluster.endpoint(("red", "a")) == second
    watched.view.drop(await watched.store.delete(WorkloadEndpoint, "a", "red"))
    watched.view.put(second)
    assert watched.view.cluster.endpoint(("red", "a")) is None
    third = await watched.store.create(endpoint("a", "third"))
    watched.view.put(third)
    assert watched.view.cluster.endpoint(("red", "a")) == third


async def test_deletions_are_not_remembered_for_ever(watched: Watched) -> None:
    for number in range(views.TOMBSTONES + 50):
        watched.view.put(changed(endpoint(f"p{number}"), resource_version=str(2 * number + 1)))
        watched.view.drop(changed(endpoint(f"p{number}"), resource_version=str(2 * number + 2)))
    assert len(watched.view._tombstones) == views.TOMBSTONES
    assert watched.view.objects(WorkloadEndpoint) == {}


async def test_listing_drops_what_has_gone_meanwhile(watched: Watched) -> None:
    for name in ("a", "b"):
        await watched.store.create(endpoint(name))
    await watched.settle()
    assert watched.interfaces == {"calia", "calib"}
    judgement = watched.view.judge(WorkloadEndpoint, empty := Listing((), str(watched.store._tail.revision)))
    watched.view.complete(WorkloadEndpoint, empty.revision, judgement.missing)
    await watched.settle()
    assert watched.interfaces == set()


async def test_label_that_changed_while_no_agent_ran_is_followed() -> None:
    """Whichever of pods and endpoints the new agent learns of first."""
    one = Watched()
    pod = Pod(
        metadata=Metadata(name="a", namespace="red", labels={"app": "new"}),
        spec=PodSpec(node_name=NODE, containers=(Container(name="main"),)),
    )
    await one.store.create(pod)
    name = endpoint_name(NODE, "k8s", "a", "eth0")
    await one.store.create(changed(endpoint("a"), name=name, labels={"app": "old"}))
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(follow_pods(NODE, one.store, one.view))]
        await one.settle()
        running += [tasks.create_task(one.view.follow(kind)) for kind in INPUTS]
        await one.settle()
        assert (await one.store.get(WorkloadEndpoint, name, "red")).labels["app"] == "new"
        for task in running:
            task.cancel()


# --- waiting for the kernel ---------------------------------------------------------------------------------------


async def test_waiting_ends_when_policy_is_in_force() -> None:
    progress = Progress()
    await progress.wait(0, 0.01)
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(progress.wait(generation, 5)) for generation in (3, 1, 2)]
        await asyncio.sleep(0)
        progress.reached(2, ("nft: refused",), enforced=False)
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waits)
        progress.reached(2, ("routes: one of them",))  # one pod's route does not keep the others waiting
        await asyncio.sleep(0.01)
        assert [task.done() for task in waits] == [False, True, True]
        assert progress.failures == ("routes: one of them",)
        progress.reached(7, ())
    assert progress._waiting == []


async def test_waiting_too_long_says_why_and_is_forgotten() -> None:
    progress = Progress()
    with pytest.raises(Unavailable, match="the kernel is slow"):
        await progress.wait(1, 0.01)
    progress.reached(1, ("nft: refused",), enforced=False)
    with pytest.raises(Unavailable, match=r"policy is not programmed after 0\.01 s: nft: refused"):
        await progress.wait(1, 0.01)
    task = asyncio.create_task(progress.wait(1, 5))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert progress._waiting == []


# --- what GC takes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handle", "stale"),
    [
        ("net.gone", True),
        ("net.kept", False),
        ("other.gone", False),
        ("net.b.gone", False),  # may be of the network "net.b"
        ("network.gone", False),
        ("net", False),
    ],
)
def test_stale_handles(handle: str, stale: bool) -> None:
    assert is_stale(handle, "net", {"kept"}) is stale


@pytest.mark.parametrize(
    ("handles", "there"),
    [((), False), (("net.c",), False), (("net.x.c",), True), (("other.c",), True), (("other.cc",), False)],
)
def test_endpoint_of_another_network(handles: tuple[str, ...], there: bool) -> None:
    held = [Holding(handle, "red", "a") for handle in handles]
    assert elsewhere(endpoint("a"), "net", held) is there


@pytest.mark.parametrize(("network", "there"), [("net", False), ("other", True)])
def test_endpoint_that_says_its_network_is_believed(network: str, there: bool) -> None:
    said = changed(endpoint("a"), annotations={NETWORK: network})
    assert elsewhere(said, "net", []) is there
    assert elsewhere(said, "net", [Holding("other.c", "red", "a")]) is there


def test_valid_attachments_under_either_name() -> None:
    listed = [{"containerID": "a", "ifname": "eth0"}, {"containerid": "b"}, "noise"]
    assert valid_containers({"cni.dev/valid-attachments": listed}) == {"a", "b"}
    assert valid_containers({"cni.dev/attachments": listed[:1]}) == {"a"}
    assert valid_containers({"cni.dev/valid-attachments": []}) == frozenset()
    for missing in ({}, {"cni.dev/valid-attachments": None}, {"cni.dev/valid-attachments": "a"}):
        with pytest.raises(CniError, match="everything would be collected"):
            valid_containers(missing)


# --- registration -------------------------------------------------------------------------------------------------


def test_node_is_what_is_told_over_what_was_there() -> None:
    first = registered(None, NODE, "192.0.2.1/24", "")
    assert first.spec.bgp is not None
    assert (first.spec.bgp.ipv4_address, first.spec.bgp.ipv6_address) == ("192.0.2.1/24", "")
    assert first.labels == {"kubernetes.io/hostname": NODE}
    labelled = changed(first, labels={"rack": "7"})
    second = registered(labelled, NODE, "", "fd00::1/64")
    assert second.labels == {"rack": "7"}
    assert second.spec.bgp is not None
    assert (second.spec.bgp.ipv4_address, second.spec.bgp.ipv6_address) == ("192.0.2.1/24", "fd00::1/64")
    assert registered(second, NODE, "", "") == second
    assert registered(None, NODE, "", "").spec.bgp is None
    assert registered(None, "n" * 200, "", "").labels == {}


@pytest.mark.parametrize(
    ("name", "ipv4", "ipv6", "says"),
    [
        (NODE, "192.0.2.300/24", "", "--ipv4: "),
        (NODE, "192.0.2.1", "", "--ipv4: "),
        (NODE, "fd00::1/64", "", "--ipv4: "),
        (NODE, "", "192.0.2.1/24", "--ipv6: "),
        (NODE, "", "fd00::/129", "--ipv6: "),
        ("", "", "", "--node: is required"),
        ("Not_A_Name", "", "", '--node: "Not_A_Name"'),
    ],
)
def test_what_cannot_be_registered(name: str, ipv4: str, ipv6: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registered(None, name, ipv4, ipv6)
    assert str(caught.value).startswith(says)


# --- logs ---------------------------------------------------------------------------------------------------------


def test_complaint_is_not_repeated_at_every_try(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    seldom = Seldom(logging.getLogger("test"))
    for _ in range(3):
        seldom.warning("the datastore is away")
        seldom.warning("and so is BIRD")
    assert caplog.messages == ["the datastore is away", "and so is BIRD"]


def test_complaints_about_thousands_of_nodes(caplog: pytest.LogCaptureFixture) -> None:
    """They cost by their number, not by its square; and are said again after a while."""
    import logging

    now = [0.0]
    seldom = Seldom(logging.getLogger("test"), lambda: now[0])
    with caplog.at_level(logging.ERROR):
        begun = time.process_time()
        for number in range(20_000):
            seldom.warning(f"node {number} is not reached")
        assert time.process_time() - begun < 2
    now[0] = 30.0
    seldom.warning("another")
    now[0] = 61.0
    for text in ("another", "node 1 is not reached", "node 1 is not reached"):
        seldom.warning(text)
    assert caplog.messages == ["another", "node 1 is not reached"]
