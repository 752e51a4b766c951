"""The wireguard backend on values: what is published, who is a peer by which address and port, what is changed of what
the kernel has; and the wire format of its netlink family."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from flannel_nodes import network_config, subnet6_of, subnet_of
from tortie.base.errors import ConfigError
from tortie.flannel.backend import Setting
from tortie.flannel.backends.wireguard import Keys, Wishes, backend, checked, published, state, wishes
from tortie.flannel.key_file import private_key
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.silence import LOOK, Heard, listened
from tortie.flannel.stages.peers import QUIET, SESSION, Look, have_of, looked, plan, want_of
from tortie.flannel.state import Device, External, FlannelState, Peer, Place, Site, Wireguard
from tortie.flannel.state import Path as Route
from tortie.kernel import wireguard
from tortie.kernel.wireguard import changed, clamped, decode

# As wg(8) made them: a private key and its public key, public keys of nodes 2 and 3, a preshared key.
OWN = Keys("6NS83CYxlYl7dcbmp3zG+oqxp3adqr8kkUwtEYxeX3Q=", "cOHAnjnkjSTbbfCPpL6NJExZEzz0glM50HSNYaMsVS0=")
KEYS = {2: "6BGEAxAOgwMjvnZKJAJbPTTcYrTYBDZbFwR6QtQ0VXc=", 3: "wGH5Q7LhmjAxnTP/UuBzlE6U33kzBf3Mc7OMzmZwcW8="}
PSK = "VMI1RNZHqOGEn3pkCzqxJ6HKX4bNOFJJVLVvvWdTqUE="
NOW = 1_800_000_000.0


def place(*, v4: bool = True, v6: bool = False, mtu: int = 1500, **options: Any) -> Place:
    """Node 1, 192.0.2.1 and 2001:db8::1."""
    config = network_config("wireguard", v4=v4, v6=v6, **options)
    ips = ip_address("192.0.2.1"), ip_address("2001:db8::1")
    site = Site(config, External("eth0", 2, mtu, *ips), ips[0] if v4 else None, ips[1] if v6 else None)  # type: ignore[arg-type]
    return Place(site, Lease(subnet_of(1) if v4 else None, subnet6_of(1) if v6 else None, Attrs(), None, "node1"))


def lease(number: int, *, v4: bool = True, v6: bool = False, **attrs: Any) -> Lease:
    data = json.dumps({"PublicKey": KEYS.get(number, KEYS[2]), "Port": 51820})
    data6 = json.dumps({"PublicKey": KEYS.get(number, KEYS[2]), "Port": 51821})
    ips = ip_address(f"192.0.2.{number}"), ip_address(f"2001:db8::{number}")
    made = Attrs(
        ips[0] if v4 else None, ips[1] if v6 else None, "wireguard", data if v4 else None, data6 if v6 else None
    )  # type: ignore[arg-type]
    subnets = subnet_of(number) if v4 else None, subnet6_of(number) if v6 else None
    return Lease(*subnets, replace(made, **attrs), None, f"node{number}")


def wanted(where: Place, *leases: Lease) -> FlannelState:
    return state(wishes(where.site.config), OWN, where, leases)


# --- options --------------------------------------------------------------------------------------------------------


def test_what_is_not_said_has_flannel_s_defaults() -> None:
    assert wishes(network_config("wireguard")) == Wishes("separate", 51820, 51821, "", 0, 0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"Mode": "both"}, 'Backend.Mode: no valid Mode configured: "both" is none of separate, auto, ipv4, ipv6'),
        ({"PSK": "secret"}, "Backend.PSK: is not 32 bytes in base64, as wg genpsk writes them"),
        ({"PSK": PSK[:-4]}, "Backend.PSK: is not 32 bytes in base64, as wg genpsk writes them"),
        ({"ListenPort": 65536}, "Backend.ListenPort: 65536 is not a whole number from 1 to 65535"),
        (
            {"ListenPort": 7, "ListenPortV6": 7},
            "Backend.ListenPortV6: 7 is ListenPort, too: two devices need two ports",
        ),
        ({"PersistentKeepaliveInterval": "25"}, "Backend.PersistentKeepaliveInterval: '25' is not a whole number"),
    ],
)
def test_options_that_are_wrong_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        wishes(network_config("wireguard", v6=True, **options))
    assert str(error.value).startswith(text)


def test_one_port_will_do_for_one_device() -> None:
    assert wishes(network_config("wireguard", ListenPort=7, ListenPortV6=7)).port == 7
    assert wishes(network_config("wireguard", v6=True, Mode="auto", ListenPort=7, ListenPortV6=7)).port == 7


def test_what_a_node_cannot_do_is_said_at_its_start() -> None:
    with pytest.raises(ConfigError, match="MTU of eth0: leaves 1270 bytes to packets, and IPv6 needs 1280"):
        checked(Wishes(), place(v6=True, mtu=1350).site)
    with pytest.raises(ConfigError, match=r"Backend\.MTU: leaves 1120 bytes"):
        checked(Wishes(mtu=1200), place(v6=True).site)
    checked(Wishes(mtu=1200), place().site)
    with pytest.raises(ConfigError, match=r'Backend\.Mode: "ipv6": this node has no public IPv6 address'):
        checked(Wishes(mode="ipv6"), place().site)


# --- what is published ----------------------------------------------------------------------------------------------


def test_flannel_s_data_byte_by_byte() -> None:
    found = published(Wishes(), network_config("wireguard", v6=True), KEYS[2])
    assert found.data == '{"PublicKey":"6BGEAxAOgwMjvnZKJAJbPTTcYrTYBDZbFwR6QtQ0VXc=","Port":51820}'
    assert found.data6 == '{"PublicKey":"6BGEAxAOgwMjvnZKJAJbPTTcYrTYBDZbFwR6QtQ0VXc=","Port":51821}'
    assert published(Wishes(), network_config("wireguard"), KEYS[2]).data6 is None


def test_with_one_tunnel_its_port_is_published_of_both_versions() -> None:
    found = published(Wishes(mode="auto"), network_config("wireguard", v6=True), KEYS[2])
    assert found.data is not None
    assert found.data == found.data6
    assert json.loads(found.data)["Port"] == 51820


# --- devices and routes ---------------------------------------------------------------------------------------------


def test_a_device_for_each_version_or_one_for_both() -> None:
    separate = wanted(place(v6=True))
    assert [(one.name, one.kind, one.mtu, [*map(str, one.addresses)]) for one in separate.devices] == [
        ("flannel-wg", Wireguard(OWN.private, 51820), 1420, ["10.5.1.0/32"]),
        ("flannel-wg-v6", Wireguard(OWN.private, 51821), 1420, ["fd00:5:0:1::/128"]),
    ]
    networks = [family.network for family in place(v6=True).site.config.families]
    assert separate.paths == (
        Route(networks[0], "flannel-wg", scope="link"),
        Route(networks[1], "flannel-wg-v6"),
    )
    single = wanted(place(v6=True, Mode="ipv4", MTU=1400))
    assert [(one.name, one.mtu, [*map(str, one.addresses)]) for one in single.devices] == [
        ("flannel-wg", 1320, ["10.5.1.0/32", "fd00:5:0:1::/128"])
    ]
    assert [path.device for path in single.paths] == ["flannel-wg"] * 2
    assert [device.name for device in wanted(place(v4=False, v6=True)).devices] == ["flannel-wg-v6"]


# --- peers ----------------------------------------------------------------------------------------------------------


def test_separate_peers_are_reached_by_their_subnet_s_own_version() -> None:
    found = wanted(place(v6=True, PSK=PSK, PersistentKeepaliveInterval=25), lease(2, v6=True))
    assert found.problems == ()
    assert found.peers == (
        Peer("flannel-wg", KEYS[2], (ip_address("192.0.2.2"), 51820), (subnet_of(2),), PSK, 25),
        Peer("flannel-wg-v6", KEYS[2], (ip_address("2001:db8::2"), 51821), (subnet6_of(2),), PSK, 25),
    )


@pytest.mark.parametrize(
    ("mode", "endpoint"),
    [("ipv4", ("192.0.2.2", 51820)), ("ipv6", ("2001:db8::2", 51820)), ("auto", ("192.0.2.2", 51820))],
)
def test_one_tunnel_has_both_subnets_and_the_port_that_is_listened_at(mode: str, endpoint: tuple[str, int]) -> None:
    """A node of flannel's publishes ListenPortV6 as well, where it does not listen with one tunnel."""
    (peer,) = wanted(place(v6=True, Mode=mode), lease(2, v6=True)).peers
    assert (str(peer.endpoint[0]), peer.endpoint[1]) == endpoint
    assert peer.allowed == (subnet_of(2), subnet6_of(2))


