"""The udp backend's programs on the real kernel: what is left when they are killed, and what is in their way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_daemons import Town, until
from flannel_nodes import Wire, network_config, paths
from flannel_udp_pair import Pair, compiled, end, eventually, gone, proxy_of, sock, two_nodes, udp_of
from namespaces import Ns
from tortie.base.errors import ConfigError, Unavailable
from tortie.flannel.backend import Setting
from tortie.flannel.udp import build, proxy
from tortie.kernel.netns import entered

IP_RECVERR, IP_RECVTTL = 11, 12  # linux/in.h

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Compiled once for all tests."""
    return compiled(tmp_path_factory.mktemp("run"))


@pytest.fixture
def pair(make_ns: Callable[..., Ns], setting: Setting) -> Iterator[Pair]:
    with two_nodes(make_ns, setting) as made:
        yield made


# --- what is killed -----------------------------------------------------------------------------------------------


def test_a_proxy_that_dies_is_started_again(pair: Pair) -> None:
    pid = proxy_of(pair.one).pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid))
    assert udp_of(pair.one).counters() == {}
    assert pair.carry_out(pair.one) == ["the proxy of flannel0 has ended (signal 9): it is started again"]
    assert pair.carry_out(pair.one) == []
    assert pair.one.reaches(pair.two)


def test_a_proxy_that_does_not_answer_in_time_is_started_again(pair: Pair) -> None:
    """What it says afterwards is no answer to the next question."""
    old = proxy_of(pair.one)
    old._control.settimeout(0.2)
    os.kill(old.pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (old.pid, signal.SIGCONT)).start()
    assert pair.carry_out(pair.one) == ["the proxy of flannel0 does not answer: no answer in time"]
    eventually(lambda: gone(old.pid))
    assert pair.carry_out(pair.one) == ["the proxy of flannel0 has ended (no answer in time): it is started again"]
    assert pair.carry_out(pair.one) == []
    assert pair.one.reaches(pair.two)


@pytest.mark.parametrize(
    ("rest", "why"), [("sleep 0.3; exit 3", "exit status 3"), ("exec sleep 60", "it no longer listens")]
)
def test_a_proxy_that_has_closed_its_end_and_is_still_there(rest: str, why: str) -> None:
    """As a killed one is, for a moment: it is not to be written to a second time, but to be ended."""
    ours, theirs = socket.socketpair()
    with theirs, subprocess.Popen(["sh", "-c", f"exec <&-; {rest}"], stdin=theirs, stderr=subprocess.PIPE) as process:
        theirs.close()
        ending = proxy.Proxy("flannel0", process, ours)
        ours.settimeout(5)
        assert ours.recv(1) == b"", "it has closed its end"
        with pytest.raises(Unavailable, match=f"^the proxy of flannel0 does not answer: {why}$"):
            ending.counters()
        assert ending.ended() == why
        with pytest.raises(Unavailable, match=f"^the proxy of flannel0 has ended: {why}$"):
            ending.put_table(IPv4Address(0), ())
        process.kill()
        ending.close()
        assert ending.ended() == why


def test_a_proxy_that_was_closed_can_still_be_asked(pair: Pair) -> None:
    """As the status does, while a daemon that begins anew cannot start the next one yet."""
    old = proxy_of(pair.one)
    old.close()
    assert old.ended() == "exit status 0"
    assert udp_of(pair.one).counters() == {}


def test_a_device_that_is_removed_comes_back(pair: Pair) -> None:
    pid = proxy_of(pair.one).pid
    pair.one.ns.ip("link", "delete", "flannel0")
    eventually(lambda: gone(pid))
    (line,) = pair.carry_out(pair.one)
    assert line.startswith("the proxy of flannel0 has ended (tortie-udp: read from the TUN device: File descriptor in")
    pair.one.settle()
    assert pair.one.reaches(pair.two)


DAEMON = """
import asyncio, sys, time
sys.path.insert(0, sys.argv[1])
from flannel_daemons import Town, until
from flannel_nodes import network_config
from ipaddress import IPv4Address
from pathlib import Path
from tortie.flannel import backends
from tortie.flannel.backend import Setting
from tortie.flannel.state import External, Site
made = backends.load(network_config("udp"), Setting(Path(sys.argv[2])))
external = External("eth0", 2, 1500, IPv4Address("192.0.2.1"))
asyncio.run(made.begin(Site(network_config("udp"), external, external.ipv4), None))
print(made._proxy.pid, flush=True)
time.sleep(60)
"""


