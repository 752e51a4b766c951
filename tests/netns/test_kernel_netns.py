"""Named namespaces beside `ip netns`, and a thread that always finds its way home."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tortie.base.errors import ConfigError, Exists, KernelError, NotFound
from tortie.kernel import netns, sysctl
from tortie.kernel.netlink import Netlink

pytestmark = pytest.mark.root


def own() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def mounts() -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/tt-{os.getpid()}-" in line]


@pytest.fixture(autouse=True)
def thread_stays_home() -> Iterator[None]:
    """After each test, come what may, this thread is where it was and has no descriptor more."""
    home, descriptors = own(), len(os.listdir("/proc/self/fd"))
    yield
    assert own() == home
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture
def name() -> Iterator[str]:
    """A free name."""
    name = f"tt-{os.getpid()}-kernel"
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_create_is_what_ip_netns_add_does(name: str) -> None:
    home = own()
    path = netns.create(name)
    assert path == f"/run/netns/{name}" == netns.path(name)
    assert own() == home
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert name in [line.split()[0] for line in listed.splitlines()]
    inside = ["ip", "netns", "exec", name, "readlink", "/proc/self/ns/net"]
    there = subprocess.run(inside, check=True, capture_output=True, text=True).stdout.strip()
    assert there == f"net:[{netns.inode(path)}]"
    assert there != home
    assert name in netns.list_names()


def test_ip_netns_names_are_ours_too(ns) -> None:
    assert ns.name in netns.list_names()
    with netns.entered(netns.path(ns.name)):
        assert own() == f"net:[{netns.inode(ns.path)}]"


def test_create_twice(name: str) -> None:
    path = netns.create(name)
    before = netns.inode(path)
    with pytest.raises(Exists, match=f"^ip netns add {name}: "):
        netns.create(name)
    assert netns.inode(path) == before


def test_delete_again_and_again(name: str) -> None:
    path = netns.create(name)
    for _ in range(3):
        netns.delete(name)
        assert not Path(path).exists()
    assert name not in netns.list_names()
    assert mounts() == []


def test_delete_what_is_only_a_file(name: str) -> None:
    """As it is left behind by a kill between making the file and mounting onto it."""
    netns.create(name)
    netns.delete(name)
    Path(netns.path(name)).touch()
    netns.delete(name)
    assert name not in netns.list_names()


def test_nothing_leaks(name: str) -> None:
    threads = threading.active_count()
    inodes = set()
    for _ in range(20):
        inodes.add(netns.inode(netns.create(name)))
        netns.delete(name)
    assert mounts() == []
    assert threading.active_count() == threads
    assert netns.inode() not in inodes


def test_only_one_of_many_creates_it(name: str) -> None:
    outcomes: list[str] = []

    def create() -> None:
        try:
            outcomes.append(netns.create(name))
        except Exists:
            outcomes.append("exists")

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == sorted([netns.path(name), *["exists"] * 7])
    assert len(mounts()) <= 2  # once in /run/netns, and once more where that is mounted onto itself
    netns.inode(netns.path(name))


FRESH = """
import os, sys
from tortie.kernel import netns
path = netns.create("fresh")
shared = [line for line in open("/proc/self/mountinfo") if line.split()[4] == "/run/netns" and "shared:" in line]
again = netns.create("again")
print(len(shared), netns.list_names(), netns.inode(path) != netns.inode(again))
netns.delete("fresh"); netns.delete("again")
print(netns.list_names())
"""


@pytest.mark.parametrize("prepare", ["mount -t tmpfs none /run", "mount -t tmpfs none /run; mkdir /run/netns"])
def test_where_run_netns_is_not_a_mount_point_yet(prepare: str) -> None:
    command = ["unshare", "--mount", "sh", "-c", f'{prepare}; exec "$@"', "sh", sys.executable, "-c", FRESH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines() == ["1 ['again', 'fresh'] True", "[]"], done.stderr
    assert "fresh" not in netns.list_names()


def test_no_directory_is_no_names() -> None:
    script = "from tortie.kernel import netns; print(netns.list_names())"
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs none /run; exec "$@"',
        "sh",
        sys.executable,
        "-c",
        script,
    ]
    assert subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout == "[]\n"


# --- being inside -------------------------------------------------------------------------------------------------


def test_entered_by_path_and_by_descriptor(ns) -> None:
    home, there = own(), f"net:[{netns.inode(ns.path)}]"
    with netns.entered(ns.path):
        assert own() == there
        assert netns.is_same_as_self(ns.path)
    assert own() == home
    fd = netns.open_ns(ns.path)
    try:
        with netns.entered(fd):
            assert own() == there
        os.fstat(fd)  # still the caller's
    finally:
        os.close(fd)
    assert not netns.is_same_as_self(ns.path)


def test_entered_within_entered(ns, make_ns) -> None:
    other = make_ns("inner")
    with netns.entered(ns.path):
        outer = own()
        with netns.entered(other.path):
            assert own() not in (outer, "")
        assert own() == outer


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_home_after_an_exception(ns, error: type[BaseException]) -> None:
    home = own()
    with pytest.raises(error), netns.entered(ns.path):
        raise error(f"in {own()}")
    assert own() == home


def test_home_though_the_namespace_is_deleted_meanwhile(make_ns) -> None:
    home, doomed = own(), make_ns("doomed")
    with netns.entered(doomed.path):
        netns.delete(doomed.name)
    assert own() == home


def test_home_when_there_is_no_way_in(tmp_path: Path) -> None:
    with pytest.raises(NotFound), netns.entered("/run/netns/nosuch"):
        pytest.fail("nothing to be in")
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(KernelError, match="enter network namespace"), netns.entered(fd):
        pytest.fail("nothing to be in")
    os.close(fd)


def test_other_threads_stay_where_they_are(ns) -> None:
    home = own()
    inside, seen = threading.Event(), threading.Event()

    def go() -> None:
        with netns.entered(ns.path):
            inside.set()
            seen.wait(10)

    thread = threading.Thread(target=go)
    thread.start()
    assert inside.wait(10)
    assert own() == home
    seen.set()
    thread.join()


def test_socket_stays_in_its_namespace(ns) -> None:
    home = own()
    ns.ip("link", "add", "name", "only-here", "type", "bridge")
    with Netlink(ns.path) as nl:
        assert own() == home
        from tortie.kernel import links

        assert "only-here" in [link.name for link in links.list_links(nl)]
    with pytest.raises(NotFound):
        Netlink("/run/netns/nosuch")


# --- what is not a network namespace ------------------------------------------------------------------------------


def test_unknown_fs_magic(tmp_path: Path) -> None:
    file = tmp_path / "netns"
    file.touch()
    magic = subprocess.run(
        ["stat", "-f", "-c", "%t", str(file)], check=True, capture_output=True, text=True
    ).stdout.strip()
    with pytest.raises(ConfigError) as caught:
        netns.open_ns(str(file))
    assert str(caught.value) == f'unknown FS magic on "{file}": {magic}'


def test_things_that_are_no_network_namespace(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (str(fifo), str(tmp_path), "/proc/self/status"):
        with pytest.raises(ConfigError, match="unknown FS magic"):
            netns.open_ns(path)
    with pytest.raises(ConfigError, match="not a network namespace"):
        netns.open_ns("/proc/self/ns/mnt")
    with pytest.raises(NotFound):
        netns.open_ns("/proc/2147483647/ns/net")


# --- who is inside ------------------------------------------------------------------------------------------------


def test_pids_in(ns) -> None:
    assert netns.pids_in(ns.path) == []
    sleepers = [
        subprocess.Popen(["ip", "netns", "exec", ns.name, "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for sleeper in sleepers:
            assert sleeper.stdout is not None
            sleeper.stdout.readline()
        assert netns.pids_in(ns.path) == sorted(sleeper.pid for sleeper in sleepers)
        assert os.getpid() in netns.pids_in(netns.OWN)
        assert netns.inode(f"/proc/{sleepers[0].pid}/ns/net") == netns.inode(ns.path)
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.communicate()
    assert netns.pids_in(ns.path) == []


# --- settings -----------------------------------------------------------------------------------------------------


def test_sysctl_is_the_namespaces_own(ns) -> None:
    ns.ip("link", "add", "name", "eth0.100", "type", "veth", "peer", "name", "p")
    setting = "net/ipv4/conf/eth0.100/proxy_arp"
    sysctl.write(setting, 1, netns=ns.path)
    assert sysctl.read(setting, netns=ns.path) == "1"
    assert ns.run("cat", f"/proc/sys/{setting}") == "1\n"
    with pytest.raises(KernelError, match=f"^sysctl {setting}: No such file or directory$"):
        sysctl.read(setting)
    before = sysctl.read("net/ipv4/ip_forward")
    sysctl.write("net/ipv4/ip_forward", "0" if before == "1" else "1", netns=ns.path)
    assert sysctl.read("net/ipv4/ip_forward") == before


def test_sysctl_refused(ns) -> None:
    with pytest.raises(KernelError, match=r"^sysctl -w net/ipv4/ip_forward=maybe: Invalid argument$"):
        sysctl.write("net/ipv4/ip_forward", "maybe", netns=ns.path)
    with pytest.raises(KernelError, match="No such file or directory"):
        sysctl.write("net/ipv4/conf/nosuch/proxy_arp", 1, netns=ns.path)
