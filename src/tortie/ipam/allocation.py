"""An address that is held, with all that its block says of it. Pure; of a broken block it reads what can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tortie.base.addr import IP, nth
from tortie.base.errors import ConfigError
from tortie.ipam.block import WINDOWS_RESERVED, Release
from tortie.ipam.names import handle_name, machine_network
from tortie.ipam.owner import Owner
from tortie.model.ipam import AllocationAttribute, IPAMBlock

TUNNEL_TYPES = frozenset(
    {
        "ipipTunnelAddress",
        "vxlanTunnelAddress",
        "vxlanV6TunnelAddress",
        "wireguardTunnelAddress",
        "wireguardV6TunnelAddress",
    }
)
"""What Calico notes as `type` with the addresses that nodes hold themselves."""

READY_TYPE = "readyAddress"
"""What an agent notes as `type` with an address that it holds ready."""

Key = tuple[IP, str | None, int | None]
"""One assignment of one address: the same address given again has another sequence number."""

_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)(?:\.(\d{1,9}))? ([+-])(\d\d)(\d\d)\b")


@dataclass(frozen=True, slots=True)
class Allocation:
    """`affinity` is whose the block is, as the block says it: `host:node1`."""

    ip: IP
    block: str
    affinity: str | None
    handle: str | None
    attrs: Mapping[str, str]
    sequence: int | None
    released_at: str | None = None
    alternate: Mapping[str, str] = field(default_factory=dict)
    """What is noted of the pod to which its virtual machine moves."""

    @property
    def key(self) -> Key:
        return self.ip, self.handle, self.sequence

    @property
    def release(self) -> Release:
        """Gives back this very assignment and no later one of the same address."""
        return Release(self.ip, self.handle, self.sequence)

    @property
    def handle_key(self) -> str:
        """Allocations of one handle have the same."""
        return handle_name(self.handle or "")

    @property
    def cooling(self) -> bool:
        return bool(self.released_at)

    @property
    def reserved(self) -> bool:
        """Whether Windows keeps it for itself."""
        return self.handle == WINDOWS_RESERVED

    @property
    def node(self) -> str:
        return self.attrs.get("node", "")

    @property
    def pod(self) -> tuple[str, str] | None:
        """Namespace and name of the pod that it was assigned to, if it was one."""
        namespace, pod = self.attrs.get("namespace", ""), self.attrs.get("pod", "")
        return (namespace, pod) if namespace and pod else None

    @property
    def machine(self) -> tuple[str, str] | None:
        """Namespace and name of the virtual machine that it was assigned to, if that is noted."""
        for attrs in (self.attrs, self.alternate):
            if "vmi-name" in attrs:
                return attrs.get("namespace", ""), attrs["vmi-name"]
        return None

    @property
    def of_machine(self) -> bool:
        """Whether a virtual machine holds it, noted or by its handle: between two of its pods nothing is noted."""
        return self.machine is not None or machine_network(self.handle or "") is not None

    @property
    def tunnel(self) -> bool:
        """Whether a node holds it for a tunnel."""
        return self.attrs.get("type", "") in TUNNEL_TYPES

    @property
    def ready(self) -> bool:
        """Whether a node holds it for pods to come."""
        return self.attrs.get("type", "") == READY_TYPE

    @property
    def borrowed(self) -> bool:
        """Whether it comes from a block that is not its node's."""
        return bool(self.node) and self.affinity != str(Owner(self.node))

    @property
    def since(self) -> datetime | None:
        """When it was assigned, if that was noted."""
        return go_time(self.attrs.get("timestamp", ""))

    def __str__(self) -> str:
        holder = "/".join(self.pod) if self.pod else self.attrs.get("type") or self.handle or "nobody"
        return f"{self.ip} ({holder}{' on ' + self.node if self.node else ''})"


def go_time(text: str) -> datetime | None:
    """A time as Go prints it, in which Calico notes when an address was assigned; None for anything else.

    >>> go_time("2026-01-02 03:04:05.123456789 +0000 UTC")
    datetime.datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=datetime.timezone.utc)
    """
    found = _GO_TIME.match(text)
    if found is None:
        return None
    date, clock, fraction, sign, hours, minutes = found.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    try:
        local = datetime.fromisoformat(f"{date}T{clock}").replace(tzinfo=UTC)
    except ValueError:
        return None
    local += timedelta(microseconds=int((fraction or "0").ljust(6, "0")[:6]))
    return local - offset if sign == "+" else local + offset


def allocations(blocks: Iterable[IPAMBlock]) -> Iterator[Allocation]:
    """Every address that is not free, block by block, those that cool down too."""
    for block in blocks:
        spec = block.spec
        try:
            net = spec.net
        except ConfigError:
            continue
        for slot, index in enumerate(spec.allocations[: net.num_addresses]):
            if index is None:
                continue
            known = 0 <= index < len(spec.attributes)
            held = spec.attributes[index] if known else AllocationAttribute()
            yield Allocation(
                ip=nth(net, slot),
                block=spec.cidr,
                affinity=spec.affinity,
                handle=held.handle_id,
                attrs=held.secondary,
                sequence=spec.sequence_number_for_allocation.get(str(slot)),
                released_at=held.released_at,
                alternate=held.alternate_owner_attrs,
            )
