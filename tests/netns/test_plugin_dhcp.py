"""The plugin `dhcp` and its daemon, with busybox's DHCP server (situation 45 of the specification, and the rest).

pod: eth0 ── veth or macvlan ── host: bridge `lan` ── veth ── server: 10.9.0.1/24, udhcpd
                                dhcp daemon, plugins
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import GO, Caller, Said, put
from namespaces import Ns, namespaces

BUSYBOX = shutil.which("busybox") or ""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BUSYBOX, reason="needs busybox (udhcpd)"),
]

SERVER = "10.9.0.1"
SECONDS = 12.0


def wait_until(what: Callable[[], Any], why: str, seconds: float = SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, why
        time.sleep(0.05)
    return found


@dataclass
class Lan:
    """The machines, and the programs on them."""

    host: Ns
    server: Ns
    bin: Path
    dir: Path
    programs: dict[str, subprocess.Popen[bytes]]

    @property
    def socket(self) -> Path:
        return self.dir / "dhcp.sock"

    def start(self, name: str, ns: Ns, *command: str) -> None:
        with (self.dir / f"{name}.log").open("ab") as log:
            argv = ["nsenter", f"--net={ns.path}", *command]
            self.programs[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        program = self.programs.pop(name)
        program.send_signal(number)
        return program.wait(timeout=10)

    def log(self, name: str) -> str:
        return (self.dir / f"{name}.log").read_text()

    def daemon(self, *flags: str) -> None:
        timing = ["-resendtimeout", "8s", "-timeout=3s"]
        self.start(
            "daemon", self.host, str(self.bin / "dhcp"), "daemon", "-socketpath", str(self.socket), *timing, *flags
        )
        wait_until(self.listens, "the daemon does not come up")

    def listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self.socket))
            return True
        return False

    def serve(self, seconds: int = 600, *lines: str) -> None:
        """udhcpd, with leases this long. It waits for an answer to ARP before it offers: not at all here."""
        conf = self.dir / "udhcpd.conf"
        settings = [
            "start 10.9.0.50",
            "end 10.9.0.60",
            "interface eth0",
            "min_lease 1",
            f"lease_file {self.dir}/leases",
            f"pidfile {self.dir}/udhcpd.pid",
            f"option lease {seconds}",
            "option subnet 255.255.255.0",
            f"option router {SERVER}",
            *lines,
        ]
        conf.write_text("\n".join(settings) + "\n")
        (self.dir / "leases").touch()
        self.start("udhcpd", self.server, BUSYBOX, "udhcpd", "-f", "-a", "0", str(conf))

    def call(
        self, command: str, pod: Ns, ipam: Mapping[str, Any] | None = None, version: str = "1.0.0", **how: Any
    ) -> Said:
        conf = {"cniVersion": version, "name": "lan", **how.pop("conf", {})}
        conf["ipam"] = {"type": "dhcp", "daemonSocketPath": str(self.socket), **(ipam or {})}
        return Caller(self.bin, self.host.name)(command, conf, netns=pod.name, type="dhcp", **how)

    def leases(self) -> dict[str, str]:
        """How long each address is still let, as the server writes it when it ends."""
        self.stop("udhcpd")
        said = subprocess.run([BUSYBOX, "dumpleases", "-f", str(self.dir / "leases")], capture_output=True, check=True)
        lines = [line.split() for line in said.stdout.decode().splitlines()[1:]]
        return {next(word for word in line if word.startswith("10.9.")): line[-1] for line in lines}

    def acks(self) -> int:
        return self.log("udhcpd").count("sending ACK")


@pytest.fixture(scope="module")
def bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def lan(bin: Path, tmp_path: Path, make_ns: Callable[..., Ns]) -> Iterator[Lan]:
    host, server = make_ns("host"), make_ns("server")
    host.ip("link", "add", "lan", "up", "type", "bridge")
    host.ip("link", "add", "server", "up", "master", "lan", "type", "veth", "peer", "eth0", "netns", server.name)
    server.ip("addr", "add", f"{SERVER}/24", "dev", "eth0")
    server.ip("link", "set", "eth0", "up")
    found = Lan(host, server, bin, tmp_path, {})
    try:
        yield found
    finally:
        for name in list(found.programs):
            found.stop(name, signal.SIGKILL)


@pytest.fixture
def pod(lan: Lan, make_ns: Callable[..., Ns]) -> Ns:
    return plugged(lan, make_ns("pod"), "pod")


def plugged(lan: Lan, pod: Ns, name: str) -> Ns:
    """With an interface `eth0` on the bridge, down."""
    lan.host.ip("link", "add", name, "up", "master", "lan", "type", "veth", "peer", "eth0", "netns", pod.name)
    return pod


def put_on(pod: Ns, result: Any) -> str:
    """The address of a result, put onto the interface as a main plugin does it."""
    address: str = result["ips"][0]["address"]
    pod.ip("addr", "add", address, "dev", "eth0")
    return address


# --- without anything -----------------------------------------------------------------------------------------------


def test_no_daemon(lan: Lan, pod: Ns) -> None:  # 45
    why = f"error dialing DHCP daemon: dial unix {lan.socket}: connect: no such file or directory"
    assert lan.call("ADD", pod).error == (999, why)
    assert lan.call("CHECK", pod).error == (999, why)
    assert lan.call("STATUS", pod, version="1.1.0").error == (50, why)
    said = lan.call("DEL", pod)
    assert (said.code, said.stdout) == (0, "")
    assert "no such file" in said.stderr
    said = Caller(lan.bin, lan.host.name)("ADD", {"cniVersion": "1.0.0", "name": "x"}, netns=pod.name, type="dhcp")
    assert said.error == (999, "IPAM config missing 'ipam' key")


def test_no_server(lan: Lan, pod: Ns) -> None:
    lan.daemon("-resendtimeout", "1s")
    assert lan.call("ADD", pod).error == (999, "error calling DHCP.Allocate: no more tries")
    assert lan.call("DEL", pod) == Said(0, "", "")
    nowhere = lan.call("ADD", pod, ifname="eth7")
    assert nowhere.error[1].startswith("error calling DHCP.Allocate: ip link show eth7: ")


def test_a_daemon_of_somebody_else(lan: Lan, pod: Ns) -> None:
    if not (GO / "dhcp").exists():
        pytest.skip("needs containernetworking-plugins")
    lan.start("daemon", lan.host, str(GO / "dhcp"), "daemon", "-socketpath", str(lan.socket))
    wait_until(lan.listens, "Go's daemon does not come up")
    error = lan.call("ADD", pod).error
    assert error[1].startswith(
        "error calling DHCP.Allocate: what listens there is not the DHCP daemon of these plugins"
    )
    lan.stop("daemon")
    lan.socket.unlink(missing_ok=True)
    lan.daemon()
    conf = {"cniVersion": "1.0.0", "name": "x", "ipam": {"type": "dhcp", "daemonSocketPath": str(lan.socket)}}
    assert "dhcp" in Caller(GO, lan.host.name)("ADD", conf, netns=pod.name, type="dhcp").error[1].lower()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(lan.socket))
        stranger.sendall(b'{"method": 5}\n')
        assert b"not a request of the plugin dhcp" in stranger.recv(1000)


# --- a lease --------------------------------------------------------------------------------------------------------


def test_the_life_of_a_lease(lan: Lan, pod: Ns) -> None:
    lan.serve()
    lan.daemon()
    assert lan.call("STATUS", pod, version="1.1.0") == Said(0, "", "")
    said = lan.call("ADD", pod, {"priority": 77})
    assert said.code == 0, said
    address = said.doc["ips"][0]["address"]
    assert re.fullmatch(r"10\.9\.0\.(5\d|60)/24", address)
    assert said.doc["ips"][0]["gateway"] == SERVER
    assert said.doc["routes"] == [{"dst": "0.0.0.0/0", "gw": SERVER, "priority": 77}]
    assert "UP" in pod.json("link", "show", "eth0")[0]["flags"]
    put_on(pod, said.doc)
    pod.run("ping", "-c1", "-W2", SERVER)
    with_result = {"prevResult": said.doc}
    assert lan.call("CHECK", pod, conf=with_result) == Said(0, "", "")
    other = {"prevResult": {**said.doc, "ips": [{"address": "10.9.0.99/24"}]}}
    assert "which prevResult does not have" in lan.call("CHECK", pod, conf=other).error[1]
    assert lan.call("DEL", pod) == Said(0, "", "")
    assert "released" in lan.log("daemon")
    assert lan.call("DEL", pod) == Said(0, "", "")
    assert lan.call("CHECK", pod).error == (999, "error calling DHCP.Check: there is no lease for ctr1/lan/eth0")
    assert lan.leases() == {address.partition("/")[0]: "expired"}


def test_old_versions(lan: Lan, pod: Ns) -> None:
    lan.serve()
    lan.daemon()
    said = lan.call("ADD", pod, version="0.2.0")
    assert said.doc["ip4"]["gateway"] == SERVER
    assert said.doc["ip4"]["routes"] == [{"dst": "0.0.0.0/0", "gw": SERVER}]


def test_macvlan_and_the_broadcast_flag(lan: Lan, make_ns: Callable[..., Ns]) -> None:
    lan.host.ip("link", "add", "uplink", "up", "type", "veth", "peer", "port")
    lan.host.ip("link", "set", "port", "up", "master", "lan")
    lan.serve()
    lan.daemon("-broadcast")
    found = set()
    for name in ("one", "two"):
        pod = make_ns(name)
        lan.host.ip("link", "add", name, "link", "uplink", "type", "macvlan", "mode", "bridge")
        lan.host.ip("link", "set", name, "netns", pod.name)
        pod.ip("link", "set", name, "name", "eth0")
        said = lan.call("ADD", pod, container=name)
        assert said.code == 0, (said, lan.log("daemon"))
        found.add(put_on(pod, said.doc))
        pod.run("ping", "-c1", "-W2", SERVER)
    assert len(found) == 2


def test_with_the_plugin_bridge(lan: Lan, make_ns: Callable[..., Ns]) -> None:
    """It takes the interface away before it asks for the address to be given back: then the node says so instead."""
    lan.serve()
    lan.daemon()
    lan.host.ip("addr", "add", "10.9.0.2/24", "dev", "lan")
    pod = make_ns("pod")
    ipam = {"type": "dhcp", "daemonSocketPath": str(lan.socket)}
    conf = {"cniVersion": "1.0.0", "name": "lan", "type": "bridge", "bridge": "lan", "ipam": ipam}
    caller = Caller(lan.bin, lan.host.name)
    result = caller.add(conf, netns=pod.name)
    address = result["ips"][0]["address"].partition("/")[0]
    assert address in {each["local"] for each in pod.json("addr", "show", "eth0")[0]["addr_info"]}
    pod.run("ping", "-c1", "-W2", SERVER)
    assert caller("DEL", {**conf, "prevResult": result}, netns=pod.name).code == 0
    assert "released" in lan.log("daemon")
    assert not [each for each in pod.json("link") if each["ifname"] == "eth0"]
    assert lan.leases() == {address: "expired"}


def test_options(lan: Lan, pod: Ns) -> None:
    lan.serve(
        600,
        f"option staticroutes 10.77.0.0/16 {SERVER}, 10.78.0.0/16 0.0.0.0, 0.0.0.0/0 10.9.0.2",
        "option dns 10.9.0.3",
        "option domain pods.example",
    )
    lan.daemon()
    ipam = {
        "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}, {"option": "60", "value": "tortie"}],
        "request": [{"option": "121"}, {"option": "6"}, {"option": "15"}],
    }
    said = lan.call("ADD", pod, ipam, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=blue")
    assert said.code == 0, said
    assert said.doc["routes"] == [
        {"dst": "10.77.0.0/16", "gw": SERVER},
        {"dst": "10.78.0.0/16", "scope": 253},
        {"dst": "0.0.0.0/0", "gw": "10.9.0.2"},
    ]
    assert said.doc["dns"] == {"nameservers": ["10.9.0.3"], "domain": "pods.example"}
    lan.stop("udhcpd")  # it writes its leases when it ends
    assert b"blue\0" in (lan.dir / "leases").read_bytes()


def test_options_that_are_none(lan: Lan, pod: Ns) -> None:
    lan.daemon()
    error = lan.call("ADD", pod, {"request": [{"option": "weather"}]}).error
    assert error[1].startswith('error calling DHCP.Allocate: can not parse option "weather"')
    error = lan.call("ADD", pod, {"provide": [{"option": "12", "value": "x" * 256}]}).error
    assert error[1] == 'error calling DHCP.Allocate: value too long for option "12"'


# --- time goes by ---------------------------------------------------------------------------------------------------


def test_renewed_over_a_restart_and_lost_in_the_end(lan: Lan, pod: Ns) -> None:
    lan.serve(8)
    lan.daemon()
    said = lan.call("ADD", pod)
    address = put_on(pod, said.doc)
    acks = lan.acks()
    wait_until(lambda: lan.acks() > acks, "the lease is not renewed")
    lan.stop("daemon", signal.SIGKILL)
    lan.daemon()
    acks = lan.acks()
    wait_until(lambda: lan.acks() > acks, "the next daemon does not renew it")
    assert f"goes on with the lease of {address.partition('/')[0]}" in lan.log("daemon")
    assert lan.call("CHECK", pod, conf={"prevResult": said.doc}).code == 0
    assert "UP" in pod.json("link", "show", "eth0")[0]["flags"]
    lan.stop("udhcpd")
    wait_until(lambda: "UP" not in pod.json("link", "show", "eth0")[0]["flags"], "the interface is still up")
    why = "error calling DHCP.Check: there is no lease for ctr1/lan/eth0 any more: the lease has expired"
    assert lan.call("CHECK", pod).error == (999, why)
    assert lan.call("DEL", pod).code == 0


def test_a_pod_that_is_gone(lan: Lan, make_ns: Callable[..., Ns]) -> None:
    """Nothing keeps its namespace, and nobody renews for it; DEL is as good as ever."""
    lan.serve(4)
    lan.daemon()
    makes = namespaces()
    make = next(makes)
    gone = plugged(lan, make("gone"), "gone")
    assert lan.call("ADD", gone).code == 0
    subprocess.run(["ip", "netns", "delete", gone.name], check=True)
    wait_until(lambda: "nothing to renew" in lan.log("daemon"), "the daemon does not see that the pod is gone")
    assert lan.call("DEL", gone).code == 0
    next(makes, None)


def test_gc_gives_back(lan: Lan, make_ns: Callable[..., Ns]) -> None:
    lan.serve()
    lan.daemon()
    pods = [plugged(lan, make_ns(name), f"pod-{name}") for name in "ab"]
    for name, pod in zip("ab", pods, strict=True):
        assert lan.call("ADD", pod, container=name).code == 0
    valid = {"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]}
    assert lan.call("GC", pods[0], version="1.1.0", conf=valid) == Said(0, "", "")
    assert "a/lan/eth0: released" in lan.log("daemon")
    assert lan.call("CHECK", pods[1], container="b").code == 0


def test_who_hangs_up_gets_nothing(lan: Lan, pod: Ns) -> None:
    lan.daemon()
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_NETNS": pod.path, "CNI_PATH": "/"}
    from tortie.cni.dhcp import rpc

    config = b'{"cniVersion": "1.0.0", "name": "lan", "ipam": {"type": "dhcp"}}'
    with socket.socket(socket.AF_UNIX) as impatient:
        impatient.connect(str(lan.socket))
        impatient.sendall(rpc.request("DHCP.Allocate", env, config))
        time.sleep(0.5)
    lan.serve()
    time.sleep(2.6)
    assert "lease of" not in lan.log("daemon")


# --- the daemon's own socket ----------------------------------------------------------------------------------------


def test_the_socket(lan: Lan) -> None:
    pidfile = lan.dir / "pid"
    lan.daemon("-pidfile", str(pidfile))
    assert lan.socket.stat().st_mode & 0o777 == 0o700
    assert int(pidfile.read_text()) == lan.programs["daemon"].pid
    second = subprocess.run(
        [str(lan.bin / "dhcp"), "daemon", "-socketpath", str(lan.socket)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr == f"dhcp daemon: {lan.socket}: a daemon listens there already\n"
    assert lan.stop("daemon") == 0
    assert not lan.socket.exists()
    assert not pidfile.exists()
    lan.daemon()
    lan.stop("daemon", signal.SIGKILL)
    assert lan.socket.exists()
    lan.daemon()  # takes the place of one that was killed


def test_what_is_no_socket_stays(lan: Lan) -> None:
    lan.daemon()
    file = lan.dir / "notes"
    file.write_text("mine\n")
    argv = [str(lan.bin / "dhcp"), "daemon", "-socketpath", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (1, f"dhcp daemon: {file}: there is something else\n")
    assert file.read_text() == "mine\n"


ACTIVATE = """
import os, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], [sys.argv[2], "daemon", "-socketpath", sys.argv[1]])
"""


def test_a_socket_of_systemd(lan: Lan, pod: Ns) -> None:
    import sys

    lan.serve()
    lan.start("daemon", lan.host, sys.executable, "-c", ACTIVATE, str(lan.socket), str(lan.bin / "dhcp"))
    wait_until(lan.listens, "the daemon does not come up")
    assert lan.call("ADD", pod).code == 0
    assert lan.stop("daemon") == 0
    assert lan.socket.exists()  # it is systemd's


def test_other_words(lan: Lan) -> None:
    said = subprocess.run([str(lan.bin / "dhcp"), "server"], capture_output=True, text=True, timeout=20, check=False)
    assert (said.returncode, said.stderr) == (2, "dhcp: server: there is only `daemon`\n")
    said = subprocess.run(
        [str(lan.bin / "dhcp"), "daemon", "-timeout", "soon"], capture_output=True, text=True, timeout=20, check=False
    )
    assert said.returncode == 2
    assert os.linesep in said.stderr
