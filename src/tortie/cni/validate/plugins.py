"""What contradicts inside of one plugin's object: fields that exclude or need each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tortie.cni import span
from tortie.cni.validate import addresses
from tortie.cni.validate.addresses import Subnets
from tortie.cni.validate.fields import (
    flag_of,
    get,
    has,
    list_of,
    near_word,
    objects_of,
    section_of,
    text_of,
    walk,
)
from tortie.cni.validate.findings import Report
from tortie.cni.validate.tables import BASE, IPAM, KINDS, Kind
from tortie.cni.validate.text import Path

BURST = 8 * (2**32 - 1)
"""Bits that a token bucket can hold: its size is 32 bits of bytes (linux/pkt_sched.h)."""
DROPS_DNS = ("ipvlan", "macvlan", "vlan", "host-device", "tap")
"""Types that answer with their own `dns` only."""
DEVICE = "device", "hwaddr", "kernelpath", "pciBusID"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin of a network: where it stands, its object, its type, the network's version, its place in the chain.

    `type` and `conf` are those of what makes the interface: of flannel, its delegate's.
    """

    path: Path
    conf: Mapping[str, Any]
    type: str
    version: tuple[int, int, int]
    index: int = 0
    named: str = ""
    """The type that the object has itself."""

    @property
    def kind(self) -> Kind | None:
        return KINDS.get(self.type)

    @property
    def mode(self) -> str:
        return text_of(self.conf, "mode") or ("l2" if self.type == "ipvlan" else "")

    @property
    def ipam(self) -> str:
        return text_of(section_of(self.conf, "ipam"), "type") or ("calico-ipam" if self.type == "calico" else "")

    @property
    def gives_addresses(self) -> bool:
        return bool(self.ipam) or self.named == "flannel"


def check(report: Report, plugin: Plugin) -> Plugin:
    """Looks at fields, alone and together; the plugin as others of the chain see it."""
    kind = plugin.kind
    if kind is None:
        near = near_word(plugin.type, KINDS)
        what = f'did you mean "{near}"?' if near else "its fields are not looked at"
        report.warning((*plugin.path, "type"), f'"{plugin.type}" is no plugin known here: {what}')
        return plugin
    walk(report, plugin.path, plugin.conf, {**BASE, **kind.fields})
    _base(report, plugin, kind)
    together = TOGETHER.get(plugin.type)
    if together is not None:
        together(report, plugin)
    if plugin.type == "flannel":
        return _flannel(report, plugin)
    if kind.role == "interface":
        _ipam(report, plugin, kind)
    return plugin


def _base(report: Report, plugin: Plugin, kind: Kind) -> None:
    path = plugin.path
    for key in ("prevResult", "cni.dev/valid-attachments", "cni.dev/attachments"):
        if has(plugin.conf, key):
            report.warning((*path, key), "the runtime writes this: what stands here is lost")
    wanted = section_of(plugin.conf, "capabilities")
    for name, value in wanted.items():
        where = (*path, "capabilities", name)
        if not isinstance(value, bool):
            report.error(where, "must be true or false")
        elif name not in kind.capabilities and value:
            near = near_word(name, dict.fromkeys(kind.capabilities))
            if near:
                report.error(where, f'unknown capability: did you mean "{near}"?')
            else:
                report.warning(where, f"{plugin.type} has no use for this capability")
    for name in section_of(plugin.conf, "runtimeConfig"):
        if name in kind.capabilities and wanted.get(name) is not True:
            text = "stands here for good: runtimes only write it for a capability that is declared"
            report.warning((*path, "runtimeConfig", name), text)
    if list_of(plugin.conf, "plugins"):
        report.error((*path, "plugins"), "a list of plugins inside of a plugin")


# --- addresses ----------------------------------------------------------------------------------------------------


