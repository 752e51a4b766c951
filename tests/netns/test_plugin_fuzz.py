"""10,000 malformed configurations and environments: always a CNI error object and exit 1, never a traceback, never a
half-made interface.

A valid call of a plugin is spoilt at random, once or several times, and made in a host namespace with a pod. Where it
works all the same the pod is taken down again. Every so often host, pod and address files are looked at: what was there
before is there, and nothing else.

TORTIE_FUZZ_CALLS is how many calls there are, TORTIE_FUZZ_SEED which.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, put
from tortie.cni import plugins
from tortie.cni.plugin import Answer, answer
from tortie.kernel import netns

pytestmark = pytest.mark.root

CALLS = int(os.environ.get("TORTIE_FUZZ_CALLS", "10000"))
SEED = int(os.environ.get("TORTIE_FUZZ_SEED", "1"))
LOOK_EVERY = 200
PROCESSES = 50
"""Calls that are processes of their own: the rest are made inside this one, which is quicker."""

PREFIX = f"fuzz{os.getpid()}"
HOST, POD = f"{PREFIX}-host", f"{PREFIX}-pod"
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "veth0"}, {"name": "eth0", "sandbox": f"/run/netns/{POD}"}],
    "ips": [{"interface": 1, "address": "10.1.2.2/24", "gateway": "10.1.2.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
}
IPAM = {"type": "host-local", "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "routes": [{"dst": "0.0.0.0/0"}]}
STATIC = {"type": "static", "addresses": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}]}
VALID: dict[str, dict[str, Any]] = {
    "bandwidth": {"ingressRate": 8000000, "ingressBurst": 1000000, "prevResult": RESULT},
    "bridge": {"bridge": "br9", "isGateway": True, "hairpinMode": True, "mtu": 1400, "ipam": IPAM},
    "dhcp": {"ipam": {"type": "dhcp", "daemonSocketPath": "/nowhere/dhcp.sock"}},
    "dummy": {"ipam": STATIC},
    "firewall": {"backend": "iptables", "ingressPolicy": "open", "prevResult": RESULT},
    "flannel": {"delegate": {"bridge": "br9", "hairpinMode": True, "mtu": 1400}, "ipam": {"type": "host-local"}},
    "host-device": {"device": "spare0"},
    "host-local": {"ipam": {**IPAM, "ranges": [[{"subnet": "fd00:9::/64"}]]}},
    "ipvlan": {"master": "up0", "mode": "l2", "mtu": 1400, "ipam": IPAM},
    "loopback": {},
    "macvlan": {"master": "up0", "mode": "bridge", "mtu": 1400, "ipam": STATIC},
    "portmap": {
        "snat": True,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": RESULT,
    },
    "ptp": {"mtu": 1400, "ipam": IPAM, "dns": {"nameservers": ["10.1.0.1"]}},
    "sbr": {"table": 100, "prevResult": RESULT},
    "static": {"ipam": STATIC},
    "tap": {"mtu": 1400, "multiQueue": True, "ipam": STATIC},
    "tuning": {"mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "prevResult": RESULT},
    "vlan": {"master": "up0", "vlanId": 5, "mtu": 1400, "ipam": STATIC},
    "vrf": {"vrfname": "blue", "table": 10, "prevResult": RESULT},
}
SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 2**31, 2**32, 2**63, 10**40, "", " ", "eth0", "../../etc/passwd", "x" * 300,
    "\0", "\n", "ü", "\ud800", "10.1.2.3", "10.1.2.3/33", "10.1.2.0/24", "fd00::/64", "::/0", "0.0.0.0/0",
    "255.255.255.255/0", "zz:zz", "ff:ff:ff:ff:ff:ff", "%s%n", "$(reboot)", "; flush ruleset", '"', "9.9.9", "1.1.0",
    "0.1.0", [], {}, [[]], [None], {"": None},
)  # fmt: skip
BAD_VALUES = (None, "", "a b", "x" * 300, "/", "..", "/etc/passwd", "/proc/self/ns/net", "é", "K=V;;=", "FOO")
BAD_ARGS = ("IP=zz", "MAC=zz", "A=B", "IgnoreUnknown=1;X=Y", "=", "IP=10.1.2.300;IgnoreUnknown=1")
WORDS = ("master", "mtu", "ipam", "type", "name", "cniVersion", "subnet", "mac", "mode", "vlan", "prevResult", "args",
         "runtimeConfig", "routes", "dst", "gw", "ips", "interfaces", "dns", "ranges", "address", "cni")  # fmt: skip


def spoilt(value: Any, dice: random.Random) -> Any:
    """The same with one place in it that is not as it was."""
    holders = list(_holders(value))
    holder = dice.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    what = dice.random()
    if keys and what < 0.25:
        del holder[dice.choice(keys)]
    elif keys and what < 0.75:
        holder[dice.choice(keys)] = copy.deepcopy(dice.choice(SCALARS))
    elif isinstance(holder, dict):
        holder[dice.choice(WORDS)] = copy.deepcopy(dice.choice(SCALARS))
    else:
        holder.append(copy.deepcopy(dice.choice([*SCALARS, *holder])))
    return value


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from _holders(each)


KEPT = re.compile(rb'"(dataDir|subnetFile)": "[^"]*"')


def written(conf: Any, dice: random.Random) -> bytes:
    """As JSON; sometimes not quite, but for where files are to be."""
    data = bytearray(json.dumps(conf).encode("utf-8", "surrogatepass"))
    what = dice.random()
    if what < 0.05:
        del data[dice.randrange(len(data)) :]
    elif what < 0.1:
        kept = {place for found in KEPT.finditer(data) for place in range(*found.span())}
        data[dice.choice([place for place in range(len(data)) if place not in kept])] = dice.randrange(256)
    elif what < 0.12:
        data = bytearray(dice.choice((b"", b"null", b"[]", b"7", b'"x"', b"{", b"[" * 5000, b"{}{}", b"\xff\xfe")))
    return bytes(data)


class Field:
    """A host with an uplink and a spare link, a pod, and what can be seen of all that."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = put(directory / "bin")
        self.data = directory / "networks"
        self.kept = directory / "flannel"
        self.subnet_env = directory / "subnet.env"
        self.subnet_env.write_text(
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n"
        )
        for name in (HOST, POD):
            netns.create(name)
        self._ip("link add up0 type veth peer name up1", "link set up0 up", "link set up1 up")
        self._ip("link add spare0 type veth peer name spare1", "addr add 192.0.2.1/24 dev up0")
        for state in ("up", "down"):  # up once, `lo` keeps its address
            subprocess.run(["ip", "-n", POD, "link", "set", "lo", state], check=True, timeout=30)
        self.before = self.seen()

    def close(self) -> None:
        for name in (HOST, POD):
            netns.delete(name)

    def _ip(self, *lines: str) -> None:
        for line in lines:
            subprocess.run(["ip", "-n", HOST, *line.split()], check=True, timeout=30)

    def seen(self) -> dict[str, list[str]]:
        """Links, addresses, routes, rules of both, held addresses. Bridges stay, as with the Go plugin."""
        found: dict[str, list[str]] = {}
        for name in (HOST, POD):
            links = json.loads(self._run("ip", "-n", name, "-j", "-d", "link", "show"))
            bridges = {each["ifname"] for each in links if each.get("linkinfo", {}).get("info_kind") == "bridge"}
            found[f"links of {name}"] = sorted({each["ifname"] for each in links} - bridges)
            for what in ("-4 addr", "-4 route", "-4 rule"):
                lines = [each.split() for each in self._run("ip", "-n", name, "-o", *what.split(), "show").splitlines()]
                found[f"{what} of {name}"] = sorted(" ".join(each) for each in lines if not bridges & set(each))
        if self.data.exists():
            held = (each for each in self.data.rglob("*") if each.name[:1].isalnum() and each.is_file())
            found["held"] = sorted(e.name for e in held if e.name != "lock" and not e.name.startswith("last_reserved"))
        return {key: value for key, value in found.items() if value}

    @staticmethod
    def _run(*words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout

    def conf(self, name: str) -> dict[str, Any]:
        conf = copy.deepcopy({"cniVersion": "1.0.0", "name": "net1", "type": name, **VALID[name]})
        _keep_apart(self, name, conf)
        return conf

    def env(self, command: str) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "ctr1",
            "CNI_NETNS": f"/run/netns/{POD}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.bin),
            "PATH": os.environ["PATH"],
        }


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Field]:
    ground = Field(tmp_path)
    here = tmp_path / "deep" / "down"  # some of the paths that are made up are relative, with dots
    here.mkdir(parents=True)
    with chdir(here):
        plugins.program = str(ground.bin / "loopback")  # plugins call one another in this process, as in their own
        yield ground
        plugins.program = ""
    ground.close()


