"""A pod's veth: what the kernel has after attach is what was asked for, and nothing after detach or a failure."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ns

from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import TortieError
from tortie.dataplane.attachment import Attachment, attach, detach, differences, host_ends
from tortie.kernel import netns

pytestmark = pytest.mark.root

HOST, ETH0 = "cali0123456789a", "eth0"
MAC, LINK_LOCAL = "ee:ee:ee:ee:ee:ee", "fe80::ecee:eeff:feee:eeee"
V4, V6 = "10.65.0.7", "fd00:65::7"
FAMILIES = {"ipv4": (V4,), "ipv6": (V6,), "dual": (V4, V6)}

HOST_SYSCTLS = {
    4: {
        "net.ipv4.conf.{}.route_localnet": "1",
        "net.ipv4.conf.{}.proxy_arp": "1",
        "net.ipv4.conf.{}.forwarding": "1",
        "net.ipv4.neigh.{}.proxy_delay": "0",
    },
    6: {
        "net.ipv6.conf.{}.accept_dad": "0",
        "net.ipv6.conf.{}.disable_ipv6": "0",
        "net.ipv6.conf.{}.proxy_ndp": "1",
        "net.ipv6.conf.{}.forwarding": "1",
    },
    None: {"net.ipv6.conf.{}.accept_ra": "0"},
}
"""By family; the last whatever the family."""


@pytest.fixture
def host(make_ns: Callable[..., Ns]) -> Ns:
    return make_ns("host")


@pytest.fixture
def pod(make_ns: Callable[..., Ns]) -> Ns:
    return make_ns("pod")


def attachment(host: Ns, pod: Ns | str, ips: tuple[str, ...] = (V4,), **more: Any) -> Attachment:
    where = pod.path if isinstance(pod, Ns) else pod
    return Attachment(where, ETH0, HOST, tuple(map(parse_ip, ips)), host_netns=host.path, **more)


def link(ns: Ns, name: str) -> dict[str, Any]:
    found = [one for one in ns.json("link", "show") if one["ifname"] == name]
    assert len(found) == 1, f"{name} in {ns.name}: {found}"
    return found[0]


def names(ns: Ns) -> set[str]:
    return {one["ifname"] for one in ns.json("link", "show")}


def sysctl(ns: Ns, name: str) -> str:
    return ns.run("sysctl", "-n", name).strip()


def routes(ns: Ns, version: int, dev: str) -> set[str]:
    """`DST via GATEWAY scope SCOPE`, of what nobody but us made."""
    every = ns.json(f"-{version}", "route", "show", "dev", dev)
    return {
        f"{one['dst']} via {one.get('gateway', '-')} scope {one.get('scope', 'global')}"
        for one in every
        if one.get("protocol") != "kernel"
    }


def addresses(ns: Ns, dev: str) -> set[str]:
    listed = ns.json("addr", "show", "dev", dev)[0].get("addr_info", [])
    return {f"{one['local']}/{one['prefixlen']} {one['scope']}" for one in listed}


def neighbours(ns: Ns, dev: str) -> dict[str, tuple[str, list[str]]]:
    return {one["dst"]: (one.get("lladdr", ""), one["state"]) for one in ns.json("neigh", "show", "dev", dev)}


def udp(ns: Ns, ip: str) -> socket.socket:
    """A socket in the namespace, bound to the address and some port."""
    with netns.entered(ns.path):
        made = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(5)
    made.bind((ip, 0))
    return made


# --- what there is afterwards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ips", FAMILIES.values(), ids=FAMILIES)
def test_pod_and_host_have_exactly_what_calico_gives_them(host: Ns, pod: Ns, ips: tuple[str, ...]) -> None:
    mac = attach(attachment(host, pod, ips))
    inside, outside = link(pod, ETH0), link(host, HOST)
    assert mac == inside["address"] != MAC
    assert outside["address"] == MAC
    assert inside["linkinfo"]["info_kind"] == outside["linkinfo"]["info_kind"] == "veth"
    for end in (inside, outside):
        assert {"UP", "LOWER_UP"} <= set(end["flags"])
    assert inside["mtu"] == outside["mtu"] == 1500
    assert names(pod) == {"lo", ETH0}
    assert names(host) == {"lo", HOST}

    v4, v6 = V4 in ips, V6 in ips
    given = {address for address in addresses(pod, ETH0) if not address.endswith(" link")}
    assert given == {f"{ip}/{128 if ':' in ip else 32} global" for ip in ips}
    assert routes(pod, 4, ETH0) == (
        {"169.254.1.1 via - scope link", "default via 169.254.1.1 scope global"} if v4 else set()
    )
    assert routes(pod, 6, ETH0) == ({f"default via {LINK_LOCAL} scope global"} if v6 else set())
    wanted = {"169.254.1.1": v4, LINK_LOCAL: v6}
    assert neighbours(pod, ETH0) == {ip: (MAC, ["PERMANENT"]) for ip, there in wanted.items() if there}
    assert {ip: neighbours(host, HOST)[ip] for ip in ips} == dict.fromkeys(ips, (mac, ["PERMANENT"]))
    assert not any(address.startswith("169.254") for address in addresses(host, HOST) | addresses(pod, ETH0))
    if v6:
        assert addresses(host, HOST) == {f"{LINK_LOCAL}/64 link"}


@pytest.mark.parametrize("ips", FAMILIES.values(), ids=FAMILIES)
def test_sysctls_of_both_ends(host: Ns, pod: Ns, ips: tuple[str, ...]) -> None:
    pod.run("sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    attach(attachment(host, pod, ips))
    versions: list[int | None] = [None, *({4, 6} & {parse_ip(ip).version for ip in ips})]
    for version in versions:
        for name, value in HOST_SYSCTLS[version].items():
            assert sysctl(host, name.format(HOST)) == value, name
    if V4 in ips:
        assert sysctl(pod, "net.ipv4.ip_forward") == "0"
    for scope in ("all", "default", "lo"):
        assert sysctl(pod, f"net.ipv6.conf.{scope}.disable_ipv6") == ("0" if V6 in ips else "1")
    if V6 in ips:
        assert sysctl(pod, f"net.ipv6.conf.{ETH0}.accept_dad") == "0"
        assert sysctl(pod, "net.ipv6.conf.all.forwarding") == "0"


@pytest.mark.parametrize("allowed", [False, True])
def test_ip_forwarding_in_the_pod_is_what_the_configuration_says(host: Ns, pod: Ns, allowed: bool) -> None:
    pod.run(
        "sysctl", "-w", f"net.ipv4.ip_forward={int(not allowed)}", f"net.ipv6.conf.all.forwarding={int(not allowed)}"
    )
    attach(attachment(host, pod, (V4, V6), ip_forwarding=allowed))
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        assert sysctl(pod, name) == str(int(allowed))


def test_mtu_and_queues_are_those_of_both_ends(host: Ns, pod: Ns) -> None:
    attach(attachment(host, pod, mtu=3000, num_queues=4))
    for end in (link(host, HOST), link(pod, ETH0)):
        assert (end["mtu"], end["num_tx_queues"], end["num_rx_queues"]) == (3000, 4, 4)


@pytest.mark.parametrize("ips", FAMILIES.values(), ids=FAMILIES)
def test_pod_reaches_a_host_that_has_no_default_route(host: Ns, pod: Ns, ips: tuple[str, ...]) -> None:
    """Linux answers ARP for 169.254.1.1 only where it has a route to it, so the pod must know the MAC address."""
    attach(attachment(host, pod, ips))
    for ip in ips:
        own = "fd00:1::1" if ":" in ip else "192.0.2.1"
        host.ip("addr", "add", own, "dev", "lo", *(["nodad"] if ":" in ip else []))
        host.ip("route", "add", ip, "dev", HOST, "scope", "link")
        with udp(host, own) as there, udp(pod, ip) as here:
            here.sendto(b"hello", there.getsockname())
            data, sender = there.recvfrom(100)
            there.sendto(data, sender)
            assert here.recv(100) == b"hello"


def test_a_link_that_has_the_name_already_is_replaced(host: Ns, pod: Ns, make_ns: Callable[..., Ns]) -> None:
    old = make_ns("old")
    attach(attachment(host, old, ("10.65.0.1",)))
    before = link(host, HOST)["ifindex"]
    attach(attachment(host, pod))
    assert link(host, HOST)["ifindex"] != before
    assert names(old) == {"lo"}
    host.ip("link", "del", HOST)
    host.ip("link", "add", HOST, "type", "bridge")  # of whatever kind it is
    attach(attachment(host, pod))
    assert link(host, HOST)["linkinfo"]["info_kind"] == "veth"


def test_many_at_once_in_threads_do_not_get_in_each_others_way(host: Ns, make_ns: Callable[..., Ns]) -> None:
    pods = [make_ns(f"p{number}") for number in range(8)]
    failures: list[BaseException] = []
    home = netns.inode()

    def one(number: int) -> None:
        try:
            ip = parse_ip(f"10.65.1.{number}")
            attach(Attachment(pods[number].path, ETH0, f"cali{number:011d}", (ip,), host_netns=host.path))
            assert netns.inode() == home  # this thread is where it was
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(pods))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(host_ends(host.path)) == [f"cali{number:011d}" for number in range(len(pods))]
    for number, pod in enumerate(pods):
        assert f"10.65.1.{number}/32 global" in addresses(pod, ETH0)


# --- what fails ---------------------------------------------------------------------------------------------------


def refused(wanted: Attachment) -> str:
    with pytest.raises(TortieError) as caught:
        attach(wanted)
    text = str(caught.value)
    assert text, "an error without words"
    assert "\n" not in text
    return text


def test_interface_name_taken_in_the_pod(host: Ns, pod: Ns) -> None:
    pod.ip("link", "add", ETH0, "type", "bridge")
    assert refused(attachment(host, pod)) == "ip link add eth0 type veth: File exists"
    assert names(host) == {"lo"}
    assert link(pod, ETH0)["linkinfo"]["info_kind"] == "bridge"  # it is not ours


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/run/netns/nowhere", 'network namespace "/run/netns/nowhere" does not exist'),
        ("{file}", 'unknown FS magic on "{file}"'),
        ("{file}/below", "open {file}/below: Not a directory"),
        ("/proc/self/ns/mnt", '"/proc/self/ns/mnt" is a namespace, but not a network namespace'),
    ],
)
def test_what_is_no_network_namespace(host: Ns, tmp_path: Path, path: str, says: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert refused(attachment(host, path.format(file=file))).startswith(says.format(file=file))
    assert names(host) == {"lo"}


def test_settings_that_the_kernel_refuses_leave_nothing(host: Ns, pod: Ns) -> None:
    for wrong in ({"mtu": -1}, {"mtu": 10**6}, {"num_queues": 10**6}):
        assert refused(attachment(host, pod, **wrong)).startswith("ip link add eth0 type veth: ")
    assert names(host) == names(pod) == {"lo"}


def test_failure_after_the_link_is_made_takes_it_away_again(host: Ns, pod: Ns) -> None:
    """An address twice: everything before it has worked by then."""
    assert "Address already assigned" in refused(attachment(host, pod, (V4, V4)))
    assert names(host) == names(pod) == {"lo"}


# --- taking away --------------------------------------------------------------------------------------------------


def test_detach_takes_both_ends_and_may_be_repeated(host: Ns, pod: Ns) -> None:
    attach(attachment(host, pod))
    for _ in range(2):
        detach(pod.path, ETH0, HOST, host.path)
        assert names(host) == names(pod) == {"lo"}


@pytest.mark.parametrize("which", ["pod", "host"])
def test_either_end_is_enough(host: Ns, pod: Ns, which: str) -> None:
    attach(attachment(host, pod))
    detach(pod.path if which == "pod" else "", ETH0, HOST if which == "host" else "", host.path)
    assert names(host) == names(pod) == {"lo"}


@pytest.mark.parametrize("path", ["/run/netns/nowhere", "{file}", "{file}/below", "{directory}", "/proc/self/ns/mnt"])
def test_detach_from_what_is_no_namespace_still_takes_the_hosts_end(
    host: Ns, pod: Ns, tmp_path: Path, path: str
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    attach(attachment(host, pod))
    detach(path.format(file=file, directory=tmp_path), ETH0, HOST, host.path)
    assert names(host) == names(pod) == {"lo"}


def test_detach_leaves_other_links_alone(host: Ns, pod: Ns) -> None:
    attach(attachment(host, pod))
    host.ip("link", "add", "br0", "type", "bridge")
    pod.ip("link", "add", "other", "type", "bridge")
    detach(pod.path, ETH0, HOST, host.path)
    assert names(host) == {"lo", "br0"}
    assert names(pod) == {"lo", "other"}


def test_host_ends_are_known_by_name_kind_and_mac(host: Ns, pod: Ns) -> None:
    attach(attachment(host, pod))
    host.ip("link", "add", "califoreign", "type", "veth", "peer", "name", "other")
    host.ip("link", "add", "calibridge", "type", "bridge")
    host.ip("link", "set", "calibridge", "address", MAC)
    assert host_ends(host.path) == [HOST]


# --- differences --------------------------------------------------------------------------------------------------


def whole(host: Ns, pod: Ns) -> Attachment:
    """An attachment with its routes on the host, which are the stages' work."""
    made = attachment(host, pod, (V4, V6))
    attach(made)
    for ip in (V4, V6):
        host.ip("route", "add", ip, "dev", HOST, "scope", "link")
    assert list(differences(made)) == []
    return made


