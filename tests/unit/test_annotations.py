"""What pods ask for by annotation: read, checked, and refused with the annotation's name."""

from __future__ import annotations

import pytest

from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError
from tortie.calc import annotations as a

V4, V6 = parse_ip("10.244.0.7"), parse_ip("fd00::7")


@pytest.mark.parametrize("name", [a.IP_ADDRS, a.IP_ADDRS_NO_IPAM])
def test_fixed_addresses_are_one_of_each_family_at_most(name: str) -> None:
    assert a.addresses({}, name) == ()
    assert a.addresses({name: '["10.244.0.7", "fd00::7"]'}, name) == (V4, V6)
    for text, why in (
        ("10.244.0.7", "is not a JSON list of addresses"),
        ("[]", "the list is empty"),
        ('["10.0.0.1", "10.0.0.2"]', "more than one IPv4 address"),
        ('["fd00::1", "fd00::2"]', "more than one IPv6 address"),
        ('["10.0.0.256"]', '"10.0.0.256" is not an IP address'),
        ("[7]", "is not a JSON list of addresses"),
    ):
        with pytest.raises(ConfigError) as refused:
            a.addresses({name: text}, name)
        assert str(refused.value).startswith(f"annotation {name}: ")
        assert why in str(refused.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("02:00:5E:10:00:01", "02:00:5e:10:00:01"), ("02-00-5e-10-00-01", "02:00:5e:10:00:01"), ("", "")],
)
def test_a_mac_address_is_normalised(text: str, wanted: str) -> None:
    assert a.mac({a.HW_ADDR: text}) == wanted


@pytest.mark.parametrize("text", ["ca:fe", "garbage", "02:00:5e:10:00:01:02", "02005e100001", "02:00:5e:10:00:0g"])
def test_what_is_no_mac_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=a.HW_ADDR):
        a.mac({a.HW_ADDR: text})


def test_floating_ips_lead_to_the_address_of_their_family() -> None:
    found = a.nats({a.FLOATING_IPS: '["172.18.22.113", "2001:db8::113"]'}, (V4, V6))
    assert [(nat.external_ip, nat.internal_ip) for nat in found] == [
        ("172.18.22.113", "10.244.0.7"),
        ("2001:db8::113", "fd00::7"),
    ]
    with pytest.raises(ConfigError, match=r"2001:db8::113 is IPv6, and the pod has no IPv6 address"):
        a.nats({a.FLOATING_IPS: '["2001:db8::113"]'}, (V4,))


def test_the_pod_wins_over_its_namespace() -> None:
    assert a.pools({a.IPV4_POOLS: '["a"]'}, {a.IPV4_POOLS: '["b"]'}, 4) == ("a",)
    assert a.pools({}, {a.IPV4_POOLS: '["b", "10.0.0.0/16"]'}, 4) == ("b", "10.0.0.0/16")
    assert a.pools({a.IPV4_POOLS: ""}, {}, 4) is None
    assert a.pools({}, {a.IPV6_POOLS: '["six"]'}, 6) == ("six",)


def test_families_that_are_not_listed_are_off() -> None:
    assert a.families({}, {}) is None
    assert a.families({a.IP_FAMILIES: '["IPv6"]'}, {}) == (False, True)
    assert a.families({a.IP_FAMILIES: '["ipv4","IPv6"]'}, {a.IP_FAMILIES: '["IPv4"]'}) == (True, True)
    with pytest.raises(ConfigError, match='"IPv5" is neither IPv4 nor IPv6'):
        a.families({a.IP_FAMILIES: '["IPv5"]'}, {})


def test_host_bits_of_a_source_prefix_do_not_count() -> None:
    wanted = {a.ALLOWED_SOURCE_PREFIXES: '["10.1.2.3/8", "fd00::1/64", "8.8.8.8"]'}
    assert a.source_prefixes(wanted) == ("10.0.0.0/8", "fd00::/64", "8.8.8.8/32")
