"""What a pod's port of a bridge is like: hairpin, isolation, its VLANs; and the bridge's own leg in a VLAN.

"vlan": 100                          untagged both ways, VLAN 100 inside the bridge
"vlanTrunk": [{"minID": 200, "maxID": 202}, {"id": 300}]
                                     these with tags, and untagged VLAN 100, or 1 without "vlan"

cni0.100 ═══ veth.... (port of cni0, VLAN 100 untagged)      the leg, which has the gateway's address
"""

from __future__ import annotations

from tortie.base.errors import KernelError, NotSupported
from tortie.base.record import record
from tortie.cni import veth
from tortie.cni.interface import failed, find_link
from tortie.cni.plugin import Undo
from tortie.cni.spec import lookup, member, quote
from tortie.kernel import bridge_vlans, links
from tortie.kernel.bridge_vlans import HIGHEST, LOWEST, Vlan
from tortie.kernel.netlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

DEFAULT_VLAN = 1
"""The VLAN of a new port (vlan_default_pvid)."""


@record(frozen=True, slots=True)
class Port:
    """How the port of a pod is to be. `vlan` is 0, and `trunk` empty, where VLANs are none of our business."""

    hairpin: bool = False
    isolated: bool = False
    vlan: int = 0
    trunk: tuple[int, ...] = ()
    keeps_default: bool = False

    @property
    def has_vlans(self) -> bool:
        return bool(self.vlan or self.trunk)

    @property
    def vlans(self) -> tuple[Vlan, ...]:
        """Those that the port carries, but for the default one that may be kept."""
        native = self.vlan or (DEFAULT_VLAN if self.trunk else 0)
        tagged = tuple(Vlan(vid) for vid in self.trunk if vid != native)
        return (*tagged, Vlan(native, pvid=True, untagged=True)) if native else ()


def read_port(conf: Mapping[str, Any]) -> Port:
    """Raises CniError."""
    vlan = member(conf, "vlan", int, 0)
    if not 0 <= vlan <= HIGHEST:
        raise failed(f"invalid VLAN ID {vlan} (must be between 0 and {HIGHEST})")
    return Port(
        hairpin=member(conf, "hairpinMode", bool, False),
        isolated=member(conf, "portIsolation", bool, False),
        vlan=vlan,
        trunk=read_trunk(member(conf, "vlanTrunk", list, [])),
        keeps_default=member(conf, "preserveDefaultVlan", bool, False),
    )


def read_trunk(listed: Sequence[Any]) -> tuple[int, ...]:
    """The VLANs of `vlanTrunk`, in ascending order. Raises CniError."""
    found: set[int] = set()
    for each in listed:
        if not isinstance(each, dict):
            raise failed("failed to load netconf: vlanTrunk is not a list of objects")
        ends = {key: member(each, key, int, 0) for key in ("minID", "maxID", "id") if lookup(each, key) is not None}
        if "minID" in ends and "maxID" in ends:
            for key in ("minID", "maxID"):
                if not LOWEST <= ends[key] <= HIGHEST:
                    raise failed(f"incorrect trunk {key} parameter")
            if ends["minID"] > ends["maxID"]:
                raise failed("minID is greater than maxID in trunk parameter")
            found.update(range(ends["minID"], ends["maxID"] + 1))
        elif "minID" in ends or "maxID" in ends:
            missing = "maxID" if "minID" in ends else "minID"
            raise failed(f"minID and maxID should be configured simultaneously, {missing} is missing")
        if "id" in ends:
            if not LOWEST <= ends["id"] <= HIGHEST:
                raise failed("incorrect trunk id parameter")
            found.add(ends["id"])
    return tuple(sorted(found))


def configure_port(host: Netlink, link: links.Link, port: Port) -> None:
    """Makes the link, which is a port of a bridge, like that. Raises CniError."""
    try:
        if port.hairpin:
            links.set_bridge_port(host, link.index, hairpin=True)
    except KernelError as why:
        raise failed(f"failed to setup hairpin mode for {link.name}: {why}") from None
    try:
        if port.isolated:
            links.set_bridge_port(host, link.index, isolated=True)
    except KernelError as why:
        raise failed(f"failed to set isolated on for {link.name}: {why}") from None
    if port.has_vlans:
        try:
            if not port.keeps_default:
                bridge_vlans.delete_all(host, link.index)
            for vlan in port.vlans:
                bridge_vlans.add_vlan(host, link.index, vlan)
        except (KernelError, NotSupported) as why:
            raise failed(f"failed to setup vlan tag on interface {quote(link.name)}: {why}") from None


def check_port(host: Netlink, link: links.Link, port: Port) -> None:
    """Raises CniError when a port is not what was asked for. More VLANs than that are nobody's fault."""
    for name, wanted in (("hairpin", port.hairpin), ("isolated", port.isolated)):
        if wanted and not link.port.get(name):
            raise failed(f"Interface {link.name} is not {name}")
    if port.has_vlans:
        there = set(bridge_vlans.list_vlans(host, link.index))
        for vlan in port.vlans:
            if vlan not in there:
                how = " as its own" if vlan.pvid else " with tags"
                raise failed(f"Interface {link.name} does not carry VLAN {vlan.vid}{how}")


def make_leg(host: Netlink, bridge: links.Link, port: Port, undo: Undo) -> links.Link:
    """The bridge's leg in the VLAN, made if it is not there: a pair whose other end is a port. Raises CniError."""
    name = f"{bridge.name}.{port.vlan}"
    leg = find_link(host, name)
    if leg is None:
        with Undo() as pair:
            other = veth.pair(host, host, name, pair, mtu=bridge.mtu)
            pair_end = links.get_link(host, other)
            links.set_master(host, other, bridge.index)
            configure_port(host, pair_end, Port(vlan=port.vlan, keeps_default=port.keeps_default))
            veth.set_up(host, other)
            links.set_up(host, name)
        leg = links.get_link(host, name)
    return leg