SPOILT = {
    "host {HOST}: link set {HOST} down": f"host interface {HOST} is down",
    "host {HOST}: link set {HOST} address 02::1": f"host interface {HOST} has MAC 02:00:00:00:00:01, not {MAC}",
    "host {HOST}: route del 10.65.0.7": f"route to {V4} dev {HOST} is missing",
    "host {HOST}: route del fd00:65::7": f"route to {V6} dev {HOST} is missing",
    "host {HOST}: link del {HOST}": f"host interface {HOST} is missing",
    "pod: link set eth0 down": "interface eth0 is down in the pod",
    "pod: addr del 10.65.0.7/32 dev eth0": f"address {V4} is missing on eth0 in the pod",
    "pod: addr del fd00:65::7/128 dev eth0": f"address {V6} is missing on eth0 in the pod",
    "pod: route del default": "route default via 169.254.1.1 dev eth0 is missing in the pod",
    "pod: -6 route del default": f"route default via {LINK_LOCAL} dev eth0 is missing in the pod",
    "pod: link set eth0 down; link set eth0 name eth7": "interface eth0 is missing in the pod",
}


@pytest.mark.parametrize(("how", "says"), SPOILT.items(), ids=[how.replace("{HOST}", "cali") for how in SPOILT])
def test_a_difference_is_said_in_one_line(host: Ns, pod: Ns, how: str, says: str) -> None:
    made = whole(host, pod)
    where, _, commands = how.format(HOST=HOST).partition(": ")
    for command in commands.replace("02::1", "02:00:00:00:00:01").split("; "):
        (host if where.startswith("host") else pod).ip(*command.split())
    found = list(differences(made))
    assert says in found
    assert all("\n" not in line for line in found)


