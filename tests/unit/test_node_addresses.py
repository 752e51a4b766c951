"""Which address is a node's: every method, what is told and kept, and conflicts; numbers are Calico's situations."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_interface
from typing import Any

import pytest

from tortie.agent.host import reached_from
from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError
from tortie.calc.node_addresses import (
    Candidate,
    Family,
    Link,
    Sight,
    Told,
    check_told,
    chosen,
    conflict,
    family,
    internal_addresses,
    method,
    ranking,
    recorded,
)
from tortie.cli.node_addresses import addresses_text


def link(name: str, index: int, *addresses: str, up: bool = True) -> Link:
    return Link(name, index, up, tuple(map(ip_interface, addresses)), 1500)


LO = link("lo", 1, "127.0.0.1/8", "::1/128")
ETH0 = link("eth0", 2, "10.2.0.5/24", "fd00:2::5/64", "fe80::5/64")
ETH1 = link("eth1", 3, "192.168.7.4/24")
DOCKER = link("docker0", 4, "172.17.0.1/16")
CALI = link("cali0123", 9, "10.9.9.9/32")
MACHINE = Sight((LO, ETH0, ETH1, DOCKER, CALI))


def found(text: str, version: int = 4, sight: Sight = MACHINE) -> str:
    best = chosen(ranking(method(text), version, sight))
    return best.address if best else ""


def why(text: str, name: str, version: int = 4, sight: Sight = MACHINE) -> str:
    return next(one.why for one in ranking(method(text), version, sight) if one.link == name)


# --- methods ------------------------------------------------------------------------------------------------------


def test_situation_35_cidr() -> None:
    assert found("cidr=10.0.0.0/8") == "10.2.0.5/24"
    assert why("cidr=10.0.0.0/8", "eth1") == "is in none of 10.0.0.0/8"
    assert found("cidr=10.0.0.0/8,192.168.7.9/24") == "192.168.7.4/24"  # the higher index, whichever network


def test_situation_36_interface_expressions_need_not_begin_a_name() -> None:
    sight = Sight((ETH1, CALI))
    assert found("interface=eth.*", sight=sight) == "192.168.7.4/24"
    assert found("interface=h1", sight=sight) == "192.168.7.4/24"
    assert found("interface=^h1", sight=sight) == ""
    assert found("interface=cali", sight=sight) == "10.9.9.9/32"  # what is named is not left out
    assert found("interface=nope, eth", sight=sight) == "192.168.7.4/24"


def test_first_found_walks_backwards_and_leaves_out_what_others_make() -> None:
    """Trap 11 of the situations' list."""
    assert [one.link for one in ranking(method(""), 4, MACHINE)] == ["cali0123", "docker0", "eth1", "eth0", "lo"]
    assert found("first-found") == "192.168.7.4/24"
    assert why("", "docker0") == "links ^docker.* are left out"
    assert why("", "eth0").startswith("would do")
    assert why("", "lo") == "is a loopback address"


@pytest.mark.parametrize(
    "name",
    ["docker0", "cbr0", "dummy1", "podman1", "virbr0", "lxcbr0", "veth12", "lo", "br-12ab", "cali1", "tunl0",
     "flannel.1", "kube-ipvs0", "cni0", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali",
     "nodelocaldns"],
)  # fmt: skip
def test_default_exclusions(name: str) -> None:
    assert found("", sight=Sight((link(name, 5, "192.0.2.1/24"),))) == ""


def test_down_and_local_addresses_are_passed_over() -> None:
    sight = Sight((link("eth5", 5, "192.0.2.5/24", up=False), link("eth4", 4, "169.254.3.4/16"), link("eth3", 3)))
    assert found("", sight=sight) == ""
    assert [one.why for one in ranking(method(""), 4, sight)] == [
        "the link is down",
        "is a link-local address",
        "has no IPv4 address",
    ]
    assert found("", 6) == "fd00:2::5/64"


def test_skip_interface_skips_the_usual_ones_too() -> None:
    assert found("skip-interface=eth1") == "10.2.0.5/24"
    assert found("skip-interface=eth") == ""
    assert why("skip-interface=h1", "eth1") == "eth1 matches h1, to be skipped"


def test_can_reach_takes_the_address_that_packets_would_have() -> None:
    sight = Sight(MACHINE.links, reach=parse_ip("10.2.0.5"))
    assert found("can-reach=10.2.0.1", sight=sight) == "10.2.0.5/24"
    assert found("can-reach=10.2.0.1", sight=Sight(MACHINE.links)) == ""
    assert why("can-reach=www.example.com", "eth1") == "www.example.com cannot be reached"
    assert reached_from("a..b", 4) is None  # which the resolver will not even be asked for


def test_internal_ip_has_the_mask_of_its_interface() -> None:
    status = {"addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.2.0.5"}, 7]}
    sight = Sight(MACHINE.links, internal=internal_addresses(status))
    assert found("kubernetes-internal-ip", sight=sight) == "10.2.0.5/24"
    assert why("kubernetes-internal-ip", "eth1", sight=sight) == "the InternalIP of the Kubernetes Node is 10.2.0.5"
    assert internal_addresses(None) == internal_addresses({"addresses": [{"type": "InternalIP", "address": "x"}]}) == ()


