"""Leases as flannel has them in etcd: the same bytes written, more than those read."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.flannel.lease import Attrs, key_of, read_value, subnets, value

VXLAN = Attrs(IPv4Address("192.0.2.7"), None, "vxlan", '{"VNI":1,"VtepMAC":"06:55:28:67:9f:2d"}')
WRITTEN = (
    (
        VXLAN,
        '{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"06:55:28:67:9f:2d"}}',
    ),
    (
        Attrs(
            IPv4Address("192.0.2.7"), IPv6Address("2001:db8::7"), "vxlan", '{"VNI":1,"VtepMAC":"ea:36:d5:50:51:81"}',
            '{"VNI":1,"VtepMAC":"32:55:a8:1d:10:c0"}',
        ),
        '{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":'
        '"ea:36:d5:50:51:81"},"BackendV6Data":{"VNI":1,"VtepMAC":"32:55:a8:1d:10:c0"}}',
    ),
    (Attrs(IPv4Address("192.0.2.7")), '{"PublicIP":"192.0.2.7","PublicIPv6":null}'),
    (
        Attrs(IPv4Address("192.0.2.7"), backend_type="extension", data='"a <b> & c"'),
        '{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"extension",'
        '"BackendData":"a \\u003cb\\u003e \\u0026 c"}',
    ),
    (
        Attrs(None, IPv6Address("2001:db8::7"), "vxlan", None, '{"VNI":1}'),
        '{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::7","BackendType":"vxlan","BackendV6Data":{"VNI":1}}',
    ),
)  # fmt: skip
"""As an etcd has them after real flannelds."""


@pytest.mark.parametrize(("attrs", "text"), WRITTEN)
def test_the_same_bytes(attrs: Attrs, text: str) -> None:
    assert value(attrs) == text


@pytest.mark.parametrize(("attrs", "text"), WRITTEN)
def test_and_read_again(attrs: Attrs, text: str) -> None:
    again = read_value(text)
    assert (again.public_ip, again.public_ipv6, again.backend_type) == (
        attrs.public_ip,
        attrs.public_ipv6,
        attrs.backend_type,
    )
    for data, was in ((again.data, attrs.data), (again.data6, attrs.data6)):
        assert json.loads(data or "null") == json.loads(was or "null")


@pytest.mark.parametrize(
    "text",
    [
        '{"publicip":"192.0.2.7","BACKENDTYPE":"vxlan","backendData":{"VNI":1,"VtepMAC":"06:55:28:67:9f:2d"}}',
        '{ "BackendData" : { "VNI" : 1, "VtepMAC" : "06:55:28:67:9f:2d" },\n "BackendType":"vxlan",'
        ' "New": [1], "PublicIP":"192.0.2.7", "PublicIPv6": "", "BackendV6Data": null }\n',
    ],
)
def test_other_spellings_are_read(text: str) -> None:
    assert read_value(text) == VXLAN


def test_a_reservation_by_hand() -> None:
    assert read_value('{"PublicIP":"192.0.2.7"}') == Attrs(IPv4Address("192.0.2.7"))


def test_data_is_compacted_when_it_is_written() -> None:
    attrs = Attrs(IPv4Address("192.0.2.7"), backend_type="x", data='{ "b": 1,\n "a": [ 2 ] }')
    assert value(attrs).endswith('"BackendData":{"b":1,"a":[2]}}')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON: unexpected end of JSON input"),
        ("null", 'must be an object such as {"PublicIP": "192.0.2.7"}, not null'),
        ('{"PublicIP":7}', "PublicIP: must be a string, not number"),
        ('{"PublicIP":"::1"}', 'PublicIP: "::1" is not an IPv4 address'),
        ('{"PublicIP":"192.0.2.7","PublicIPv6":"192.0.2.7"}', 'PublicIPv6: "192.0.2.7" is not an IPv6 address'),
        ('{"PublicIP":"192.0.2"}', 'PublicIP: "192.0.2" is not an IP address'),
        ('{"PublicIP":"192.0.2.7","BackendType":{}}', "BackendType: must be a string, not object"),
    ],
)
def test_what_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_value(text)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("key", "subnet", "subnet6"),
    [
        ("10.5.52.0-24", "10.5.52.0/24", None),
        ("10.5.52.0-24&fc00:5::-64", "10.5.52.0/24", "fc00:5::/64"),
        ("10.5.34.0-24&fc00:0:0:43::-64", "10.5.34.0/24", "fc00:0:0:43::/64"),
        ("0.0.0.0-0&fc00:0:0:47::-64", None, "fc00:0:0:47::/64"),
    ],
)
def test_keys(key: str, subnet: str | None, subnet6: str | None) -> None:
    """Situation 111, and flannel's own way to write of an address family that is not there."""
    found = subnets(key)
    assert found == (IPv4Network(subnet) if subnet else None, IPv6Network(subnet6) if subnet6 else None)
    if subnet:
        assert key_of(*found) == key


@pytest.mark.parametrize(
    ("key", "subnet"),
    [("old/10.5.52.0-24", "10.5.52.0/24"), ("10.5.52.7-24", "10.5.52.0/24"), ("x10.5.52.0-24", "10.5.52.0/24")],
)
def test_keys_that_flannel_reads_too(key: str, subnet: str) -> None:
    assert subnets(key) == (IPv4Network(subnet), None)


@pytest.mark.parametrize(
    "key", ["", "10.5.52.0", "10.5.52.0-", "10.5.52.0-33", "10.5.300.0-24", "10.5.52.0-24&", "10.5.52.0-24&fc00::-129"]
)
def test_keys_of_no_subnet(key: str) -> None:
    assert subnets(key) == (None, None)


NETS4 = st.builds(lambda at, bits: IPv4Network((at, bits), strict=False), st.integers(0, 2**32 - 1), st.integers(1, 32))
NETS6 = st.builds(
    lambda at, bits: IPv6Network((at, bits), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)
)


@given(NETS4, NETS6 | st.none())
def test_every_key_is_read_again(subnet: IPv4Network, subnet6: IPv6Network | None) -> None:
    assert subnets(key_of(subnet, subnet6)) == (subnet, subnet6)


@given(st.text(max_size=40))
def test_nothing_else_breaks_the_reader(text: str) -> None:
    subnets(text)
    try:
        read_value(text)
    except ConfigError:
        pass