AUTO = [  # remote IPv4, remote IPv6, own IPv4, own IPv6: by which version
    ("192.0.2.2", None, "10.0.0.1", "2001:db8::1", 4),
    ("192.0.2.2", "2001:db8::2", "10.0.0.1", "2001:db8::1", 4),
    ("10.0.0.2", "2001:db8::2", "10.0.0.1", "2001:db8::1", 6),
    ("172.31.0.2", "2001:db8::2", "192.0.2.1", "2001:db8::1", 6),
    ("10.0.0.2", "fd00::2", "10.0.0.1", "2001:db8::1", 4),
    ("10.0.0.2", "2001:db8::2", "10.0.0.1", "fd00::1", 4),
    (None, "fd00::2", "10.0.0.1", "fd00::1", 6),
    ("10.0.0.2", "2001:db8::2", None, "fd00::1", 6),
]


@pytest.mark.parametrize(("v4", "v6", "own4", "own6", "version"), AUTO)
def test_auto(v4: str | None, v6: str | None, own4: str | None, own6: str | None, version: int) -> None:
    def ip(text: str | None) -> Any:
        return None if text is None else ip_address(text)

    where = place(v6=True, Mode="auto")
    where = replace(where, site=replace(where.site, public_ip=ip(own4), public_ipv6=ip(own6)))
    (peer,) = wanted(where, lease(2, v6=True, public_ip=ip(v4), public_ipv6=ip(v6))).peers
    assert peer.endpoint[0].version == version