def test_changed_sysctl_is_a_difference_and_the_thread_is_back_home(host: Ns, pod: Ns) -> None:
    made = whole(host, pod)
    host.run("sysctl", "-w", f"net.ipv4.conf.{HOST}.proxy_arp=0", f"net.ipv6.conf.{HOST}.proxy_ndp=0")
    home = netns.inode()
    lines = differences(made)
    assert next(lines) == f"sysctl net/ipv4/conf/{HOST}/proxy_arp is 0, not 1"
    assert netns.inode() == home  # though there are more to come
    assert list(lines) == [f"sysctl net/ipv6/conf/{HOST}/proxy_ndp is 0, not 1"]


def test_what_is_there_in_addition_is_no_difference(host: Ns, pod: Ns) -> None:
    made = whole(host, pod)
    pod.ip("addr", "add", "192.0.2.9/32", "dev", ETH0)
    pod.ip("route", "add", "198.51.100.0/24", "via", "169.254.1.1", "dev", ETH0)
    assert list(differences(made)) == []


# --- the transcript -----------------------------------------------------------------------------------------------

TRANSCRIPT = """\
nsenter --net=/run/netns/pod ip link add eth0 mtu 1450 numtxqueues 2 numrxqueues 2 type veth peer name cali0123456789a \
address ee:ee:ee:ee:ee:ee
sysctl -w net/ipv4/neigh/cali0123456789a/proxy_delay=0
sysctl -w net/ipv4/conf/cali0123456789a/route_localnet=1
sysctl -w net/ipv4/conf/cali0123456789a/proxy_arp=1
sysctl -w net/ipv4/conf/cali0123456789a/forwarding=1
sysctl -w net/ipv6/conf/cali0123456789a/addr_gen_mode=1
sysctl -w net/ipv6/conf/cali0123456789a/disable_ipv6=0
sysctl -w net/ipv6/conf/cali0123456789a/accept_dad=0
sysctl -w net/ipv6/conf/cali0123456789a/proxy_ndp=1
sysctl -w net/ipv6/conf/cali0123456789a/forwarding=1
sysctl -w net/ipv6/conf/cali0123456789a/accept_ra=0
nsenter --net=/run/netns/pod sysctl -w net/ipv4/ip_forward=1
nsenter --net=/run/netns/pod sysctl -w net/ipv6/conf/all/disable_ipv6=0
nsenter --net=/run/netns/pod sysctl -w net/ipv6/conf/default/disable_ipv6=0
nsenter --net=/run/netns/pod sysctl -w net/ipv6/conf/lo/disable_ipv6=0
nsenter --net=/run/netns/pod sysctl -w net/ipv6/conf/eth0/accept_dad=0
nsenter --net=/run/netns/pod sysctl -w net/ipv6/conf/all/forwarding=1
ip link set cali0123456789a up
nsenter --net=/run/netns/pod ip link set eth0 up
ip addr add fe80::ecee:eeff:feee:eeee/64 dev cali0123456789a scope link nodad
nsenter --net=/run/netns/pod ip addr add 10.65.0.7/32 dev eth0
nsenter --net=/run/netns/pod ip addr add fd00:65::7/128 dev eth0
nsenter --net=/run/netns/pod ip route add 169.254.1.1 dev eth0 scope link
nsenter --net=/run/netns/pod ip route add default via 169.254.1.1 dev eth0
nsenter --net=/run/netns/pod ip route add default via fe80::ecee:eeff:feee:eeee dev eth0
nsenter --net=/run/netns/pod ip neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0
nsenter --net=/run/netns/pod ip neigh replace fe80::ecee:eeff:feee:eeee lladdr ee:ee:ee:ee:ee:ee dev eth0
ip neigh replace 10.65.0.7 lladdr $mac dev cali0123456789a
ip neigh replace fd00:65::7 lladdr $mac dev cali0123456789a"""