def _ipam(report: Report, plugin: Plugin, kind: Kind) -> None:
    path, conf = (*plugin.path, "ipam"), section_of(plugin.conf, "ipam")
    if not plugin.ipam:
        _without_ipam(report, plugin, kind, bool(conf))
        return
    fields = IPAM.get(plugin.ipam)
    if fields is None:
        near = near_word(plugin.ipam, IPAM)
        what = f'did you mean "{near}"?' if near else "its fields are not looked at"
        report.warning((*path, "type"), f'"{plugin.ipam}" is no address plugin known here: {what}')
        return
    if plugin.ipam == "calico-ipam" and plugin.type != "calico":
        report.error((*path, "type"), f"calico-ipam serves calico only, not {plugin.type}")
    walk(report, path, conf, fields)
    if has(conf, "resolvConf") and plugin.type in DROPS_DNS:
        report.warning((*path, "resolvConf"), f"no effect: {plugin.type} answers with its own dns only")
    if plugin.ipam == "dhcp":
        _dhcp(report, path, plugin)
        return
    handed = section_of(plugin.conf, "capabilities")
    found = Subnets()
    if plugin.ipam == "host-local":
        ranges = handed.get("ipRanges") is True or has(section_of(plugin.conf, "runtimeConfig"), "ipRanges")
        found = addresses.host_local(report, path, conf, plugin.type, plugin.mode, ranges)
    elif plugin.ipam == "static":
        found = addresses.static(report, path, conf, plugin.type, handed.get("ips") is True)
    _one_of_each_family(report, path, plugin, found)
    _way_out(report, path, plugin, conf, found)


def _without_ipam(report: Report, plugin: Plugin, kind: Kind, has_object: bool) -> None:
    path = plugin.path
    if has_object:
        report.error((*path, "ipam"), "type is missing: it names the address plugin")
    elif kind.ipam == "required":
        report.error(path, f"ipam is missing: {plugin.type} needs addresses")
    elif plugin.type == "ipvlan" and not plugin.index:
        report.error(path, "ipam is missing: ipvlan needs addresses, unless a plugin before it has them")
    elif plugin.version < (0, 3, 0) and plugin.type != "flannel":
        report.error(path, "without ipam there are no addresses, which cniVersion before 0.3.0 cannot say: use 1.0.0")


def _dhcp(report: Report, path: Path, plugin: Plugin) -> None:
    if plugin.type == "ipvlan" and plugin.mode in ("l3", "l3s"):
        report.error((*path, "type"), f"dhcp cannot work in ipvlan {plugin.mode}: nothing is broadcast there")
    elif plugin.type == "ipvlan":
        text = "all pods have the master's MAC address: the DHCP server must tell them by their client id"
        report.warning((*path, "type"), text)


def _one_of_each_family(report: Report, path: Path, plugin: Plugin, found: Subnets) -> None:
    """Of range sets or static addresses: the ranges of one set make one address."""
    sets: dict[str, set[object]] = {}
    if plugin.ipam == "host-local":
        conf = section_of(plugin.conf, "ipam")
        for one in addresses.ranges_of(path, conf):
            sets.setdefault(one.family, set()).add(one.path[:-1])
    else:
        for index, (subnet, _) in enumerate(found.known):
            sets.setdefault(subnet.ip.family, set()).add(index)
    if plugin.version < (0, 3, 0) and any(len(some) > 1 for some in sets.values()):
        report.error(path, "cniVersion before 0.3.0 has room for one address of each family: use 1.0.0")


def _way_out(report: Report, path: Path, plugin: Plugin, conf: Mapping[str, Any], found: Subnets) -> None:
    """Pods of ipvlan l3 hear no ARP: without a route they reach their own subnet and nothing else."""
    if plugin.type != "ipvlan" or plugin.mode == "l2" or not found.known:
        return
    has_auto = text_of(plugin.conf, "defaultRoute") == "auto" or get(plugin.conf, "autoRoutes", bool)
    has_auto = has_auto or has(plugin.conf, "clusterRoutes") or text_of(plugin.conf, "autoRoutes")
    if not has_auto and not list_of(conf, "routes"):
        text = f'no routes: pods reach {found.known[0][0]} and nothing else; "defaultRoute": "auto" mends that'
        report.warning(path, text)


def _members_of(plugin: Plugin, key: str) -> Iterator[tuple[int, Mapping[str, Any], Path]]:
    for index, one in objects_of(plugin.conf, key):
        yield index, one, (*plugin.path, key, index)


# --- fields together, by type -------------------------------------------------------------------------------------