def spoilt_call(ground: Field, dice: random.Random) -> tuple[str, dict[str, str], bytes]:
    name = dice.choice(list(VALID))
    env = ground.env(dice.choice(("ADD",) * 6 + ("DEL", "DEL", "CHECK", "GC", "STATUS", "VERSION")))
    conf: Any = ground.conf(name)
    if env["CNI_COMMAND"] in ("GC", "STATUS"):
        conf |= {"cniVersion": "1.1.0", "cni.dev/valid-attachments": [{"containerID": "other", "ifname": "eth0"}]}
        conf.pop("prevResult", None)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
        conf = spoilt(conf, dice)
    if dice.random() < 0.15:
        key = dice.choice([key for key in env if key.startswith("CNI")])
        text = dice.choice(BAD_VALUES)
        env = {name: value for name, value in env.items() if name != key} | ({} if text is None else {key: text})
    if dice.random() < 0.1:
        env["CNI_ARGS"] = dice.choice(BAD_ARGS)
    if isinstance(conf, dict):
        _keep_apart(ground, name, conf)
    return name, env, written(conf, dice)


def _keep_apart(ground: Field, name: str, conf: dict[str, Any]) -> None:
    """Where there is no directory for files there is the ground's: never the machine's own. What flannel keeps of an
    ADD that fails is none of what is looked at: it waits for a DEL."""
    if name == "flannel":
        conf.setdefault("subnetFile", str(ground.subnet_env))
        if conf.get("ipam") is None:
            conf["ipam"] = {}
        if not (isinstance(conf.get("dataDir"), str) and conf["dataDir"]):
            conf["dataDir"] = str(ground.kept)
    for holder in (conf, conf.get("ipam")):
        if isinstance(holder, dict) and not (isinstance(holder.get("dataDir"), str) and holder["dataDir"]):
            holder["dataDir"] = str(ground.data)