def test_a_port_that_is_not_said_is_this_node_s_own() -> None:
    for data in ({"PublicKey": KEYS[2], "Port": 0}, {"PublicKey": KEYS[2]}, {"publickey": KEYS[2], "PORT": None}):
        (peer,) = wanted(place(ListenPort=7), lease(2, data=json.dumps(data))).peers
        assert peer.endpoint[1] == 7
    both = lease(2, v6=True, data6=json.dumps({"PublicKey": KEYS[2]}))
    assert [peer.endpoint[1] for peer in wanted(place(v6=True, ListenPortV6=8), both).peers] == [51820, 8]


def test_one_key_has_one_way_to_be_written() -> None:
    """The kernel tells it in that: another would be set again and again."""
    loose = KEYS[2].replace("c=", "d=")
    (peer,) = wanted(place(), lease(2, data=json.dumps({"PublicKey": loose, "Port": 1}))).peers
    assert peer.key == KEYS[2]


@pytest.mark.parametrize(
    ("attrs", "text"),
    [
        ({"data": None}, "node node2: its lease has no BackendData: no key, no port"),
        ({"data": "null"}, "node node2: its lease has no BackendData: no key, no port"),
        ({"data": "{"}, "node node2: BackendData { is not JSON: "),
        ({"data": "[]"}, "node node2: BackendData [] has no PublicKey of 32 bytes in base64"),
        ({"data": '{"PublicKey":"x"}'}, 'node node2: BackendData {"PublicKey":"x"} has no PublicKey'),
        ({"data": json.dumps({"PublicKey": KEYS[2], "Port": 99999})}, "node node2: BackendData {"),
        ({"public_ip": None}, "node node2: its lease has no public IPv4 address, by which it is to be reached"),
    ],
)
def test_a_lease_that_is_wrong_is_told_and_keeps_no_other_out(attrs: dict[str, Any], text: str) -> None:
    found = wanted(place(), lease(2, **attrs), lease(3))
    assert [peer.key for peer in found.peers] == [KEYS[3]]
    (line,) = found.problems
    assert line.startswith(text)