def _bridge(report: Report, plugin: Plugin) -> None:
    conf, path = plugin.conf, plugin.path
    if flag_of(conf, "hairpinMode") and flag_of(conf, "promiscMode"):
        report.error((*path, "promiscMode"), "cannot set hairpin mode and promiscuous mode at the same time")
    if flag_of(conf, "disableContainerInterface") and plugin.ipam:
        report.error((*path, "ipam"), "cannot use IPAM when DisableContainerInterface flag is set")
    for key in ("isGateway", "isDefaultGateway", "ipMasq"):
        if flag_of(conf, key) and not plugin.gives_addresses:
            report.warning((*path, key), "no effect without ipam: there are no addresses")
    if has(conf, "ipMasqBackend") and not flag_of(conf, "ipMasq"):
        report.warning((*path, "ipMasqBackend"), "no effect without ipMasq")
    if flag_of(conf, "preserveDefaultVlan") and not has(conf, "vlan") and not has(conf, "vlanTrunk"):
        report.warning((*path, "preserveDefaultVlan"), "no effect without vlan or vlanTrunk")
    for _, one, where in _members_of(plugin, "vlanTrunk"):
        least, most = get(one, "minID", int), get(one, "maxID", int)
        if least is not None and most is None:
            report.error(where, "minID and maxID should be configured simultaneously, maxID is missing")
        elif most is not None and least is None:
            report.error(where, "minID and maxID should be configured simultaneously, minID is missing")
        elif least is not None and least > most:
            report.error((*where, "minID"), "minID is greater than maxID in trunk parameter")
        elif least is None and not has(one, "id"):
            report.error(where, "neither id nor minID and maxID")


def _child(report: Report, plugin: Plugin) -> None:
    """Of ipvlan and macvlan."""
    conf, path = plugin.conf, plugin.path
    alone = text_of(conf, "submode") in ("private", "vepa") or (
        plugin.type == "macvlan" and plugin.mode not in ("", "bridge")
    )
    if text_of(conf, "hostAccess") == "sibling" and (alone or flag_of(conf, "linkInContainer")):
        why = "the master is in the container" if not alone else "this mode keeps children apart"
        report.error((*path, "hostAccess"), f"there can be no sibling: {why}")
    if has(conf, "hostAddress") and text_of(conf, "hostAccess") != "sibling":
        report.warning((*path, "hostAddress"), 'no effect without "hostAccess": "sibling"')
    if plugin.type == "ipvlan" and text_of(conf, "defaultRoute") == "auto" and plugin.mode == "l2":
        report.warning((*path, "defaultRoute"), "no effect: only links without ARP (ipvlan l3, l3s) take such a route")
    _auto_routes(report, plugin, plugin.mode in ("l3", "l3s"))
    if not text_of(conf, "master") and not plugin.index:
        report.warning(path, "no master: it is the link of the default route, whatever that is when a pod comes")


def _auto_routes(report: Report, plugin: Plugin, routed: bool) -> None:
    conf, path = plugin.conf, plugin.path
    wanted = flag_of(conf, "autoRoutes") or text_of(conf, "autoRoutes") == "bgp"
    if wanted and flag_of(conf, "linkInContainer"):
        report.error((*path, "linkInContainer"), "no autoRoutes then: no node has a way to a master that is in the pod")
    elif text_of(conf, "autoRoutes") == "bgp" and not routed:
        name = f"{plugin.type} {plugin.mode}".strip()
        text = f"routers send to the node, which hands nothing on to pods of {name}: they are on the network themselves"
        report.error((*path, "autoRoutes"), text)


def _vlan(report: Report, plugin: Plugin) -> None:
    if not text_of(plugin.conf, "master"):
        report.error(plugin.path, "master is missing: the link that carries the VLAN")
    if not has(plugin.conf, "vlanId"):
        report.warning(plugin.path, "no vlanId: it is 0, which tags frames for no VLAN")


