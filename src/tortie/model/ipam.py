"""Pools of addresses and what IPAM keeps about them. Source: Calico's IPPool, IPAMBlock, BlockAffinity, IPAMHandle."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.model.meta import Kind, Problem, Resource, Value, cidr_problem

EncapMode = Literal["Never", "Always", "CrossSubnet"]
Use = Literal["Workload", "Tunnel", "LoadBalancer"]

BLOCK_SIZE = {4: 26, 6: 122}
"""Default prefix length of a block, by IP version."""
BLOCK_SIZES = {4: range(20, 33), 6: range(116, 129)}
ANNOUNCE = "tortie.dev/announce"
"""The annotation of a LoadBalancer pool that says how its addresses are made known; BGP where it says nothing."""
ANNOUNCE_CHOICES = ("BGP", "Layer2")


class IPPoolSpec(Value, frozen=True, kw_only=True):
    cidr: str
    block_size: int | None = None
    ipip_mode: EncapMode | None = None
    vxlan_mode: EncapMode | None = None
    nat_outgoing: bool = False
    disabled: bool = False
    disable_bgp_export: bool = field(name="disableBGPExport", default=False)
    node_selector: str | None = None
    namespace_selector: str = ""
    allowed_uses: tuple[Use, ...] = ()
    assignment_mode: Literal["Automatic", "Manual"] | None = None

    @property
    def net(self) -> Net:
        return parse_net(self.cidr)

    @property
    def version(self) -> int:
        return self.net.version

    @property
    def blocks(self) -> int:
        """Prefix length of this pool's blocks."""
        return self.block_size or BLOCK_SIZE[self.version]

    @property
    def uses(self) -> tuple[Use, ...]:
        return self.allowed_uses or ("Workload", "Tunnel")

    @property
    def encapsulated(self) -> bool:
        return self.ipip_mode in ("Always", "CrossSubnet") or self.vxlan_mode in ("Always", "CrossSubnet")

    def problems(self) -> Iterator[Problem]:
        try:
            net = parse_net(self.cidr)
        except ConfigError as error:
            yield "cidr", str(error)
            return
        sizes = BLOCK_SIZES[net.version]
        if net.overlaps(ip_network("169.254.0.0/16" if net.version == 4 else "fe80::/10")):
            yield "cidr", f'"{self.cidr}" overlaps the link-local range'
        if self.blocks not in sizes:
            yield "blockSize", f"{self.blocks} is not from {sizes[0]} to {sizes[-1]}, as IPv{net.version} needs"
        elif self.blocks < net.prefixlen and not self.disabled:
            yield "blockSize", f"a block of /{self.blocks} is larger than the pool {self.cidr}"
        ipip, vxlan = (mode not in (None, "Never") for mode in (self.ipip_mode, self.vxlan_mode))
        if ipip and vxlan:
            yield "vxlanMode", "ipipMode and vxlanMode cannot both be enabled; set one of them to Never"
        if ipip and net.version == 6:
            yield "ipipMode", "IPIP carries IPv4 only; use vxlanMode or Never"
        yield from self._use_problems(ipip or vxlan)

    def _use_problems(self, encapsulated: bool) -> Iterator[Problem]:
        if "LoadBalancer" in self.allowed_uses:
            if len(set(self.allowed_uses)) > 1:
                yield "allowedUses", "LoadBalancer cannot be combined with other uses"
            if encapsulated or self.disable_bgp_export:
                yield "allowedUses", "a LoadBalancer pool takes no encapsulation and no disableBGPExport"
            if self.node_selector not in (None, "", "all()"):
                yield "nodeSelector", 'must be "all()" in a LoadBalancer pool'
        if self.namespace_selector and "Tunnel" in self.uses:
            yield "allowedUses", "a pool with a namespaceSelector must say allowedUses: [Workload]"


class IPPool(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="IPPool",
        plural="ippools",
        aliases=("ippool", "ipp", "ipps", "pool", "pools"),
    )
    spec: IPPoolSpec
    status: Any = None

    def problems(self) -> Iterator[Problem]:
        said = self.metadata.annotations.get(ANNOUNCE)
        if said is None:
            return
        where = f'metadata.annotations["{ANNOUNCE}"]'
        if said not in ANNOUNCE_CHOICES:
            yield where, f'"{said}" is not one of {", ".join(ANNOUNCE_CHOICES)}'
        elif "LoadBalancer" not in self.spec.uses:
            yield where, "is for pools with allowedUses: [LoadBalancer]"


