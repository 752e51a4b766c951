"""The fields of every plugin: a table for each type, with JSON type, range and default.

Names are written as in the plugins' pages (docs/plugins); plugins take them in any case. What is true of several fields
together is in `plugins` and `addresses`, and what is true of several plugins in `chain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tortie.cni.validate.calico import CALICO, CALICO_IPAM
from tortie.cni.validate.fields import (
    Field,
    Fields,
    absolute,
    address,
    choice,
    cidr,
    each,
    either,
    flag,
    group,
    ifname,
    mac,
    network,
    text,
    whole,
)

BITS = 2**64 - 1
"""Rates and bursts are unsigned in Go."""

PORTS: Fields = {
    "hostPort": whole(1, 65535),
    "containerPort": whole(1, 65535),
    "protocol": choice("tcp", "udp", "sctp", "TCP", "UDP", "SCTP", default="tcp"),
    "hostIP": text("", address),
}
RATES: Fields = {name: whole(0, BITS) for name in ("ingressRate", "ingressBurst", "egressRate", "egressBurst")}
DNS: Fields = {
    "nameservers": each(text("", address)),
    "domain": text(),
    "search": each(text()),
    "options": each(text()),
}
RANGE: Fields = {
    "subnet": text(),  # a CIDR, or a word of calico's: `addresses` looks at it
    "rangeStart": text("the first address", address),
    "rangeEnd": text("the last address", address),
    "gateway": text("the first address", address),
}
RANGES = each(each(group(RANGE)))
CAPABILITIES: Mapping[str, Field] = {
    "portMappings": each(group(PORTS)),
    "bandwidth": group(RATES),
    "ipRanges": RANGES,
    "ips": each(text()),
    "mac": text("", mac),
    "dns": group(),
    "deviceID": text(),
    "infinibandGUID": text(),
    "aliases": each(text()),
    "cgroupPath": text(),
    "io.kubernetes.cri.pod-annotations": group(),
}
"""What a runtime may hand over in `runtimeConfig`, each when `capabilities` asks for it."""

ATTACHMENTS = each(group({"containerID": text(), "ifname": text()}))
BASE: Fields = {
    "cniVersion": text("0.1.0"),
    "name": text(),
    "type": text(),
    "capabilities": group(),
    "args": group(),
    "runtimeConfig": group(CAPABILITIES),
    "prevResult": group(),
    "dns": group(DNS),
    "ipam": group(),
    "cni.dev/valid-attachments": ATTACHMENTS,
    "cni.dev/attachments": ATTACHMENTS,
}
"""What every plugin's object may have."""

LIST: Fields = {
    "name": text(),
    "cniVersion": text("0.1.0"),
    "cniVersions": each(text()),
    "disableCheck": either(),
    "disableGC": either(),
    "loadOnlyInlinedPlugins": either(),
    "plugins": each(group()),
    "args": Field("value"),
}
"""The top level of a list. Only here the case of a key matters."""

ROUTE: Fields = {
    "dst": text("", network),
    "gw": text("the gateway of the address", address),
    "mtu": whole(),
    "advmss": whole(),
    "priority": whole(0, 2**32 - 1),
    "table": whole(0, 2**32 - 1),
    "scope": whole(0, 255),
}


def _auto_routes(value: object) -> str:
    return "" if isinstance(value, bool) or value == "bgp" else 'must be true, false or "bgp"'


