"""Which subnet a node gets, of what is leased; and what is remembered when etcd has forgotten."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.flannel.config import NetworkConfig, checked, parse
from tortie.flannel.lease import Attrs, Lease, key_of, subnets
from tortie.flannel.manager import Previous
from tortie.flannel.remembered import TTL, Known
from tortie.flannel.subnet import CANDIDATES, Choice, choose, merged

OWN = Attrs(IPv4Address("192.0.2.7"))
NONE = Previous()
LATER = 1e9


def network(**keys: Any) -> NetworkConfig:
    return checked(parse(json.dumps({"Network": "10.5.0.0/16"} | keys), "config"))


DUAL = {"EnableIPv6": True, "IPv6Network": "fc00::/48"}


def entry(key: str, ip: str = "192.0.2.9", expires: float | None = LATER) -> tuple[str, Lease]:
    return key, Lease(*subnets(key), Attrs(IPv4Address(ip)), expires)


def ours(key: str, expires: float | None = LATER) -> tuple[str, Lease]:
    return entry(key, str(OWN.public_ip), expires)


def chosen(
    config: NetworkConfig, *entries: tuple[str, Lease], previous: Previous = NONE, attrs: Attrs = OWN, seed: int = 1
) -> Choice:
    return choose(config, dict(entries), attrs, previous, Random(seed))


def had(subnet: str, subnet6: str | None = None) -> Previous:
    return Previous(IPv4Network(subnet), IPv6Network(subnet6) if subnet6 else None)


def test_our_own_entry_is_renewed() -> None:
    """Situation 106."""
    choice = chosen(network(), entry("10.5.1.0-24"), ours("10.5.52.0-24"), previous=had("10.5.60.0/24"))
    assert choice == Choice(IPv4Network("10.5.52.0/24"), None, entry="10.5.52.0-24")


def test_one_that_does_not_fit_goes_for_another() -> None:
    choice = chosen(network(SubnetLen=26), ours("10.5.52.0-24"))
    assert (choice.entry, choice.instead, choice.subnet.prefixlen) == ("", ("10.5.52.0-24",), 26)
    assert chosen(network(SubnetMin="10.5.60.0"), ours("10.5.52.0-24")).instead == ("10.5.52.0-24",)


def test_the_last_subnet_file_is_asked() -> None:
    """Situation 107."""
    assert str(chosen(network(), previous=had("10.5.60.0/24")).subnet) == "10.5.60.0/24"


@pytest.mark.parametrize("taken", ["10.5.60.0-24", "10.5.60.128-25", "10.5.0.0-16", "10.5.56.0-21"])
def test_but_not_when_somebody_has_it(taken: str) -> None:
    config = network(SubnetLen=24, SubnetMin="10.5.0.0")
    if taken == "10.5.0.0-16":
        with pytest.raises(ConfigError, match=r"^out of subnets"):
            chosen(config, entry(taken), previous=had("10.5.60.0/24"))
    else:
        found = chosen(config, entry(taken), previous=had("10.5.60.0/24")).subnet
        assert not found.overlaps(IPv4Network("10.5.60.0/24"))


@pytest.mark.parametrize("previous", ["10.5.60.0/25", "10.6.1.0/24", "10.5.0.0/24"])
def test_nor_when_the_network_could_not_give_it(previous: str) -> None:
    assert str(chosen(network(), previous=had(previous)).subnet) != previous


def test_free_ones_by_chance() -> None:
    config = network()
    found = {str(chosen(config, entry("10.5.1.0-24"), seed=seed).subnet) for seed in range(2000)}
    assert found == {f"10.5.{number}.0/24" for number in range(2, 2 + CANDIDATES)}


def test_the_last_free_one() -> None:
    config = network(SubnetMax="10.5.4.0")
    taken = [entry(f"10.5.{number}.0-24") for number in (1, 2, 4)]
    assert str(chosen(config, *taken).subnet) == "10.5.3.0/24"
    with pytest.raises(ConfigError, match=r"out of subnets: all from 10\.5\.1\.0 to 10\.5\.4\.0 \(/24\) are leased"):
        chosen(config, *taken, entry("10.5.3.0-24"))


def test_what_nobody_can_read_is_taken_all_the_same() -> None:
    config = network(SubnetMax="10.5.2.0")
    strange = ("10.5.1.0-24", Lease(IPv4Network("10.5.1.0/24"), None, Attrs(), LATER))
    assert str(chosen(config, strange).subnet) == "10.5.2.0/24"


def test_reservations() -> None:
    """Situation 110: this node's is taken, and stays one; another node's is not to be had."""
    mine = chosen(network(), ours("10.5.50.0-24"), ours("10.5.60.0-24", None), previous=had("10.5.50.0/24"))
    assert mine == Choice(IPv4Network("10.5.60.0/24"), None, entry="10.5.60.0-24", reserved=True)
    config = network(SubnetMax="10.5.1.0")
    with pytest.raises(ConfigError, match="out of subnets"):
        chosen(config, entry("10.5.1.0-24", expires=None))


def test_of_several_entries_the_last_subnet_files() -> None:
    entries = [ours("10.5.50.0-24"), ours("10.5.60.0-24")]
    assert chosen(network(), *entries, previous=had("10.5.60.0/24")).entry == "10.5.60.0-24"
    assert chosen(network(), *entries).entry == "10.5.50.0-24"


def test_dual_stack() -> None:
    """Each version for itself."""
    config = network(**DUAL)
    choice = chosen(config, entry("10.5.60.0-24&fc00:0:0:6::-64"), previous=had("10.5.60.0/24", "fc00:0:0:7::/64"))
    assert str(choice.subnet) != "10.5.60.0/24"
    assert str(choice.subnet6) == "fc00:0:0:7::/64"
    mine = chosen(config, ours("10.5.60.0-24&fc00:0:0:6::-64"))
    assert mine.entry == "10.5.60.0-24&fc00:0:0:6::-64"


def test_ipv6_comes_later() -> None:
    """The IPv4 subnet stays, and so does a reservation of it."""
    choice = chosen(network(**DUAL), ours("10.5.60.0-24", None), entry("10.5.1.0-24&fc00:0:0:1::-64"))
    assert (str(choice.subnet), choice.entry, choice.instead) == ("10.5.60.0/24", "", ("10.5.60.0-24",))
    assert choice.reserved
    assert choice.subnet6 not in (None, IPv6Network("fc00:0:0:1::/64"))


def test_and_goes() -> None:
    choice = chosen(network(), ours("10.5.60.0-24&fc00:0:0:6::-64"))
    assert (str(choice.subnet), choice.subnet6, choice.instead) == (
        "10.5.60.0/24", None, ("10.5.60.0-24&fc00:0:0:6::-64",)
    )  # fmt: skip


def test_a_reservation_that_cannot_be_had_does_not_make_another_subnet_one() -> None:
    choice = chosen(network(), ours("10.9.1.0-24", None))
    assert (choice.instead, choice.reserved) == (("10.9.1.0-24",), False)


def test_a_key_in_another_spelling_is_written_in_ours() -> None:
    choice = chosen(network(**DUAL), ours("10.5.60.0-24&FC00:0:0:6::-64"))
    assert (str(choice.subnet), str(choice.subnet6), choice.entry) == ("10.5.60.0/24", "fc00:0:0:6::/64", "")
    assert choice.instead == ("10.5.60.0-24&FC00:0:0:6::-64",)


@given(
    taken=st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(16, 28)), max_size=30),
    length=st.integers(18, 26),
    seed=st.integers(0, 99),
)
def test_nobody_gets_what_somebody_has(taken: list[tuple[int, int]], length: int, seed: int) -> None:
    config = network(SubnetLen=length)
    assert config.v4 is not None
    nets = [IPv4Network((0x0A050000 + at, bits), strict=False) for at, bits in taken]
    entries = [entry(key_of(net)) for net in nets]
    try:
        found = chosen(config, *entries, seed=seed).subnet
    except ConfigError:
        possible = config.v4.network.subnets(new_prefix=length)
        next(possible)
        assert all(any(net.overlaps(one) for net in nets) for one in possible)
        return
    assert not any(found.overlaps(net) for net in nets)
    assert found.prefixlen == length
    assert config.v4.first <= found.network_address <= config.v4.last


def test_a_large_network_is_not_walked() -> None:
    """4 billion subnets, of which some thousands are taken."""
    config = network(EnableIPv6=True, IPv6Network="fc00::/32")
    taken = [
        entry(key_of(IPv4Network((0x0A060000 + n * 256, 24)), IPv6Network(((0xFC00 << 112) + (n << 64), 64))))
        for n in range(1, 3000)
    ]
    choice = chosen(config, *taken)
    assert choice.subnet6 is not None
    number = (int(choice.subnet6.network_address) >> 64) & 0xFFFFFFFF
    assert 3000 <= number < 3000 + CANDIDATES


def test_ranges_are_apart() -> None:
    nets = [IPv4Network(text) for text in ("10.0.0.0/25", "10.0.0.128/25", "10.0.0.0/26", "10.9.0.0/24")]
    assert merged(nets) == [(0x0A000000, 0x0A0000FF), (0x0A090000, 0x0A0900FF)]


# --- what is remembered -----------------------------------------------------------------------------------------------

A, B, C = entry("10.5.1.0-24", "192.0.2.1"), entry("10.5.2.0-24", "192.0.2.2"), entry("10.5.3.0-24", "192.0.2.3", None)
NOW = LATER - 1000


def after_loss() -> Known:
    """A, B and C were known, and etcd was restarted empty."""
    return Known(dict((A, B, C))).listed({}, False, NOW)


def test_a_list_of_the_same_history_is_believed() -> None:
    assert Known(dict((A, B))).listed(dict([A]), True, NOW).all == dict([A])


def test_what_another_history_lacks_is_remembered() -> None:
    assert after_loss().all == dict((A, B, C))
    assert after_loss().stored == {}


def test_until_it_would_have_expired() -> None:
    """A reservation for a day, since somebody may have taken it back."""
    known = after_loss()
    assert known.next_end == LATER
    assert known.listed({}, True, LATER + 1).all == dict([C])
    assert known.listed({}, True, NOW + TTL + 1).all == {}
    assert Known().next_end is None


def test_or_until_somebody_else_has_its_subnet() -> None:
    new = entry("10.5.1.0-25", "192.0.2.8")
    assert after_loss().changed([new], NOW).all == dict((new, B, C))
    assert after_loss().listed(dict([new]), True, NOW).all == dict((new, B, C))


def test_or_it_is_somewhere_else() -> None:
    moved = entry("10.5.77.0-24", "192.0.2.2")
    assert after_loss().changed([moved], NOW).all == dict((moved, A, C))


def test_or_it_is_published_again() -> None:
    known = after_loss().changed([A], NOW)
    assert (known.stored, known.remembered) == (dict([A]), dict((B, (C[0], replace(C[1], expires=NOW + TTL)))))
    assert known.changed([(A[0], None)], NOW).all == dict((B, C)), "what is deleted then is gone"


def test_a_second_loss_forgets_nobody() -> None:
    known = after_loss().changed([A], NOW).listed({}, False, NOW)
    assert known.all == dict((A, B, C))


def test_changes() -> None:
    known = Known(dict((A, B)))
    assert known.changed([C, (A[0], None), ("nobody", None)], NOW).all == dict((B, C))
