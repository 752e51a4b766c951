"""Addresses as numbers: held against the standard library's `ipaddress`."""

from __future__ import annotations

import ipaddress
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tortie.cni.span import Cidr, Ip, Span, cidr, ip, ip_or_cidr, is_ip

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 1 << 33).map(ipaddress.IPv6Address))


@given(ADDRESSES)
def test_addresses_are_read_and_written_as_the_library_does(address: ipaddress.IPv4Address) -> None:
    found = ip(str(address))
    mapped = getattr(address, "ipv4_mapped", None)
    assert str(found) == str(mapped or address)
    assert found.packed == (mapped or address).packed
    assert ip(str(found)) == found


@given(ADDRESSES, st.integers(0, 128), ADDRESSES)
@example(ipaddress.IPv6Address(0), 80, ipaddress.IPv6Address(0))
def test_networks(address: ipaddress.IPv4Address, length: int, other: ipaddress.IPv4Address) -> None:
    if getattr(address, "ipv4_mapped", None) or getattr(other, "ipv4_mapped", None):
        return
    length = min(length, address.max_prefixlen)
    one, two = cidr(f"{address}/{length}"), ipaddress.ip_interface(f"{address}/{length}").network
    assert str(one) == f"{address}/{length}"
    assert str(one.network) == str(two.network_address)
    assert ipaddress.ip_address(str(one.last)) == two.broadcast_address  # which may be written as one of IPv4's
    assert one.has_host_bits == (two.network_address != address)
    assert one.span.size == two.num_addresses
    assert (ip(str(other)) in one) == (other in two)
    assert (ip(str(other)) in one.span) == (other in two)


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4))
def test_spans_overlap_when_they_share_an_address(numbers: list[int]) -> None:
    a, b, c, d = map(Ip, numbers)
    one, two = Span(a, b), Span(c, d)
    shared = set(range(a.number, b.number + 1)) & set(range(c.number, d.number + 1))
    assert one.overlaps(two) == bool(shared) == two.overlaps(one)


def test_spans_of_different_families_share_nothing() -> None:
    assert not cidr("0.0.0.0/0").overlaps(cidr("::/0"))
    assert Ip(5, 128) not in cidr("0.0.0.0/0")
    assert Ip(5) in cidr("0.0.0.0/0").span


def test_spellings() -> None:
    assert str(ip("FD00:0::0")) == "fd00::"
    assert str(ip("::ffff:10.0.0.1")) == "10.0.0.1"
    assert cidr("::ffff:10.0.0.1/120") == cidr("10.0.0.1/24")
    assert str(ip("::1:2")) == "::1:2"
    assert ip_or_cidr("10.0.0.7/8") == (ip("10.0.0.7"), cidr("10.0.0.7/8"))
    assert ip_or_cidr("10.0.0.7") == (ip("10.0.0.7"), None)
    assert str(cidr("10.0.0.7/8")) == "10.0.0.7/8"
    assert ip("255.255.255.255").plus(1) == ip("0.0.0.0")
    assert ip("fd00::").plus(1 << 64) == ip("fd00:0:0:1::")
    assert Cidr(ip("fd00::"), 8).span.size == 1 << 120


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.1/8", "010.0.0.1", "fe80::1%eth0", "1.2.3.4 ", "é", "1\0", "-1"]
)
def test_what_is_no_address(text: str) -> None:
    assert not is_ip(text)
    with pytest.raises(ValueError, match=r"^invalid IP address: "):
        ip(text)


@pytest.mark.parametrize("text", ["", "10.0.0.1", "10.0.0.1/33", "::/129", "10.0.0.0/-1", "10.0.0.0/ 8", "/8", "1::/"])
def test_what_is_no_cidr(text: str) -> None:
    with pytest.raises(ValueError, match=r"^invalid CIDR address: "):
        cidr(text)


def test_it_costs_no_library() -> None:
    program = "import sys; import tortie.cni.span; print('ipaddress' in sys.modules, 'socket' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == ["False", "False"]
