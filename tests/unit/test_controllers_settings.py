"""What the controllers are told and what they tell: configuration, environment, status, health, metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from ipam_cluster import Cluster, matches
from tortie.base.errors import ConfigError, NotFound, Unavailable
from tortie.controllers import main
from tortie.controllers.configuration import Configured, in_force
from tortie.controllers.health import STALE, Health, judge, probe, uptime
from tortie.controllers.ipam_gc import IpamGc
from tortie.controllers.leader import Fenced
from tortie.controllers.metrics import IpamMetrics, MetricsPort
from tortie.controllers.roster import Orders, controllers, reasons
from tortie.controllers.running_config import RunningConfig
from tortie.model.controllers import KubeControllersConfiguration, KubeControllersConfigurationSpec
from tortie.model.document import convert
from tortie.model.ipam import IPAMBlock, IPReservation, IPReservationSpec
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata
from tortie.model.node import ClusterInformation, Node
from tortie.model.policy import Profile
from tortie.model.store import R, Store
from tortie.store.memory import MemoryStore

NOTHING = KubeControllersConfigurationSpec()


def config(**spec: Any) -> KubeControllersConfiguration:
    return convert(KubeControllersConfiguration, {"metadata": {"name": "default"}, "spec": spec})


async def until(true: Callable[[], Any], seconds: float = 8.0) -> None:
    """Waits for a condition, which may be a coroutine's."""
    async with asyncio.timeout(seconds):
        while True:
            found = true()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.02)


# --- what is in force -------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    settings = in_force(NOTHING, {})
    spec = settings.spec
    assert (spec.log_severity_screen, spec.health_checks, spec.etcd_v3_compaction_period) == ("Info", "Enabled", "10m")
    node = spec.controllers.node
    assert (node.reconciler_period, node.sync_labels, node.leak_grace_period) == ("5m", "Enabled", "15m")
    assert (node.host_endpoint.auto_create, node.host_endpoint.create_default_host_endpoint) == ("Disabled", "Enabled")
    assert spec.controllers.load_balancer.assign_ips == "AllServices"
    assert (settings.grace, settings.period("node"), settings.period("policy")) == (
        timedelta(minutes=15),
        timedelta(minutes=5),
        timedelta(minutes=5),
    )


@pytest.mark.parametrize(
    ("datastore", "said", "enabled"),
    [
        ("sqlite", "", "loadbalancer node services"),
        ("kubernetes", "", "loadbalancer node"),
        ("etcd", "", "loadbalancer namespace node policy serviceaccount services workloadendpoint"),
        ("etcd", "node, Profile", "namespace node"),
        ("etcd", "policy", "policy"),
        ("kubernetes", "policy,node,serviceaccount,services", "node"),
        ("sqlite", "namespace", "namespace"),
    ],
)
def test_which_run(datastore: str, said: str, enabled: str) -> None:
    found = in_force(NOTHING, {"ENABLED_CONTROLLERS": said}, datastore).enabled
    assert " ".join(sorted(found)) == enabled


