"""The plugin `host-local` as runtimes call it (situations 14 to 19 and 23 to 41 of the specification)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, Said, put
from nobody import as_nobody
from tortie.kernel import netns

pytestmark = pytest.mark.root

HOST = f"hl-host-{os.getpid()}"
CASES = Path(__file__).parents[2] / "examples" / "cases"
NO_NETNS = "/run/netns/not-looked-at"
SUBNET = {"subnet": "10.1.2.0/24"}


@dataclass(frozen=True)
class Net:
    """A network with a data directory of its own."""

    caller: Caller
    data: Path

    def __call__(self, command: str, ipam: Mapping[str, Any], container: str = "ctr1", **how: Any) -> Said:
        conf = {"cniVersion": "1.0.0", "name": "net1", **how.pop("conf", {})}
        conf["ipam"] = {"type": "host-local", "dataDir": str(self.data), **ipam}
        return self.caller(command, conf, container=container, netns=NO_NETNS, type="host-local", **how)

    def add(self, ipam: Mapping[str, Any], container: str = "ctr1", **how: Any) -> list[str]:
        said = self("ADD", ipam, container, **how)
        assert said.code == 0, said
        return [each["address"] for each in said.doc["ips"]]

    def files(self) -> dict[str, bytes]:
        found = sorted((self.data / "net1").iterdir()) if (self.data / "net1").exists() else []
        return {each.name: each.read_bytes() for each in found if each.name not in ("lock", ".boot")}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    netns.create(HOST)
    yield Caller(put(tmp_path_factory.mktemp("bin")), HOST)
    netns.delete(HOST)


@pytest.fixture
def net(caller: Caller, tmp_path: Path) -> Net:
    return Net(caller, tmp_path / "data")


def refused(why: str) -> tuple[int, str]:
    return 999, f"failed to allocate for range 0: {why}"


# --- allocation ---------------------------------------------------------------------------------------------------


def test_a_fresh_network(net: Net) -> None:  # 23
    said = net("ADD", {**SUBNET, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.5/8", "gw": "10.1.2.7"}]})
    assert said.doc == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.1.2.2/24", "gateway": "10.1.2.1"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.5/8", "gw": "10.1.2.7"}],
    }
    assert net.files() == {"10.1.2.2": b"ctr1\r\neth0", "last_reserved_ip.0": b"10.1.2.2"}


def test_addresses_go_round(net: Net) -> None:  # 24, 25, 37
    assert net.add(SUBNET) == ["10.1.2.2/24"]
    twice = refused("10.1.2.2 has been allocated to ctr1, duplicate allocation is not allowed")
    assert net("ADD", SUBNET).error == twice
    assert net("DEL", SUBNET).code == 0
    assert net.add(SUBNET, "ctr2") == ["10.1.2.3/24"]
    assert net("DEL", SUBNET).code == 0
    assert net("DEL", SUBNET, "nobody").code == 0
    assert net.add(SUBNET, "ctr2", ifname="eth1") == ["10.1.2.4/24"]


def test_a_full_range(net: Net) -> None:  # 26, 14
    small = {"subnet": "10.1.2.0/30"}
    new = {"cniVersion": "1.1.0"}
    assert net("STATUS", small, conf=new) == Said(0, "", "")
    assert net.add(small) == ["10.1.2.2/30"]
    why = "no IP addresses available in range set: 10.1.2.1-10.1.2.2"
    assert net("ADD", small, "ctr2").error == refused(why)
    assert net("STATUS", small, conf=new).error == (50, why)


INVALID = [
    ({"subnet": "10.1.2.0/31"}, "invalid range set 0: Network 10.1.2.0/31 too small to allocate from"),
    (
        {"subnet": "10.1.2.5/24"},
        "invalid range set 0: Network has host bits set. "
        "For a subnet mask of length 24 the network address is 10.1.2.0",
    ),
    (
        {**SUBNET, "rangeStart": "10.1.3.1"},
        "invalid range set 0: RangeStart 10.1.3.1 not in network 10.1.2.0/24",
    ),
    ({"ranges": []}, "no IP ranges specified"),
    ({"ranges": [[]]}, "invalid range set 0: empty range set"),
    (
        {**SUBNET, "ranges": [[{"subnet": "10.1.0.0/16"}]]},
        "range set 0 overlaps with 1",
    ),
]


@pytest.mark.parametrize(("ipam", "why"), INVALID)
def test_what_is_no_configuration(net: Net, ipam: dict[str, Any], why: str) -> None:  # 27 to 29
    assert net("ADD", ipam).error == (999, why)
    assert net("DEL", ipam).code == 0
    assert net.files() == {}


def test_no_ipam_at_all(net: Net) -> None:  # 41
    said = net.caller("ADD", {"cniVersion": "1.0.0", "name": "net1"}, netns=NO_NETNS, type="host-local")
    assert said.error == (999, "IPAM config missing 'ipam' key")


CLASSIC = {
    "type": "host-local",
    "subnet": "10.211.55.0/24",
    "rangeStart": "10.211.55.129",
    "rangeEnd": "10.211.55.139",
    "gateway": "10.211.55.1",
    "routes": [{"dst": "0.0.0.0/0"}],
}


def test_a_part_of_a_lan(net: Net) -> None:  # 30 and 19, as users have it in hand
    conf = {"cniVersion": ""}
    said = net("ADD", CLASSIC, "c0", conf=conf)
    assert said.doc == {
        "cniVersion": "0.1.0",
        "ip4": {"ip": "10.211.55.129/24", "gateway": "10.211.55.1", "routes": [{"dst": "0.0.0.0/0"}]},
        "dns": {},
    }
    for n in range(1, 11):
        assert net("ADD", CLASSIC, f"c{n}", conf=conf).doc["ip4"]["ip"] == f"10.211.55.{129 + n}/24"
    why = "no IP addresses available in range set: 10.211.55.129-10.211.55.139"
    assert net("ADD", CLASSIC, "c11", conf=conf).error == refused(why)


@pytest.mark.parametrize("case", sorted(str(each.relative_to(CASES)) for each in CASES.glob("*vlan*/*.conf")))
def test_cases(net: Net, case: str) -> None:
    """The address part of what users have in hand, as it is."""
    conf = json.loads((CASES / case).read_text())
    ipam = conf["ipam"]
    said = net("ADD", ipam, conf={**conf, "cniVersion": ""})
    first = ipam.get("rangeStart") or ipam["subnet"].replace(".0/24", ".2")
    gateway = ipam["subnet"].replace(".0/24", ".1")
    routes = {"routes": ipam["routes"]} if "routes" in ipam else {}
    assert said.doc == {"cniVersion": "0.1.0", "ip4": {"ip": f"{first}/24", "gateway": gateway, **routes}, "dns": {}}
    held = (net.data / conf["name"] / first).read_bytes()
    assert held == b"ctr1\r\neth0"


DUAL = {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64"}]]}


def test_two_families(net: Net) -> None:  # 31
    assert net.add(DUAL) == ["10.1.2.2/24", "fd00::2/64"]
    owner = b"ctr1\r\neth0"
    reserved = {"last_reserved_ip.0": b"10.1.2.2", "last_reserved_ip.1": b"fd00::2"}
    assert net.files() == {"10.1.2.2": owner, "fd00::2": owner, **reserved}
    assert net("DEL", DUAL).code == 0
    assert net.files() == reserved


def test_keys_in_any_case(net: Net) -> None:  # 15
    body = {"CNIVERSION": "0.4.0", "NAME": "net1", "IPAM": {"SUBNET": "10.1.2.0/24", "DATADIR": str(net.data)}}
    said = net.caller("ADD", body, netns=NO_NETNS, type="host-local")
    assert said.doc["ips"] == [{"version": "4", "address": "10.1.2.2/24", "gateway": "10.1.2.1"}]
    assert said.doc["dns"] == {}


# --- addresses by name --------------------------------------------------------------------------------------------


def test_an_address_in_the_arguments(net: Net) -> None:  # 32, 16 to 18
    wish = {"CNI_ARGS": "IP=10.1.2.50"}
    assert net.add(SUBNET, **wish) == ["10.1.2.50/24"]
    why = "requested IP address 10.1.2.50 is not available in range set 10.1.2.1-10.1.2.254"
    assert net("ADD", SUBNET, "ctr2", **wish).error == refused(why)
    assert net.files()["last_reserved_ip.0"] == b"10.1.2.50"
    for args, said in (
        ("FOO", 'invalid pair "FOO"'),
        ("FOO=BAR", 'unknown args ["FOO=BAR"]'),
        ("MAC=02:00:00:00:00:01", 'unknown args ["MAC=02:00:00:00:00:01"]'),
        (
            "IgnoreUnknown=yes",
            'error parsing value of pair "IgnoreUnknown=yes": boolean unmarshal error: invalid input yes',
        ),
        ("IP=foo", 'error parsing value of pair "IP=foo": invalid IP address foo'),
    ):
        assert net("ADD", SUBNET, "ctr3", CNI_ARGS=args).error == (999, f"ARGS: {said}")
    assert net.add(SUBNET, "ctr3", CNI_ARGS="IgnoreUnknown=1;FOO=BAR;IP=10.1.2.60/8") == ["10.1.2.60/24"]


def test_addresses_in_the_configuration(net: Net) -> None:  # 33, 34
    gateway = {"args": {"cni": {"ips": ["10.1.2.1"]}}}
    assert net("ADD", SUBNET, conf=gateway).error == refused("requested ip 10.1.2.1 is subnet's gateway")
    elsewhere = {"runtimeConfig": {"ips": ["10.9.9.9"]}}
    assert net("ADD", SUBNET, conf=elsewhere).error == (999, "failed to allocate all requested IPs: 10.9.9.9")
    assert list(net.files()) == ["last_reserved_ip.0"]
    both = {"args": {"cni": {"ips": ["10.1.2.7"]}}, "runtimeConfig": {"ips": ["fd00::7/64"]}}
    assert net.add(DUAL, conf=both) == ["10.1.2.7/24", "fd00::7/64"]


def test_the_runtimes_ranges_come_first(net: Net) -> None:  # 35
    ranges = {"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/16", "rangeStart": "10.7.0.9"}]]}}
    assert net.add(SUBNET, conf=ranges) == ["10.7.0.9/16", "10.1.2.2/24"]
    assert net.files()["last_reserved_ip.0"] == b"10.7.0.9"


def test_one_address_of_a_family_in_old_versions(net: Net) -> None:  # 36
    two = {"ranges": [[SUBNET], [{"subnet": "10.1.3.0/24"}]]}
    why = "CNI version 0.2.0 does not support more than 1 address per family"
    assert net("ADD", two, conf={"cniVersion": "0.2.0"}).error == (999, why)
    assert net.add(two) == ["10.1.2.2/24", "10.1.3.2/24"]


def test_name_servers(net: Net, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "nameserver 1.1.1.1\n# c\n;c\nnameserver 8.8.8.8\ndomain a\ndomain b\nsearch x y\nsearch z\noptions n:5\n"
    )
    said = net("ADD", {**SUBNET, "resolvConf": str(file)})
    assert said.doc["dns"] == {
        "nameservers": ["1.1.1.1", "8.8.8.8"],
        "domain": "b",
        "search": ["x", "y", "z"],
        "options": ["n:5"],
    }
    why = "open /not/there: no such file or directory"
    assert net("ADD", {**SUBNET, "resolvConf": "/not/there"}, "ctr2").error == (999, why)


# --- the other verbs ----------------------------------------------------------------------------------------------


def test_a_file_of_long_ago(net: Net) -> None:  # 38, 39
    (net.data / "net1").mkdir(parents=True)
    (net.data / "net1" / "10.1.2.9").write_bytes(b"ctr1\n")
    assert net("CHECK", SUBNET).code == 0
    assert net("DEL", SUBNET).code == 0
    assert net.files() == {}
    why = "host-local: Failed to find address added by container ctr1"
    assert net("CHECK", SUBNET).error == (999, why)


def test_gc(net: Net) -> None:
    for name in ("ctr1", "ctr2"):
        net.add(DUAL, name)
    valid = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": [{"containerID": "ctr2", "ifname": "eth0"}]}
    assert net("GC", DUAL, conf=valid) == Said(0, "", "")
    assert [name for name in net.files() if name[0] != "l"] == ["10.1.2.3", "fd00::3"]


def test_fifty_at_once(net: Net) -> None:  # 40
    with ThreadPoolExecutor(8) as pool:
        found = [each for some in pool.map(lambda n: net.add(SUBNET, f"c{n}"), range(50)) for each in some]
    assert sorted(found) == sorted({f"10.1.2.{n}/24" for n in range(2, 52)})


# --- a disk that does not do as it is told ------------------------------------------------------------------------


def test_a_full_disk(net: Net) -> None:
    net.data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=7", "none", str(net.data)], check=True)
    try:
        for n in range(3):  # beside them: the directories, `lock`, `last_reserved_ip.0`
            net("ADD", SUBNET, f"c{n}")
        said = net("ADD", SUBNET, "late")
        path = f"{net.data}/net1"
        assert said.error == (
            5,
            f"failed to allocate for range 0: cannot create {path}/10.1.2.4: no space left on device",
        )
        assert len([name for name in net.files() if name[0] == "1"]) == 2
        status = net("STATUS", SUBNET, conf={"cniVersion": "1.1.0"})
        assert status.error == (50, f"cannot write to {path}: no space left on device")
        subprocess.run(["mount", "-o", "remount,ro", str(net.data)], check=True)
        why = f"cannot remove {path}/10.1.2.2: read-only file system"
        assert net("DEL", SUBNET, "c0").error == (5, why)
        assert net("ADD", SUBNET, "late").error[0] == 5
        subprocess.run(["mount", "-o", "remount,rw", str(net.data)], check=True)
        assert net("DEL", SUBNET, "c0").code == 0
        assert net.add(SUBNET, "late") == ["10.1.2.4/24"]
    finally:
        subprocess.run(["umount", str(net.data)], check=True)


def test_a_directory_that_cannot_be_made(net: Net) -> None:
    assert net("ADD", {**SUBNET, "dataDir": "/proc/nope"}).error == (
        5,
        "mkdir /proc/nope/net1: no such file or directory",
    )
    status = net("STATUS", {**SUBNET, "dataDir": "/proc/nope"}, conf={"cniVersion": "1.1.0"})
    assert status.error[0] == 50


def test_a_directory_of_somebody_else(net: Net) -> None:
    net.data.mkdir()
    net.add(SUBNET)
    conf = {"cniVersion": "1.0.0", "name": "net1", "ipam": {**SUBNET, "dataDir": str(net.data)}}
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c2", "CNI_IFNAME": "eth0", "CNI_PATH": "/", "CNI_NETNS": "/x"}
    done = subprocess.run(
        as_nobody(str(net.caller.directory / "host-local")),
        input=json.dumps(conf).encode(),
        env={**env, "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=30,
        check=False,
    )
    said = Said(done.returncode, done.stdout.decode(), done.stderr.decode())
    path = f"{net.data}/net1/10.1.2.3"
    assert said.error == (5, f"failed to allocate for range 0: cannot create {path}: permission denied")


KILLED_AT_ITS_FIRST_WRITE = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
sys.path.insert(0, sys.argv[1])
from tortie.cni.plugin import answer
from tortie.cni.plugins.host_local import PLUGIN
answer(PLUGIN, os.environ, sys.stdin.buffer.read())
"""


