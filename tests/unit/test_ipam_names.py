"""Names and labels of IPAM's objects: what Calico writes, byte for byte."""

from __future__ import annotations

import pytest

from tortie.base.addr import parse_net
from tortie.ipam import names
from tortie.ipam.owner import Owner, confirmed
from tortie.model.ipam import BlockAffinity, BlockAffinitySpec

BLOCK = parse_net("10.0.0.0/26")


@pytest.mark.parametrize(
    ("cidr", "name"),
    [
        ("10.0.0.0/26", "10-0-0-0-26"),
        ("fd80::/122", "fd80---122"),
        ("fd80:24e2:f998:72d6::/122", "fd80-24e2-f998-72d6---122"),
        ("192.168.10.7/32", "192-168-10-7-32"),
    ],
)
def test_block(cidr: str, name: str) -> None:
    assert names.block_name(parse_net(cidr)) == name


def test_affinity() -> None:
    assert names.affinity_name("node1", BLOCK) == "node1-10-0-0-0-26"
    assert names.affinity_name("node1", parse_net("fd80::/122")) == "node1-fd80---122"


@pytest.mark.parametrize("length", [*range(235, 254)])
def test_long_affinity_is_cut_and_stays_unique(length: int) -> None:
    host, sibling = "h" * length, "h" * (length - 1) + "x"
    name = names.affinity_name(host, BLOCK)
    assert len(name) <= 252
    assert name != names.affinity_name(sibling, BLOCK)
    plain = f"{host}-10-0-0-0-26"
    assert (name == plain) == (len(plain) < 253)


def test_cut_affinity_ends_with_block_and_digest() -> None:
    name = names.affinity_name("h" * 252, BLOCK)
    # printf '%s+10-0-0-0-26' hhh...h | sha256sum | head -c 11
    assert name == "h" * 228 + "-10-0-0-0-26-d2a8b0ed088"
    assert len(name) == 252


def test_handle_is_lower_case() -> None:
    assert names.handle_name("k8s-pod-network.ABCdef") == "k8s-pod-network.abcdef"


def test_labels() -> None:
    assert names.affinity_labels(Owner("node1"), 4) == {
        "projectcalico.org/hostname-hash": "7DS2CCNJGGLTHBDQLLFO6SX24SY2YDDEG3W2VN556FA2W4DLLV5A",
        "projectcalico.org/affinity-type": "host",
        "projectcalico.org/ip-version": "4",
    }
    assert len(names.hostname_hash("h" * 252)) <= 63


@pytest.mark.parametrize(
    ("owner", "text"), [(Owner("node1"), "host:node1"), (Owner("load-balancer", "virtual"), "virtual:load-balancer")]
)
def test_owner_as_blocks_write_it(owner: Owner, text: str) -> None:
    assert str(owner) == text
    assert Owner.parse(text) == owner


def test_owner_of_an_affinity() -> None:
    spec = BlockAffinitySpec(cidr="10.0.0.0/26", node="a")
    assert Owner.of(BlockAffinity(spec=spec)) == Owner("a")
    assert confirmed(BlockAffinity(spec=spec))
    assert not confirmed(BlockAffinity(spec=BlockAffinitySpec(cidr="10.0.0.0/26", node="a", state="pending")))
