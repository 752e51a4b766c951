"""containerd and podman start containers on chains of our stand-alone plugins: bridge, portmap and firewall; macvlan.

No agent, no datastore, no plugin of anybody else's.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pytest
from runtimes import (
    NODE4,
    NODE6,
    OUTSIDE4,
    RUNTIMES,
    Container,
    Containerd,
    Machine,
    Podman,
    fetching,
    missing,
    until,
)

from cni_plugins import put

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

ONLY_OURS = '[network]\nnetwork_backend = "cni"\ncni_plugin_dirs = ["/opt/cni/bin"]\n'
"""podman looks into Debian's directory of plugins first."""
SERVER = ("httpd", "-f", "-h", "/www")
PAGE = "hello\n"
BRIDGE = {
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipMasq": True,
    "hairpinMode": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}
MACVLAN = {
    "type": "macvlan",
    "master": "eth0",
    "ipam": {
        "type": "host-local",
        "subnet": "192.0.2.0/24",
        "rangeStart": "192.0.2.100",
        "rangeEnd": "192.0.2.110",
        "gateway": "192.0.2.2",
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}
CHAINS: dict[str, list[dict[str, Any]]] = {
    "bridged": [
        BRIDGE,
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "backend": "iptables"},
    ],
    "native": [
        BRIDGE,
        {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": True}},
        {"type": "firewall", "backend": "nftables", "ingressPolicy": "same-bridge"},
        {"type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 8_000_000},
    ],
    "macvlan": [MACVLAN],
}


@dataclass
class Town:
    machine: Machine
    runtime: Containerd | Podman
    chain: str

    def run(self, name: str, ports: str = "") -> Container:
        return self.runtime.run(name, *SERVER, network=self.chain, ports=ports)

    @contextlib.contextmanager
    def running(self, *names: str, ports: Sequence[str] = ()) -> Iterator[list[Container]]:
        """Web servers. Afterwards nothing is left of them, nor of what was made for them."""
        made: list[Container] = []
        try:
            made.extend(self.run(name, port) for name, port in zip_longest(names, ports, fillvalue=""))
            yield made
        finally:
            for one in made:
                one.stop()
        self.is_clean()

    def is_clean(self) -> None:
        assert self.machine.links() - {"cni0"} == set()
        assert self.machine.attempt("ls", "/run/netns").stdout.split() == []
        networks = self.machine.directory / "lib" / "cni" / "networks"
        assert [path.name for path in networks.glob("*/*[.:]*.*")] == []
        left = json.loads(self.machine.run("nft", "-j", "list", "ruleset"))["nftables"]
        comments = [item["rule"].get("comment", "") for item in left if "rule" in item]
        assert [text for text in comments if text and not text.startswith("CNI firewall plugin")] == []
        for program in ("iptables-save", "ip6tables-save"):
            assert " eth0 " not in self.machine.run(program), "no rule of a container"

    def outside_fetches(self, ip: str, port: int = 80) -> str:
        words = ["ip", "netns", "exec", self.machine.outside, *fetching(ip, port, 2)]
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout

    def host_fetches(self, ip: str, port: int = 80) -> str:
        return self.machine.attempt(*fetching(ip, port, 2)).stdout


@pytest.fixture(scope="module")
def town(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    name, chain = request.param
    if why := missing(name):
        pytest.skip(f"{name}: {why}")
    with Machine(tmp_path_factory.mktemp("m")) as machine:
        put(machine.directory / "opt" / "cni" / "bin")
        conf = {"cniVersion": "1.0.0", "name": chain, "plugins": CHAINS[chain]}
        (machine.directory / "cni" / "net.d" / f"10-{chain}.conflist").write_text(json.dumps(conf))
        town = Town(machine, RUNTIMES[name](machine), chain)
        town.runtime.start()
        if name == "podman":
            (machine.directory / "containers" / "containers.conf.d" / "cni.conf").write_text(ONLY_OURS)
        town.runtime.load()
        yield town


def towns(*chains: str, runtimes: tuple[str, ...] = ("containerd", "podman")) -> pytest.MarkDecorator:
    chosen = [(runtime, chain) for runtime in runtimes for chain in chains]
    return pytest.mark.parametrize("town", chosen, indirect=True, ids="-".join, scope="module")


def reaches(container: Container, ip: str) -> None:
    """Within a moment: a server needs one to start."""
    until(lambda: container.fetch(ip, seconds=1), lambda page: page == PAGE, f"{container.name} reaches {ip}")


@contextlib.contextmanager
def server_outside(town: Town) -> Iterator[None]:
    """A web server outside."""
    folder = town.machine.directory / "www"
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text(PAGE)
    words = ["ip", "netns", "exec", town.machine.outside, "busybox", "httpd", "-f", "-h", str(folder)]
    process = subprocess.Popen(words)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@towns("bridged", runtimes=("containerd",))
def test_containers_on_a_bridge(town: Town) -> None:
    with server_outside(town), town.running("web1", "web2") as (one, two):
        assert one.ipv4.startswith("10.88.0.")
        for ip in (two.ipv4, two.ipv6):
            reaches(one, ip)
        reaches(one, OUTSIDE4)
        assert town.host_fetches(one.ipv4) == PAGE


@towns("bridged", "native", runtimes=("podman",))
def test_published_port(town: Town) -> None:
    """From outside, from the host, by 127.0.0.1, from another container and from the very one that has it."""
    with town.running("web1", "web2", ports=("8080:80", "8081:80")) as (one, two):
        reaches(one, two.ipv4)
        reaches(one, two.ipv6)
        until(lambda: town.outside_fetches(NODE4, 8080), lambda page: page == PAGE, "the port is published")
        until(lambda: town.outside_fetches(NODE4, 8081), lambda page: page == PAGE, "the other port is, too")
        assert town.outside_fetches(NODE6, 8080) == PAGE
        for ip in (NODE4, "127.0.0.1", "10.88.0.1"):
            assert town.host_fetches(ip, 8080) == PAGE
        assert two.fetch(NODE4, 8080) == PAGE
        assert one.fetch(NODE4, 8080) == PAGE
        assert one.fetch(NODE6, 8080) == PAGE
        assert town.outside_fetches(NODE4, 80) == ""
        two.stop()
        assert town.outside_fetches(NODE4, 8081) == ""
        assert town.outside_fetches(NODE4, 8080) == PAGE


@towns("bridged", runtimes=("podman",))
def test_host_that_forwards_nothing(town: Town) -> None:
    """FORWARD's policy is DROP, as Docker leaves it: containers get out, and what is published needs one rule."""
    town.machine.run("iptables", "-P", "FORWARD", "DROP")
    try:
        with server_outside(town), town.running("web1", ports=("8080:80",)) as (one,):
            reaches(one, OUTSIDE4)
            assert town.host_fetches(NODE4, 8080) == PAGE
            assert town.outside_fetches(NODE4, 8080) == ""
            rule = ("CNI-ADMIN", "-m", "conntrack", "--ctstate", "DNAT", "-j", "ACCEPT")
            town.machine.run("iptables", "-A", *rule)
            assert town.outside_fetches(NODE4, 8080) == PAGE
            town.machine.run("iptables", "-D", *rule)
    finally:
        town.machine.run("iptables", "-P", "FORWARD", "ACCEPT")


@towns("macvlan")
def test_containers_beside_the_host(town: Town) -> None:
    with server_outside(town), town.running("web1", "web2") as (one, two):
        assert one.ipv4.startswith("192.0.2.1")
        reaches(one, two.ipv4)
        reaches(two, OUTSIDE4)
        assert town.outside_fetches(one.ipv4) == PAGE
        assert town.host_fetches(one.ipv4) == "", "its own host is the one that a macvlan does not reach"


@towns("bridged", runtimes=("podman",))
def test_removed_twice(town: Town) -> None:
    """DEL by hand for a container that is gone, last plugin first."""
    with town.running("web1") as (one,):
        container_id = town.runtime.container_id("web1")
    for netns in ("", "/run/netns/gone", f"/proc/{one.pid}/ns/net"):
        env = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": container_id, "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
        for plugin in reversed(CHAINS[town.chain]):
            conf = {"cniVersion": "1.0.0", "name": town.chain, **plugin}
            program = f"/opt/cni/bin/{plugin['type']}"
            town.machine.run(program, env={**env, "CNI_PATH": "/opt/cni/bin"}, input=json.dumps(conf))
    town.is_clean()