def test_subnets_that_cannot_be_another_node_s_are_not_let_in() -> None:
    stranger = replace(lease(2), subnet=ip_network("10.9.2.0/24"))
    thief = replace(lease(3), subnet=subnet_of(1))
    found = wanted(place(), stranger, thief)  # type: ignore[arg-type]
    assert found.peers == ()
    assert sorted(found.problems) == [
        "node node2: its subnet 10.9.2.0/24 is outside of the network 10.5.0.0/16",
        "node node3: its subnet 10.5.1.0/24 overlaps this node's own 10.5.1.0/24: one of them needs another",
    ]


def test_this_node_s_own_key_is_no_peer() -> None:
    found = wanted(place(), lease(2, data=json.dumps({"PublicKey": OWN.public, "Port": 1})))
    assert found.peers == ()
    assert "has this node's own key" in found.problems[0]


def test_of_two_leases_with_one_key_the_newer_says_where_the_node_is() -> None:
    """A node that has lost its subnet leaves a lease behind, in etcd for a day."""
    old, new = replace(lease(2), expires=NOW), replace(lease(4), expires=NOW + 60)
    for leases in ((old, new), (new, old)):
        found = wanted(place(), *leases)
        (peer,) = found.peers
        assert str(peer.endpoint[0]) == "192.0.2.4"
        assert peer.allowed == (subnet_of(4), subnet_of(2))
        assert found.problems == ("node node2: has the key of node node4: packets for both go to that one",)


def test_a_subnet_belongs_to_one_key() -> None:
    """The kernel would give it to whom it was told last, again and again."""
    two, three = replace(lease(2), expires=NOW), replace(lease(3), subnet=subnet_of(2), expires=NOW + 60)
    found = wanted(place(), two, three)
    assert [(peer.key, peer.allowed) for peer in found.peers] == [(KEYS[3], (subnet_of(2),))]
    assert found.problems == ("node node2: its subnet 10.5.2.0/24 is that of node node3, too",)


def test_the_order_of_leases_makes_no_difference() -> None:
    leases = [lease(2, v6=True), lease(3, v6=True), replace(lease(4), expires=NOW)]
    for mode in ("separate", "auto"):
        assert wanted(place(v6=True, Mode=mode), *leases) == wanted(place(v6=True, Mode=mode), *reversed(leases))


# --- the key's file -------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "run" / "wgkey"
    made = private_key(file)
    assert private_key(file) == made == file.read_text() == clamped(made)
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    assert os.listdir(file.parent) == ["wgkey"]


def test_a_key_of_somebody_s_is_taken_as_the_kernel_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "key"
    file.write_text(f"{PSK}\n")
    assert private_key(file) == clamped(PSK) != PSK
    assert "others than its owner may use it" in caplog.text


@pytest.mark.parametrize("text", ["", "secret", PSK[:-4], "A" * 43 + "=", "\xff\xfe"])
def test_a_file_that_holds_no_key_is_named_and_stays(tmp_path: Path, text: str) -> None:
    file = tmp_path / "wgkey"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        private_key(file)
    assert str(error.value).startswith(f"{file}: is not a private key, 32 bytes in base64")
    assert file.read_bytes() == text.encode("latin-1")


def test_a_place_where_no_file_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/wgkey: cannot be"):
        private_key(tmp_path / "file" / "wgkey")


def test_the_backend_is_there_by_its_name(tmp_path: Path) -> None:
    made = backend(network_config("wireguard"), Setting(tmp_path))
    assert (made.published_type, made.versions, made.watches, made.asks_ways) == ("wireguard", {4, 6}, True, False)
    assert made.mtu(place().site) == 1420