def _host_device(report: Report, plugin: Plugin) -> None:
    named = [key for key in DEVICE if text_of(plugin.conf, key)]
    if len(named) > 1:
        report.error((*plugin.path, named[1]), f"{' and '.join(named)} exclude each other")
    elif not named and section_of(plugin.conf, "capabilities").get("deviceID") is not True:
        report.error(plugin.path, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"')


def _portmap(report: Report, plugin: Plugin) -> None:
    conf, path = plugin.conf, plugin.path
    if has(conf, "externalSetMarkChain"):
        where = (*path, "externalSetMarkChain")
        if has(conf, "markMasqBit"):
            report.error(where, "Cannot specify externalSetMarkChain and markMasqBit")
        else:
            report.error(where, "a chain of iptables, which nftables cannot jump to: leave it out")
    for key in ("conditionsV4", "conditionsV6"):
        words = list_of(conf, key)
        if words and str(words[0]).startswith(("-", "!")):
            report.error((*path, key), "words of iptables: write them as nft does")
    _delivered(report, plugin, "portMappings", "no port is ever published")


def _bandwidth(report: Report, plugin: Plugin) -> None:
    conf, path = plugin.conf, plugin.path
    for way in ("ingress", "egress"):
        rate, burst = (get(conf, f"{way}{what}", int) or 0 for what in ("Rate", "Burst"))
        if rate and not burst:
            report.error((*path, f"{way}Rate"), "if rate is set, burst must also be set")
        if burst and not rate:
            report.error((*path, f"{way}Burst"), "if burst is set, rate must also be set")
        if burst >= BURST:
            report.error((*path, f"{way}Burst"), "burst cannot be more than 4GB")
    if has(conf, "shapedSubnets") and has(conf, "unshapedSubnets"):
        report.error((*path, "unshapedSubnets"), "shapedSubnets and unshapedSubnets exclude each other")
    if not any(get(conf, f"{way}Rate", int) for way in ("ingress", "egress")):
        _delivered(report, plugin, "bandwidth", "nothing is ever limited")


def _delivered(report: Report, plugin: Plugin, capability: str, otherwise: str) -> None:
    """Whether the runtime is asked for what the plugin lives on."""
    if has(section_of(plugin.conf, "runtimeConfig"), capability):
        return
    said = section_of(plugin.conf, "capabilities").get(capability)
    if said is not True:
        where = (*plugin.path, "capabilities", capability) if said is False else plugin.path
        report.error(where, f'"capabilities": {{"{capability}": true}} is missing: without it {otherwise}')


def _tuning(report: Report, plugin: Plugin) -> None:
    seen: dict[str, str] = {}
    for key, value in section_of(plugin.conf, "sysctl").items():
        where = (*plugin.path, "sysctl", key)
        dot, slash = key.find("."), key.find("/")
        dotted = dot >= 0 and not 0 <= slash < dot
        parts = [part.replace("/", ".") for part in key.split(".")] if dotted else key.split("/")
        if not isinstance(value, str):
            report.error(where, "must be a string, numbers too")
        if parts[0] != "net" or len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
            report.error(where, f'invalid net sysctl key: "{key}"')
        elif seen.setdefault("/".join(parts), key) != key:
            report.error(where, f'the same as "{seen["/".join(parts)]}": duplicated sysctl keys are not allowed')


def _sbr(report: Report, plugin: Plugin) -> None:
    gateways = [span.ip(one) for one in list_of(plugin.conf, "gateways") if isinstance(one, str) and span.is_ip(one)]
    if len({one.bits for one in gateways}) < len(gateways):
        report.error((*plugin.path, "gateways"), "more than one gateway of a family")
    for key in ("gateways", "addSourceHints"):
        if has(plugin.conf, "table") and has(plugin.conf, key):
            report.warning((*plugin.path, key), "no effect with table: nothing is written into a table that is given")


def _vrf(report: Report, plugin: Plugin) -> None:
    if not text_of(plugin.conf, "vrfname"):
        report.error(plugin.path, "configuration is expected to have a valid vrf name: vrfname is missing")


def _flannel(report: Report, plugin: Plugin) -> Plugin:
    """The delegate is looked at as what flannel will make of it."""
    path, delegate = (*plugin.path, "delegate"), section_of(plugin.conf, "delegate")
    for key in ("name", "ipam"):
        if has(delegate, key):
            text = f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel"
            report.error((*path, key), text)
    if has(delegate, "type") and not text_of(delegate, "type"):
        report.error((*path, "type"), "'delegate' dictionary, if present, must have (string) 'type' field")
    own = section_of(plugin.conf, "ipam")
    walk(report, (*plugin.path, "ipam"), own, IPAM.get(text_of(own, "type") or "host-local", {}) if own else {})
    for key in ("subnet", "ranges", "rangeStart", "rangeEnd", "gateway"):
        if has(own, key):
            report.warning((*plugin.path, "ipam", key), "no effect: flannel sets the node's subnet here")
    kind = text_of(delegate, "type") or "bridge"
    table = KINDS.get(kind)
    made = replace(plugin, path=path, conf=delegate, type=kind)
    if table is None or table.role != "interface" or kind in ("flannel", "calico"):
        if table is not None:
            report.error((*path, "type"), f"{kind} cannot be a delegate: it makes no interface of a node's subnet")
        return replace(made, path=plugin.path)
    rest = {key: value for key, value in delegate.items() if key not in ("name", "ipam")}
    walk(report, path, rest, {**BASE, **table.fields})
    if kind in TOGETHER:
        TOGETHER[kind](report, made)
    return replace(made, path=plugin.path)


TOGETHER: Mapping[str, Callable[[Report, Plugin], None]] = {
    "bandwidth": _bandwidth,
    "bridge": _bridge,
    "host-device": _host_device,
    "ipvlan": _child,
    "macvlan": _child,
    "portmap": _portmap,
    "sbr": _sbr,
    "tuning": _tuning,
    "vlan": _vlan,
    "vrf": _vrf,
}
