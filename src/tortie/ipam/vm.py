"""Addresses that belong to a virtual machine of KubeVirt's and not to the pod that it runs in for now.

    VirtualMachine db ─ VirtualMachineInstance db ─┬─ Pod virt-launcher-db-x   runs it: the active owner
                                                   └─ Pod virt-launcher-db-y   will, after a migration: the alternate

    handle k8s-pod-network.vmi.red.db ─ one address of each family, until the VirtualMachine is deleted

A pod that comes for the machine gets what the handle holds; one that goes takes its name off, and the last of them
releases the handle if the machine is being deleted. `IPAMConfig` may turn it off (`kubeVirtVMAddressPersistence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from msgspec import structs

from tortie.base.addr import IP
from tortie.base.errors import Conflict, NotFound, NotSupported
from tortie.ipam.assign import Ipam
from tortie.ipam.block import attribute as attribute_of
from tortie.ipam.block import ordinal, with_holder
from tortie.ipam.fill import Interface, held_by
from tortie.ipam.ledger import ATTEMPTS, HandleFull, Ledger, exhausted, pause
from tortie.ipam.names import machine_handle, machine_network
from tortie.model.ipam import AllocationAttribute, IPAMHandle
from tortie.model.k8s import Pod, VirtualMachine, VirtualMachineInstance
from tortie.model.meta import OwnerReference, Resource
from tortie.model.store import Store

R = TypeVar("R", bound=Resource)

LAUNCHER = "virt-launcher-"
"""How the names of pods begin that virtual machines run in."""
MIGRATION = "kubevirt.io/migrationJobUID"
"""The label of a pod that a machine is to move to."""
DEFAULT_NETWORK = "k8s-pod-network"

Owner = tuple[str, str]
"""Namespace and name of a pod."""
NOBODY: Owner = ("", "")


@dataclass(frozen=True, slots=True)
class Launcher:
    """A pod and the machine in it. `migration` names the move that brings the machine here; "": it starts here."""

    namespace: str
    pod: str
    instance: str
    instance_uid: str
    machine: str
    machine_uid: str = ""
    """"" of an instance that no VirtualMachine has."""
    migration: str = ""

    @property
    def owner(self) -> Owner:
        return self.namespace, self.pod

    def handle(self, network: str) -> str:
        return machine_handle(network or DEFAULT_NETWORK, self.namespace, self.machine)

    def attributes(self, noted: Mapping[str, str]) -> dict[str, str]:
        """What is noted beside an address: that of every pod, and whose machine it is."""
        said = {
            "pod": self.pod,
            "namespace": self.namespace,
            "vmi-name": self.instance,
            "vmi-uid": self.instance_uid,
            "vm-uid": self.machine_uid,
            "vmim-uid": self.migration,
        }
        return {**noted, **{key: value for key, value in said.items() if value}}


# --- on values


def instance_of(pod: Pod) -> OwnerReference | None:
    """The instance that controls a launcher; None for any other pod."""
    if not pod.name.startswith(LAUNCHER):
        return None
    kind = VirtualMachineInstance.KIND
    for each in pod.metadata.owner_references:
        if each.controller and (each.api_version, each.kind) == (kind.api_version, kind.kind):
            return each
    return None


def launcher_of(pod: Pod, reference: OwnerReference, instance: VirtualMachineInstance | None) -> Launcher:
    """What a pod is to its machine. Raises NotFound when its instance is gone, or is another one of the same name."""
    title = f"failed to get VMI info of Pod {pod.namespace}/{pod.name}: VirtualMachineInstance {reference.name}"
    if instance is None:
        raise NotFound(f"{title} does not exist")
    if instance.metadata.uid != reference.uid:
        raise NotFound(f"{title} has UID {instance.metadata.uid}, not {reference.uid}, as the pod says")
    machine = instance.machine
    return Launcher(
        pod.namespace,
        pod.name,
        instance.name,
        instance.metadata.uid,
        machine.name if machine else instance.name,
        machine.uid if machine else "",
        pod.labels.get(MIGRATION, ""),
    )


@dataclass(frozen=True, slots=True)
class OwnerChange:
    """New owners of an address: None leaves one as it is, nothing in it clears it. It is made only if the owners are
    those that are expected: None expects nothing, NOBODY that there is none."""

    active: Mapping[str, str] | None = None
    alternate: Mapping[str, str] | None = None
    expect_active: Owner | None = None
    expect_alternate: Owner | None = None


class OtherOwner(Conflict):
    """An address is not, or no more, held by who was expected."""


def owner_in(attrs: Mapping[str, str]) -> Owner:
    """The pod that attributes name; NOBODY if none."""
    return attrs.get("namespace", ""), attrs.get("pod", "")


def changed_owners(held: AllocationAttribute, ip: IP, handle: str, change: OwnerChange) -> AllocationAttribute:
    """What is noted beside an address after a change. Raises OtherOwner."""
    if held.handle_id != handle:
        raise OtherOwner(f'{ip} is held by handle "{held.handle_id}", not by "{handle}"')
    for which, attrs, expected in (
        ("active", held.secondary, change.expect_active),
        ("alternate", held.alternate_owner_attrs, change.expect_alternate),
    ):
        there = owner_in(attrs)
        if expected is not None and there != expected:
            raise OtherOwner(f"the {which} owner of {ip} is {'/'.join(there)}, not {'/'.join(expected)}")
    return structs.replace(
        held,
        secondary=held.secondary if change.active is None else dict(change.active),
        alternate_owner_attrs=held.alternate_owner_attrs if change.alternate is None else dict(change.alternate),
    )


# --- over a store


async def holder(ledger: Ledger, each: Interface) -> AllocationAttribute:
    """Who holds an address; nobody, if it has been released meanwhile."""
    with suppress(NotFound):
        block = (await ledger.block(each.network)).spec
        return attribute_of(block, ordinal(block, each.ip)) or AllocationAttribute()
    return AllocationAttribute()


async def set_owners(ledger: Ledger, each: Interface, handle: str, change: OwnerChange) -> None:
    """Notes other owners beside an address. Raises OtherOwner, NotFound when it is not assigned any more."""
    for tried in range(ATTEMPTS):
        await pause(tried)
        block = await ledger.block(each.network)
        slot = ordinal(block.spec, each.ip)
        held = attribute_of(block.spec, slot)
        if held is None or held.released_at:
            raise NotFound(f"{each.ip} is not assigned")
        new = changed_owners(held, each.ip, handle, change)
        if new == held:
            return
        with suppress(Conflict):
            await ledger.write_block(block, with_holder(block.spec, slot, new))
            return
    raise exhausted(f"change the owners of {each.ip}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of which families an address is wanted, and from where, if the machine holds none yet."""

    ipv4: bool
    ipv6: bool
    pools4: Sequence[str] = ()
    pools6: Sequence[str] = ()
    namespace_labels: Mapping[str, str] | None = None