def test_the_environment_wins_and_is_told() -> None:
    said = config(logSeverityScreen="Error", controllers={"node": {"syncLabels": "Enabled", "reconcilerPeriod": "1m"}})
    environment = {
        "LOG_LEVEL": "debug", "RECONCILER_PERIOD": "2m", "COMPACTION_PERIOD": "0", "HEALTH_ENABLED": "false",
        "SYNC_NODE_LABELS": "false", "AUTO_HOST_ENDPOINTS": "enabled", "NODE_WORKERS": "3", "PATH": "/bin",
    }  # fmt: skip
    settings = in_force(said.spec, environment)
    spec = settings.spec
    assert (spec.log_severity_screen, spec.health_checks, spec.etcd_v3_compaction_period) == ("Debug", "Disabled", "0")
    node = spec.controllers.node
    assert (node.sync_labels, node.host_endpoint.auto_create) == ("Disabled", "Enabled")
    assert {settings.period(each) for each in ("node", "loadbalancer", "policy", "namespace")} == {timedelta(minutes=2)}
    assert "PATH" not in settings.environment
    assert settings.environment["NODE_WORKERS"] == "3"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ENABLED_CONTROLLERS", "nodes", 'ENABLED_CONTROLLERS: "nodes" is not a controller; did you mean "node"?'),
        ("ENABLED_CONTROLLERS", "flannelmigration", 'ENABLED_CONTROLLERS: "flannelmigration" is not supported'),
        ("RECONCILER_PERIOD", "5", 'RECONCILER_PERIOD: "5" is not a duration such as 90s, 15m or 1m30s'),
        ("HEALTH_ENABLED", "maybe", 'HEALTH_ENABLED: "maybe" is neither enabled nor disabled'),
        ("POLICY_WORKERS", "many", 'POLICY_WORKERS: "many" is not a number'),
    ],
)
def test_an_environment_that_cannot_be(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        in_force(NOTHING, {name: text})
    assert str(caught.value) == message


def test_periods_of_the_configuration() -> None:
    spec = config(controllers={"policy": {"reconcilerPeriod": "7s"}, "namespace": {"reconcilerPeriod": 3}}).spec
    settings = in_force(spec, {})
    assert settings.period("policy") == timedelta(seconds=7)
    assert settings.period("namespace") == timedelta(minutes=5)


def test_who_is_made_and_woken() -> None:
    store = MemoryStore()

    def names(datastore: str, enabled: str = "", kubernetes: bool = True) -> set[str]:
        orders = Orders(configured=Configured(datastore=datastore, kubernetes=kubernetes))
        chosen = in_force(NOTHING, {"ENABLED_CONTROLLERS": enabled}, datastore).enabled
        these = controllers(store, orders, chosen)
        woken = {name for why in reasons(these).values() for name in why}
        assert woken == {each.name for each in these}
        return woken

    everywhere = {"node", "ipam-gc", "auto-host-endpoints", "load-balancer-ipam"}
    copies = {"namespace-copies", "serviceaccount-copies", "policy-copies", "endpoint-labels"}
    services = {"service-addresses", "endpoint-slices"}
    assert names("kubernetes") == everywhere
    assert names("sqlite") == names("memory") == everywhere | services
    assert names("etcd") == everywhere | copies | {"node-labels"}
    assert names("etcd", kubernetes=False) == everywhere | copies | {"node-labels"} | services
    assert names("etcd", "loadbalancer") == {"load-balancer-ipam"}


# --- following it -----------------------------------------------------------------------------------------------------


async def leak(town: Cluster) -> None:
    await town.pool("10.0.0.0/24", block_size=26)
    await town.node("n1")
    await town.ipam("n1").auto_assign(1, 0, handle="h", attrs={"node": "n1", "namespace": "x", "pod": "p"})


async def test_the_grace_period_is_that_of_the_moment() -> None:
    town = Cluster()
    await leak(town)
    gc = IpamGc(town.store, lambda: town.now, matches, None)
    await gc.run_once()
    town.now += timedelta(minutes=2)
    await gc.run_once()
    assert len(gc.memory.leaks) == 1
    await town.store.create(config(controllers={"node": {"leakGracePeriod": "1m"}}))
    await gc.run_once()
    await gc.run_once()
    assert not gc.memory.leaks
    assert gc.period(in_force(config(controllers={"node": {"leakGracePeriod": "1m"}}).spec, {})) == timedelta(
        seconds=30
    )
    assert gc.period(in_force(config(controllers={"node": {"leakGracePeriod": "0"}}).spec, {})) == timedelta(minutes=5)


async def test_a_running_program_follows_the_configuration() -> None:
    """The grace period was half a day, and the pass after it hours away: both are another at once."""
    town = Cluster()
    town.now = datetime.now(UTC)
    await leak(town)
    await town.store.create(config(controllers={"node": {"leakGracePeriod": "12h"}}))
    task = asyncio.ensure_future(main.run(town.store))

    async def told(text: str) -> bool:
        found = await town.store.get(KubeControllersConfiguration, "default")
        running = (found.status or {}).get("runningConfig", {})
        return text == running.get("controllers", {}).get("node", {}).get("leakGracePeriod")

    async def free() -> bool:
        blocks = (await town.store.list(IPAMBlock)).items
        return not any(each.handle_id == "h" for block in blocks for each in block.spec.attributes)

    try:
        await until(lambda: told("12h"))
        have = await town.store.get(KubeControllersConfiguration, "default")
        await town.store.update(replace(have, spec=config(controllers={"node": {"leakGracePeriod": "400ms"}}).spec))
        await until(lambda: told("400ms"))
        await until(free)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_copies_follow_in_a_running_program() -> None:
    store = MemoryStore()
    await store.create(Namespace(metadata=Metadata(name="default")))
    orders = Orders(configured=Configured({}, "etcd"))
    task = asyncio.ensure_future(main.run(store, None, orders))

    async def there(name: str) -> bool:
        return name in {each.name for each in (await store.list(Profile)).items}

    async def gone(name: str) -> bool:
        return not await there(name)

    try:
        await until(lambda: there("kns.default"))
        await store.create(Namespace(metadata=Metadata(name="red")))
        await until(lambda: there("kns.red"))
        await store.delete(Profile, "kns.default")
        await until(lambda: there("kns.default"))
        await store.delete(Namespace, "red")
        await until(lambda: gone("kns.red"))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_configuration_is_made_and_told_once() -> None:
    store = MemoryStore()
    teller = RunningConfig(store, Configured({"AUTO_HOST_ENDPOINTS": "enabled"}))
    assert await teller.run_once() == 0
    made = await store.get(KubeControllersConfiguration, "default")
    assert made.spec.controllers.node.host_endpoint.auto_create == "Disabled"
    assert made.status["environmentVars"] == {"AUTO_HOST_ENDPOINTS": "enabled"}
    running = made.status["runningConfig"]["controllers"]["node"]
    assert running["hostEndpoint"]["autoCreate"] == "Enabled"
    assert running["leakGracePeriod"] == "15m"
    assert await teller.run_once() == 0
    assert await store.get(KubeControllersConfiguration, "default") == made
    await store.update(replace(made, status={**made.status, "others": 1}))
    await teller.run_once()
    assert (await store.get(KubeControllersConfiguration, "default")).status["others"] == 1


async def test_passing_once_makes_no_configuration_and_no_lease() -> None:
    store = MemoryStore()
    assert await main.run_once(store) == 0
    with pytest.raises(NotFound):
        await store.get(KubeControllersConfiguration, "default")


# --- health -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "ready", "why"),
    [
        ({"written": 100.0, "notReady": ""}, True, ""),
        ({"written": 100.0, "notReady": "etcd is away"}, True, "etcd is away"),
        ({"written": 100.0, "notReady": "etcd is away"}, False, ""),
        ({"written": 50.0}, False, "the status file was last written 60 s ago"),
        ({"written": 500.0}, False, "the status file was last written 390 s ahead"),
        ({"written": "now"}, False, "the status file does not say when it was written"),
        ({}, True, "the status file does not say when it was written"),
    ],
)
def test_judging(status: dict[str, Any], ready: bool, why: str) -> None:
    assert judge(status, 110.0, ready=ready) == why