_CHILD: Fields = {
    "master": text("the link of the default route", ifname),
    "mtu": whole(0, 65535, "the master's"),
    "linkInContainer": flag(),
}
_OURS: Fields = {
    "clusterRoutes": each(text("", cidr)),
    "hostAccess": choice("none", "sibling", default="none"),
    "hostAddress": text(),
}
_MASQUERADE: Fields = {
    "ipMasq": flag(),
    "ipMasqBackend": choice("iptables", "nftables", default="nftables"),
}
_AUTO_ROUTES: Fields = {"autoRoutes": Field("value", "false", _auto_routes)}


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of plugin. `role`: "interface" makes one, "chained" needs one that does before it, "address" is named in
    `ipam.type`, "loopback" stands alone. `ipam` says whether it takes addresses of one: "required", "optional", "none".

    `capabilities` are those that it (or its address plugin) has a use for; `since` is the first version that it speaks.
    """

    role: str
    fields: Fields = field(default_factory=dict)
    ipam: str = "none"
    capabilities: frozenset[str] = frozenset()
    since: str = "0.1.0"


def _interface(fields: Fields, ipam: str = "optional", *capabilities: str) -> Kind:
    return Kind("interface", fields, ipam, frozenset({"ips", "ipRanges", "dns", *capabilities}))


def _chained(fields: Fields, *capabilities: str, since: str = "0.1.0") -> Kind:
    return Kind("chained", fields, capabilities=frozenset(capabilities), since=since)


KINDS: Mapping[str, Kind] = {
    "bridge": _interface(
        {
            "bridge": text("cni0", ifname),
            "isGateway": flag(),
            "isDefaultGateway": flag(),
            "forceAddress": flag(),
            **_MASQUERADE,
            "mtu": whole(0, 65535, "the kernel's"),
            "hairpinMode": flag(),
            "promiscMode": flag(),
            "vlan": whole(0, 4094, "0: none"),
            "vlanTrunk": each(group({"minID": whole(1, 4094), "maxID": whole(1, 4094), "id": whole(1, 4094)})),
            "preserveDefaultVlan": flag(),
            "macspoofchk": flag(),
            "enabledad": flag(),
            "disableContainerInterface": flag(),
            "portIsolation": flag(),
            "mac": text("", mac),
            **_AUTO_ROUTES,
        },
        "optional",
        "mac",
    ),
    "ptp": _interface({**_MASQUERADE, "mtu": whole(0, 65535, "the kernel's"), **_AUTO_ROUTES}, "required"),
    "ipvlan": _interface(
        {
            **_CHILD,
            "mode": choice("l2", "l3", "l3s", default="l2"),
            "submode": choice("bridge", "private", "vepa", default="bridge"),
            "force": flag(),
            "defaultRoute": choice("none", "auto", default="none"),
            **_OURS,
            **_AUTO_ROUTES,
        },
    ),
    "macvlan": _interface(
        {
            **_CHILD,
            "mode": choice("bridge", "private", "vepa", "passthru", default="bridge"),
            "mac": text("random", mac),
            "bcqueuelen": whole(0, 2**32 - 1, "the kernel's"),
            **_OURS,
            **_AUTO_ROUTES,
        },
        "optional",
        "mac",
    ),
    "vlan": _interface({**_CHILD, "vlanId": whole(0, 4094, "0")}),
    "dummy": _interface({}, "required"),
    "tap": _interface(
        {
            "mac": text("random", mac),
            "mtu": whole(0, 65535, "the kernel's"),
            "multiQueue": flag(),
            "owner": whole(0, 2**32 - 2, "root"),
            "group": whole(0, 2**32 - 2, "root"),
            "selinuxContext": text(),
            "bridge": text("", ifname),
        },
        "optional",
        "mac",
    ),
    "host-device": _interface(
        {
            "device": text("", ifname),
            "hwaddr": text("", mac),
            "kernelpath": text("", absolute),
            "pciBusID": text(),
        },
        "optional",
        "deviceID",
    ),
    "loopback": Kind("loopback"),
    "calico": _interface(CALICO),
    "flannel": _interface(
        {
            "subnetFile": text("/run/flannel/subnet.env", absolute),
            "dataDir": text("/var/lib/cni/flannel", absolute),
            "delegate": group(),
        },
        "optional",
        "mac",
        "portMappings",
        "bandwidth",
    ),
    "portmap": _chained(
        {
            "backend": choice("iptables", "nftables", default="nftables"),
            "snat": flag(True),
            "conditionsV4": each(text()),
            "conditionsV6": each(text()),
            "masqAll": flag(),
            "markMasqBit": whole(0, 31, "13"),
            "externalSetMarkChain": text(),
        },
        "portMappings",
    ),
    "bandwidth": _chained(
        {**RATES, "shapedSubnets": each(text("", cidr)), "unshapedSubnets": each(text("", cidr))},
        "bandwidth",
        since="0.3.0",
    ),
    "firewall": _chained(
        {
            "backend": text("chosen"),
            "iptablesAdminChainName": text("CNI-ADMIN"),
            "firewalldZone": text("trusted"),
            "ingressPolicy": choice("open", "same-bridge", "isolated", default="open"),
        },
        since="0.4.0",
    ),
    "tuning": _chained(
        {
            "sysctl": Field("object"),
            "mac": text("", mac),
            "promisc": flag(),
            "mtu": whole(0, 65535),
            "txQLen": whole(),
            "allmulti": flag(),
            "dataDir": text("/run/cni/tuning", absolute),
        },
        "mac",
    ),
    "sbr": _chained(
        {
            "table": whole(1, 2**32 - 1, "the first from 100 on that is free"),
            "gateways": each(text("", address)),
            "addSourceHints": flag(),
        },
    ),
    "vrf": _chained({"vrfname": text("", ifname), "table": whole(1, 2**32 - 1, "the first free")}, since="0.3.1"),
    "host-local": Kind("address"),
    "static": Kind("address"),
    "dhcp": Kind("address"),
    "calico-ipam": Kind("address"),
}
"""The plugins, by type: everything under the plugin's own object but BASE."""

IPAM: Mapping[str, Fields] = {
    "host-local": {
        "type": text(),
        **RANGE,
        "ranges": RANGES,
        "routes": each(group(ROUTE)),
        "dataDir": text("/var/lib/cni/networks", absolute),
        "resolvConf": text("", absolute),
        "reclaim": flag(True),
    },
    "static": {
        "type": text(),
        "addresses": each(group({"address": text("", cidr), "gateway": text("", address)})),
        "routes": each(group(ROUTE)),
        "dns": group(DNS),
    },
    "dhcp": {
        "type": text(),
        "daemonSocketPath": text("/run/cni/dhcp.sock", absolute),
        "priority": whole(0, 2**32 - 1),
        "provide": each(group({"option": text(), "value": text(), "fromArg": text()})),
        "request": each(group({"skipDefault": flag(), "option": text()})),
    },
    "calico-ipam": CALICO_IPAM,
}
"""`ipam`, by its `type`."""
