"""subnet.env: read and written as text, and as a file that is there whole or as it was before."""

from __future__ import annotations

import os
import stat
import threading
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.errors import KernelError
from tortie.cni.subnet_env import SubnetEnv, dump, load
from tortie.flannel import subnet_file
from tortie.flannel.config import parse
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.manager import Previous
from tortie.flannel.state import External, Place, Site

FOUR = """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""
DUAL = """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_IPV6_NETWORK=fc00::/48
FLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64
FLANNEL_MTU=1430
FLANNEL_IPMASQ=false
"""
SIX = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
NET = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
NETS = '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}}'
NET6 = '{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}}'


# --- the text -----------------------------------------------------------------------------------------------------


def test_what_a_text_says() -> None:
    assert load(FOUR, "f") == SubnetEnv(("10.244.0.0/16",), "10.244.1.1/24", (), "", 1450, True)
    assert load(DUAL, "f") == SubnetEnv(
        ("10.244.0.0/16",), "10.244.1.1/24", ("fc00::/48",), "fc00:0:0:1::1/64", 1430, False
    )


@pytest.mark.parametrize("text", [FOUR, DUAL, SIX])
def test_texts_are_written_as_they_are_read(text: str) -> None:
    assert dump(load(text, "f")) == text


@pytest.mark.parametrize(
    ("text", "networks", "masq"),
    [
        (f"# note\n\nWORD\nOTHER=1\n{FOUR}", ("10.244.0.0/16",), True),
        (FOUR.replace("\n", "\r\n"), ("10.244.0.0/16",), True),
        (
            FOUR.replace("10.244.0.0/16", "10.244.0.0/16,10.9.1.1/16,10.244.0.0/16"),
            ("10.244.0.0/16", "10.9.1.1/16"),
            True,
        ),
        (FOUR.replace("true", "True"), ("10.244.0.0/16",), False),
        (f"FLANNEL_IPMASQ=false\n{FOUR}", ("10.244.0.0/16",), True),
    ],
)
def test_what_does_not_matter(text: str, networks: tuple[str, ...], masq: bool) -> None:
    found = load(text, "f")
    assert (found.networks, found.masq, found.mtu) == (networks, masq, 1450)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "",
            "f is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, "
            "FLANNEL_IPMASQ",
        ),
        (f" {FOUR}", "f is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
        (SIX.replace("MTU", "X").replace("IPMASQ", "Y"), "f is missing FLANNEL_MTU, FLANNEL_IPMASQ"),
        (FOUR.replace("=1450", ""), 'strconv.ParseUint: parsing "": invalid syntax'),
        (FOUR.replace("1450", "1_450"), 'strconv.ParseUint: parsing "1_450": invalid syntax'),
        (FOUR.replace("1450", "9" * 5000), f'strconv.ParseUint: parsing "{"9" * 5000}": value out of range'),
        (FOUR.replace("1450", "4294967296"), 'strconv.ParseUint: parsing "4294967296": value out of range'),
        (FOUR.replace("10.244.0.0/16", "10.244.0.0/16,"), "invalid CIDR address: "),
        (FOUR.replace("10.244.1.1/24", "10.244.1.1"), "invalid CIDR address: 10.244.1.1"),
    ],
)
def test_what_is_missing_or_wrong(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(text, "f")
    assert str(caught.value) == why


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = load(text, "f")
    except ValueError:
        return
    assert load(dump(found), "f") == found


# --- the file -----------------------------------------------------------------------------------------------------


def place(text: str = NET, *, four: str = "10.244.1.0/24", six: str = "fc00:0:0:1::/64") -> Place:
    config = parse(text, "net-conf.json")
    lease = Lease(
        IPv4Network(four) if config.v4 and four else None, IPv6Network(six) if config.v6 and six else None, Attrs()
    )
    return Place(Site(config, External("eth0", 2, 1500, IPv4Address("192.0.2.1"))), lease)


@pytest.mark.parametrize(
    ("where", "mtu", "masq", "text"),
    [(place(), 1450, True, FOUR), (place(NETS), 1430, False, DUAL), (place(NET6), 1430, True, SIX)],
)
def test_what_is_written(tmp_path: Path, where: Place, mtu: int, masq: bool, text: str) -> None:
    file = tmp_path / "run" / "flannel" / "subnet.env"
    before = os.umask(0o077)
    try:
        subnet_file.write(file, where, mtu, masq)
    finally:
        os.umask(before)
    assert file.read_text() == text
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o755
    lease = where.lease
    assert subnet_file.previous(file) == Previous(lease.subnet, lease.subnet6)
    assert list(file.parent.iterdir()) == [file]


def test_version_without_a_subnet_is_not_written() -> None:
    assert dump(subnet_file.of(place(NETS, six=""), 1450, True)) == FOUR


def test_readers_find_all_of_it(tmp_path: Path) -> None:
    file, wrong, stop = tmp_path / "subnet.env", [], threading.Event()
    subnet_file.write(file, place(), 1450, True)

    def read() -> None:
        while not stop.is_set():
            text = file.read_text()
            if text not in (FOUR, DUAL):
                wrong.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(200):
        subnet_file.write(file, place(NETS), 1430, False)
        subnet_file.write(file, place(), 1450, True)
    stop.set()
    reader.join()
    assert wrong == []


def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match=f"^write {tmp_path}/file/subnet.env: "):
        subnet_file.write(tmp_path / "file" / "subnet.env", place(), 1450, True)
    (tmp_path / "subnet.env").mkdir()
    with pytest.raises(KernelError, match="Is a directory"):
        subnet_file.write(tmp_path / "subnet.env", place(), 1450, True)
    assert {each.name for each in tmp_path.iterdir()} == {"file", "subnet.env"}


@pytest.mark.parametrize("text", ["", "FLANNEL_SUBNET=x\n", "\udcff", FOUR.replace("SUBNET", "OTHER")])
def test_file_that_says_nothing_of_before(tmp_path: Path, text: str) -> None:
    file = tmp_path / "subnet.env"
    assert subnet_file.previous(file) == Previous()
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert subnet_file.previous(file) == Previous()
    assert subnet_file.previous(tmp_path) == Previous()
