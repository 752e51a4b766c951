"""The network's configuration, as flannel reads it: keys, defaults, and what is wrong with one."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.flannel.config import Family, NetworkConfig, checked, parse


def read(**keys: Any) -> NetworkConfig:
    return parse(json.dumps(keys), "config")


def refusal(text: str | dict[str, Any]) -> str:
    """What is said of a configuration, by etcd's rules."""
    with pytest.raises(ConfigError) as error:
        checked(parse(text if isinstance(text, str) else json.dumps(text), "config"))
    return str(error.value)


def test_only_a_network_is_needed() -> None:
    """Situation 104."""
    config = checked(read(Network="10.5.0.0/16"))
    assert config.backend_type == "udp"
    assert config.v4 == Family(ip_network("10.5.0.0/16"), 24, ip_address("10.5.1.0"), ip_address("10.5.255.0"))
    assert (config.v6, config.options, config.nftables) == (None, {}, False)
    assert config.families == (config.v4,)


def test_everything_that_can_be_said() -> None:
    backend = {"Type": "VXLAN", "VNI": 7}
    config = checked(
        read(
            EnableIPv6=True, EnableNFTables=True, Network="10.5.0.0/16", SubnetLen=26, SubnetMin="10.5.0.64",
            SubnetMax="10.5.9.0", IPv6Network="fc00::/48", IPv6SubnetLen=80, IPv6SubnetMin="fc00::",
            IPv6SubnetMax="fc00:0:0:1::", Backend=backend,
        )
    )  # fmt: skip
    v4 = Family(ip_network("10.5.0.0/16"), 26, ip_address("10.5.0.64"), ip_address("10.5.9.0"))
    v6 = Family(ip_network("fc00::/48"), 80, ip_address("fc00::"), ip_address("fc00:0:0:1::"))
    assert config == NetworkConfig(v4, v6, "vxlan", backend, True)


def test_keys_in_any_case_and_nulls() -> None:
    text = '{"network": "10.5.0.0/16", "SUBNETLEN": 25, "subnetMin": null, "bACKEND": {"tYPE": "Host-GW"}}'
    config = parse(text, "config")
    assert config.v4 is not None
    assert (config.v4.subnet_len, str(config.v4.first), config.backend_type) == (25, "10.5.0.128", "host-gw")


def test_a_key_that_is_not_known_is_told(caplog: pytest.LogCaptureFixture) -> None:
    read(Network="10.5.0.0/16", SubnetLenght=24)
    assert 'SubnetLenght: is not a key of flannel\'s configuration, without effect; did you mean "SubnetLen"?' in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
        ("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"),
        ("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
        ("10.5.0.9/16", 24, "10.5.1.0", "10.5.255.0"),
    ],
)
def test_defaults(network: str, length: int, first: str, last: str) -> None:
    family = checked(read(Network=network)).v4
    assert family is not None
    assert (family.subnet_len, str(family.first), str(family.last)) == (length, first, last)


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        ("fc00::/63", 65, "fc00:0:0:0:8000::", "fc00:0:0:1:8000::"),
        ("fc00::/124", 126, "fc00::4", "fc00::c"),
    ],
)
def test_defaults_of_ipv6(network: str, length: int, first: str, last: str) -> None:
    family = checked(read(Network="10.5.0.0/16", EnableIPv6=True, IPv6Network=network)).v6
    assert family is not None
    assert (family.subnet_len, family.first, family.last) == (length, ip_address(first), ip_address(last))