def test_transcript_is_what_an_engineer_would_type() -> None:
    ips = (parse_ip(V4), parse_ip(V6))
    made = Attachment("/run/netns/pod", ETH0, HOST, ips, mtu=1450, num_queues=2, ip_forwarding=True)
    assert str(made) == TRANSCRIPT


def test_transcript_of_netkit_and_of_routes_of_the_users_choice() -> None:
    nets = tuple(map(parse_net, ("10.1.0.0/16", "fd00:1::/64")))
    made = Attachment(
        "/run/netns/pod", ETH0, HOST, (parse_ip(V4),), mtu=1450, mac=MAC, kind="netkit", destinations=nets
    )
    lines = str(made).splitlines()
    assert lines[0] == (
        f"ip link add {HOST} address {MAC} mtu 1450 type netkit mode l2 forward peer forward"
        f" name eth0 address {MAC} mtu 1450 netns /run/netns/pod"
    )
    assert [line.partition(" route add ")[2] for line in lines if " route add " in line] == [
        "169.254.1.1 dev eth0 scope link",
        "10.1.0.0/16 via 169.254.1.1 dev eth0",
    ]


@pytest.mark.parametrize("ips", FAMILIES.values(), ids=FAMILIES)
def test_netkit_or_a_veth_where_the_kernel_has_none(host: Ns, pod: Ns, ips: tuple[str, ...]) -> None:
    nets = tuple(map(parse_net, ("10.1.0.0/16", "fd00:1::/64")))
    made = attachment(host, pod, ips, kind="netkit", destinations=nets)
    attach(made)
    assert link(host, HOST)["linkinfo"]["info_kind"] == link(pod, ETH0)["linkinfo"]["info_kind"]
    assert link(host, HOST)["address"] == MAC
    assert ("10.1.0.0/16 via 169.254.1.1 scope global" in routes(pod, 4, ETH0)) is (V4 in ips)
    assert (f"fd00:1::/64 via {LINK_LOCAL} scope global" in routes(pod, 6, ETH0)) is (V6 in ips)
    assert not any(route.startswith("default") for version in (4, 6) for route in routes(pod, version, ETH0))
    assert [each for each in differences(made) if "in the pod" in each] == []
    assert host_ends(host.path) == [HOST]
    for version in (4, 6):
        pod.ip(f"-{version}", "route", "flush", "dev", "eth0", "proto", "boot")
    missing = {each for each in differences(made) if "in the pod" in each}
    assert any("10.1.0.0/16" in each for each in missing) is (V4 in ips)
    assert any("fd00:1::/64" in each for each in missing) is (V6 in ips)
    detach(pod.path, ETH0, HOST, host.path)
    assert names(host) == names(pod) == {"lo"}