class VmAddresses:
    """The addresses of virtual machines, as the node sees them whose `ipam` it is."""

    def __init__(self, store: Store, ipam: Ipam) -> None:
        self._store = store
        self._ipam = ipam

    async def launcher(self, namespace: str, name: str) -> Launcher | None:
        """The machine that a pod is to be attached for; None if the pod is to be attached like any other.

        Raises NotFound without pod or instance, NotSupported for a migration of a machine that keeps no addresses.
        """
        if not name.startswith(LAUNCHER):
            return None
        pod = await self._store.get(Pod, name, namespace)
        reference = instance_of(pod)
        if reference is None:
            return None
        instance = await self._found(VirtualMachineInstance, reference.name, namespace)
        found = launcher_of(pod, reference, instance)
        if await self._persists():
            return found
        if found.migration:
            text = "live migration is not allowed when KubeVirtVMAddressPersistence is disabled"
            raise NotSupported(f"Pod {namespace}/{name}: {text}: its machine would change its address")
        return None

    async def assign(
        self, launcher: Launcher, network: str, noted: Mapping[str, str], wanted: Wanted
    ) -> tuple[Interface, ...]:
        """What the machine holds already, and new addresses of the families of which it holds none. For a migration
        they come without routes: the machine is elsewhere until it ends.

        Raises ConfigError, Unavailable as `Ipam` does; NotFound for a migration of a machine that holds none.
        """
        handle, attrs = launcher.handle(network), launcher.attributes(noted)
        ledger = await self._ipam.ledger()
        held = await held_by(ledger, handle)
        if launcher.migration:
            if not held:
                raise NotFound(f"migrate {launcher.namespace}/{launcher.machine}: handle {handle} holds no address")
            for each in held:
                await set_owners(ledger, each, handle, OwnerChange(alternate=attrs))
            return tuple(held)
        there = {each.version for each in held}
        wanted = replace(wanted, ipv4=wanted.ipv4 and 4 not in there, ipv6=wanted.ipv6 and 6 not in there)
        if wanted.ipv4 or wanted.ipv6:
            held += await self._new(handle, attrs, wanted)
        for each in held:
            await set_owners(ledger, each, handle, OwnerChange(active=attrs))
        return tuple(held)

    async def _new(self, handle: str, attrs: Mapping[str, str], wanted: Wanted) -> tuple[Interface, ...]:
        for _ in range(ATTEMPTS):
            got = await self._ipam.auto_assign(
                int(wanted.ipv4),
                int(wanted.ipv6),
                handle=handle,
                attrs=attrs,
                pools4=wanted.pools4,
                pools6=wanted.pools6,
                namespace_labels=wanted.namespace_labels,
                max_per_handle=1,
            )
            if not any(isinstance(share.error, HandleFull) for share in got.shares):
                return await self._ipam.all_or_nothing(got)
            # It counts an address that it does not hold: somebody died there, or is at it right now.
            with suppress(NotFound):
                await self._ipam.release_by_handle(handle)
        raise exhausted(f"assign addresses to handle {handle}")

    async def release(self, network: str, namespace: str, name: str) -> bool:
        """Takes a pod's name off the addresses of its machine, and releases them with the machine. False if the pod
        has addresses like any other, which are the caller's to release.

        Of a launcher that is gone already nothing is released here: garbage collection looks at its machine.
        """
        if not name.startswith(LAUNCHER):
            return False
        pod = await self._found(Pod, name, namespace)
        if pod is None:
            return True
        reference = instance_of(pod)
        if reference is None:
            return False
        instance = await self._found(VirtualMachineInstance, reference.name, namespace)
        machine = instance.machine if instance is not None else None
        handle = machine_handle(network or DEFAULT_NETWORK, namespace, machine.name if machine else reference.name)
        free = await self._leave(handle, (namespace, name))
        persists = await self._persists()
        if free and not (persists and await self._stays(namespace, reference.name, machine, instance)):
            with suppress(NotFound):
                await self._ipam.release_by_handle(handle)
        return persists

    async def _leave(self, handle: str, owner: Owner) -> bool:
        """Whether nobody has the addresses of a handle any more, once an owner has let go of them."""
        ledger = await self._ipam.ledger()
        free = True
        for each in await held_by(ledger, handle):
            for change in (
                OwnerChange(active={}, expect_active=owner),
                OwnerChange(alternate={}, expect_alternate=owner),
            ):
                with suppress(OtherOwner, NotFound):
                    await set_owners(ledger, each, handle, change)
                    break
            held = await holder(ledger, each)
            free = free and owner_in(held.secondary) == owner_in(held.alternate_owner_attrs) == NOBODY
        return free

    async def _stays(
        self, namespace: str, name: str, machine: OwnerReference | None, instance: VirtualMachineInstance | None
    ) -> bool:
        """Whether a machine will want its addresses again. An instance that is gone had its machine's name."""
        owner: VirtualMachine | VirtualMachineInstance | None = instance
        if machine is not None or instance is None:
            owner = await self._found(VirtualMachine, machine.name if machine else name, namespace)
        return owner is not None and owner.metadata.deletion_timestamp is None

    async def promote(self, handle: str, node: str) -> tuple[IP, ...]:
        """Makes the pod on `node` to which a machine has moved the active owner; the addresses that were its
        alternate's until now."""
        ledger = await self._ipam.ledger()
        moved: list[IP] = []
        for each in await held_by(ledger, handle):
            alternate = (await holder(ledger, each)).alternate_owner_attrs
            if alternate.get("node") == node:
                change = OwnerChange(active=alternate, alternate={}, expect_alternate=owner_in(alternate))
                with suppress(OtherOwner):
                    await set_owners(ledger, each, handle, change)
                    moved.append(each.ip)
        return tuple(moved)

    async def handles(self, instance: VirtualMachineInstance) -> tuple[str, ...]:
        """The handles that hold something for an instance's machine, one of each network."""
        machine = instance.machine.name if instance.machine else instance.name
        found: list[str] = []
        for stored in (await self._store.list(IPAMHandle)).items:
            handle = stored.spec.handle_id
            network = machine_network(handle)
            if network is not None and handle == machine_handle(network, instance.namespace, machine):
                found.append(handle)
        return tuple(found)

    async def _persists(self) -> bool:
        """Whether machines keep their addresses. Unless it can be read that they do not, they do."""
        return (await self._ipam.config()).kube_virt_vm_address_persistence != "Disabled"

    async def _found(self, kind: type[R], name: str, namespace: str) -> R | None:
        with suppress(NotFound):
            return await self._store.get(kind, name, namespace)
        return None