# --- what is changed of what there is -------------------------------------------------------------------------------

HERE, ELSEWHERE = (ip_address("192.0.2.2"), 51820), (ip_address("203.0.113.9"), 40000)


WHERE = ("wg0", KEYS[2])


def steps(want: wireguard.Peer, have: wireguard.Peer, told: Any = None, quiet: bool = False) -> str:
    return str(plan({WHERE: want}, {WHERE: have}, {WHERE: told} if told else {}, {WHERE} if quiet else set(), NOW))


def test_nothing_is_done_to_what_is_right() -> None:
    device = Device("wg0", Wireguard(OWN.private, 7), 1420)
    peer = Peer("wg0", KEYS[2], HERE, (subnet_of(2),), PSK, 25)
    want = want_of(FlannelState(devices=(device,), peers=(peer,)), {"wg0"})
    there = wireguard.Peer(KEYS[2], HERE, frozenset({subnet_of(2)}), PSK, 25, handshake=NOW, received=1, sent=2)
    kernel = wireguard.Device(OWN.private, OWN.public, 7, (there,))
    assert not plan(want, have_of("wg0", kernel), {}, set(), NOW)
    anew = plan(want, have_of("wg0", wireguard.Device("", "", 0, ())), {}, set(), NOW)
    assert str(anew) == (
        "wg set wg0 private-key /dev/stdin\n"
        "wg set wg0 listen-port 7\n"
        f"wg set wg0 peer {KEYS[2]} endpoint 192.0.2.2:51820 preshared-key /dev/stdin persistent-keepalive 25"
        " allowed-ips 10.5.2.0/24"
    )
    assert not any(secret in text for secret in (OWN.private, PSK) for text in (str(anew), repr(peer), repr(device)))


def test_a_device_that_is_not_there_is_another_stage_s() -> None:
    peer = Peer("wg0", KEYS[2], HERE, (subnet_of(2),))
    assert want_of(FlannelState(devices=(Device("wg0", Wireguard(OWN.private, 7), 1420),), peers=(peer,)), set()) == {}


def test_a_peer_that_has_roamed_stays_where_it_is_heard_from() -> None:
    want = wireguard.Peer(KEYS[2], HERE)
    assert not steps(want, replace(want, endpoint=ELSEWHERE, handshake=NOW - SESSION + 1))
    assert "endpoint 192.0.2.2:51820" in steps(want, replace(want, endpoint=ELSEWHERE, handshake=NOW - SESSION))
    assert "endpoint 192.0.2.2:51820" in steps(want, replace(want, endpoint=ELSEWHERE))
    assert "endpoint 192.0.2.2:51820" in steps(want, replace(want, endpoint=None, handshake=NOW))


def test_a_peer_that_does_not_answer_where_it_is_said_to_be_has_not_roamed() -> None:
    want = wireguard.Peer(KEYS[2], HERE)
    old = replace(want, endpoint=ELSEWHERE, handshake=NOW)
    assert not steps(want, old)
    assert "endpoint 192.0.2.2:51820" in steps(want, old, quiet=True)


def test_another_port_or_ip_version_is_another_configuration() -> None:
    want = wireguard.Peer(KEYS[2], HERE)
    six = replace(want, endpoint=(ip_address("2001:db8::2"), 51820), handshake=NOW)
    assert "endpoint 192.0.2.2:51820" in steps(want, six)
    old = replace(want, endpoint=ELSEWHERE, handshake=NOW)
    ports = {("wg0", "listen-port"): 51820}, {("wg0", "listen-port"): 7777}
    assert "endpoint 192.0.2.2:51820" in str(plan({WHERE: want, **ports[0]}, {WHERE: old, **ports[1]}, {}, set(), NOW))
    assert not plan({WHERE: want, **ports[0]}, {WHERE: old, **ports[0]}, {}, set(), NOW)


