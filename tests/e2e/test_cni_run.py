"""`tortie cni add|del|check|gc|status|validate` as a person types them, in a host namespace of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import forked
from cni_plugins import GO
from namespaces import Ns, make_ns  # noqa: F401
from tortie.kernel.netns import entered

pytestmark = pytest.mark.root

RANGE = {"type": "host-local", "subnet": "10.77.0.0/24"}


@dataclass
class Said:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Shell:
    """A host, a pod, a directory of configurations, and a person in it."""

    host: Ns
    pod: Ns
    directory: Path

    def __call__(self, *words: str, **env: str) -> Said:
        own = {"NETCONFPATH": str(self.directory / "net.d"), "TMPDIR": str(self.directory)}
        with (self.directory / "out").open("w+b") as out, (self.directory / "err").open("w+b") as err:
            with entered(self.host.path):
                status = forked.run(["cni", *words], own | env, (None, out, err), self.directory)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return Said(status, *texts)

    def verb(self, verb: str, *words: str, **env: str) -> Said:
        return self(verb, "net1", *words, "--cache-dir", str(self.directory / "cache"), **env)

    def network(self, *listed: dict[str, Any], version: str = "1.1.0") -> Path:
        file = self.directory / "net.d/10-net1.conflist"
        file.write_text(json.dumps({"cniVersion": version, "name": "net1", "plugins": listed}))
        return file

    @property
    def remembered(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "cache/results").glob("*"))

    @property
    def reserved(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "addresses/net1").glob("10.*"))

    def ptp(self) -> dict[str, Any]:
        return {"type": "ptp", "ipam": {**RANGE, "dataDir": str(self.directory / "addresses")}}


@pytest.fixture
def shell(make_ns: Callable[..., Ns], tmp_path: Path) -> Iterator[Shell]:  # noqa: F811
    (tmp_path / "net.d").mkdir()
    shell = Shell(make_ns("host"), make_ns("pod"), tmp_path)
    yield shell
    assert not list(tmp_path.glob("tortie-plugins-*"))


def test_life_of_a_chain(shell: Shell) -> None:
    shell.network(shell.ptp(), {"type": "tuning", "mtu": 1400, "dataDir": str(shell.directory / "tuning")})
    added = shell.verb("add", shell.pod.name)
    assert added.returncode == 0, added.stderr
    result = json.loads(added.stdout)
    assert result["ips"] == [{"interface": 1, "address": "10.77.0.2/24", "gateway": "10.77.0.1"}]
    (link,) = shell.pod.json("link", "show", "eth0")
    assert link["mtu"] == 1400
    assert (shell.directory / "tuning").is_dir()
    digest = hashlib.sha512(shell.pod.path.encode()).hexdigest()[:20]
    assert shell.remembered == [f"net1-cnitool-{digest}-eth0"]
    assert shell.verb("check", shell.pod.path).returncode == 0
    shell.pod.ip("link", "set", "eth0", "mtu", "1300")
    wrong = shell.verb("check", shell.pod.path)
    assert wrong.returncode == 1
    assert wrong.stderr == 'tortie: plugin "tuning": Error: mtu of eth0 is 1300, and was set to 1400\n'
    for _ in range(2):
        assert shell.verb("del", shell.pod.name).returncode == 0
    assert shell.remembered == shell.reserved == []
    assert {link["ifname"] for link in shell.pod.json("link", "show")} == {"lo"}


def test_environment_and_options_mean_the_same(shell: Shell) -> None:
    shell.network(shell.ptp(), {"type": "tuning", "capabilities": {"mac": True}, "dataDir": str(shell.directory / "t")})
    capabilities = json.dumps({"mac": "02:00:00:00:00:07", "bandwidth": {}})
    env = {"CNI_IFNAME": "net7", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=x", "CAP_ARGS": capabilities}
    assert shell.verb("add", shell.pod.name, **env).returncode == 0
    (link,) = shell.pod.json("link", "show", "net7")
    assert link["address"] == "02:00:00:00:00:07"
    words = ("--ifname", "net7", "--args", "MAC=02:00:00:00:00:08", "--container-id", "other", "--bundled")
    assert shell.verb("del", shell.pod.name, "--ifname", "net7").returncode == 0
    added = shell.verb("add", shell.pod.name, *words)
    assert added.returncode == 1, "host-local knows no MAC"
    assert 'ARGS: unknown args ["MAC=02:00:00:00:00:08"]' in added.stderr
    words = ("--ifname", "net7", "--cap-args", capabilities, "--container-id", "other")
    assert shell.verb("add", shell.pod.name, *words).returncode == 0
    assert shell.remembered == ["net1-other-net7"]
    assert shell.verb("del", shell.pod.name, *words).returncode == 0


def test_where_plugins_are_looked_for(shell: Shell, tmp_path: Path) -> None:
    shell.network({"type": "loopback"}, version="1.0.0")
    missing = shell.verb("add", shell.pod.name, CNI_PATH="/nowhere:/nowhere2")
    assert missing.returncode == 1
    assert 'failed to find plugin "loopback" in path [/nowhere /nowhere2]' in missing.stderr
    assert shell.verb("add", shell.pod.name, "--bundled", CNI_PATH="/nowhere").returncode == 0
    assert shell.verb("add", shell.pod.name).returncode == 0
    other = tmp_path / "bin"
    other.mkdir()
    (other / "loopback").write_text('#!/bin/sh\necho \'{"cniVersion": "1.0.0", "theirs": true}\'\n')
    (other / "loopback").chmod(0o755)
    assert json.loads(shell.verb("add", shell.pod.name, "--path", str(other)).stdout)["theirs"] is True
    assert "theirs" not in json.loads(shell.verb("add", shell.pod.name, "--path", str(other), "--bundled").stdout)


def test_what_go_plugins_added_ours_delete(shell: Shell) -> None:
    if not (GO / "ptp").exists():
        pytest.skip("Debian's containernetworking-plugins are not installed")
    shell.network(shell.ptp(), version="1.0.0")
    added = shell.verb("add", shell.pod.name, CNI_PATH=str(GO))
    assert added.returncode == 0, added.stderr
    assert shell.verb("check", shell.pod.name).returncode == 0
    assert shell.reserved == ["10.77.0.2"]
    assert shell.verb("del", shell.pod.name).returncode == 0
    assert shell.reserved == []


def test_gc_keeps_what_has_a_namespace(shell: Shell, make_ns: Callable[..., Ns]) -> None:  # noqa: F811
    shell.network(shell.ptp())
    gone = make_ns("gone")
    for pod in (shell.pod, gone):
        assert shell.verb("add", pod.name).returncode == 0
    assert len(shell.remembered) == len(shell.reserved) == 2
    assert shell.verb("gc").returncode == 0
    assert len(shell.remembered) == len(shell.reserved) == 2
    subprocess.run(["ip", "netns", "delete", gone.name], check=True, timeout=30)
    collected = shell.verb("gc")
    assert collected.returncode == 0, collected.stderr
    assert shell.reserved == ["10.77.0.2"]
    assert len(shell.remembered) == 1
    assert shell.verb("check", shell.pod.name).returncode == 0
    assert shell.verb("gc", "--none-valid").returncode == 0
    assert shell.remembered == shell.reserved == []


def test_status(shell: Shell) -> None:
    shell.network(shell.ptp())
    assert shell.verb("status").returncode == 0
    shell.network({"type": "ptp", "ipam": {"type": "nobody"}})
    said = shell.verb("status")
    assert said.returncode == 1
    assert 'failed to find plugin "nobody"' in said.stderr


@pytest.mark.parametrize(
    ("words", "env", "status", "text"),
    [
        (("add", "other", "x"), {}, 1, 'no network "other" in'),
        (("add", "./none.conf", "x"), {}, 2, "none.conf: No such file or directory"),
        (("add", "net1", "nobody-is-here"), {}, 1, 'failed to open netns "/run/netns/nobody-is-here"'),
        (("add", "net1", "x"), {"CNI_ARGS": "A"}, 2, 'CNI_ARGS: "A" is not KEY=VALUE'),
        (("add", "net1", "x"), {"CAP_ARGS": "{"}, 2, "CAP_ARGS: not JSON"),
        (("add", "net1", "x"), {"CAP_ARGS": "[]"}, 2, "CAP_ARGS: must be an object"),
        (("add", "net1", "x", "--ifname", "a/b"), {}, 1, "interface name contains /"),
        (("add", "net1"), {}, 2, "NETNS"),
    ],
)
def test_what_is_wrong(shell: Shell, words: tuple[str, ...], env: dict[str, str], status: int, text: str) -> None:
    shell.network(shell.ptp())
    said = shell(*words, **env)
    assert (said.returncode, said.stdout) == (status, "")
    assert text in said.stderr
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize("pause", [0, 0.001, 0.002, 0.003, 0.005, 0.1])
def test_a_command_that_is_told_to_end_leaves_nothing(shell: Shell, tmp_path: Path, pause: float) -> None:
    """In the middle of starting a plugin, and while that runs."""
    slow = tmp_path / "bin/slow"
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    slow.chmod(0o755)
    file = shell.network({"type": "slow"})
    words = [Path(sys.executable).with_name("tortie"), "cni", "add", str(file), shell.pod.path, "--bundled"]
    env = os.environ | {"CNI_PATH": str(slow.parent), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE) as running:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        assert list(tmp_path.glob("tortie-plugins-*"))
        time.sleep(pause)
        running.terminate()
        assert running.wait(30) == 128 + signal.SIGTERM
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    # Its parent has ended: whoever inherits it asks for its status when he comes to it.
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


# --- validate -----------------------------------------------------------------------------------------------------


def test_validate(shell: Shell) -> None:
    file = shell.network({"type": "ptp", "mtu": -1, "ipam": RANGE})
    said = shell("validate", str(file))
    assert said.returncode == 2
    assert said.stdout.splitlines() == [
        f"{file}:1:69: error: plugins[0].mtu: -1 is not between 0 and 65535",
        "1 file: 1 error",
    ]
    (one,) = json.loads(shell("validate", "-o", "json", str(file)).stdout)
    assert one == {
        "severity": "error",
        "file": str(file),
        "line": 1,
        "column": 69,
        "path": "plugins[0].mtu",
        "message": "-1 is not between 0 and 65535",
    }
    shell.network({"type": "ptp", "weather": "fine", "ipam": RANGE})
    said = shell("validate", str(file))
    assert (said.returncode, said.stdout.splitlines()[-1]) == (0, "1 file: 1 warning")
    shell.network({"type": "ptp", "ipam": RANGE})
    assert shell("validate", str(file)).stdout == "1 file: nothing found\n"
    assert shell("validate", "none.conf").returncode == 2


def test_validate_on_this_machine(shell: Shell) -> None:
    shell.host.ip("link", "add", "wan0", "mtu", "1400", "type", "veth", "peer", "name", "wan1")
    file = shell.network({"type": "macvlan", "master": "wan2", "ipam": RANGE})
    assert shell("validate", str(file)).returncode == 0
    said = shell("validate", "--host", "--path", "/nowhere", str(file))
    assert said.returncode == 2
    assert 'plugins[0].master: this machine has no link "wan2": did you mean' in said.stdout
    assert 'there is no plugin "macvlan" in /nowhere: tortie cni install --plugins macvlan' in said.stdout
    file = shell.network({"type": "macvlan", "master": "wan0", "mtu": 1500, "ipam": RANGE})
    assert "1500 is more than the MTU of wan0, 1400" in shell("validate", "--host", str(file)).stdout


def test_what_is_wrong_is_refused_in_fact(shell: Shell) -> None:
    """The word of `validate` against that of the plugins."""
    wrong: list[dict[str, Any]] = [
        {"type": "ptp", "ipam": {**RANGE, "subnet": "10.77.0.9/24"}},
        {"type": "ptp", "ipam": {**RANGE, "rangeStart": "10.78.0.9"}},
        {"type": "ptp", "ipam": {"type": "host-local"}},
        {"type": "ptp", "mtu": "1500", "ipam": RANGE},
        {"type": "bridge", "hairpinMode": True, "promiscMode": True, "ipam": RANGE},
        {"type": "dummy"},
    ]
    chained: list[dict[str, Any]] = [
        {"type": "portmap", "capabilities": {"portMappings": True}, "markMasqBit": 32},
        {"type": "bandwidth", "ingressRate": 8},
        {"type": "tuning", "sysctl": {"kernel.msgmax": "1"}},
        {"type": "vrf"},
    ]
    for plugin in wrong:
        own = {"dataDir": str(shell.directory / "addresses")}
        file = shell.network({**plugin, **({"ipam": plugin["ipam"] | own} if "ipam" in plugin else {})})
        assert shell("validate", str(file)).returncode == 2, plugin
        assert shell.verb("add", shell.pod.name).returncode == 1, plugin
    assert {link["ifname"] for link in shell.pod.json("link", "show")} == {"lo"}
    for plugin in chained:
        file = shell.network({"type": "loopback"}, plugin)
        assert shell("validate", str(file)).returncode == 2, plugin
        assert shell.verb("add", shell.pod.name).returncode == 1, plugin
