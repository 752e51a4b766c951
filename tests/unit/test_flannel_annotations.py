"""flannel's annotations of Kubernetes' Nodes, as values: what is written, what is read, and what is wrong with them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from flannel_town import DUAL, MAC, MAC6, NET, OWN, P, config, flannels, node
from msgspec.structs import replace

from tortie.base.errors import ConfigError
from tortie.flannel.annotations import (
    Names,
    annotated,
    as_published,
    lease_of,
    overrides,
    remembered,
    shared_addresses,
    subnets,
)
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.manager import Overrides
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata, changed


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
        ("example.com/", "example.com/"),
        ("example.com/net", "example.com/net-"),
        ("example.com/net-", "example.com/net-"),
        ("a_b.c-d.e/f_1", "a_b.c-d.e/f_1-"),
    ],
)
def test_prefix(text: str, prefix: str) -> None:
    names = Names.of(text)
    assert names.prefix == prefix
    assert names.managed == f"{prefix}kube-subnet-manager"
    assert names.data(6) == f"{prefix}backend-v6-data"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a.b/c/d", "prefix can contain at most single slash"),
        ("nodots", "prefix must be in a format"),
        ("Example.com", "prefix must be in a format"),
        ("example.com/Net", "prefix must be in a format"),
        ("example.com/a.b", "prefix must be in a format"),
        ("bad example.com", "prefix must be in a format"),
        ("", "prefix must be in a format"),
    ],
)
def test_prefix_that_is_none(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f'^kube-annotation-prefix: "{text}": {why}'):
        Names.of(text)


def test_what_is_written_is_flannels() -> None:
    names = Names.of()
    assert annotated({"mine": "x"}, OWN, names) == {
        "mine": "x",
        f"{P}backend-type": "vxlan",
        f"{P}backend-data": MAC,
        f"{P}public-ip": "192.0.2.1",
        f"{P}kube-subnet-manager": "true",
    }
    both = Attrs(OWN.public_ip, IPv6Address("2001:DB8::1"), "host-gw")
    assert annotated({}, both, names) == {
        f"{P}backend-type": "host-gw",
        f"{P}backend-data": "null",
        f"{P}public-ip": "192.0.2.1",
        f"{P}backend-v6-data": "null",
        f"{P}public-ipv6": "2001:db8::1",
        f"{P}kube-subnet-manager": "true",
    }
    assert annotated({}, Attrs(OWN.public_ip, both.public_ipv6), names) == {
        f"{P}backend-type": "",
        f"{P}backend-data": "null",
        f"{P}public-ip": "192.0.2.1",
        f"{P}kube-subnet-manager": "true",
    }, "udp and alloc know no way to IPv6"


def test_vxlan_with_nothing_to_say_is_left_as_it_is() -> None:
    """As flannel does it: peers that do not know our device keep the way to the one before."""
    have = {f"{P}backend-data": MAC, f"{P}public-ip": "192.0.2.1"}
    nothing = Attrs(IPv4Address("192.0.2.9"), None, "vxlan", None)
    assert annotated(have, nothing, Names.of()).items() >= have.items()


def test_what_is_read_is_what_was_written() -> None:
    attrs = Attrs(OWN.public_ip, IPv6Address("2001:db8::1"), "vxlan", MAC, MAC6)
    there = changed(node("n1", "10.244.1.0/24", "fd00:10:244:1::/64"), annotations=annotated({}, attrs, Names.of()))
    lease = Lease(IPv4Network("10.244.1.0/24"), IPv6Network("fd00:10:244:1::/64"), attrs, node="n1")
    assert lease_of(there, config(DUAL), Names.of()) == (lease, ())
    assert remembered(there, Names.of()) == attrs
    four = Attrs(OWN.public_ip, None, "vxlan", MAC)
    assert lease_of(there, config(), Names.of()) == (Lease(lease.subnet, None, four, node="n1"), ())
    assert remembered(node(), Names.of()) is None


def test_data_is_made_compact_and_null_is_nothing() -> None:
    spaced, _ = lease_of(flannels("n2", backend_data='{ "VNI": 1,\n "VtepMAC": "x" }'), config(), Names.of())
    assert spaced is not None
    assert spaced.attrs.data == '{"VNI":1,"VtepMAC":"x"}'
    for text in ("null", ""):
        lease, _ = lease_of(flannels("n2", backend_type="host-gw", backend_data=text), config(), Names.of())
        assert lease is not None
        assert lease.attrs.data is None


@pytest.mark.parametrize("value", ["", "false", "True"])
def test_nodes_that_are_not_flannels_do_not_count(value: str) -> None:
    assert lease_of(flannels("n2", kube_subnet_manager=value), config(), Names.of()) == (None, ())
    assert lease_of(node("n2"), config(), Names.of()) == (None, ())


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"public_ip": "192.0.2.300"}, f'annotation {P}public-ip: "192.0.2.300" is not an IPv4 address'),
        ({"public_ip": "2001:db8::1"}, f'annotation {P}public-ip: "2001:db8::1" is not an IPv4 address'),
        ({"public_ip": ""}, f"has no annotation {P}public-ip"),
        ({"backend_data": "{"}, f"annotation {P}backend-data: is not JSON: unexpected end of JSON input"),
    ],
)
def test_node_that_cannot_be_read_is_told_of(wrong: dict[str, str], why: str) -> None:
    lease, problems = lease_of(flannels("n2", **wrong), config(), Names.of())
    assert lease is None
    assert problems == (f'node "n2": {why}: packets for 10.244.2.0/24 have no way',)


def test_of_two_versions_each_counts_on_its_own() -> None:
    cidrs = ("10.244.2.0/24", "fd00:10:244:2::/64")
    both = replace(flannels("n2"), spec=K8sNodeSpec(pod_cidrs=cidrs))
    lease, problems = lease_of(both, config(DUAL), Names.of())
    assert lease is not None
    assert (lease.subnet, lease.subnet6, lease.attrs.public_ipv6) == (IPv4Network("10.244.2.0/24"), None, None)
    assert problems == (f'node "n2": has no annotation {P}public-ipv6: packets for fd00:10:244:2::/64 have no way',)
    assert lease_of(flannels("n2"), config(DUAL), Names.of())[1] == ()
    udp = changed(both, annotations={**both.metadata.annotations, f"{P}backend-type": "", f"{P}backend-data": "null"})
    lease, problems = lease_of(udp, config(DUAL), Names.of())
    assert lease is not None
    assert (lease.subnet6, problems) == (None, ())


@pytest.mark.parametrize(
    ("cidrs", "text", "why"),
    [
        ((), NET, 'node "n1" pod cidr not assigned'),
        (("fd00:10:244:1::/64",), NET, 'node "n1" pod cidr not assigned'),
        (
            ("10.1.0.0/24",),
            NET,
            'subnet "10.244.0.0/16" specified in the flannel net config doesn\'t contain "10.1.0.0/24" PodCIDR of the '
            '"n1" node',
        ),
        (
            ("10.244.1.0/24", "fd11::/64"),
            DUAL,
            'subnet "fd00:10:244::/48" specified in the flannel net config doesn\'t contain "fd11::/64" IPv6 PodCIDR '
            'of the "n1" node',
        ),
        (("10.244.1.0/24", "10.244.2.0/24"), NET, 'node "n1" pod cidrs should be IPv4/IPv6 only or dualstack'),
    ],
)
def test_112_pod_cidrs_that_cannot_be(cidrs: tuple[str, ...], text: str, why: str) -> None:
    there = K8sNode(metadata=Metadata(name="n1"), spec=K8sNodeSpec(pod_cidrs=cidrs))
    with pytest.raises(ConfigError) as caught:
        subnets(there, config(text))
    assert str(caught.value) == why


def test_old_nodes_have_one_cidr() -> None:
    there = K8sNode(metadata=Metadata(name="n1"), spec=K8sNodeSpec(pod_cidr="10.244.1.0/24"))
    assert subnets(there, config(DUAL)) == (IPv4Network("10.244.1.0/24"), None)


def test_overrides() -> None:
    said = {"node_public_ip": "198.51.100.1", "node_public_ipv6": "2001:db8::51"}
    said |= {"public_ip_overwrite": "203.0.113.1", "public_ipv6_overwrite": "2001:db8::61"}
    found = overrides(node("n1", **said), Names.of())
    assert [str(each) for each in (found.public_ip, found.public_ipv6, found.published_ip, found.published_ipv6)] == (
        list(said.values())
    )
    attrs = Attrs(OWN.public_ip, None, "vxlan", MAC)
    assert as_published(attrs, found) == Attrs(IPv4Address("203.0.113.1"), None, "vxlan", MAC)
    assert overrides(node(), Names.of()) == Overrides()
    with pytest.raises(ConfigError, match=rf'^node "n1": annotation {P}public-ip-overwrite: "x" is not an IPv4'):
        overrides(node("n1", public_ip_overwrite="x"), Names.of())


def test_addresses_that_several_publish() -> None:
    def lease(ip: str) -> Lease:
        return Lease(None, None, Attrs(IPv4Address(ip)))

    assert shared_addresses({"a": lease("192.0.2.1"), "b": lease("192.0.2.2")}) == ()
    (line,) = shared_addresses({"b": lease("10.0.2.15"), "a": lease("10.0.2.15"), "c": lease("192.0.2.2")})
    assert line == (
        'nodes "a", "b" publish the same public IP 10.0.2.15: only one of them is reached (VirtualBox\'s NAT gives '
        "this address to every machine); give each an address of its own, by --iface or --public-ip"
    )
    (line,) = shared_addresses({f"n{i}": lease("192.0.2.2") for i in range(8)})
    assert line.startswith('nodes "n0", "n1", "n2", "n3", "n4" and 3 more publish the same public IP 192.0.2.2: only')