BOTH = {"Network": "10.5.0.0/16", "EnableIPv6": True}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "config: please define a correct Network parameter in the flannel config"),
        ({"Network": ""}, "config: please define a correct Network parameter in the flannel config"),
        (BOTH, "config: please define a correct IPv6Network parameter in the flannel config"),
        ({"EnableIPv4": False}, "config: none defined stack: EnableIPv4 and EnableIPv6 are both false"),
        ({"Network": "10.5.0.0/29"}, "network is too small. Minimum useful network prefix is /28"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 31}, "SubnetLen must be less than /31"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 400}, "SubnetLen must be less than /31"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 17}, "network must be able to accommodate at least four subnets"),
        ({"Network": "10.5.0.0/16", "SubnetMin": "10.6.0.0"}, "SubnetMin is not in the range of the Network"),
        ({"Network": "10.5.0.0/16", "SubnetMax": "10.4.0.0"}, "SubnetMax is not in the range of the Network"),
        ({"Network": "10.5.0.0/16", "SubnetMin": "10.5.0.1"}, "SubnetMin is not on a SubnetLen boundary: 10.5.0.1"),
        ({"Network": "10.5.0.0/16", "SubnetMax": "10.5.9.1"}, "SubnetMax is not on a SubnetLen boundary: 10.5.9.1"),
        (
            {"Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.1.0"},
            "SubnetMin 10.5.9.0 is after SubnetMax 10.5.1.0",
        ),
        (BOTH | {"IPv6Network": "fc00::/125"}, "IPv6Network is too small. Minimum useful network prefix is /124"),
        (BOTH | {"IPv6Network": "fc00::/48", "IPv6SubnetLen": 127}, "SubnetLen must be less than /127"),
        (
            BOTH | {"IPv6Network": "fc00::/48", "IPv6SubnetLen": 49},
            "network must be able to accommodate at least four subnets",
        ),
        (
            BOTH | {"IPv6Network": "fc00::/48", "IPv6SubnetMin": "fc00::1"},
            "IPv6SubnetMin is not on a SubnetLen boundary: fc00::1",
        ),
        (
            BOTH | {"IPv6Network": "fc00::/48", "IPv6SubnetMax": "fc01::"},
            "IPv6SubnetMax is not in the range of the IPv6Network",
        ),
        (
            {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fc00::/48"},
            "EnableIPv4: IPv6 alone is not to be had with etcd: leave it true, or use Kubernetes",
        ),
        ({"Network": "10.5.0.0"}, 'config: Network: "10.5.0.0" is not an IPv4 network such as 10.244.0.0/16'),
        ({"Network": "fc00::/48"}, 'config: Network: "fc00::/48" is not an IPv4 network such as 10.244.0.0/16'),
        ({"Network": 5}, "config: Network: must be a string, not number"),
        ({"Network": "10.5.0.0/16", "SubnetLen": "24"}, "config: SubnetLen: '24' is not a whole number such as 24"),
        ({"Network": "10.5.0.0/16", "SubnetLen": -1}, "config: SubnetLen: -1 is not a whole number such as 24"),
        ({"Network": "10.5.0.0/16", "SubnetLen": True}, "config: SubnetLen: True is not a whole number such as 24"),
        ({"Network": "10.5.0.0/16", "SubnetMin": "ten"}, 'config: SubnetMin: "ten" is not an IPv4 address'),
        ({"Network": "10.5.0.0/16", "SubnetMin": "::"}, 'config: SubnetMin: "::" is not an IPv4 address'),
        ({"Network": "10.5.0.0/16", "EnableIPv6": "yes"}, "config: EnableIPv6: must be true or false, not string"),
        (
            {"Network": "10.5.0.0/16", "Backend": "vxlan"},
            'config: Backend: must be an object such as {"Type": "vxlan"}, not string',
        ),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": 1}}, "config: Backend.Type: must be a string, not number"),
        ("[]", 'config: is not an object such as {"Network": "10.244.0.0/16"}'),
        ("", "config: is not JSON: unexpected end of JSON input"),
        ("x", "config: is not JSON: invalid character 'x' looking for beginning of value at line 1 column 1"),
    ],
)
def test_refusals(keys: str | dict[str, Any], text: str) -> None:
    """Situation 105, and the others."""
    assert refusal(keys) == text


@pytest.mark.parametrize(
    ("backend", "kind"), [({"Port": 1}, ""), ({"Type": None}, ""), (None, ""), ({"Type": "udp"}, "udp")]
)
def test_a_backend_without_a_type_is_none(backend: Any, kind: str) -> None:
    assert read(Network="10.5.0.0/16", Backend=backend).backend_type == kind


@pytest.mark.parametrize("network", ["10.244.1.0/29", "10.244.1.0/31", "10.244.1.1/32", "0.0.0.0/0"])
def test_kubernetes_takes_every_network(network: str) -> None:
    """There the pod CIDRs decide: nothing is cut from it."""
    config = read(Network=network, SubnetMin="192.0.2.1")
    assert config.v4 is not None
    assert config.v4.network == ip_network(network, strict=False)


def test_kubernetes_with_ipv6_alone() -> None:
    config = read(EnableIPv4=False, EnableIPv6=True, IPv6Network="fc00::/48")
    assert [str(family.network) for family in config.families] == ["fc00::/48"]


@given(st.integers(0, 32), st.integers(0, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_what_is_checked_can_be_cut(prefix: int, length: int, start: int, given_length: bool) -> None:
    """Whatever network there is: it is refused, or first and last subnet lie inside of it, the last at its end."""
    network = ip_network((start, prefix), strict=False)
    keys: dict[str, Any] = {"Network": str(network)} | ({"SubnetLen": length} if given_length else {})
    try:
        family = checked(read(**keys)).v4
    except ConfigError:
        return
    assert family is not None
    first, last = (ip_network((at, family.subnet_len)) for at in (family.first, family.last))
    assert first.subnet_of(network)
    assert last.subnet_of(network)
    assert last.broadcast_address == network.broadcast_address
    assert int(first.network_address) - int(network.network_address) == first.num_addresses
