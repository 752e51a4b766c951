"""What cannot follow what in one network, and what its version cannot say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tortie.cni.validate.fields import flag_of, objects_of, section_of, text_of
from tortie.cni.validate.findings import Report
from tortie.cni.validate.plugins import Plugin
from tortie.cni.validate.tables import KINDS, ROUTE

VETH = ("bridge", "ptp", "calico")
"""Types with a peer in the host, which is where traffic is shaped."""
BESIDE = ("ipvlan", "macvlan")
"""Types whose packets the host's FORWARD chain does not see."""
NEW_IN_ROUTES = tuple(key for key in ROUTE if key not in ("dst", "gw"))


def check(report: Report, plugins: Sequence[Plugin]) -> None:
    before: list[Plugin] = []
    for plugin in plugins:
        kind = plugin.kind
        if kind is not None:
            _version(report, plugin)
            if kind.role == "address":
                where = (*plugin.path, "type")
                report.error(where, f"{plugin.type} is an address plugin: it is named in ipam.type, not here")
            elif kind.role == "interface":
                _interface(report, plugin, before)
            elif kind.role == "chained":
                _chained(report, plugin, before)
        before.append(plugin)


def _interface(report: Report, plugin: Plugin, before: Sequence[Plugin]) -> None:
    earlier = [one for one in before if one.kind is not None and one.kind.role == "interface"]
    if not earlier:
        return
    where = (*plugin.path, "type")
    if plugin.type == "ipvlan" and flag_of(plugin.conf, "linkInContainer"):
        return  # on top of the one before, of which it takes name and addresses
    report.error(where, f"{earlier[0].named} has made the interface already: a network has one")


def _chained(report: Report, plugin: Plugin, before: Sequence[Plugin]) -> None:
    where = (*plugin.path, "type")
    maker = next((one for one in before if one.kind is None or one.kind.role == "interface"), None)
    if maker is None:
        report.error(where, f"{plugin.type} needs a plugin before it that makes an interface")
    elif maker.kind is not None:
        rule = RULES.get(plugin.type)
        if rule is not None:
            rule(report, plugin, maker)


def _bandwidth(report: Report, plugin: Plugin, maker: Plugin) -> None:
    if maker.type not in VETH:
        text = f"bandwidth cannot follow {maker.type}: it shapes the host's end of a veth, which there is none of"
        report.error((*plugin.path, "type"), text)


def _portmap(report: Report, plugin: Plugin, maker: Plugin) -> None:
    where = (*plugin.path, "type")
    if maker.type not in BESIDE:
        return
    sibling = text_of(maker.conf, "hostAccess") == "sibling"
    masks = flag_of(plugin.conf, "masqAll")
    name = f"{maker.type} {maker.mode}".strip()
    if maker.mode == "l3s":
        return
    if maker.mode == "l3":
        if not sibling:
            text = 'works with "hostAccess": "sibling" there: the host has no other way to its pods'
            report.warning(where, f"portmap after {name} {text}")
    elif not sibling and not masks:
        why = "the host has no way to its pods, and their answers do not pass the host"
        needed = '"hostAccess": "sibling" there and "masqAll": true here are needed'
        report.error(where, f"portmap cannot follow {name}: {why}; {needed}")
    elif not masks:
        text = f'"masqAll": true is needed after {name}: else answers leave the pod with a sender nobody knows'
        report.error(where, text)
    elif not sibling:
        text = f'"hostAccess": "sibling" is needed in {name}, unless the host has such a link by other means'
        report.warning(where, text)


def _firewall(report: Report, plugin: Plugin, maker: Plugin) -> None:
    where = (*plugin.path, "type")
    if maker.type in BESIDE:
        report.warning(where, f"firewall has no effect after {maker.type}: its packets are not forwarded by the host")
    policy = text_of(plugin.conf, "ingressPolicy") or "open"
    if policy != "open" and maker.type != "bridge":
        text = f'"{policy}" is about a bridge, and {maker.type} makes none'
        report.error((*plugin.path, "ingressPolicy"), text)


def _sbr(report: Report, plugin: Plugin, maker: Plugin) -> None:
    if not maker.gives_addresses and maker.type != "host-device":
        report.error((*plugin.path, "type"), f"sbr needs addresses, and {maker.named} has no ipam")


RULES: Mapping[str, Callable[[Report, Plugin, Plugin], None]] = {
    "bandwidth": _bandwidth,
    "firewall": _firewall,
    "portmap": _portmap,
    "sbr": _sbr,
}
"""By the type of a chained plugin: what it needs of the one that has made the interface."""


# --- versions -----------------------------------------------------------------------------------------------------


def _version(report: Report, plugin: Plugin) -> None:
    kind = KINDS[plugin.named]
    since = tuple(int(part) for part in kind.since.split("."))
    if plugin.version < since:
        said = ".".join(map(str, plugin.version))
        report.error((*plugin.path, "type"), f"{plugin.named} speaks cniVersion {kind.since} and newer, not {said}")
    if plugin.version < (1, 1, 0):
        ipam = section_of(plugin.conf, "ipam")
        for index, route in objects_of(ipam, "routes"):
            new = [key for key in NEW_IN_ROUTES if any(name.casefold() == key.casefold() for name in route)]
            if new:
                where = (*plugin.path, "ipam", "routes", index, new[0])
                report.warning(where, "routes have this from cniVersion 1.1.0 on: other plugins may drop it")
    if plugin.index and plugin.version < (0, 3, 0):
        text = "results before cniVersion 0.3.0 have no interfaces: what follows does not know which one it is"
        report.warning((*plugin.path, "type"), text)