@pytest.mark.parametrize(
    "text", ["nonsense", "interface", "interface=", "cidr=10.0.0.300/8", "interface=[", "can-reach=", "first-found=1"]
)
def test_method_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        method(text)
    assert "\n" not in str(caught.value)


# --- what is told, what is kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "told", "kept", "address", "source"),
    [
        (4, "", "", "192.168.7.4/24", "detected"),
        (4, "", "192.0.2.9/24", "192.0.2.9/24", "kept"),
        (4, "autodetect", "192.0.2.9/24", "192.168.7.4/24", "detected"),
        (4, "none", "192.0.2.9/24", "192.0.2.9/24", "kept"),
        (4, "none", "", "", "none"),
        (4, "10.2.0.5", "", "10.2.0.5/24", "told"),
        (4, "10.2.0.6", "", "10.2.0.6/32", "told"),
        (4, "10.2.0.6/16", "192.0.2.9/24", "10.2.0.6/16", "told"),
        (6, "", "", "", "none"),
        (6, "", "fd00::9/64", "fd00::9/64", "kept"),
        (6, "autodetect", "", "fd00:2::5/64", "detected"),
        (6, "fd00:2::5", "", "fd00:2::5/128", "told"),
    ],
)
def test_address_of_a_family(version: int, told: str, kept: str, address: str, source: str) -> None:
    got = family(version, Told(told), kept, MACHINE)
    assert (got.address, got.source, got.failure) == (address, source, "")


def test_nothing_detected_keeps_what_is_kept_with_a_warning() -> None:
    blind = Sight((LO,))
    kept = family(4, Told("autodetect"), "192.0.2.9/24", blind)
    assert (kept.address, kept.source, kept.failure) == ("192.0.2.9/24", "kept", "")
    assert "192.0.2.9/24 is kept" in kept.warning


@pytest.mark.parametrize(("version", "told"), [(4, ""), (4, "autodetect"), (6, "autodetect")])
def test_nothing_detected_and_nothing_kept_is_a_failure(version: int, told: str) -> None:
    failed = family(version, Told(told, method("interface=eth9")), "", MACHINE)
    assert (failed.address, failed.source) == ("", "none")
    assert failed.failure.startswith(f"no IPv{version} address is found by the method interface=eth9")


def test_address_that_is_not_here_is_a_warning() -> None:
    assert "is not on this machine" in family(4, Told("192.0.2.77/24"), "", MACHINE).warning
    assert family(4, Told("10.2.0.5/24"), "", MACHINE).warning == ""


@pytest.mark.parametrize(
    ("text", "version"), [("10.0.0.300", 4), ("fd00::1", 4), ("10.0.0.1", 6), ("yes", 4), ("fe80::1%eth0", 6)]
)
def test_what_cannot_be_told(text: str, version: int) -> None:
    with pytest.raises(ConfigError, match=f"is not an IPv{version} address"):
        check_told(text, version)


def test_text_says_what_is_taken_and_why_not() -> None:
    found = family(4, Told("192.0.2.77/24"), "", Sight((ETH0, LO)))
    none = spoken(Family(6, failure="why"))
    answer = {"node": "n1", "backend": "bird", "failure": "node n2 has it too", "ipv6": none}
    assert addresses_text({**answer, "ipv4": spoken(found)}) == (
        "n1: node n2 has it too\n"
        "n1: IPv4 192.0.2.77/24, as told\n"
        "  192.0.2.77 is told to be this node's, and is not on this machine\n"
        "  INTERFACE   ADDRESS               WHY\n"
        "  eth0        10.2.0.5/24   ✔       the first that will do; not used, as the node's address is told or kept\n"
        "  lo          127.0.0.1/8   ·       is a loopback address\n"
        "n1: IPv6 none\n"
        "  why\n"
    )
    assert "CALICO_NETWORKING_BACKEND is none" in addresses_text({**answer, "backend": "none"})


def spoken(one: Family) -> dict[str, Any]:
    """As an agent answers."""
    return {**asdict(one), "candidates": [asdict(candidate) for candidate in one.ranking], "method": "first-found"}


# --- what is recorded, and conflicts --------------------------------------------------------------------------------


def test_interfaces_are_recorded_by_name_without_those_of_others() -> None:
    assert recorded(MACHINE.links) == (("eth0", ("10.2.0.5/24", "fd00:2::5/64")), ("eth1", ("192.168.7.4/24",)))


def test_conflicts_are_of_addresses_whatever_their_length() -> None:
    others = [("b", "10.0.0.2/24", ""), ("c", "10.0.0.3/24", "fd00::3/64"), ("odd", "nonsense", "")]
    assert conflict("10.0.0.1/24", "", others) is None
    assert conflict("10.0.0.3/16", "", others) == (4, "c")
    assert conflict("10.0.0.1/24", "fd00::3/128", others) == (6, "c")
    assert conflict("", "", others) is None


def test_ranking_is_of_values() -> None:
    assert ranking(method(""), 6, Sight((ETH0,))) == (
        Candidate("eth0", 2, "fd00:2::5/64", True, "the first that will do"),
        Candidate("eth0", 2, "fe80::5/64", False, "is a link-local address"),
    )
    assert family(6, Told(), "", Sight()) == Family(6)