def answers(*looks: tuple[float, int, int]) -> bool:
    """Of times, bytes sent and received."""
    found: dict[Any, Look] = {}
    for at, sent, received in looks:
        found = looked({WHERE: wireguard.Peer(KEYS[2], sent=sent, received=received)}, found, at)
    return found[WHERE].answers


def test_who_answers() -> None:
    assert answers((0, 100, 0))
    assert answers((0, 100, 0), (QUIET - 1, 200, 0)), "it may be about to"
    assert not answers((0, 100, 0), (QUIET - 1, 200, 0), (QUIET, 300, 0))
    assert not answers((0, 100, 0), (QUIET, 200, 0), (QUIET + 1, 200, 50)), "until it is looked at again"
    assert answers((0, 100, 0), (QUIET, 200, 0), (QUIET * 2, 300, 50))
    assert answers((0, 100, 0), (QUIET, 100, 0)), "nobody asks it"
    assert answers((0, 100, 5), (QUIET, 0, 0)), "the device is a new one"


def test_a_node_that_says_it_has_moved_is_believed_at_once() -> None:
    want = wireguard.Peer(KEYS[2], HERE)
    old = replace(want, endpoint=ELSEWHERE, handshake=NOW)
    assert "endpoint 192.0.2.2:51820" in steps(want, old, told=ELSEWHERE)
    assert not steps(want, old, told=HERE)


def test_what_is_taken_away_from_a_peer_is_in_the_transcript() -> None:
    want = wireguard.Peer(KEYS[2], HERE, frozenset({subnet_of(2)}))
    assert steps(want, replace(want, psk=PSK, keepalive=25)) == (
        f"wg set wg0 peer {KEYS[2]} endpoint 192.0.2.2:51820 preshared-key /dev/null persistent-keepalive 0"
        " allowed-ips 10.5.2.0/24"
    )


def test_a_peer_that_goes_goes_last() -> None:
    new, old = wireguard.Peer(KEYS[2], HERE, frozenset({subnet_of(2)})), wireguard.Peer(KEYS[3], HERE)
    found = plan({("wg0", KEYS[2]): new}, {("wg0", KEYS[3]): old}, {}, set(), NOW)
    assert [op.makes for op in found] == [True, False]
    assert str(found).endswith(f"wg set wg0 peer {KEYS[3]} remove")


# --- who does not answer --------------------------------------------------------------------------------------------


def heard(*looks: tuple[int, float]) -> bool:
    """Of bytes sent and the last handshake, at looks ten seconds apart, up to NOW."""
    found: dict[str, Heard] = {}
    for number, (sent, handshake) in enumerate(looks, 1 - len(looks)):
        found = listened([wireguard.Peer(KEYS[2], handshake=handshake, sent=sent)], found, NOW + number * LOOK)
    return found[KEYS[2]].silent


def test_who_is_sent_to_again_and_again_and_never_answers_is_silent() -> None:
    assert heard((0, 0), (148, 0), (296, 0))
    assert not heard((0, 0), (148, 0), (296, 0), (296, 0)), "nobody sends to it any more"
    assert not heard((0, 0), (148, 0)), "it may be about to"
    assert not heard((500, 0), (500, 0), (500, 0)), "nobody sends to it"
    assert not heard((0, 0), (148, 0), (296, 0), (444, NOW - 1)), "it has, at last"


def test_who_answered_a_while_ago_may_be_silent_now() -> None:
    assert heard((1000, NOW - 300), (1148, NOW - 300), (1296, NOW - 300))
    assert not heard((1000, NOW - 100), (1148, NOW - 100), (1296, NOW - 100))


# --- the wire -------------------------------------------------------------------------------------------------------