def test_a_daemon_that_is_killed_leaves_the_device_and_no_proxy(pair: Pair, setting: Setting) -> None:
    end(pair.one)
    assert paths(pair.one.ns) == {"10.5.0.0/16": ("flannel0",)}, "an orderly end takes nothing away, either"
    words = [sys.executable, "-c", DAEMON, str(Path(__file__).parents[1]), str(setting.run_dir)]
    with subprocess.Popen(["ip", "netns", "exec", pair.one.ns.name, *words], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        before = pair.one.ns.json("address", "show", "flannel0")
        run.kill()
    eventually(lambda: gone(pid))
    (after,) = pair.one.ns.json("address", "show", "flannel0")
    assert (after["ifindex"], after["addr_info"]) == (before[0]["ifindex"], before[0]["addr_info"])
    assert paths(pair.one.ns) == {"10.5.0.0/16": ("flannel0",)}
    pair.ready(pair.one)
    assert pair.one.reaches(pair.two)
    assert [link["ifname"] for link in pair.one.ns.json("link", "show", "type", "tun")] == ["flannel0"]


def test_a_node_whose_address_changes_goes_on(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    """The whole daemon: it begins anew, on the same device, and the other node's is told."""
    town = Town(Wire(make_ns), tmp_path, "udp")
    try:
        one, two = (town.node(number).start().until_ready() for number in (1, 2))
        until("pods reach each other", lambda: one.node.reaches(two.node))
        one.node.ns.ip("address", "delete", "192.0.2.1/24", "dev", "eth0")
        one.node.ns.ip("address", "add", "192.0.2.77/24", "dev", "eth0")
        until("pods reach each other again", lambda: one.node.reaches(two.node))
        assert two.status()["counters"]["received_packets"] > 1
        assert [link["ifname"] for link in one.node.ns.json("link", "show", "type", "tun")] == ["flannel0"]
    finally:
        town.close()


def test_a_daemon_that_starts_while_the_old_proxy_still_ends(pair: Pair) -> None:
    """The proxy is stopped for a moment, as on a machine that has other things to do."""
    old = proxy_of(pair.one)
    os.kill(old.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (old.pid, signal.SIGCONT)).start()
    old._control.close()
    pair.one.start()
    assert proxy_of(pair.one).device == "flannel0"
    old.close()


# --- what is in the way -------------------------------------------------------------------------------------------


def test_a_port_that_is_in_use(make_ns: Callable[..., Ns], setting: Setting) -> None:
    node = Wire(make_ns).node(1, network_config("udp", Port=9999), setting=setting)
    with sock(node.ns) as other:
        other.bind(("192.0.2.1", 9999))
        with pytest.raises(ConfigError, match=r"^UDP port 9999 of 192.0.2.1 is in use by another program: stop it, or"):
            node.start()
    node.start()
    end(node)


def test_two_networks_on_a_node_have_a_device_each(pair: Pair, setting: Setting) -> None:
    with entered(pair.one.ns.path):
        made = proxy.start(setting.run_dir / build.NAME, "tortie flannel 10.6.0.0/16", IPv4Address("192.0.2.1"), 8286)
    try:
        assert made.device == "flannel1"
        pair.one.settle()
        assert pair.one.reaches(pair.two)
    finally:
        made.close()


def test_a_link_of_another_kind_is_left_alone(make_ns: Callable[..., Ns], setting: Setting) -> None:
    node = Wire(make_ns).node(1, network_config("udp"), setting=setting)
    node.ns.ip("link", "add", "flannel0", "type", "bridge")
    node.start()
    try:
        assert proxy_of(node).device == "flannel1"
    finally:
        end(node)


def test_no_address_to_send_from(make_ns: Callable[..., Ns], setting: Setting) -> None:
    node = Wire(make_ns).node(1, network_config("udp"), setting=setting)
    node.ns.ip("-4", "address", "flush", "dev", "eth0")
    with pytest.raises(ConfigError, match="eth0 has no IPv4 address to send from: choose another --iface"):
        node.start()
