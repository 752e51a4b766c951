"""How controllers run: pauses, what wakes them, and what ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers_town import Hands, Refusing, Town
from ipam_cluster import matches
from tortie.base.errors import Compacted, ConfigError, Conflict, NotSupported, TortieError, Unavailable
from tortie.controllers.backoff import Backoff, delay
from tortie.controllers.configuration import Configured
from tortie.controllers.ipam_gc import IpamGc
from tortie.controllers.node import NodeCleanup
from tortie.controllers.roster import Informed
from tortie.controllers.running import keep_running, wake_on
from tortie.model.controllers import (
    KubeControllersConfiguration,
)
from tortie.model.ipam import IPAMBlock
from tortie.model.k8s import Namespace, Pod
from tortie.model.meta import Metadata
from tortie.model.store import Event, EventType, Listing, R

GRACE = timedelta(minutes=15)


@pytest.fixture
def town() -> Town:
    return Town()


# --- pauses -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_double_up_to_the_longest_and_half_is_chance(failures: int, chance: float) -> None:
    pause = delay(failures, chance)
    whole = min(0.5 * 2 ** min(failures - 1, 60), 300.0)
    assert whole / 2 <= pause <= whole


def test_each_thing_has_its_own_pause() -> None:
    hands = Hands()
    later = hands.backoff()
    assert later.due("a")
    assert later.due("b")
    later.failed("a")
    assert not later.due("a")
    assert later.due("b")
    assert later.wait() == 0.5
    hands.time = 0.5
    assert later.due("a")
    later.failed("a")
    assert later.wait() == 1.0
    assert not later.due("a")
    assert later.due("a", "another state")
    assert later.has_failed("a")
    later.succeeded("a")
    assert not later.has_failed("a")
    later.failed("a", slowly=True)
    assert later.wait() == 300.0
    assert later.wait() is None  # nobody asked for it again: it is gone
    assert later.due("a")


# --- running ----------------------------------------------------------------------------------------------------------


class Passes:
    """A controller that does what it is told at each pass, and nothing after that."""

    name = "passes"

    def __init__(self, *deeds: Callable[[], int]) -> None:
        self.deeds = list(deeds)
        self.count = 0
        self.done = asyncio.Event()

    async def run_once(self) -> int:
        self.count += 1
        if self.deeds:
            return self.deeds.pop(0)()
        self.done.set()
        return 0


def fail(error: Exception) -> Callable[[], int]:
    def deed() -> int:
        raise error

    return deed


async def test_errors_of_a_pass_are_tried_again_and_bugs_end_the_program() -> None:
    errors: list[TortieError] = [Unavailable("away"), NotSupported("newer"), Conflict("lost"), ConfigError("bad")]
    passes = Passes(fail(errors[0]), lambda: 1)
    task = asyncio.ensure_future(keep_running(passes, GRACE, asyncio.Event()))
    async with asyncio.timeout(10):
        await passes.done.wait()
    task.cancel()
    assert passes.count == 3
    for error in errors:
        task = asyncio.ensure_future(keep_running(Passes(fail(error)), GRACE, asyncio.Event()))
        await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
    with pytest.raises(ZeroDivisionError):
        await keep_running(Passes(lambda: 1 // 0), GRACE, asyncio.Event())


@pytest.mark.parametrize("steps", range(6))
async def test_a_program_that_is_woken_as_it_ends_ends(steps: int) -> None:
    passes, wake = Passes(), asyncio.Event()
    task = asyncio.ensure_future(keep_running(passes, GRACE, wake))
    await passes.done.wait()
    await asyncio.sleep(0.01)
    wake.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(30):
        await asyncio.wait({task})
    assert task.cancelled()


async def test_what_is_due_is_tried_when_it_is_due() -> None:
    later = Backoff(first=0.3, chance=lambda: 0.0)

    def fails() -> int:
        later.failed("thing")
        return 1

    passes = Passes(fails)
    task = asyncio.ensure_future(keep_running(passes, timedelta(hours=1), asyncio.Event(), later))
    async with asyncio.timeout(10):
        await passes.done.wait()
    task.cancel()
    assert passes.count == 2


async def test_a_kind_that_cannot_be_read_ends_nothing_and_what_was_missed_is_looked_for(town: Town) -> None:
    wakes = {"x": asyncio.Event(), "y": asyncio.Event()}
    town.refusing.unreadable = {Pod}
    task = asyncio.ensure_future(wake_on(town.refusing, Pod, wakes, {"x": frozenset({EventType.DELETED})}))
    await asyncio.sleep(0.05)
    assert not task.done()
    assert not wakes["x"].is_set()
    town.refusing.unreadable = set()
    async with asyncio.timeout(10):
        await wakes["x"].wait()
    assert not wakes["y"].is_set()
    task.cancel()


async def test_what_happens_before_the_first_list_is_a_reason_to_look(town: Town) -> None:
    """The first pass may be over by then; the next one is minutes away."""
    wake = asyncio.Event()
    task = asyncio.ensure_future(wake_on(town.store, Pod, {"x": wake}, {"x": frozenset({EventType.DELETED})}))
    async with asyncio.timeout(10):
        await wake.wait()
    task.cancel()


async def test_a_history_that_is_always_gone_is_no_reason_to_hurry(town: Town) -> None:
    class Forgetful(Refusing):
        lists = 0

        async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
            self.lists += 1
            return await super().list(kind, namespace)

        async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
            raise Compacted("gone")
            yield ()

    store = Forgetful(town.store)
    task = asyncio.ensure_future(wake_on(store, Pod, {"x": asyncio.Event()}, {"x": frozenset(EventType)}))
    await asyncio.sleep(0.5)
    task.cancel()
    assert 1 <= store.lists <= 4


async def test_long_passes_rest_in_between_however_much_happens() -> None:
    class Long:
        name = "long"
        passes = 0

        async def run_once(self) -> int:
            self.passes += 1
            if self.passes == 2:
                again.set()
            await asyncio.sleep(0.3)
            wake.set()
            return 0

    wake, again, long = asyncio.Event(), asyncio.Event(), Long()
    task = asyncio.ensure_future(keep_running(long, GRACE, wake))
    await asyncio.sleep(1.1)  # 0.3 of a pass, 0.9 of rest; without it there would be time for three
    assert long.passes == 1
    async with asyncio.timeout(10):
        await again.wait()
    task.cancel()


async def test_the_same_complaint_is_made_once(caplog: pytest.LogCaptureFixture) -> None:
    away, other = Unavailable("away"), Unavailable("another")
    passes = Passes(fail(away), fail(away), fail(other))
    wake = asyncio.Event()
    task = asyncio.ensure_future(keep_running(passes, GRACE, wake))
    async with asyncio.timeout(10):
        await passes.done.wait()
    task.cancel()
    assert passes.count == 4
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "passes: away; trying again",
        "passes: another; trying again",
    ]


async def test_on_etcd_nothing_is_done_where_kubernetes_is_not_known(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    """Every pod would seem to be gone, and its address would be given to another."""
    await town.pool("10.0.0.0/24", block_size=26)
    await town.node("n1")
    await town.ipam("n1").auto_assign(1, 0, handle="h", attrs={"node": "n1", "namespace": "x", "pod": "p"})
    gc = Informed(IpamGc(town.store, lambda: town.now, matches, timedelta(seconds=1)), town.store, Namespace)
    for _ in range(3):
        town.now += timedelta(hours=1)
        assert await gc.run_once() == 0
    (block,) = (await town.store.list(IPAMBlock)).items
    assert any(each.handle_id == "h" for each in block.spec.attributes)
    assert caplog.text.count("no Namespace is known") == 1
    await town.store.create(Namespace(metadata=Metadata(name="default")))
    for _ in range(2):
        town.now += timedelta(hours=1)
        assert await gc.run_once() == 0
    (block,) = (await town.store.list(IPAMBlock)).items
    assert not any(each.handle_id == "h" for each in block.spec.attributes)


async def test_settings_that_cannot_be_read_stop_only_who_needs_them(town: Town) -> None:
    class Unreadable(Refusing):
        async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
            if kind is KubeControllersConfiguration:
                raise NotSupported("a stored KubeControllersConfiguration is not known to this version")
            return await super().get(kind, name, namespace)

    store = Unreadable(town.store)
    with pytest.raises(NotSupported):
        await IpamGc(store, lambda: datetime.now(UTC), matches, None, configured=Configured()).run_once()
    assert await NodeCleanup(store).run_once() == 0
