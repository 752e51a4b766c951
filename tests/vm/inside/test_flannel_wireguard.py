"""flannel's wireguard backend on a stock kernel: packets between pods, what wg(8) says of the devices, restarts that
keep sessions, and what is wrong with keys."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from flannel_daemons import Daemon, Town, until
from flannel_nodes import FlannelNode, Wire, all_know, answered, network_config, paths, pod_ip
from namespaces import Ns, namespaces
from overlay_kernel import device, pinging
from tortie.base.errors import ConfigError
from tortie.dataplane.converge import converge
from tortie.flannel.backend import Setting
from tortie.flannel.backends.wireguard import WireguardTunnels, wishes
from tortie.flannel.state import FlannelState, Peer
from tortie.kernel.netns import entered
from tortie.kernel.wireguard import new_private_key

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("wg") is None, reason="needs wg: apt install wireguard-tools"),
]

GUEST_PACE = 0.05
"""Seconds from one ping to the next: everything takes ten times as long here as on a machine that is not emulated."""
GUEST_PATIENCE = 180.0
"""Seconds for a daemon to start. It takes a tenth of that on a machine that has nothing else to do."""
PSK = "VMI1RNZHqOGEn3pkCzqxJ6HKX4bNOFJJVLVvvWdTqUE="


@dataclass(frozen=True)
class Told:
    """A peer as `wg show DEV dump` has it."""

    psk: str
    endpoint: str
    allowed: str
    handshake: int
    keepalive: str


def dump(ns: Ns, name: str = "flannel-wg") -> tuple[list[str], dict[str, Told]]:
    """Private key, public key and port; and the peers by their keys."""
    first, *rest = ns.run("wg", "show", name, "dump").splitlines()
    peers = {}
    for line in rest:
        key, psk, endpoint, allowed, handshake, _, _, keepalive = line.split("\t")
        peers[key] = Told(psk, endpoint, allowed, int(handshake), keepalive)
    return first.split("\t")[:3], peers


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FlannelNode]]:
    """Three of them; to make new ones takes longer here than most tests."""
    run = tmp_path_factory.mktemp("run")
    for make_ns in namespaces():
        wire = Wire(make_ns)
        config = network_config("wireguard")
        yield [wire.node(number, config, setting=Setting(run / str(number))) for number in (1, 2, 3)]


def started(nodes: Sequence[FlannelNode], *, v6: bool = False, **options: Any) -> list[FlannelNode]:
    """They know one another, with these options."""
    for node in nodes:
        node.config = network_config("wireguard", v6=v6, **options)
        node.start()
    all_know(nodes)
    return list(nodes)


def key_of(node: FlannelNode, name: str = "flannel-wg") -> str:
    return dump(node.ns, name)[0][1]


def unanswered(a: FlannelNode, b: FlannelNode) -> bool:
    """Whether no ping of two seconds is: where keys are right, the first one is."""
    return not answered(a.pod, pod_ip(b.number), "-w", "2")


def ended(node: FlannelNode) -> None:
    with entered(node.ns.path):
        asyncio.run(node.backend.end())


# --- packets, and what wg says --------------------------------------------------------------------------------------


def test_pods_reach_one_another_encrypted(nodes: list[FlannelNode]) -> None:
    a, b = started(nodes[:2])
    assert a.reaches(b)
    (private, public, port), peers = dump(a.ns)
    file = a.setting.run_dir / "wgkey"
    assert (private, port) == (file.read_text(), "51820")
    assert a.ns.run("wg", "pubkey", stdin=private).strip() == public
    assert a.lease.attrs.data == f'{{"PublicKey":"{public}","Port":51820}}'
    (peer,) = peers.values()
    assert replace(peer, handshake=0) == Told("(none)", "192.0.2.2:51820", "10.5.2.0/24", 0, "off")
    assert peer.handshake > 0
    assert list(peers) == [key_of(b)]
    found = device(a.ns, "flannel-wg")
    assert (found["mtu"], found["up"], found["addresses"]) == (1420, True, ["10.5.1.0/32"])
    assert paths(a.ns) == {"10.5.0.0/16": ("flannel-wg",)}
    (route,) = a.ns.json("-4", "route", "show", "10.5.0.0/16")
    assert route["scope"] == "link"
    # A packet of the largest size that pods may send passes as it is.
    assert "1 received" in a.pod.run("ping", "-c1", "-W5", "-M", "do", "-s", "1392", "10.5.2.2", check=False)


def test_three_nodes_with_a_preshared_key_and_keepalives(nodes: list[FlannelNode]) -> None:
    a, b, c = started(nodes, PSK=PSK, PersistentKeepaliveInterval=25, ListenPort=7777)
    peers = dump(a.ns)[1]
    assert {key: replace(peer, handshake=0) for key, peer in peers.items()} == {
        key_of(b): Told(PSK, "192.0.2.2:7777", "10.5.2.0/24", 0, "25"),
        key_of(c): Told(PSK, "192.0.2.3:7777", "10.5.3.0/24", 0, "25"),
    }
    assert a.reaches(b)
    assert c.reaches(a)
    assert c.reaches(b)
    a.know([b.lease])  # c goes
    assert list(dump(a.ns)[1]) == [key_of(b)]
    assert a.reaches(b)


def test_both_versions_by_devices_of_their_own(nodes: list[FlannelNode]) -> None:
    a, b = started(nodes[:2], v6=True)
    assert a.reaches(b)
    assert a.reaches(b, 6)
    assert dump(a.ns)[1][key_of(b)].allowed == "10.5.2.0/24"
    (told,) = dump(a.ns, "flannel-wg-v6")[1].values()
    assert (told.endpoint, told.allowed) == ("[2001:db8::2]:51821", "fd00:5:0:2::/64")
    assert key_of(a) == key_of(a, "flannel-wg-v6")
    assert device(a.ns, "flannel-wg-v6")["addresses"] == ["fd00:5:0:1::/128"]
    assert paths(a.ns) == {"10.5.0.0/16": ("flannel-wg",), "fd00:5::/48": ("flannel-wg-v6",)}


@pytest.mark.parametrize(("mode", "endpoint"), [("auto", "192.0.2.2:51820"), ("ipv6", "[2001:db8::2]:51820")])
def test_both_versions_by_one_device(nodes: list[FlannelNode], mode: str, endpoint: str) -> None:
    a, b = started(nodes[:2], v6=True, Mode=mode)
    assert a.reaches(b)
    assert a.reaches(b, 6)
    told = dump(a.ns)[1][key_of(b)]
    assert told.endpoint == endpoint
    assert sorted(told.allowed.split(",")) == ["10.5.2.0/24", "fd00:5:0:2::/64"]
    assert device(a.ns, "flannel-wg-v6") == {}, "of another mode"
    assert device(a.ns, "flannel-wg")["addresses"] == ["10.5.1.0/32", "fd00:5:0:1::/128"]


# --- restarts -------------------------------------------------------------------------------------------------------


def test_a_killed_daemon_s_successor_keeps_the_sessions(nodes: list[FlannelNode]) -> None:
    a, b = started(nodes[:2])
    assert a.reaches(b)
    before = device(a.ns, "flannel-wg"), dump(a.ns), index(a.ns)
    with pinging(a.pod, "10.5.2.2", GUEST_PACE) as found:
        a.start()
        assert a.want([b.lease]) == a.state
        a.settle()
    assert found.sent > 10
    assert found.lost == 0, found
    assert (device(a.ns, "flannel-wg"), dump(a.ns), index(a.ns)) == before


def index(ns: Ns) -> int:
    found: int = ns.json("link", "show", "dev", "flannel-wg")[0]["ifindex"]
    return found


def test_a_daemon_that_ends_takes_its_device_and_comes_back_as_the_same_node(nodes: list[FlannelNode]) -> None:
    a, b = started(nodes[:2], v6=True)
    key = key_of(a)
    assert b.reaches(a)
    ended(a)
    assert device(a.ns, "flannel-wg") == device(a.ns, "flannel-wg-v6") == {}
    ended(a)
    a.start()
    a.know([b.lease])
    assert key_of(a) == key_of(a, "flannel-wg-v6") == key
    assert b.reaches(a), "b had a session with the device that was there before"
    assert dump(a.ns)[1][key_of(b)].keepalive == "off"


def test_a_device_of_flannel_s_own_is_taken_over(nodes: list[FlannelNode]) -> None:
    """Without our mark, with a key of its own, a peer that has gone, and routes of no protocol."""
    a, b = started(nodes[:2])
    ended(a)
    a.ns.ip("link", "add", "flannel-wg", "mtu", "1400", "type", "wireguard")
    a.ns.run("wg", "set", "flannel-wg", "private-key", "/dev/stdin", "listen-port", "9", stdin=new_private_key())
    a.ns.run("wg", "set", "flannel-wg", "peer", new_private_key(), "allowed-ips", "10.5.2.0/24,10.5.9.0/24")
    a.ns.ip("address", "add", "10.5.7.0/32", "dev", "flannel-wg")
    a.ns.ip("link", "set", "flannel-wg", "up")
    a.ns.ip("route", "add", "10.5.0.0/16", "dev", "flannel-wg", "scope", "link")
    a.start()
    a.know([b.lease])
    (_, public, port), peers = dump(a.ns)
    assert (a.lease.attrs.data, port) == (f'{{"PublicKey":"{public}","Port":51820}}', "51820")
    assert [(key, peer.allowed) for key, peer in peers.items()] == [(key_of(b), "10.5.2.0/24")]
    assert (device(a.ns, "flannel-wg")["mtu"], device(a.ns, "flannel-wg")["addresses"]) == (1420, ["10.5.1.0/32"])
    assert a.reaches(b)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_whatever_is_broken_is_mended(nodes: list[FlannelNode]) -> None:
    """Some at once; every pass takes its time here."""
    a, b = started(nodes[:2], PSK=PSK, PersistentKeepaliveInterval=25)
    key = key_of(b)

    def right() -> Any:
        own, peers = dump(a.ns)
        return device(a.ns, "flannel-wg"), own, {key: replace(peer, handshake=0) for key, peer in peers.items()}

    before = right(), paths(a.ns)
    wg = "wg set flannel-wg"
    for damage in (
        f"{wg} peer {key} remove; {wg} listen-port 0",
        f"{wg} peer {key} allowed-ips 10.5.9.0/24,10.5.8.0/24 preshared-key /dev/null persistent-keepalive 0",
        f"{wg} peer {new_private_key()} allowed-ips 10.5.2.0/24; {wg} private-key /dev/null",
        "ip link delete flannel-wg",
    ):
        a.ns.run("sh", "-c", damage)
        for stage in a.stages:
            stage.forget()
        assert any(stage.plan(a.state) for stage in a.stages), damage
        a.settle()
        assert (right(), paths(a.ns)) == before, damage
    assert a.reaches(b)


def test_a_wrong_key_keeps_one_node_out_and_no_other(nodes: list[FlannelNode]) -> None:
    a, b, c = started(nodes)
    assert b.lease.attrs.data is not None
    wrong = replace(b.lease.attrs, data=b.lease.attrs.data.replace(key_of(b), new_private_key()))
    a.know([replace(b.lease, attrs=wrong), c.lease])
    assert unanswered(a, b)
    assert a.reaches(c)
    a.know([b.lease, c.lease])
    assert a.reaches(b)


def test_a_node_that_does_not_answer_is_told_while_somebody_sends_to_it(nodes: list[FlannelNode]) -> None:
    a, b = started(nodes[:2])
    a.backend = backend = WireguardTunnels(wishes(a.config), a.setting.run_dir / "wgkey", look=6.0)
    assert b.lease.attrs.data is not None
    wrong = replace(b.lease.attrs, data=b.lease.attrs.data.replace(key_of(b), new_private_key()))
    bad = replace(b.lease, attrs=wrong)
    with entered(a.ns.path):
        asyncio.run(backend.begin(a.place.site, None))
        a.know([bad])
        assert list(asyncio.run(backend.carry_out(a.place, [bad]))) == []
        with pinging(a.pod, "10.5.2.2", 1.0):
            until("told", lambda: asyncio.run(backend.carry_out(a.place, [bad])), 60.0)
        (line,) = asyncio.run(backend.carry_out(a.place, [bad]))
    assert line == (
        "node node2: does not answer at 192.0.2.2, UDP port 51820: nothing comes through, or its PSK or this node's "
        "key is another there (wg show flannel-wg)"
    )


def test_nodes_with_different_preshared_keys_do_not_talk(nodes: list[FlannelNode]) -> None:
    a, b = started(nodes[:2], PSK=PSK)
    a.config = network_config("wireguard", PSK=new_private_key())
    a.start()
    a.ns.run("wg", "set", "flannel-wg", "peer", key_of(b), "remove")  # what was agreed upon is good for three minutes
    a.know([b.lease])
    assert unanswered(a, b)


def test_a_node_that_moves_is_followed_at_once_and_one_that_roams_is_let(nodes: list[FlannelNode]) -> None:
    a, b = started(nodes[:2])
    assert a.reaches(b)
    readdressed(b.ns, "192.0.2.2", "192.0.2.78")
    moved = replace(b.lease.attrs, public_ip=ip_address("192.0.2.78"))
    a.know([replace(b.lease, attrs=moved)])  # type: ignore[arg-type]
    assert dump(a.ns)[1][key_of(b)].endpoint == "192.0.2.78:51820"
    assert a.reaches(b)
    readdressed(b.ns, "192.0.2.78", "192.0.2.2")
    assert b.reaches(a)
    assert dump(a.ns)[1][key_of(b)].endpoint == "192.0.2.2:51820"
    a.settle()
    assert dump(a.ns)[1][key_of(b)].endpoint == "192.0.2.2:51820"


def readdressed(ns: Ns, old: str, new: str) -> None:
    ns.ip("address", "delete", f"{old}/24", "dev", "eth0")
    ns.ip("address", "add", f"{new}/24", "dev", "eth0")


def test_a_port_that_somebody_has_is_told_with_what_to_do(nodes: list[FlannelNode]) -> None:
    (a,) = started(nodes[:1])
    ended(a)
    with entered(a.ns.path):
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with other:
        other.bind(("", 51820))
        (failure,) = converge(a.stages, a.state)
        assert str(failure) == (
            "WireGuard peers: wg set flannel-wg listen-port 51820: another program has this UDP port: stop it, or "
            "choose another Backend.ListenPort for all nodes"
        )
    a.settle()


def test_a_link_of_another_kind_is_somebody_else_s(nodes: list[FlannelNode]) -> None:
    (a,) = started(nodes[:1])
    ended(a)
    a.ns.ip("link", "add", "flannel-wg", "type", "veth", "peer", "name", "other")
    with pytest.raises(ConfigError, match="flannel-wg is a link of type veth: remove it"):
        a.start()
    ended(a)
    a.ns.ip("link", "delete", "flannel-wg")


def test_many_peers_at_once(nodes: list[FlannelNode]) -> None:
    """More than one request or one answer can hold."""
    (a,) = started(nodes[:1])
    every = [
        Peer(
            "flannel-wg",
            new_private_key(),
            (ip_address(f"192.0.2.{4 + number % 200}"), 51820),
            (ip_network(f"10.5.{number % 256}.{number // 256 * 64}/26"),),
        )
        for number in range(400)
    ]
    a.state = replace(a.state, peers=tuple(every))
    a.settle()
    assert {(one.key, f"{one.endpoint[0]}:{one.endpoint[1]}", str(one.allowed[0])) for one in every} == {
        (key, peer.endpoint, peer.allowed) for key, peer in dump(a.ns)[1].items()
    }
    a.state = replace(a.state, peers=tuple(every[::2]))
    a.settle()
    assert len(dump(a.ns)[1]) == 200


def test_no_secret_is_in_a_transcript(nodes: list[FlannelNode]) -> None:
    a, _ = started(nodes[:2], PSK=PSK)
    private = dump(a.ns)[0][0]
    assert converge(a.stages, FlannelState(networks=a.state.networks)) == []
    text = ""
    for stage in a.stages:
        work = stage.plan(a.state)
        text += f"{work}\n"
        stage.make(work)
    assert "wg set flannel-wg private-key /dev/stdin" in text
    assert private not in text
    assert PSK not in text


# --- the whole daemon -----------------------------------------------------------------------------------------------


def until_ready(daemon: Daemon) -> None:
    try:
        until("ready", daemon.is_ready, GUEST_PATIENCE)
    except AssertionError as error:
        pytest.fail(f"{error}\n{daemon.said()[-3000:]}")


def test_the_daemon_takes_its_device_along_when_it_ends(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    town = Town(Wire(make_ns), tmp_path, "wireguard")
    try:
        one = town.node(1).start()
        until_ready(one)
        data = json.loads(town.annotations(1)["flannel.alpha.coreos.com/backend-data"])
        assert data == {"PublicKey": key_of(one.node), "Port": 51820}
        assert (one.directory / "wgkey").read_text() == dump(one.node.ns)[0][0]
        assert one.stop() == 0, one.said()
        assert device(one.node.ns, "flannel-wg") == {}
    finally:
        town.close()
