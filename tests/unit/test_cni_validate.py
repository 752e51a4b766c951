"""`cni.validate`: what is wrong in network configurations is found, at its line, and what is right is left alone."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.cni import plugins
from tortie.cni.validate import ERROR, WARNING, Finding, Machine, validate
from tortie.cni.validate.tables import BASE, CAPABILITIES, IPAM, KINDS
from tortie.cni.validate.text import NotJson, parse

ROOT = Path(__file__).parents[2]
LOCAL = {"type": "host-local", "subnet": "10.1.2.0/24"}
BRIDGE = {"type": "bridge", "ipam": LOCAL}
HERE = Machine(("/opt/cni/bin",), frozenset({"macvlan", "host-local"}), {"eth0": 1500, "lo": 65536})
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def found(conf: Any, name: str = "", **how: Any) -> list[Finding]:
    text = conf if isinstance(conf, str) else json.dumps(conf, indent=2)
    is_list = isinstance(conf, Mapping) and "plugins" in conf
    return validate([(name or ("net.conflist" if is_list else "net.conf"), text)], **how)


def chain(*listed: Mapping[str, Any], version: str = "1.1.0", **more: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "net1", "plugins": list(listed), **more}


def single(conf: Mapping[str, Any], version: str = "1.1.0") -> dict[str, Any]:
    return {"cniVersion": version, "name": "net1", **conf}


def said(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(one.severity, one.path, one.message) for one in findings]


def local(**fields: Any) -> dict[str, Any]:
    return single({"type": "bridge", "ipam": {"type": "host-local", **fields}})


# --- what is right ------------------------------------------------------------------------------------------------

RIGHT: Mapping[str, Any] = {
    "bridge": chain({**BRIDGE, "isDefaultGateway": True, "ipMasq": True}, PORTMAP, BANDWIDTH, {"type": "firewall"}),
    "kube-flannel": chain(
        {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}, PORTMAP, version="0.3.1"
    ),
    "calico": chain(
        {
            "type": "calico",
            "log_level": "info",
            "log_file_path": "/var/log/calico/cni/cni.log",
            "datastore_type": "kubernetes",
            "nodename": "n1",
            "mtu": 0,
            "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "ipv4_pools": ["10.0.0.0/8"]},
            "policy": {"type": "k8s"},
            "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
            "feature_control": {"floating_ips": True},
        },
        {**PORTMAP, "snat": True},
        BANDWIDTH,
        version="0.3.1",
    ),
    "calico with host-local": single(
        {
            "type": "calico",
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }
    ),
    "ipvlan l3": single(
        {
            "type": "ipvlan",
            "master": "eth0",
            "mode": "l3",
            "defaultRoute": "auto",
            "ipam": LOCAL,
            "hostAccess": "sibling",
        }
    ),
    "macvlan without addresses": single({"type": "macvlan", "master": "eth0"}),
    "keys in any case": single({"TYPE": "bridge", "IPAM": {"Type": "host-local", "SUBNET": "10.1.2.0/24"}}),
    "keys for people": single({**BRIDGE, "_comment": "ours", "//": 1, "#": None}),
    "nulls": single({**BRIDGE, "mtu": None, "isGateway": None}),
    "dual stack": local(
        ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64", "rangeStart": "fd00::10"}]],
        routes=[{"dst": "0.0.0.0/0"}, {"dst": "fd01::/32", "gw": "fd00::1"}],
    ),
    "two parts of a subnet": local(
        ranges=[
            [
                {"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.9"},
                {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.20"},
            ]
        ]
    ),
    "a gateway of its own": local(
        subnet="10.1.2.0/24",
        routes=[{"dst": "169.254.1.1/32", "scope": 253}, {"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    ),
    "static": single({"type": "ptp", "ipam": {"type": "static", "addresses": [{"address": "10.1.2.3/24"}]}}),
    "static from the runtime": single({"type": "ptp", "capabilities": {"ips": True}, "ipam": {"type": "static"}}),
    "dhcp": single({"type": "macvlan", "master": "eth0", "ipam": {"type": "dhcp"}}),
    "tuning": chain(BRIDGE, {"type": "tuning", "sysctl": {"net.core.somaxconn": "500", "net/ipv4/conf/IFNAME/x": "1"}}),
    "sbr and vrf": chain(
        BRIDGE, {"type": "sbr", "gateways": ["10.1.2.1", "fd00::1"]}, {"type": "vrf", "vrfname": "blue"}
    ),
    "limits at rest": chain(BRIDGE, {"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 8000}),
    "ipvlan in the container": chain(
        {"type": "macvlan", "master": "eth0", "ipam": LOCAL}, {"type": "ipvlan", "linkInContainer": True}
    ),
    "strings for flags of a list": chain(BRIDGE, disableCheck="TRUE", disableGC=False, cniVersions=["0.4.0", "1.0.0"]),
    "loopback": single({"type": "loopback"}),
    "host-device": single({"type": "host-device", "device": "eth1"}),
    "device by capability": single({"type": "host-device", "capabilities": {"deviceID": True}}),
    "vlan": single({"type": "vlan", "master": "eth0", "vlanId": 5, "ipam": LOCAL}),
    "portmap that reaches l2": chain(
        {"type": "ipvlan", "master": "eth0", "hostAccess": "sibling", "ipam": LOCAL}, {**PORTMAP, "masqAll": True}
    ),
    "portmap after l3s": chain(
        {"type": "ipvlan", "mode": "l3s", "master": "eth0", "defaultRoute": "auto", "ipam": LOCAL}, PORTMAP
    ),
}


@pytest.mark.parametrize("conf", RIGHT.values(), ids=list(RIGHT))
def test_what_is_right(conf: Any) -> None:
    assert said(found(conf)) == []


@pytest.mark.parametrize("file", sorted((ROOT / "examples/cases").rglob("*.conf")), ids=lambda file: str(file)[-25:])
def test_the_classic_cases(file: Path) -> None:
    findings = validate([(file.name, file.read_text())])
    assert [one for one in findings if one.severity == ERROR] == []
    routes = [one for one in findings if "no routes" in one.message]
    assert bool(routes) is ("l3" in file.parent.name)


@pytest.mark.parametrize("case", ["ipvlan-l2", "ipvlan-l3", "macvlan"])
def test_the_nodes_of_a_case_are_apart(case: str) -> None:
    names = ("master", "node1", "node2")
    files = [(name, (ROOT / f"examples/cases/{case}/{name}.conf").read_text()) for name in names]
    assert [one for one in validate(files) if one.severity == ERROR] == []


# --- what is wrong ------------------------------------------------------------------------------------------------

E, W = ERROR, WARNING
WRONG: list[tuple[Any, str, str, str]] = [
    # keys, types, ranges
    (single({**BRIDGE, "isGatway": True}), E, "isGatway", 'unknown key: did you mean "isGateway"?'),
    (single({**BRIDGE, "weather": 1}), W, "weather", "unknown key: it is ignored"),
    (single({**BRIDGE, "mtu": "1500"}), E, "mtu", "must be an integer, not a string"),
    (single({**BRIDGE, "mtu": True}), E, "mtu", "must be an integer, not a boolean"),
    (single({**BRIDGE, "mtu": 1.5}), E, "mtu", "must be an integer, not a number"),
    (single({**BRIDGE, "isGateway": "true"}), E, "isGateway", "must be a boolean, not a string"),
    (single({**BRIDGE, "ipam": []}), E, "ipam", "must be an object, not a list"),
    (single({**BRIDGE, "mtu": -1}), E, "mtu", "-1 is not between 0 and 65535"),
    (single({**BRIDGE, "vlan": 5000}), E, "vlan", "5000 is not between 0 and 4094"),
    (single({**BRIDGE, "bridge": "a/b"}), E, "bridge", "cannot be the name of an interface"),
    (single({**BRIDGE, "ipMasqBackend": "foo"}), E, "ipMasqBackend", '"foo" is none of iptables, nftables'),
    (single({**BRIDGE, "dns": {"nameservers": ["here"]}}), E, "dns.nameservers[0]", '"here" is not an IP address'),
    (single({"type": "ipvlan", "master": "e", "mode": "l4", "ipam": LOCAL}), E, "mode", '"l4" is none of l2, l3, l3s'),
    (single({"type": "macvlan", "master": "e", "mac": "zz"}), E, "mac", '"zz" is not a MAC address'),
    (single({"type": "macvlan", "master": "e", "mac": "01:00:5e:00:00:01"}), E, "mac", "multicast"),
    (single({"type": "calico", "policy": {"type": "k9s"}}), E, "policy.type", '"k9s" is none of k8s'),
    (single({"type": "calico", "num_queues": "2"}), E, "num_queues", "must be an integer, not a string"),
    (single({"type": "calico", "ipam": {"assign_ipv4": True}}), E, "ipam.assign_ipv4", "must be a string"),
    (single({**BRIDGE, "autoRoutes": "yes"}), E, "autoRoutes", 'must be true, false or "bgp"'),
    # names and versions
    ({"cniVersion": "1.1.0", "type": "bridge", "ipam": LOCAL}, E, "", "missing network name"),
    ({**single(BRIDGE), "name": "my net"}, E, "name", "invalid characters found in network name"),
    ({**single(BRIDGE), "cniVersion": "1.2.3"}, E, "cniVersion", '"1.2.3" is no version of CNI'),
    ({"name": "net1", **BRIDGE}, W, "", "cniVersion is missing: it is 0.1.0"),
    (single({"ipam": LOCAL}), E, "", "type is missing"),
    (single({"type": "bin/bridge"}), E, "type", "invalid plugin name: bin/bridge"),
    (single({"type": "brigde"}), W, "type", '"brigde" is no plugin known here: did you mean "bridge"?'),
    (single({"type": "multus"}), W, "type", "its fields are not looked at"),
    (chain(BRIDGE, {"type": "firewall"}, version="0.3.1"), E, "plugins[1].type", "speaks cniVersion 0.4.0 and newer"),
    (chain(BRIDGE, BANDWIDTH, version="0.2.0"), E, "plugins[1].type", "speaks cniVersion 0.3.0 and newer"),
    (chain(BRIDGE, {"type": "vrf", "vrfname": "b"}, version="0.3.0"), E, "plugins[1].type", "0.3.1 and newer"),
    (single({"type": "macvlan", "master": "e"}, "0.2.0"), E, "", "without ipam there are no addresses"),
    (
        {**local(ranges=[[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]), "cniVersion": "0.2.0"},
        E,
        "ipam",
        "room for one address of each family",
    ),
    (
        {**local(subnet="10.1.0.0/24", routes=[{"dst": "10.0.0.0/8", "priority": 7}]), "cniVersion": "1.0.0"},
        W,
        "ipam.routes[0].priority",
        "from cniVersion 1.1.0 on",
    ),
    # lists
    (chain(), E, "plugins", "a network needs at least one plugin"),
    ({**chain(BRIDGE), "CNIVersion": "1.0.0"}, E, "CNIVersion", 'must be written "cniVersion" here'),
    (chain(BRIDGE, disableCheck="perhaps"), E, "disableCheck", "must be true, false, or either as a string"),
    (single({"type": "calico", "ipam": {"type": "host-local", "subnet": "usePodCdr"}}), E, "ipam.subnet", "not a CIDR"),
    (chain(BRIDGE, disableGC=1), E, "disableGC", "must be true, false, or either as a string"),
    (chain({**BRIDGE, "name": "other"}), W, "plugins[0].name", "no effect: that of the list is used"),
    (chain(BRIDGE, {"type": ""}), E, "plugins[1]", "type is missing"),
    (chain(BRIDGE, "portmap"), E, "plugins[1]", "must be an object, not a string"),
    (single({**BRIDGE, "prevResult": {}}), W, "prevResult", "the runtime writes this"),
    # capabilities
    (chain(BRIDGE, {"type": "portmap"}), E, "plugins[1]", '"capabilities": {"portMappings": true} is missing'),
    (
        chain(BRIDGE, {"type": "portmap", "capabilities": {"portMappings": False}}),
        E,
        "plugins[1].capabilities.portMappings",
        "no port is ever published",
    ),
    (chain(BRIDGE, {"type": "bandwidth"}), E, "plugins[1]", '"capabilities": {"bandwidth": true} is missing'),
    (
        chain(BRIDGE, {"type": "portmap", "capabilities": {"portMapping": True, "portMappings": True}}),
        E,
        "plugins[1].capabilities.portMapping",
        'did you mean "portMappings"?',
    ),
    (single({**BRIDGE, "capabilities": {"bandwidth": True}}), W, "capabilities.bandwidth", "bridge has no use for"),
    (single({**BRIDGE, "capabilities": {"ips": "true"}}), E, "capabilities.ips", "must be true or false"),
    (single({**BRIDGE, "runtimeConfig": {"mac": "02:00:00:00:00:01"}}), W, "runtimeConfig.mac", "stands here for good"),
    # host-local (situations 27 to 29 and others)
    (local(), E, "ipam", "no IP ranges specified"),
    (local(subnet="10.1.2.0"), E, "ipam.subnet", '"10.1.2.0" is not a CIDR'),
    (local(subnet="10.1.2.5/24"), E, "ipam.subnet", "10.1.2.5/24 has host bits set: the network is 10.1.2.0/24"),
    (local(subnet="10.1.2.0/31"), E, "ipam.subnet", "10.1.2.0/31 is too small to allocate from"),
    (local(subnet="10.1.2.0/24", rangeStart="10.1.3.1"), E, "ipam.rangeStart", "10.1.3.1 is not in the subnet"),
    (local(subnet="10.1.2.0/24", rangeEnd="10.1.3.1"), E, "ipam.rangeEnd", "10.1.3.1 is not in the subnet"),
    (
        local(subnet="10.1.2.0/24", rangeStart="10.1.2.9", rangeEnd="10.1.2.8"),
        E,
        "ipam.rangeStart",
        "10.1.2.9 is behind rangeEnd, 10.1.2.8",
    ),
    (local(subnet="10.1.2.0/24", gateway="10.1.3.1"), E, "ipam.gateway", "10.1.3.1 is not in the subnet"),
    (local(subnet="10.1.2.0/24", gateway="fd00::1"), E, "ipam.gateway", "of another family"),
    (local(subnet="10.1.2.0/24", gateway="10.1.2.0"), E, "ipam.gateway", "the address of the subnet itself"),
    (
        local(subnet="10.1.2.0/24", rangeStart="10.1.2.5", rangeEnd="10.1.2.5", gateway="10.1.2.5"),
        E,
        "ipam.gateway",
        "the range's only address",
    ),
    (local(ranges=[[]]), E, "ipam.ranges[0]", "empty range set"),
    (local(ranges=[{"subnet": "10.1.2.0/24"}]), E, "ipam.ranges[0]", "must be a list, not an object"),
    (local(ranges=[[{"rangeStart": "10.1.2.1"}]]), E, "ipam.ranges[0][0]", "a range must have a subnet"),
    (
        local(ranges=[[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]]),
        E,
        "ipam.ranges[0]",
        "mixed address families",
    ),
    (
        local(subnet="10.1.0.0/16", ranges=[[{"subnet": "10.1.2.0/24"}]]),
        E,
        "ipam.ranges[0][0].subnet",
        "the ranges 10.1.0.1-10.1.255.254 and 10.1.2.1-10.1.2.254 overlap",
    ),
    (local(subnet="10.1.2.0/24", routes=[{"dst": "10.5.0.1/16"}]), E, "ipam.routes[0].dst", "has host bits set"),
    (local(subnet="10.1.2.0/24", routes=[{"gw": "10.1.2.1"}]), E, "ipam.routes[0]", "must have a destination"),
    (local(subnet="10.1.2.0/24", routes=[{"dst": "::/0"}]), E, "ipam.routes[0].dst", "pods have no IPv6 address"),
    (
        local(subnet="10.1.2.0/24", routes=[{"dst": "0.0.0.0/0", "gw": "10.9.9.9"}]),
        E,
        "ipam.routes[0].gw",
        "10.9.9.9 is in no subnet of the pods",
    ),
    (local(subnet="10.1.2.0/24", dataDir="here"), E, "ipam.dataDir", "not an absolute path"),
    (single({**BRIDGE, "ipam": {"type": "host-lokal"}}), W, "ipam.type", 'did you mean "host-local"?'),
    (single({**BRIDGE, "ipam": {"subnet": "10.1.2.0/24"}}), E, "ipam", "type is missing"),
    (single({**BRIDGE, "ipam": {"type": "calico-ipam"}}), E, "ipam.type", "serves calico only"),
    (
        single({"type": "macvlan", "master": "e", "ipam": {**LOCAL, "resolvConf": "/etc/resolv.conf"}}),
        W,
        "ipam.resolvConf",
        "macvlan answers with its own dns only",
    ),
    # static, dhcp
    (single({"type": "ptp", "ipam": {"type": "static"}}), W, "ipam", "no addresses"),
    (
        single({"type": "ptp", "ipam": {"type": "static", "addresses": [{"address": "10.0.0.1"}]}}),
        E,
        "ipam.addresses[0].address",
        "is not a CIDR",
    ),
    (
        single(
            {**BRIDGE, "ipam": {"type": "static", "addresses": [{"address": "10.0.0.1/24", "gateway": "10.1.0.1"}]}}
        ),
        E,
        "ipam.addresses[0].gateway",
        "not in the network of 10.0.0.1/24",
    ),
    (
        single({"type": "ipvlan", "mode": "l3", "master": "e", "ipam": {"type": "dhcp"}}),
        E,
        "ipam.type",
        "dhcp cannot work in ipvlan l3",
    ),
    (single({"type": "ipvlan", "master": "e", "ipam": {"type": "dhcp"}}), W, "ipam.type", "their client id"),
    # one plugin
    (single({**BRIDGE, "hairpinMode": True, "promiscMode": True}), E, "promiscMode", "at the same time"),
    (single({**BRIDGE, "disableContainerInterface": True}), E, "ipam", "cannot use IPAM when"),
    (single({"type": "bridge", "isGateway": True}), W, "isGateway", "no effect without ipam"),
    (
        single({**BRIDGE, "vlanTrunk": [{"minID": 9, "maxID": 5}]}),
        E,
        "vlanTrunk[0].minID",
        "minID is greater than maxID",
    ),
    (single({**BRIDGE, "vlanTrunk": [{"minID": 9}]}), E, "vlanTrunk[0]", "maxID is missing"),
    (single({**BRIDGE, "vlanTrunk": [{}]}), E, "vlanTrunk[0]", "neither id nor minID and maxID"),
    (single({"type": "ptp"}), E, "", "ipam is missing: ptp needs addresses"),
    (single({"type": "dummy"}), E, "", "ipam is missing: dummy needs addresses"),
    (single({"type": "ipvlan", "master": "eth0"}), E, "", "ipam is missing: ipvlan needs addresses"),
    (single({"type": "macvlan"}), W, "", "no master: it is the link of the default route"),
    (single({"type": "vlan", "vlanId": 5}), E, "", "master is missing"),
    (single({"type": "host-device"}), E, "", 'specify either "device"'),
    (single({"type": "host-device", "device": "e", "pciBusID": "x"}), E, "pciBusID", "device and pciBusID exclude"),
    (
        single({"type": "macvlan", "master": "e", "mode": "vepa", "hostAccess": "sibling"}),
        E,
        "hostAccess",
        "this mode keeps children apart",
    ),
    (
        single({"type": "macvlan", "master": "e", "autoRoutes": "bgp", "ipam": LOCAL}),
        E,
        "autoRoutes",
        "routers send to the node, which hands nothing on to pods of macvlan",
    ),
    (
        single(
            {"type": "ipvlan", "mode": "l3", "master": "e", "autoRoutes": True, "linkInContainer": True, "ipam": LOCAL}
        ),
        E,
        "linkInContainer",
        "no node has a way to a master that is in the pod",
    ),
    (single({"type": "ipvlan", "master": "e", "defaultRoute": "auto", "ipam": LOCAL}), W, "defaultRoute", "no effect"),
    (chain(BRIDGE, {**PORTMAP, "markMasqBit": 32}), E, "plugins[1].markMasqBit", "32 is not between 0 and 31"),
    (
        chain(BRIDGE, {**PORTMAP, "markMasqBit": 1, "externalSetMarkChain": "X"}),
        E,
        "plugins[1].externalSetMarkChain",
        "Cannot specify externalSetMarkChain and markMasqBit",
    ),
    (chain(BRIDGE, {**PORTMAP, "conditionsV4": ["!", "-d"]}), E, "plugins[1].conditionsV4", "words of iptables"),
    (chain(BRIDGE, {"type": "bandwidth", "ingressRate": 8}), E, "plugins[1].ingressRate", "burst must also be set"),
    (chain(BRIDGE, {**BANDWIDTH, "egressBurst": 8}), E, "plugins[1].egressBurst", "rate must also be set"),
    (
        chain(BRIDGE, {"type": "bandwidth", "egressRate": 8, "egressBurst": 2**40}),
        E,
        "plugins[1].egressBurst",
        "burst cannot be more than 4GB",
    ),
    (
        chain(BRIDGE, {"type": "tuning", "sysctl": {"kernel/msgmax": "1"}}),
        E,
        "plugins[1].sysctl.kernel/msgmax",
        'invalid net sysctl key: "kernel/msgmax"',
    ),
    (
        chain(BRIDGE, {"type": "tuning", "sysctl": {"net.core.somaxconn": 500}}),
        E,
        "plugins[1].sysctl.net.core.somaxconn",
        "must be a string, numbers too",
    ),
    (
        chain(BRIDGE, {"type": "tuning", "sysctl": {"net.ipv4.x": "1", "net/ipv4/x": "0"}}),
        E,
        "plugins[1].sysctl.net/ipv4/x",
        'the same as "net.ipv4.x"',
    ),
    (chain(BRIDGE, {"type": "sbr", "gateways": ["10.1.2.1", "10.1.2.2"]}), E, "plugins[1].gateways", "of a family"),
    (chain(BRIDGE, {"type": "vrf"}), E, "plugins[1]", "vrfname is missing"),
    # flannel
    (single({"type": "flannel", "delegate": {"ipam": {}}}), E, "delegate.ipam", "must not have 'ipam' field"),
    (single({"type": "flannel", "delegate": {"name": "x"}}), E, "delegate.name", "must not have 'name' field"),
    (single({"type": "flannel", "delegate": {"hairpinmod": True}}), E, "delegate.hairpinmod", '"hairpinMode"'),
    (single({"type": "flannel", "delegate": {"type": "portmap"}}), E, "delegate.type", "cannot be a delegate"),
    (single({"type": "flannel", "ipam": {"subnet": "10.0.0.0/8"}}), W, "ipam.subnet", "flannel sets the node's subnet"),
    # chains
    (single(PORTMAP), E, "type", "portmap needs a plugin before it that makes an interface"),
    (chain({"type": "loopback"}, {"type": "tuning"}), E, "plugins[1].type", "needs a plugin before it"),
    (single({"type": "host-local"}), E, "type", "host-local is an address plugin: it is named in ipam.type"),
    (chain(BRIDGE, BRIDGE), E, "plugins[1].type", "bridge has made the interface already"),
    (
        chain({"type": "macvlan", "master": "e", "ipam": LOCAL}, BANDWIDTH),
        E,
        "plugins[1].type",
        "bandwidth cannot follow macvlan",
    ),
    (
        chain({"type": "flannel", "delegate": {"type": "ipvlan", "mode": "l3", "master": "e"}}, BANDWIDTH),
        E,
        "plugins[1].type",
        "bandwidth cannot follow ipvlan",
    ),
    (
        chain({"type": "ipvlan", "master": "e", "ipam": LOCAL}, PORTMAP),
        E,
        "plugins[1].type",
        "portmap cannot follow ipvlan l2",
    ),
    (
        chain({"type": "ipvlan", "mode": "l3", "master": "e", "defaultRoute": "auto", "ipam": LOCAL}, PORTMAP),
        W,
        "plugins[1].type",
        'works with "hostAccess": "sibling"',
    ),
    (
        chain({"type": "macvlan", "master": "e", "hostAccess": "sibling", "ipam": LOCAL}, PORTMAP),
        E,
        "plugins[1].type",
        '"masqAll": true is needed after macvlan',
    ),
    (
        chain({"type": "macvlan", "master": "e", "ipam": LOCAL}, {"type": "firewall"}),
        W,
        "plugins[1].type",
        "firewall has no effect after macvlan",
    ),
    (
        chain({"type": "ptp", "ipam": LOCAL}, {"type": "firewall", "ingressPolicy": "isolated"}),
        E,
        "plugins[1].ingressPolicy",
        '"isolated" is about a bridge, and ptp makes none',
    ),
    (chain({"type": "bridge"}, {"type": "sbr"}), E, "plugins[1].type", "sbr needs addresses, and bridge has no ipam"),
]


@pytest.mark.parametrize(
    ("conf", "severity", "path", "message"), WRONG, ids=[f"{i}-{one[2]}" for i, one in enumerate(WRONG)]
)
def test_what_is_wrong(conf: Any, severity: str, path: str, message: str) -> None:
    """It is found, and nothing else is found at that place."""
    findings = found(conf)
    here = [one for one in findings if one.path == path and message in one.message]
    assert [one.severity for one in here] == [severity], said(findings)
    others = [one for one in findings if one.severity == ERROR and one not in here]
    assert severity == ERROR or not others, said(findings)


def test_all_of_a_file_is_told_in_order() -> None:
    findings = found(local(subnet="10.1.2.5/24", rangeStart="10.1.3.1", gatway="10.1.2.1"))
    assert [one.line for one in findings] == sorted(one.line for one in findings)
    assert {one.path for one in findings} == {"ipam.subnet", "ipam.gatway"}


# --- lines --------------------------------------------------------------------------------------------------------

TEXT = """{
  "cniVersion": "1.0.0",
  "name": "net1",
  "plugins": [
    {"type": "bridge", "mtu": -1,
     "ipam": {"type": "host-local", "ranges": [
       [{"subnet": "10.1.2.0/24"}],
       [{"Subnet": "10.1.2.9/24"}]
     ]}}
  ]
}
"""


def test_where() -> None:
    assert [str(one) for one in found(TEXT, "net.conflist")] == [
        "net.conflist:5:24: error: plugins[0].mtu: -1 is not between 0 and 65535",
        "net.conflist:8:10: error: plugins[0].ipam.ranges[1][0].subnet: 10.1.2.9/24 has host bits set: "
        "the network is 10.1.2.0/24",
    ]


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("", (1, 1), "the text ends before its JSON does"),
        ('{"a": 1\n', (1, 8), "the text ends before its JSON does"),
        ('{"a": "x', (1, 9), "the text ends before its JSON does"),
        ('{"a": 1,\n}', (2, 1), "a key in double quotes must stand here"),
        ('{\n "a" 1}', (2, 6), 'a colon must follow the key "a"'),
        ('{"a": 1 "b": 2}', (1, 9), "a comma or } must stand here"),
        ("[1 2]", (1, 4), "a comma or ] must stand here"),
        ("[1]\n[2]", (2, 1), "nothing may follow the first value"),
        ("{'a': 1}", (1, 2), "a key in double quotes must stand here"),
        ('{"a": NaN}', (1, 7), "'N' does not begin a value"),
        ("# net\n{}", (1, 1), "'#' does not begin a value"),
        ('{"a": "\\x"}', (1, 9), "invalid \\\\escape"),
        ('{"a": 01}', (1, 8), "a comma or } must stand here"),
        ("[" * 300, (1, 202), "too many levels"),
    ],
)
def test_what_is_not_json(text: str, place: tuple[int, int], why: str) -> None:
    with pytest.raises(NotJson) as error:
        parse(text)
    assert why.replace("\\\\", "\\") in str(error.value)
    if "escape" not in why:
        assert error.value.place == place
    (finding,) = found(text, "net.conf")
    assert finding.severity == ERROR
    assert finding.message.startswith("not JSON: ")


def test_keys_that_are_there_twice() -> None:
    text = '{"cniVersion": "1.0.0", "name": "net1", "type": "loopback",\n "name": "net2"}'
    assert said(found(text, "net.conf")) == [(WARNING, "name", "the key is there twice: the last one counts")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.sampled_from([None, 1, 3]))
def test_our_json_is_json(value: Any, indent: int | None) -> None:
    assert parse(json.dumps(value, indent=indent)).value == value


JUNK: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        "",
        "x",
        [],
        {},
        [[]],
        [{}],
        [None],
        {"x": None},
        [[{"subnet": 1}]],
        [[{"subnet": "::/0"}]],
    ),
    *("10.0.0.0/24", "10.0.0.1", "::/126", "l3", "host-local", "bridge", "sibling", "usePodCidr"),
    *([{"dst": "::/0", "gw": "10.0.0.1"}], [{"minID": 1}], [{"address": "::1/128", "gateway": 1}], {"mac": True}),
)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_makes_a_bug(kind: str) -> None:
    """Known keys with values that do not belong there."""
    seed = int(os.environ.get("TORTIE_SEED") or random.randrange(2**32))
    chance = random.Random(seed)
    keys = [*BASE, *KINDS[kind].fields]
    print(f"TORTIE_SEED={seed}")
    for _ in range(20):
        conf = {key: chance.choice(JUNK) for key in chance.sample(keys, min(len(keys), 6))}
        address = chance.choice(list(IPAM))
        inner = {key: chance.choice(JUNK) for key in chance.sample(list(IPAM[address]), 3)}
        whole = {**conf, "type": kind, "ipam": {**inner, "type": address}}
        found({"name": "net1", "plugins": [whole, conf, {**conf, "type": chance.choice(list(KINDS))}]}, machine=HERE)
        found(whole, machine=HERE)


# --- several nodes ------------------------------------------------------------------------------------------------


def node(start: str, end: str, kind: str = "macvlan", name: str = "net1", **more: Any) -> str:
    ipam = {**LOCAL, "rangeStart": start, "rangeEnd": end}
    return json.dumps({"cniVersion": "1.0.0", "name": name, "type": kind, "master": "eth0", "ipam": ipam, **more})


def test_ranges_of_two_nodes_that_overlap() -> None:
    """Situation 135."""
    files = [("a.conf", node("10.1.2.10", "10.1.2.20")), ("b.conf", node("10.1.2.20", "10.1.2.30"))]
    (one,) = validate(files)
    assert (one.severity, one.file, one.path) == (ERROR, "b.conf", "ipam.rangeStart")
    text = (
        "10.1.2.20-10.1.2.30 and 10.1.2.10-10.1.2.20 of a.conf overlap: pods of two nodes would have the same address"
    )
    assert one.message == text
    assert validate([*files[:1], ("b.conf", node("10.1.2.21", "10.1.2.30"))]) == []


def test_networks_of_different_names_may_share_a_network() -> None:
    files = [("a.conf", node("10.1.2.10", "10.1.2.20")), ("b.conf", node("10.1.2.20", "10.1.2.30", name="net2"))]
    assert [one.severity for one in validate(files)] == [WARNING]


@pytest.mark.parametrize(("masquerades", "count"), [(True, 0), (False, 1)])
def test_bridges_behind_masquerading_are_the_nodes_own(masquerades: bool, count: int) -> None:
    conf = json.dumps(single({**BRIDGE, "ipMasq": masquerades}))
    findings = validate([("a.conf", conf), ("b.conf", conf)])
    assert [one.severity for one in findings] == [WARNING] * count


# --- this machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "path", "message"),
    [
        ({"type": "macvlan", "master": "eth0", "ipam": LOCAL}, "", ""),
        ({"type": "macvlan", "master": "eth1", "ipam": LOCAL}, "master", 'did you mean "eth0"?'),
        ({"type": "macvlan", "master": "wan", "ipam": LOCAL}, "master", "there are eth0, lo"),
        ({"type": "macvlan", "master": "eth0", "mtu": 9000, "ipam": LOCAL}, "mtu", "more than the MTU of eth0, 1500"),
        ({"type": "host-device", "device": "eth7"}, "device", 'this machine has no link "eth7"'),
        (BRIDGE, "type", 'there is no plugin "bridge" in /opt/cni/bin: tortie cni install --plugins bridge'),
        ({"type": "macvlan", "master": "eth0", "ipam": {"type": "dhcp"}}, "ipam.type", 'there is no plugin "dhcp"'),
        ({"type": "macvlan", "master": "eth7", "linkInContainer": True, "ipam": LOCAL}, "", ""),
    ],
)
def test_this_machine(conf: Mapping[str, Any], path: str, message: str) -> None:
    findings = found(single(conf), machine=HERE)
    if not message:
        assert said(findings) == []
    else:
        assert any(one.path == path and message in one.message and one.severity == ERROR for one in findings)
        assert found(single(conf)) == []


# --- the tables against the plugins -------------------------------------------------------------------------------

SOURCE = ROOT / "src/tortie/cni/plugins"
KEY = re.compile(r"""(?:member|lookup)\((?:call\.)?conf, ["'](\w+)["']""")


def test_every_plugin_has_a_table() -> None:
    assert set(plugins.NAMES) <= set(KINDS)
    assert {"host-local", "static", "dhcp"} <= set(IPAM)


@pytest.mark.parametrize("name", [name for name, module in plugins.NAMES.items() if (SOURCE / f"{module}.py").exists()])
def test_what_a_plugin_reads_is_in_its_table(name: str) -> None:
    tables = [BASE, CAPABILITIES, KINDS[name].fields, IPAM.get(name, {})]
    items = [field.items.fields for table in tables for field in table.values() if field.items and field.items.fields]
    known = {key for table in (*tables, *items) for key in table}
    read = set(KEY.findall((SOURCE / f"{plugins.NAMES[name]}.py").read_text()))
    assert read <= known


# --- the tables against the book ----------------------------------------------------------------------------------

FILE = re.compile(r"^<!-- file: (\S+\.(?:conf|conflist)) -->\n+```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = [
    (page, name, text)
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for name, text in FILE.findall(page.read_text())
    if page.name != "cni-validate.md"
]


@pytest.mark.parametrize(("page", "name", "text"), PRINTED, ids=[f"{page.stem}-{name}" for page, name, _ in PRINTED])
def test_the_configurations_of_the_book(page: Path, name: str, text: str) -> None:
    findings = validate([(name, text)])
    assert [str(one) for one in findings if one.severity == ERROR] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs/plugins").glob("*.md")), ids=lambda page: page.stem)
def test_the_fields_of_a_page(page: Path) -> None:
    """Those of its table of fields are in ours, and all of ours are on the page; `autoRoutes` has one of its own."""
    if page.stem == "index":
        return
    name = page.stem
    section = page.read_text().partition("## Fields")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {word for row in rows for word in re.findall(r"`([\w-]+)`", row) if not word.isupper()}
    own = {*KINDS[name].fields, *IPAM.get(name, {})} - {"type"}
    inner = [field.items.fields for field in IPAM.get(name, {}).values() if field.items and field.items.fields]
    known = own | {key for table in inner for key in table} | set(BASE) | set(CAPABILITIES)
    assert documented <= known
    text = page.read_text() + (ROOT / "docs/auto-routes.md").read_text()
    assert {key for key in own if f"`{key}" not in text and f"{key}`" not in text} == set()