def test_no_more_is_told_than_what_differs() -> None:
    """A network is never away for a moment because another is added."""
    nets = frozenset({subnet_of(2), subnet6_of(2)})
    old = wireguard.Peer(KEYS[2], HERE, frozenset({subnet_of(2)}), PSK, 25)
    assert changed(replace(old, keepalive=0), old) == {"public_key": KEYS[2], "flags": 4, "keepalive": 0}
    more = changed(replace(old, allowed=nets), old)
    assert (more["flags"], more["allowed"]) == (4, [{"family": 10, "address": "fd00:5:0:2::", "mask": 64}])
    less = changed(old, replace(old, allowed=nets))
    assert (less["flags"], less["allowed"]) == (6, [{"family": 2, "address": "10.5.2.0", "mask": 24}])
    assert changed(replace(old, allowed=frozenset()), old)["flags"] == 6
    assert changed(replace(old, psk=""), old)["preshared_key"] == ""
    anew = changed(old, None)
    assert (anew["flags"], anew["endpoint"], anew["preshared_key"], anew["keepalive"]) == (2, HERE, PSK, 25)


def test_a_peer_byte_by_byte() -> None:
    """By hand, from linux/wireguard.h and linux/in.h."""
    key = bytes(range(1, 33))
    peer = wireguard.Peer(wireguard.Key().unpack(key), HERE, frozenset({subnet_of(2)}))
    packed = wireguard.WGDEVICE.pack({"cmd": 1, "version": 1, "ifname": "wg0", "peers": [changed(peer, None)]})
    assert packed.hex(" ", -4) == " ".join(
        (
            "01010000",  # genlmsghdr
            "08000200 77673000",  # WGDEVICE_A_IFNAME
            "68000880 64000080",  # WGDEVICE_A_PEERS, and one of them
            "24000100 " + key.hex(" ", -4),  # WGPEER_A_PUBLIC_KEY
            "08000300 02000000",  # WGPEER_A_FLAGS: WGPEER_F_REPLACE_ALLOWEDIPS
            "14000400 0200ca6c c0000202 00000000 00000000",  # WGPEER_A_ENDPOINT: sockaddr_in
            "20000980 1c000080",  # WGPEER_A_ALLOWEDIPS, and one of them
            "06000100 02000000 08000200 0a050200 05000300 18000000",  # family, address, mask
        )
    )


def test_a_device_in_several_messages_is_one() -> None:
    """The kernel goes on with the peer that the message before ended with."""
    nets = [subnet_of(number) for number in range(2, 6)]
    peers = [wireguard.Peer(KEYS[2], HERE, frozenset(nets[:2])), wireguard.Peer(KEYS[2], None, frozenset(nets[2:]))]
    about = {"ifname": "wg0", "private_key": OWN.private, "public_key": OWN.public, "listen_port": 7}
    parts = [
        wireguard.WGDEVICE.pack({**about, "peers": [changed(peers[0], None) | {"rx_bytes": 8}]}),
        wireguard.WGDEVICE.pack({"ifname": "wg0", "peers": [changed(peers[1], None), {"public_key": KEYS[3]}]}),
    ]
    found = decode(parts)
    assert (found.private_key, found.public_key, found.port) == (OWN.private, OWN.public, 7)
    assert found.peers == (replace(peers[0], allowed=frozenset(nets)), wireguard.Peer(KEYS[3]))
    assert found.peers[0].received == 8


@pytest.mark.parametrize("endpoint", [HERE, (ip_address("2001:db8::2"), 1), (ip_address("::1"), 65535)])
def test_endpoints_of_both_versions(endpoint: Any) -> None:
    assert wireguard.Endpoint().unpack(wireguard.Endpoint().pack(endpoint)) == endpoint


@pytest.mark.parametrize("data", ["", "02", "0a00ca6c c0000202 00000000 00000000", "0200ca6c c0000202"])
def test_what_is_no_endpoint_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match="belongs"):
        wireguard.Endpoint().unpack(bytes.fromhex(data))


def test_zeroes_are_no_key() -> None:
    assert wireguard.Key().unpack(bytes(32)) == ""
    assert wireguard.Key().pack("") == bytes(32)
    for wrong in ("A" * 43 + "=", "", "????"):
        with pytest.raises(ValueError):
            wireguard.canonical(wrong)
