"""What the datastore is told after ADD has answered: together, again until it is done, and never over what is newer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_interface
from pathlib import Path

import pytest
from msgspec.structs import replace

from tortie.agent.endpoints import follow_pods
from tortie.agent.pending import FIRST_RETRY, Pending
from tortie.agent.view import View
from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import Unavailable
from tortie.calc.cluster import INPUTS
from tortie.calc.state import DesiredState
from tortie.calc.workloads import endpoint_of_pod
from tortie.ipam.assign import Ipam
from tortie.ipam.block import held_slots
from tortie.ipam.check import check
from tortie.ipam.handover import Transfer, moved
from tortie.ipam.ready import ready_handle
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, IPPoolSpec
from tortie.model.k8s import Container, Pod, PodSpec
from tortie.model.meta import Metadata, changed
from tortie.model.node import Node
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.selector import parse
from tortie.store.memory import MemoryStore

NODE, RED = "node1", "red"
READY = ready_handle(NODE)


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


def pod(name: str, **labels: str) -> Pod:
    metadata = Metadata(name=name, namespace=RED, labels=labels)
    return Pod(metadata=metadata, spec=PodSpec(node_name=NODE, containers=(Container(name="main"),)))


@dataclass
class Town:
    """A datastore, and an agent's journal in a directory."""

    store: MemoryStore
    directory: Path
    retry: float = FIRST_RETRY

    def __post_init__(self) -> None:
        self.states: list[DesiredState] = []
        self.view = View(NODE, self.store, self.states.append)
        self.ipam = Ipam(self.store, NODE, lambda: datetime.now(UTC), matches)
        self.pending = Pending(self.directory, READY, self.store, self.view, self.ipam, retry=self.retry)
        self.bugs: list[BaseException] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Pending]:
        """With all that follows the datastore."""
        self.pending.replay()
        tasks = [asyncio.create_task(self.view.follow(kind)) for kind in INPUTS]
        tasks.append(asyncio.create_task(follow_pods(NODE, self.store, self.view)))
        try:
            await self.view.in_sync.wait()
            async with self.pending.running(self.bugs.append):
                yield self.pending
        finally:
            for task in tasks:
                task.cancel()
        assert self.bugs == []

    async def connect(self, name: str, container: str, *, settle: bool = True) -> str:
        """What ADD does; the address."""
        (ip,) = (await self.ipam.auto_assign(1, handle=READY, attrs={"node": NODE})).ips
        self.pending.promise(container, Transfer((ip,), f"net.{container}", {"pod": name, "namespace": RED}), "")
        endpoint = endpoint_of_pod(
            pod(name), node=NODE, container_id=container, interface=f"cali{container}", mac="", ips=(ip.ip,)
        )
        self.pending.note(endpoint)
        if settle:
            self.pending.settle(container)
        return str(ip.ip)

    async def held(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for block in (await self.store.list(IPAMBlock)).items:
            for slot, attribute in held_slots(block.spec):
                found.setdefault(attribute.handle_id or "", set()).add(str(block.spec.net[slot]))
        return found

    async def endpoints(self) -> dict[str, str]:
        """Container by pod."""
        return {one.spec.pod: one.spec.container_id for one in (await self.store.list(WorkloadEndpoint)).items}

    async def findings(self) -> list[str]:
        blocks = (await self.store.list(IPAMBlock)).items
        handles = (await self.store.list(IPAMHandle)).items
        return [str(each) for each in check(blocks, handles, (await self.store.list(BlockAffinity)).items)]

    @property
    def notes(self) -> set[str]:
        return {file.name for file in self.directory.glob("*")}

    @property
    def interfaces(self) -> set[str]:
        return set(self.states[-1].endpoints) if self.states else set()


@pytest.fixture
async def town(tmp_path: Path) -> Town:
    store = MemoryStore()
    await store.create(IPPool(metadata=Metadata(name="pool"), spec=IPPoolSpec(cidr="10.0.0.0/24", block_size=28)))
    await store.create(Node(metadata=Metadata(name=NODE)))
    return Town(store, tmp_path / "pending")


async def test_what_is_noted_is_written_after_the_answer(town: Town) -> None:
    await town.store.create(pod("a"))
    async with town.running() as pending:
        ip = await town.connect("a", "c1", settle=False)
        assert town.interfaces == {"calic1"}, "its policy is programmed before that"
        assert town.notes == {"c1.json"}
        assert await town.endpoints() == {}
        pending.settle("c1")
        await pending.settled("c1")
        assert await town.endpoints() == {"a": "c1"}
        assert await town.held() == {"net.c1": {ip}}
        assert (town.notes, pending.ips) == (set(), frozenset())
    assert await town.findings() == []


async def test_a_file_stays_until_the_next_agent_would_know_without_it(town: Town) -> None:
    """Else an agent that is killed then, and started without the datastore, cuts off a pod that runs."""
    for name in ("a", "b", "c"):
        await town.store.create(pod(name))
    waiting: list[Callable[[], None]] = []
    town.pending.once_noted = waiting.append
    async with town.running() as pending:
        for name in ("a", "b", "c"):
            await town.connect(name, f"of-{name}")
        await pending.all_settled()
        assert town.notes == {"of-a.json", "of-b.json", "of-c.json"}
        assert pending.forget("of-b") is None, "what has been told is not promised any more"
        assert town.notes == {"of-a.json", "of-c.json"}, "DEL takes the file along"
        await town.connect("c", "of-c", settle=False)
        for done in waiting:
            done()
        assert town.notes == {"of-c.json"}, "that of a new ADD under the same id is another one"


async def test_many_share_the_write_of_a_block(town: Town) -> None:
    async with town.running() as pending:
        got = [await town.connect(f"p{number}", f"c{number}", settle=False) for number in range(10)]
        (before,) = (await town.store.list(IPAMBlock)).items
        for number in range(10):
            pending.settle(f"c{number}")
        await pending.all_settled()
        (after,) = (await town.store.list(IPAMBlock)).items
        assert after.spec.sequence_number == before.spec.sequence_number + 1
        assert await town.held() == {f"net.c{number}": {ip} for number, ip in enumerate(got)}
    assert await town.findings() == []
    assert READY not in {handle.name for handle in (await town.store.list(IPAMHandle)).items}


async def test_writing_it_changes_nothing_in_the_kernel(town: Town) -> None:
    async with town.running() as pending:
        await town.connect("a", "c1", settle=False)
        generation = town.states[-1].generation
        pending.settle("c1")
        await pending.settled("c1")
        await asyncio.sleep(0.05)
        assert town.states[-1].generation == generation


async def test_datastore_that_is_away_is_told_later(town: Town) -> None:
    town = Town(town.store, town.directory, retry=0.01)
    async with town.running() as pending:
        ip = await town.connect("a", "c1", settle=False)
        away = True

        async def create(obj: WorkloadEndpoint) -> WorkloadEndpoint:
            if away:
                raise Unavailable("away")
            return await MemoryStore.create(town.store, obj)

        town.store.create = create  # type: ignore[method-assign, assignment]
        pending.settle("c1")
        with pytest.raises(Unavailable, match="away"):
            await pending.settled("c1")
        assert pending.failure == "pods that the datastore does not know yet: 1: away"
        assert (town.notes, {str(each) for each in pending.ips}) == ({"c1.json"}, {ip})
        away = False
        with contextlib.suppress(Unavailable):
            await pending.settled("c1")
        await pending.settled("c1")
        assert (pending.failure, await town.endpoints()) == ("", {"a": "c1"})


async def test_next_agent_goes_on(town: Town) -> None:
    await town.store.create(pod("a"))
    async with town.running():
        ip = await town.connect("a", "c1", settle=False)
    next_one = Town(town.store, town.directory)
    async with next_one.running() as pending:
        assert next_one.states == [] or next_one.interfaces == {"calic1"}, "no state without it"
        await pending.all_settled()
        assert await next_one.held() == {"net.c1": {ip}}
        assert await next_one.endpoints() == {"a": "c1"}
        assert next_one.notes == set()
    assert await town.findings() == []


@pytest.mark.parametrize("why", ["pod gone", "pod elsewhere", "sandbox gone"])
async def test_next_agent_writes_no_endpoint_for_a_pod_that_is_gone(town: Town, why: str) -> None:
    """Its addresses are its container's, so that DEL, GC or the controllers release them."""
    async with town.running() as pending:
        if why != "pod gone":
            one = pod("a")
            node = "node2" if why == "pod elsewhere" else NODE
            await town.store.create(replace(one, spec=replace(one.spec, node_name=node)))
        ip = await town.connect("a", "c1", settle=False)
        if why == "sandbox gone":
            file = town.directory / "c1.json"
            file.write_text(file.read_text().replace('"netns":""', '"netns":"/run/netns/nowhere"'))
        assert pending.promised("c1") == {parse_ip(ip)}
    next_one = Town(town.store, town.directory)
    async with next_one.running() as pending:
        await pending.all_settled()
        await asyncio.sleep(0.05)
        assert next_one.interfaces == set()
        assert await next_one.held() == {"net.c1": {ip}}
        assert await next_one.endpoints() == {}


async def test_endpoint_of_a_newer_container_stays(town: Town) -> None:
    await town.store.create(pod("a"))
    async with town.running():
        await town.connect("a", "old", settle=False)
    newer = endpoint_of_pod(
        pod("a"), node=NODE, container_id="new", interface="calinew", mac="", ips=(parse_ip("10.0.0.200"),)
    )
    await town.store.create(newer)
    next_one = Town(town.store, town.directory)
    async with next_one.running() as pending:
        await pending.all_settled()
        assert await next_one.endpoints() == {"a": "new"}
        assert next_one.interfaces == {"calinew"}
        assert "net.old" in await next_one.held()


async def test_withdrawn_before_it_is_written(town: Town) -> None:
    async with town.running() as pending:
        await town.connect("a", "c1", settle=False)
        pending.settle("c1")
        name = "node1-k8s-a-eth0"
        assert not pending.withdraw("c1", "another")
        assert pending.withdraw("c1", name)
        assert town.notes == {"c1.json"}, "its addresses are its own until its link is gone"
        assert pending.forget("c1") is not None
        assert (town.notes, pending.promised("c1")) == (set(), frozenset())
        await asyncio.sleep(0.05)
        assert (await town.endpoints(), town.interfaces) == ({}, set())
        await town.connect("a", "c2")
        await pending.settled("c2")
        assert not pending.withdraw("c2", name)
        assert pending.forget("c2") is None


async def test_label_that_changes_meanwhile_is_followed(town: Town) -> None:
    stored = await town.store.create(pod("a"))
    async with town.running() as pending:
        await town.connect("a", "c1", settle=False)
        await town.store.update(changed(stored, labels={"app": "web"}))
        await asyncio.sleep(0.05)
        pending.settle("c1")
        await pending.settled("c1")
        (endpoint,) = (await town.store.list(WorkloadEndpoint)).items
        assert endpoint.labels["app"] == "web"


async def test_endpoint_ahead_survives_a_new_listing(town: Town) -> None:
    """A watch that lost its history lists again: what is not written yet is not gone."""
    async with town.running() as pending:
        await town.connect("a", "c1", settle=False)
        listing = await town.store.list(WorkloadEndpoint)
        assert town.view.judge(WorkloadEndpoint, listing).missing == ()
        town.view.add(WorkloadEndpoint, listing)
        town.view.complete(WorkloadEndpoint, listing.revision, ())
        await asyncio.sleep(0.05)
        assert town.interfaces == {"calic1"}
        pending.settle("c1")


async def test_strange_files(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    town.directory.mkdir()
    (town.directory / "half.json").write_text('{"containerId": "c1"')
    (town.directory / "empty.json").touch()
    (town.directory / "odd.json").write_text('{"containerId": 7}')
    async with town.running():
        assert town.notes == {"odd.json"}
        assert "odd.json is ignored" in caplog.text


async def test_the_last_whole_line_of_a_note_counts(town: Town) -> None:
    async with town.running() as pending:
        await town.connect("a", "c1", settle=False)
        (ip,) = pending.ips
        file = town.directory / "c1.json"
        lines = file.read_bytes()
        assert lines.count(b"\n") == 2  # the promise, then the endpoint too
    file.write_bytes(lines + lines[:20])  # an agent that was killed while it wrote a third
    next_one = Town(town.store, town.directory)
    async with next_one.running() as pending:
        assert pending.ips <= {ip}
        await pending.all_settled()
    assert next_one.notes == set()


async def test_journal_that_cannot_be_written(town: Town) -> None:
    async with town.running() as pending:
        town.directory.rmdir()
        with pytest.raises(Unavailable, match="No such file or directory"):
            await town.connect("a", "c1")
        await asyncio.sleep(0.05)
        assert town.interfaces == set()
        assert pending.forget("c1") is None  # nothing is promised that is not on disk
        town.directory.mkdir()


async def test_add_that_was_cut_short_leaves_its_addresses_to_its_container(town: Town) -> None:
    """Its link may have them already: nobody else may get them before DEL, GC or the controllers have looked."""
    async with town.running() as pending:
        (ip,) = (await town.ipam.auto_assign(1, handle=READY, attrs={"node": NODE})).ips
        pending.promise("c1", Transfer((ip,), "net.c1", {"pod": "a", "namespace": RED}), "")
    assert town.notes == {"c1.json"}
    later = Town(town.store, town.directory)
    async with later.running() as pending:
        await pending.all_settled()
        assert later.interfaces == set()
        assert (later.notes, await later.held()) == (set(), {"net.c1": {str(ip.ip)}})


# --- handing over -------------------------------------------------------------------------------------------------


async def test_hand_over_is_done_once_however_often(town: Town) -> None:
    got = await town.ipam.auto_assign(4, handle=READY, attrs={"node": NODE})
    transfers = [Transfer((each,), f"net.{number}", {"pod": "p"}) for number, each in enumerate(got.ips)]
    for _ in range(2):
        assert await town.ipam.hand_over(READY, transfers) == ()
        assert await town.held() == {f"net.{number}": {str(each.ip)} for number, each in enumerate(got.ips)}
        assert await town.findings() == []


async def test_hand_over_takes_what_is_free_and_leaves_what_is_anothers(town: Town) -> None:
    got = await town.ipam.auto_assign(3, handle=READY, attrs={"node": NODE})
    await town.ipam.release_by_handle(READY)
    await town.ipam.assign_ip(got.ips[1].ip, handle="net.other", attrs={})
    assert await town.ipam.hand_over(READY, [Transfer(got.ips, "net.c1", {})]) == (got.ips[1].ip,)
    assert await town.held() == {
        "net.other": {str(got.ips[1].ip)},
        "net.c1": {str(got.ips[0].ip), str(got.ips[2].ip)},
    }
    assert await town.findings() == []


async def test_hand_over_in_a_block_that_is_gone(town: Town) -> None:
    got = await town.ipam.auto_assign(1, handle=READY, attrs={"node": NODE})
    await town.ipam.release_by_handle(READY)
    await town.ipam.release_host_affinities(require_empty=True)
    assert (await town.store.list(IPAMBlock)).items == ()
    assert await town.ipam.hand_over(READY, [Transfer(got.ips, "net.c1", {})]) == ()
    assert await town.held() == {"net.c1": {str(got.ips[0].ip)}}


async def test_cooling_address_is_nobodys_to_take(town: Town) -> None:
    got = await town.ipam.auto_assign(1, handle=READY, attrs={})
    (block,) = (await town.store.list(IPAMBlock)).items
    (attribute,) = block.spec.attributes
    cooling = replace(attribute, handle_id=None, released_at="2026-01-02T03:04:05Z")
    spec = replace(block.spec, attributes=(cooling,))
    assert moved(spec, READY, [(got.ips[0].ip, "net.c1", {})]).lost == (got.ips[0].ip,)
    assert ip_interface(f"{got.ips[0].ip}/28").network == parse_net(spec.cidr)