class IPReservationSpec(Value, frozen=True, kw_only=True):
    reserved_cidrs: tuple[str, ...] = field(name="reservedCIDRs", default=())

    def problems(self) -> Iterator[Problem]:
        for i, cidr in enumerate(self.reserved_cidrs):
            yield from cidr_problem(f"reservedCIDRs[{i}]", cidr)


class IPReservation(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="IPReservation",
        plural="ipreservations",
        aliases=("ipreservation", "reservation", "reservations"),
    )
    spec: IPReservationSpec = IPReservationSpec()


class BlockAffinitySpec(Value, frozen=True, kw_only=True):
    """A node's claim on a block. Only `confirmed` (or empty, as old clusters wrote it) counts as ownership."""

    cidr: str
    node: str
    state: Literal["", "pending", "confirmed", "pendingDeletion"] = ""
    type: Literal["", "host", "virtual"] = ""
    deleted: bool = False

    @property
    def owns(self) -> bool:
        """Whether it makes its node the owner of the block: a pending one does not, nor one of what is no node."""
        return not self.deleted and self.state in ("", "confirmed") and self.type != "virtual"

    def problems(self) -> Iterator[Problem]:
        yield from cidr_problem("cidr", self.cidr)


class BlockAffinity(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="BlockAffinity",
        plural="blockaffinities",
        aliases=("blockaffinity", "affinity", "affinities"),
        read_only=True,
    )
    spec: BlockAffinitySpec


class AllocationAttribute(Value, frozen=True, kw_only=True, rename=None):
    """Who holds an address. Field names are those of the stored block."""

    handle_id: str | None = None
    secondary: dict[str, str] = field(default_factory=dict)
    alternate_owner_attrs: dict[str, str] = field(name="alternateOwnerAttrs", default_factory=dict)
    released_at: str | None = field(name="releasedAt", default=None)


class IPAMBlockSpec(Value, frozen=True, kw_only=True):
    """`allocations[i]` is None or an index into `attributes`; `unallocated` is the queue of free ordinals."""

    cidr: str
    affinity: str | None = None
    affinity_claim_time: str | None = None
    allocations: tuple[int | None, ...] = ()
    unallocated: tuple[int, ...] = ()
    attributes: tuple[AllocationAttribute, ...] = ()
    sequence_number: int = 0
    sequence_number_for_allocation: dict[str, int] = field(default_factory=dict)
    deleted: bool = False
    strict_affinity: bool = False

    @property
    def net(self) -> Net:
        return parse_net(self.cidr)

    def problems(self) -> Iterator[Problem]:
        yield from cidr_problem("cidr", self.cidr)


class IPAMBlock(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="IPAMBlock",
        plural="ipamblocks",
        aliases=("ipamblock", "block", "blocks"),
        read_only=True,
    )
    spec: IPAMBlockSpec


class IPAMHandleSpec(Value, frozen=True, kw_only=True):
    """`block` counts the addresses that a handle holds, by block CIDR."""

    handle_id: str = field(name="handleID")
    block: dict[str, int] = field(default_factory=dict)
    deleted: bool = False


class IPAMHandle(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="IPAMHandle",
        plural="ipamhandles",
        aliases=("ipamhandle", "handle", "handles"),
        read_only=True,
    )
    spec: IPAMHandleSpec


class IPAMConfigSpec(Value, frozen=True, kw_only=True):
    strict_affinity: bool = False
    auto_allocate_blocks: bool | None = None
    max_blocks_per_host: Annotated[int, Meta(ge=0, le=2147483647)] = 0
    kube_virt_vm_address_persistence: Literal["Enabled", "Disabled"] | None = field(
        name="kubeVirtVMAddressPersistence", default=None
    )
    ip_cooldown_seconds: Annotated[int, Meta(ge=0, le=1200)] = 0

    @property
    def auto_allocate(self) -> bool:
        return self.auto_allocate_blocks is not False

    def problems(self) -> Iterator[Problem]:
        if not self.strict_affinity and not self.auto_allocate:
            yield "", "Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time"
        if self.max_blocks_per_host and not self.strict_affinity:
            yield "maxBlocksPerHost", "needs strictAffinity: true"


class IPAMConfig(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="IPAMConfig",
        plural="ipamconfigs",
        aliases=("ipamconfig", "ipamconfiguration", "ipamconfigurations"),
    )
    spec: IPAMConfigSpec = IPAMConfigSpec()

    def problems(self) -> Iterator[Problem]:
        if self.name != "default":
            yield "metadata.name", f'"{self.name}" must be "default": there is one only'
