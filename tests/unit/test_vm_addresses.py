"""Addresses of KubeVirt's virtual machines: who has them, which pod comes and goes with them, and when they go."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from ipam_cluster import Cluster, matches
from tortie.agent.cni.collect import is_stale
from tortie.agent.vms import follow_migrations
from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError, NotFound, NotSupported, Unavailable
from tortie.cli.ipam_text import address_text
from tortie.controllers.ipam_gc import IpamGc
from tortie.ipam.assign import Ipam
from tortie.ipam.block import attribute, new_block, ordinal, with_holder
from tortie.ipam.block import auto_assign as take
from tortie.ipam.explain import explain
from tortie.ipam.leak import Standing, verdict
from tortie.ipam.names import HANDLE_LIMIT, machine_handle, machine_network
from tortie.ipam.report import report
from tortie.ipam.survey import Survey, survey
from tortie.ipam.vm import MIGRATION, NOBODY, OtherOwner, OwnerChange, VmAddresses, Wanted, changed_owners, owner_in
from tortie.model.document import parse
from tortie.model.ipam import AllocationAttribute, IPAMBlock, IPAMHandle
from tortie.model.k8s import Container, Pod, PodSpec, VirtualMachine, VirtualMachineInstance
from tortie.model.meta import Metadata, OwnerReference
from tortie.model.workload import WorkloadEndpoint, WorkloadEndpointSpec, endpoint_name

NETWORK = "k8s-pod-network"
GRACE = timedelta(minutes=15)


class Farm(Cluster):
    """A cluster with the machine red/db, and its pods."""

    def vms(self, node: str = "node1") -> VmAddresses:
        return VmAddresses(self.store, self.ipam(node))

    async def machine(self, name: str = "db", owned: bool = True) -> VirtualMachineInstance:
        owners: tuple[OwnerReference, ...] = ()
        if owned:
            vm = await self.store.create(VirtualMachine(metadata=Metadata(name=name, namespace="red")))
            kind = VirtualMachine.KIND
            owners = (OwnerReference(api_version=kind.api_version, kind=kind.kind, name=name, uid=vm.metadata.uid),)
        metadata = Metadata(name=name, namespace="red", owner_references=owners)
        return await self.store.create(VirtualMachineInstance(metadata=metadata))

    async def pod(self, name: str, instance: VirtualMachineInstance, node: str = "node1", migration: str = "") -> Pod:
        owner = OwnerReference(
            api_version="kubevirt.io/v1",
            kind="VirtualMachineInstance",
            name=instance.name,
            uid=instance.metadata.uid,
            controller=True,
        )
        labels = {MIGRATION: migration} if migration else {}
        metadata = Metadata(name=name, namespace="red", labels=labels, owner_references=(owner,))
        spec = PodSpec(containers=(Container(name="compute"),), node_name=node)
        return await self.store.create(Pod(metadata=metadata, spec=spec))

    async def add(self, name: str, node: str = "node1", six: bool = False) -> tuple[list[str], bool]:
        """The addresses that a pod of a machine gets, and whether they come with routes."""
        launcher = await self.vms(node).launcher("red", name)
        assert launcher is not None
        noted = {"node": node, "timestamp": "2026-01-02 03:04:05 +0000 UTC"}
        given = await self.vms(node).assign(launcher, NETWORK, noted, Wanted(True, six))
        return [str(each.ip) for each in given], not launcher.migration

    async def remove(self, name: str, node: str = "node1") -> bool:
        """DEL, then the pod goes."""
        done = await self.vms(node).release(NETWORK, "red", name)
        await self.store.delete(Pod, name, "red")
        return done

    async def note(self, ip: str) -> AllocationAttribute:
        return await self.ipam().attributes_of(parse_ip(ip))

    async def owners(self, ip: str) -> tuple[str, str]:
        """The pods that are the active and the alternate owner."""
        held = await self.note(ip)
        return owner_in(held.secondary)[1], owner_in(held.alternate_owner_attrs)[1]

    async def survey(self) -> Survey:
        return await survey(self.store, self.now)

    async def standing(self, ip: str) -> Standing:
        now = await self.survey()
        return verdict(next(each for each in now.allocations if str(each.ip) == ip), now).standing


@pytest.fixture
async def farm() -> Any:
    farm = Farm()
    await farm.node("node1", "node2")
    await farm.pool("10.0.0.0/24", "four")
    await farm.pool("fd80::/120", "six")
    yield farm
    assert [str(each) for each in await farm.findings()] == []


# -------------------------------------------------------------------------------------------------------- on values


def test_handle() -> None:
    assert machine_handle(NETWORK, "red", "db") == "k8s-pod-network.vmi.red.db"
    assert machine_network("k8s-pod-network.vmi.red.db") == NETWORK
    assert machine_network("k8s-pod-network.4f0c") is None


@pytest.mark.parametrize("length", [90, 103, 104, 105, 200])
def test_handle_has_at_most_128_characters(length: int) -> None:
    name = "m" * length
    plain = f"{NETWORK}.vmi.red.{name}"
    handle = machine_handle(NETWORK, "red", name)
    assert len(handle) <= HANDLE_LIMIT
    assert (handle == plain) is (len(plain) <= HANDLE_LIMIT)
    if handle != plain:
        digest = urlsafe_b64encode(hashlib.sha256(f"red.{name}".encode()).digest()).decode().rstrip("=")
        assert handle == f"{NETWORK}.vmi._{digest}"
        assert machine_handle(NETWORK, "red", name + "m") != handle
        assert machine_network(handle) == NETWORK


def test_digest_is_cut_to_fit() -> None:
    network = "n" * 100
    handle = machine_handle(network, "red", "m" * 50)
    assert (len(handle), handle.startswith(f"{network}.vmi._")) == (128, True)


ACTIVE, ALTERNATE = {"namespace": "red", "pod": "a"}, {"namespace": "red", "pod": "b"}
HELD = AllocationAttribute(handle_id="h", secondary=ACTIVE)
THE_IP = parse_ip("10.0.0.1")


@pytest.mark.parametrize(
    ("change", "active", "alternate"),
    [
        (OwnerChange(), ACTIVE, {}),
        (OwnerChange(alternate=ALTERNATE, expect_alternate=NOBODY), ACTIVE, ALTERNATE),
        (OwnerChange(active={}, expect_active=("red", "a")), {}, {}),
        (OwnerChange(active=ALTERNATE, alternate={}), ALTERNATE, {}),
    ],
)
def test_owners_change(change: OwnerChange, active: dict[str, str], alternate: dict[str, str]) -> None:
    new = changed_owners(HELD, THE_IP, "h", change)
    assert (new.secondary, new.alternate_owner_attrs, new.handle_id) == (active, alternate, "h")


@pytest.mark.parametrize(
    ("handle", "change", "text"),
    [
        ("other", OwnerChange(), 'held by handle "h", not by "other"'),
        ("h", OwnerChange(expect_active=NOBODY), "the active owner of 10.0.0.1 is red/a"),
        ("h", OwnerChange(expect_active=("red", "b")), "is red/a, not red/b"),
        ("h", OwnerChange(expect_alternate=("red", "b")), "the alternate owner"),
    ],
)
def test_owners_that_are_not_as_expected_stay(handle: str, change: OwnerChange, text: str) -> None:
    with pytest.raises(OtherOwner, match=text):
        changed_owners(HELD, THE_IP, handle, change)


def test_another_holder_leaves_those_that_shared_the_note() -> None:
    block = new_block(parse_net("10.0.0.0/30"), "host:n", datetime(2026, 1, 2, tzinfo=UTC), 1)
    block, (first, second) = take(block, 2, "h", ACTIVE)
    changed = with_holder(block, ordinal(block, first), replace(HELD, secondary=ALTERNATE))
    assert [attribute(changed, slot) for slot in (0, 1)] == [replace(HELD, secondary=ALTERNATE), HELD]
    alone = with_holder(changed, ordinal(block, second), replace(HELD, secondary=ALTERNATE))
    assert alone.attributes == (replace(HELD, secondary=ALTERNATE),)
    assert alone.allocations[:2] == (0, 0)


def test_machines_are_documents_that_can_be_applied() -> None:
    text = (
        "{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {name: db, namespace: red,"
        " ownerReferences: [{apiVersion: kubevirt.io/v1, kind: VirtualMachine, name: db, uid: u, controller: true}]},"
        " spec: {domain: {devices: {}}}, status: {nodeName: node2, phase: Running}}"
    )
    (instance,) = parse(text)
    assert isinstance(instance, VirtualMachineInstance)
    assert (instance.node, instance.machine and instance.machine.name) == ("node2", "db")


# --------------------------------------------------------------------------------------------------- which pods count


async def test_pods_that_are_no_launchers(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("db-x", instance)
    assert await farm.vms().launcher("red", "db-x") is None
    spec = PodSpec(containers=(Container(name="c"),))
    await farm.store.create(Pod(metadata=Metadata(name="virt-launcher-x", namespace="red"), spec=spec))
    assert await farm.vms().launcher("red", "virt-launcher-x") is None
    assert not await farm.vms().release(NETWORK, "red", "db-x")
    assert not await farm.vms().release(NETWORK, "red", "virt-launcher-x")


async def test_launcher_whose_instance_is_gone_or_another(farm: Farm) -> None:
    instance = await farm.machine()
    stranger = replace(instance, metadata=replace(instance.metadata, uid="1234"))
    await farm.pod("virt-launcher-db-x", stranger)
    with pytest.raises(NotFound, match=r"failed to get VMI info of Pod red/virt-launcher-db-x: .* UID .* not 1234"):
        await farm.vms().launcher("red", "virt-launcher-db-x")
    await farm.store.delete(VirtualMachineInstance, "db", "red")
    with pytest.raises(NotFound, match=r"failed to get VMI info .* does not exist"):
        await farm.vms().launcher("red", "virt-launcher-db-x")


async def test_persistence_that_is_off(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.config(kube_virt_vm_address_persistence="Disabled")
    await farm.pod("virt-launcher-db-x", instance)
    await farm.pod("virt-launcher-db-y", instance, migration="job")
    assert await farm.vms().launcher("red", "virt-launcher-db-x") is None
    with pytest.raises(NotSupported, match="not allowed when KubeVirtVMAddressPersistence is disabled"):
        await farm.vms().launcher("red", "virt-launcher-db-y")
    assert not await farm.vms().release(NETWORK, "red", "virt-launcher-db-x")


async def test_what_is_noted(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    await farm.pod("virt-launcher-db-y", instance, "node2", migration="job")
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.add("virt-launcher-db-y", "node2")
    held = await farm.note(ip)
    assert held.handle_id == "k8s-pod-network.vmi.red.db"
    machine = instance.machine
    assert machine is not None
    assert held.secondary == {
        "node": "node1", "timestamp": "2026-01-02 03:04:05 +0000 UTC", "pod": "virt-launcher-db-x", "namespace": "red",
        "vmi-name": "db", "vmi-uid": instance.metadata.uid, "vm-uid": machine.uid,
    }  # fmt: skip
    assert held.alternate_owner_attrs["vmim-uid"] == "job"
    assert held.alternate_owner_attrs["node"] == "node2"


# ----------------------------------------------------------------------------------------------------- a machine's life


async def test_recreated_pod_gets_the_same_addresses(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    first, routed = await farm.add("virt-launcher-db-x", six=True)
    assert (len(first), routed) == (2, True)
    assert await farm.remove("virt-launcher-db-x")
    assert await farm.owners(first[0]) == ("", "")
    assert await farm.standing(first[0]) is Standing.USED
    await farm.pod("virt-launcher-db-z", instance, "node2")
    assert await farm.add("virt-launcher-db-z", "node2", six=True) == (first, True)
    assert await farm.owners(first[1]) == ("virt-launcher-db-z", "")


async def test_old_pod_that_goes_after_the_new_one_has_come_takes_nothing(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.pod("virt-launcher-db-z", instance)
    await farm.add("virt-launcher-db-z")
    await farm.remove("virt-launcher-db-x")
    assert await farm.owners(ip) == ("virt-launcher-db-z", "")


async def test_migration(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    source, _ = await farm.add("virt-launcher-db-x")
    await farm.pod("virt-launcher-db-y", instance, "node2", migration="job")
    assert await farm.add("virt-launcher-db-y", "node2") == (source, False)
    assert await farm.owners(source[0]) == ("virt-launcher-db-x", "virt-launcher-db-y")
    handle = machine_handle(NETWORK, "red", "db")
    assert await farm.vms("node1").promote(handle, "node1") == ()
    assert await farm.vms("node2").promote(handle, "node2") == (parse_ip(source[0]),)
    assert await farm.owners(source[0]) == ("virt-launcher-db-y", "")
    await farm.remove("virt-launcher-db-x")
    assert await farm.owners(source[0]) == ("virt-launcher-db-y", "")
    assert await farm.vms("node2").promote(handle, "node2") == ()


async def test_both_owners_are_told(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.pod("virt-launcher-db-y", instance, "node2", migration="job")
    await farm.add("virt-launcher-db-y", "node2")
    now = await farm.survey()
    assert dict(explain(parse_ip(ip), now).facts)["moves to"] == "red/virt-launcher-db-y on node2"
    lines = address_text(parse_ip(ip), now.allocations[0]).splitlines()
    assert lines[lines.index("Alternate owner:") + 1 :][1] == "  node: node2"


def test_handles_of_machines_are_no_containers_that_are_gone() -> None:
    assert is_stale("net.c1", "net", [])
    assert not is_stale(machine_handle("net", "red", "db"), "net", [])
    assert not is_stale(machine_handle("net", "red", "m" * 200), "net", [])


async def test_migration_that_fails_leaves_the_source(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.pod("virt-launcher-db-y", instance, "node2", migration="job")
    await farm.add("virt-launcher-db-y", "node2")
    await farm.remove("virt-launcher-db-y", "node2")
    assert await farm.owners(ip) == ("virt-launcher-db-x", "")


async def test_migration_of_a_machine_that_holds_nothing(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-y", instance, migration="job")
    with pytest.raises(NotFound, match=r"migrate red/db: .* holds no address"):
        await farm.add("virt-launcher-db-y")


@pytest.mark.parametrize("owned", [True, False])
async def test_addresses_go_with_the_machine_and_its_last_pod(farm: Farm, owned: bool) -> None:
    instance = await farm.machine(owned=owned)
    await farm.pod("virt-launcher-db-x", instance)
    await farm.pod("virt-launcher-db-y", instance, "node2", migration="job")
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.add("virt-launcher-db-y", "node2")
    kind = VirtualMachine if owned else VirtualMachineInstance
    machine = await farm.store.get(kind, "db", "red")
    going = replace(machine, metadata=replace(machine.metadata, deletion_timestamp="2026-01-02T03:04:05Z"))
    await farm.store.update(going)
    await farm.remove("virt-launcher-db-y", "node2")
    assert (await farm.note(ip)).handle_id
    await farm.remove("virt-launcher-db-x")
    with pytest.raises(NotFound):
        await farm.note(ip)
    assert await farm.handles() == {}


async def test_launcher_that_is_gone_already_is_left_to_the_housekeeping(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.store.delete(Pod, "virt-launcher-db-x", "red")
    assert await farm.vms().release(NETWORK, "red", "virt-launcher-db-x")
    assert await farm.owners(ip) == ("virt-launcher-db-x", "")


async def test_persistence_turned_off_between_add_and_del(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    await farm.add("virt-launcher-db-x")
    await farm.config(kube_virt_vm_address_persistence="Disabled")
    assert not await farm.remove("virt-launcher-db-x"), "the caller releases by the container's handle too"
    assert await farm.handles() == {}


async def test_nothing_is_lost_when_a_family_has_run_out(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    await farm.reserve("fd80::/120")
    with pytest.raises(Unavailable, match="failed to request IPv6"):
        await farm.add("virt-launcher-db-x", six=True)
    assert await farm.handles() == {}


async def test_two_pods_at_once_get_one_address(farm: Farm) -> None:
    instance = await farm.machine()
    names = [f"virt-launcher-db-{i}" for i in range(6)]
    for name in names:
        await farm.pod(name, instance)
    got = await asyncio.gather(*(farm.add(name, f"node{1 + i % 2}") for i, name in enumerate(names)))
    assert len({tuple(ips) for ips, _ in got}) == 1
    ((ips, _), *_) = got
    assert await farm.handles() == {"k8s-pod-network.vmi.red.db": {_block_of(await _blocks(farm), ips[0]): 1}}


async def _blocks(farm: Farm) -> list[IPAMBlock]:
    return list((await farm.store.list(IPAMBlock)).items)


def _block_of(blocks: list[IPAMBlock], ip: str) -> str:
    return next(block.spec.cidr for block in blocks if parse_ip(ip) in block.spec.net)


async def test_handle_that_counts_what_it_does_not_hold(farm: Farm) -> None:
    """As a crash between the two writes of an assignment leaves it."""
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    await (await farm.ipam().ledger()).count_up(machine_handle(NETWORK, "red", "db"), parse_net("10.0.0.64/26"), 1)
    ips, _ = await farm.add("virt-launcher-db-x")
    assert len(ips) == 1
    (handle,) = (await farm.store.list(IPAMHandle)).items
    assert sum(handle.spec.block.values()) == 1


async def test_no_pool(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.edit_pool("four", disabled=True)
    await farm.pod("virt-launcher-db-x", instance)
    with pytest.raises(ConfigError, match="cannot find a qualified ippool"):
        await farm.add("virt-launcher-db-x")


# ----------------------------------------------------------------------------------------------------- housekeeping


async def test_housekeeping_asks_the_machine(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.store.delete(Pod, "virt-launcher-db-x", "red")
    gc = IpamGc(farm.store, lambda: farm.now, matches, GRACE)
    for _ in range(3):
        await gc.run_once()
        farm.now += GRACE
    assert await farm.standing(ip) is Standing.USED
    assert not report(await farm.survey()).leaked
    await farm.store.delete(VirtualMachine, "db", "red")
    await gc.run_once()
    assert await farm.standing(ip) is Standing.LEAKED
    farm.now += GRACE + timedelta(seconds=1)
    await gc.run_once()
    with pytest.raises(NotFound):
        await farm.note(ip)


async def test_machine_gets_five_minutes_of_grace_at_least(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.store.delete(VirtualMachine, "db", "red")
    await farm.store.delete(Pod, "virt-launcher-db-x", "red")
    gc = IpamGc(farm.store, lambda: farm.now, matches, timedelta(minutes=1))
    await gc.run_once()
    farm.now += timedelta(minutes=5)
    await gc.run_once()
    assert (await farm.note(ip)).handle_id
    said = dict(explain(parse_ip(ip), await farm.survey(), timedelta(minutes=1)).facts)["reclaimed"]
    assert said.startswith("yes, once it has been seen for 5 minutes: it belonged to the virtual machine red/db")
    farm.now += timedelta(seconds=1)
    await gc.run_once()
    with pytest.raises(NotFound):
        await farm.note(ip)


async def test_address_between_two_pods_is_known_by_its_handle(farm: Farm) -> None:
    name = "m" * 150  # its handle has a digest in it
    instance = await farm.machine(name)
    await farm.pod("virt-launcher-x", instance)
    ((ip,), _) = await farm.add("virt-launcher-x")
    await farm.remove("virt-launcher-x")
    assert await farm.standing(ip) is Standing.USED
    await farm.store.delete(VirtualMachine, name, "red")
    assert await farm.standing(ip) is Standing.LEAKED


async def test_nobody_can_tell(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    await farm.add("virt-launcher-db-x")
    now = dataclasses.replace(await farm.survey(), machines=None)
    (each,) = now.allocations
    assert verdict(each, now).standing is Standing.UNKNOWN


async def test_two_endpoints_of_a_machine_that_moves_are_no_problem(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    await farm.pod("virt-launcher-db-y", instance, "node2", migration="job")
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.add("virt-launcher-db-y", "node2")
    for pod, node in (("virt-launcher-db-x", "node1"), ("virt-launcher-db-y", "node2")):
        spec = WorkloadEndpointSpec(
            orchestrator="k8s", node=node, pod=pod, container_id="c", endpoint="eth0", ip_networks=(f"{ip}/32",)
        )
        metadata = Metadata(name=endpoint_name(node, "k8s", pod, "eth0"), namespace="red")
        await farm.store.create(WorkloadEndpoint(metadata=metadata, spec=spec))
    assert not report(await farm.survey()).twice


async def test_agent_promotes_what_has_moved_to_its_node(farm: Farm) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    await farm.pod("virt-launcher-db-y", instance, "node2", migration="job")
    ((ip,), _) = await farm.add("virt-launcher-db-x")
    await farm.add("virt-launcher-db-y", "node2")
    running = asyncio.create_task(follow_migrations("node2", farm.store, farm.vms("node2")))
    try:
        await asyncio.sleep(0.05)
        assert await farm.owners(ip) == ("virt-launcher-db-x", "virt-launcher-db-y")
        await farm.store.update(replace(instance, status={"nodeName": "node2"}))
        for _ in range(2000):
            if await farm.owners(ip) == ("virt-launcher-db-y", ""):
                break
            await asyncio.sleep(0.005)
        assert await farm.owners(ip) == ("virt-launcher-db-y", "")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# ------------------------------------------------------------------------------------------------ deaths and the plugin


class Killed(BaseException):
    """The process ends here. Nobody catches it, as nobody catches SIGKILL."""


class Mortal:
    """A store whose process dies before its n-th write."""

    def __init__(self, store: Any, life: int) -> None:
        self._store, self.left = store, life

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in ("create", "update", "delete"):
            return method

        async def write(*arguments: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return await method(*arguments, **more)

        return write


@pytest.mark.parametrize("life", range(8))
async def test_agent_that_dies_at_any_write_of_an_add(farm: Farm, life: int) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    mortal = Mortal(farm.store, life)
    ipam = Ipam(mortal, "node1", lambda: farm.now, matches)  # type: ignore[arg-type]
    vms = VmAddresses(mortal, ipam)  # type: ignore[arg-type]
    launcher = await vms.launcher("red", "virt-launcher-db-x")
    assert launcher is not None
    wanted = Wanted(True, True)
    with contextlib.suppress(Killed):
        await vms.assign(launcher, NETWORK, {"node": "node1"}, wanted)
    first, _ = await farm.add("virt-launcher-db-x", six=True)
    assert [parse_ip(ip).version for ip in first] == [4, 6]
    assert (await farm.add("virt-launcher-db-x", six=True))[0] == first
    assert {await farm.owners(ip) for ip in first} == {("virt-launcher-db-x", "")}
    await farm.ipam().release_by_handle(machine_handle(NETWORK, "red", "db"))


@pytest.mark.parametrize("life", range(4))
async def test_agent_that_dies_at_any_write_of_a_del(farm: Farm, life: int) -> None:
    instance = await farm.machine()
    await farm.pod("virt-launcher-db-x", instance)
    await farm.add("virt-launcher-db-x", six=True)
    await farm.store.delete(VirtualMachine, "db", "red")
    mortal = Mortal(farm.store, life)
    vms = VmAddresses(mortal, Ipam(mortal, "node1", lambda: farm.now, matches))  # type: ignore[arg-type]
    with contextlib.suppress(Killed):
        await vms.release(NETWORK, "red", "virt-launcher-db-x")
    assert await farm.remove("virt-launcher-db-x")
    assert await farm.handles() == {}
    assert not (await farm.survey()).allocations