def judge(name: str, env: dict[str, str], stdin: bytes, said: Answer) -> None:
    where = f"{name} {env} {stdin!r}\n{said.stdout}\n{said.stderr}"
    assert "Traceback" not in said.stderr, where
    assert "Error(" not in said.stdout, where
    if said.code:
        assert said.code == 1, where
        error = json.loads(said.stdout)
        assert type(error["code"]) is int, where
        assert error["code"] > 0, where
        assert error["msg"].strip(), where
    elif env.get("CNI_COMMAND") == "ADD":
        assert isinstance(json.loads(said.stdout), dict), where


def called(name: str, env: dict[str, str], stdin: bytes) -> Answer:
    """A call inside this process, whose environment is what the plugin would be started with."""
    before = dict(os.environ)
    os.environ.clear()
    try:
        os.environ.update(env)
        return answer(plugins.load(name), env, stdin)
    finally:
        os.environ.clear()
        os.environ.update(before)


def clean(name: str, env: dict[str, str], stdin: bytes) -> None:
    """The DEL of an ADD that worked all the same; with the configuration of the ADD, as a runtime has it."""
    said = called(name, {**env, "CNI_COMMAND": "DEL"}, stdin)
    assert said.code == 0, f"{name} {env} {stdin!r}\n{said.stdout}"


def test_ten_thousand(ground: Field) -> None:
    dice = random.Random(SEED)
    outcomes: Counter[str] = Counter()
    since: list[str] = []
    with netns.entered(netns.path(HOST)):
        for number in range(1, CALLS + 1):
            name, env, stdin = spoilt_call(ground, dice)
            said = called(name, env, stdin)
            judge(name, env, stdin, said)
            command = env.get("CNI_COMMAND", "")
            outcomes[f"{'refused' if said.code else 'done'}"] += 1
            since.append(f"{name} {env} {stdin!r}: {said.code} {said.stdout[:200]}")
            if command == "ADD" and not said.code:
                clean(name, env, stdin)
            if number % LOOK_EVERY == 0 or number == CALLS:
                assert ground.seen() == ground.before, "\n".join(since)
                since.clear()
    print(dict(outcomes))
    assert min(outcomes["refused"], outcomes["done"]) > CALLS // 20


def test_processes(ground: Field) -> None:
    dice = random.Random(SEED + 1)
    call = Caller(ground.bin, HOST)
    for _ in range(PROCESSES):
        name, env, stdin = spoilt_call(ground, dice)
        if any("\0" in value for value in env.values()):
            continue
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{HOST}", str(call.directory / name)],
            input=stdin,
            env=env,
            capture_output=True,
            timeout=60,
            check=False,
        )
        judge(name, env, stdin, Answer(done.returncode, done.stdout.decode(), done.stderr.decode()))
        if env.get("CNI_COMMAND") == "ADD" and not done.returncode:
            with netns.entered(netns.path(HOST)):
                clean(name, env, stdin)
    assert ground.seen() == ground.before