def test_killed_between_making_a_file_and_writing_it(net: Net) -> None:
    """The kernel kills whoever writes more than its limit: here at the first byte, when the file is there but empty."""
    conf = {"cniVersion": "1.0.0", "name": "net1", "ipam": {**SUBNET, "dataDir": str(net.data)}}
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "victim", "CNI_IFNAME": "eth0", "CNI_PATH": "/", "CNI_NETNS": "/x"}
    source = str(Path(netns.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-S", "-c", KILLED_AT_ITS_FIRST_WRITE, source],
        input=json.dumps(conf).encode(),
        env={**env, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == -signal.SIGXFSZ, done
    assert net.files() == {"10.1.2.2": b""}
    assert net("DEL", SUBNET, "victim").code == 0
    assert net.add(SUBNET, "heir") == ["10.1.2.2/24"]
    assert net.files()["10.1.2.2"] == b"heir\r\neth0"


@pytest.mark.parametrize(("kind", "left"), [("tmpfs", ["10.1.2.3"]), ("9p", ["10.1.2.2", "10.1.2.3"])])
def test_a_reboot_means_something_where_this_machine_alone_writes(net: Net, kind: str, left: list[str]) -> None:
    """A process reads its mounts in a file: another one in its place makes of tmpfs what other machines write to."""
    net.data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(net.data)], check=True)
    try:
        net.add(SUBNET)
        long_ago = 1_000_000_000
        (net.data / "net1" / ".boot").write_text("boot of-another-day")
        for file in (".boot", "10.1.2.2"):
            os.utime(net.data / "net1" / file, (long_ago, long_ago))
        if kind == "tmpfs":
            net.add(SUBNET, "ctr2")
        else:
            mounts = net.data.parent / "mountinfo"
            mounts.write_text(Path("/proc/self/mountinfo").read_text().replace(" - tmpfs ", f" - {kind} "))
            with_mounts = f"mount --bind {mounts} /proc/$$/mountinfo && exec {net.caller.directory}/host-local"
            conf = {"cniVersion": "1.0.0", "name": "net1", "ipam": {**SUBNET, "dataDir": str(net.data)}}
            env = {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": "c2",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/",
                "CNI_NETNS": "/x",
            }
            done = subprocess.run(
                ["unshare", "-m", "sh", "-c", with_mounts],
                input=json.dumps(conf).encode(),
                env={**env, "PATH": os.environ["PATH"]},
                capture_output=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == 0, done
        assert [name for name in net.files() if name.startswith("10.")] == left
    finally:
        subprocess.run(["umount", str(net.data)], check=True)