def test_probing_files(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert "No such file" in probe(path, ready=False)
    path.write_text("{")
    assert "not a status file" in probe(path, ready=True)
    path.write_text("[]")
    assert "does not say" in probe(path, ready=True)
    path.write_text(json.dumps({"written": uptime(), "notReady": "no"}))
    assert (probe(path, ready=False), probe(path, ready=True)) == ("", "no")
    path.write_text(json.dumps({"written": uptime() - STALE - 1}))
    assert "last written 46 s ago" in probe(path, ready=False)


class Cut(Fenced):
    """A store that is away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        raise Unavailable("the datastore is away")


@pytest.mark.parametrize("away", [False, True])
async def test_the_file_is_written_and_taken_away(tmp_path: Path, away: bool) -> None:
    store = MemoryStore()
    if not away:
        await store.create(ClusterInformation(metadata=Metadata(name="default")))
    path = tmp_path / "run" / "status.json"
    health = Health(Cut(store) if away else store, path, lambda: "other", "me")
    task = asyncio.ensure_future(health.run())
    await until(path.exists)
    assert probe(path, ready=False) == ""
    assert probe(path, ready=True) == ("the datastore is away" if away else "")
    said = json.loads(path.read_text())
    assert (said["leader"], said["identity"]) == ("other", "me")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert list(path.parent.iterdir()) == []


async def test_a_file_that_cannot_be_written_is_told_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    task = asyncio.ensure_future(Health(MemoryStore(), tmp_path / "file" / "status.json", str, "me").run())
    await until(lambda: "probes will fail" in caplog.text)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- metrics ----------------------------------------------------------------------------------------------------------


async def test_metrics() -> None:
    town = Cluster()
    await leak(town)
    await town.node("n2")
    await town.ipam("n2").auto_assign(2, 0, handle="t", attrs={"node": "n2", "type": "vxlanTunnelAddress"})
    await town.store.create(
        IPReservation(
            metadata=Metadata(name="r"),
            spec=IPReservationSpec(reserved_cidrs=("10.0.0.0/30", "10.0.0.1/32", "192.0.2.0/24", "nonsense")),
        )
    )
    metrics = IpamMetrics()
    gc = IpamGc(town.store, lambda: town.now, matches, timedelta(minutes=1), observed=metrics.observe)
    await gc.run_once()
    text = metrics.text().decode()
    for line in (
        'ipam_allocations_in_use{ippool="pool",node="n1"} 1.0',
        'ipam_allocations_in_use{ippool="pool",node="n2"} 2.0',
        'ipam_allocations_borrowed{ippool="pool",node="n1"} 0.0',
        'ipam_allocations_gc_candidates{ippool="pool",node="n1"} 1.0',
        'ipam_blocks{ippool="pool",node="n2"} 1.0',
        'ipam_ippool_size{ippool="pool"} 256.0',
        'ipam_ippool_reserved{ippool="pool"} 4.0',
        'ipam_allocations_per_node{node="n2"} 2.0',
        'ipam_blocks_per_node{node="n1"} 1.0',
    ):
        assert line in text, line
    town.now += timedelta(minutes=5)

    class Full(Fenced):
        """Takes no write, as when a disk is full."""

        def __init__(self, store: Store) -> None:
            self._store = store

        def _may_write(self) -> None:
            raise Unavailable("no space left")

    full = IpamGc(Full(town.store), lambda: town.now, matches, timedelta(minutes=1), observed=metrics.observe)
    full.memory = gc.memory
    assert await full.run_once() > 0
    assert "ipam_allocations_gc_reclamations_total{" not in metrics.text().decode()
    await gc.run_once()
    assert 'ipam_allocations_gc_reclamations_total{ippool="pool",node="n1"} 1.0' in metrics.text().decode()
    await town.store.delete(Node, "n1")
    await gc.run_once()
    assert 'ipam_allocations_in_use{ippool="pool",node="n1"}' not in metrics.text().decode()


async def test_the_port_moves(unused_tcp_port_factory: Callable[[], int], caplog: pytest.LogCaptureFixture) -> None:
    first, second = unused_tcp_port_factory(), unused_tcp_port_factory()
    port = MetricsPort(IpamMetrics(), "127.0.0.1")

    async def answers(number: int) -> bool:
        try:
            async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{number}/metrics") as answer:
                return "ipam_ippool_size" in await answer.text()
        except aiohttp.ClientConnectorError:
            return False

    try:
        await port.move(0)
        await port.move(first)
        assert await answers(first)
        await port.move(second)
        assert (await answers(first), await answers(second)) == (False, True)
        other = MetricsPort(IpamMetrics(), "127.0.0.1")
        await other.move(second)
        assert f"metrics on port {second}" in caplog.text
        await port.move(0)
        assert not await answers(second)
        await other.move(second)
        assert await answers(second)
        await other.close()
    finally:
        await port.close()
