"""containerd and podman start containers on our network, and on Debian's bridge, by the same harness.

The bridge is the control: where it fails too, it is not us.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cri import Cri
from runtimes import (
    GO_PLUGINS,
    NODE4,
    OUTSIDE4,
    OUTSIDE6,
    RUNTIMES,
    Container,
    Containerd,
    Machine,
    Podman,
    fetching,
    missing,
    until,
)

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

SERVER = ("httpd", "-f", "-h", "/www")
CALICO, BRIDGE = "tortie", "bridged"
POOL4, POOL6, BRIDGE4, BRIDGE6 = "10.65.", "fd00:65:", "10.99.", "fd00:99:"

BRIDGED = {
    "name": BRIDGE,
    "cniVersion": "1.0.0",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "br0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd00:99::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
    ],
}
ROUTED = {
    "name": CALICO,
    "cniVersion": "1.0.0",
    "plugins": [
        {"type": "calico", "ipam": {"type": "calico-ipam", "assign_ipv6": "true"}},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
    ],
}
POOLS = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool4}
spec: {cidr: 10.65.0.0/16, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool6}
spec: {cidr: fd00:65::/48, natOutgoing: true}
"""


@dataclass
class Town:
    """A machine with a runtime, and the network that its containers are on."""

    machine: Machine
    runtime: Containerd | Podman
    network: str

    def run(self, name: str, *argv: str, ports: str = "") -> Container:
        return self.runtime.run(name, *argv, network=self.network, ports=ports)

    @contextlib.contextmanager
    def running(self, *names: str) -> Iterator[list[Container]]:
        """Web servers; gone afterwards, and so is all that was made for them."""
        made: list[Container] = []
        try:
            made.extend(self.run(name, *SERVER) for name in names)
            yield made
        finally:
            for one in made:
                one.stop()
        self.is_clean()

    def is_clean(self) -> None:
        links = self.machine.links() - {"br0"}
        assert links == set()
        assert [route for route in self.machine.json("route") if route.get("dev", "").startswith("cali")] == []
        assert self.machine.attempt("ls", "/run/netns").stdout.split() == []
        assert leases(self.machine) == []
        if self.network == CALICO:
            assert endpoints(self.machine) == []
            assert "found 0 problems" in tortie(self.machine, "ipam", "check")

    def apply(self, text: str) -> None:
        tortie(self.machine, "apply", "-f", "-", input=text)

    def outside_fetches(self, ip: str, port: int = 80, seconds: int = 2) -> str:
        words = ["ip", "netns", "exec", self.machine.outside, *fetching(ip, port, seconds)]
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout


def tortie(machine: Machine, *words: str, **more: Any) -> str:
    return machine.run("tortie", *words, **more)


def endpoints(machine: Machine) -> list[dict[str, Any]]:
    return json.loads(tortie(machine, "get", "workloadendpoints", "--all-namespaces", "-o", "json"))["items"]


def leases(machine: Machine) -> list[str]:
    """host-local's."""
    return [path.name for path in (machine.directory / "lib" / "cni" / "networks").glob("*/[0-9f]*:*")] + [
        path.name for path in (machine.directory / "lib" / "cni" / "networks").glob("*/*.*.*.*")
    ]


def reaches(container: Container, ip: str) -> None:
    """Within a moment: a server needs one to start, and IPv6 to settle."""
    until(lambda: container.fetch(ip, seconds=1), lambda page: page == "hello\n", f"{container.name} reaches {ip}")


def place(machine: Machine, path: str, content: str) -> None:
    machine.run("sh", "-c", f"cat >{path}", input=content)


def set_up_bridge(town: Town) -> None:
    """The control group."""
    machine = town.machine
    machine.run("sh", "-c", f"cp {GO_PLUGINS}/* /opt/cni/bin/")
    place(machine, "/etc/cni/net.d/10-bridged.conflist", json.dumps(BRIDGED))
    machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


def set_up_routes(town: Town) -> None:
    """Ours: what `tortie cni install` writes, and an agent."""
    machine = town.machine
    place(machine, "/run/network.json", json.dumps(ROUTED))
    machine.run("tortie", "cni", "install", env={"CNI_NETWORK_CONFIG_FILE": "/run/network.json"})
    machine.run("cp", f"{GO_PLUGINS}/portmap", f"{GO_PLUGINS}/loopback", "/opt/cni/bin/")
    machine.run("mkdir", "/var/lib/tortie")
    town.apply(POOLS)
    start_agent(machine)


def start_agent(machine: Machine) -> None:
    words = ("--node", "node1", "--datastore", "/var/lib/tortie/store.db", "--no-bgp")
    machine.start("tortie", "agent", *words, "--ipv4", f"{NODE4}/24", "--ipv6", "2001:db8::1/64")
    until(lambda: node_status(machine), lambda status: status == 200, "the agent is ready")


def node_status(machine: Machine) -> int:
    """How the agent says it is, from its socket; 0 if it says nothing."""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.connect(str(machine.directory / "run" / "tortie" / "agent.sock"))
        sock.sendall(b"GET /readiness HTTP/1.0\r\n\r\n")
        return int(sock.recv(100).split()[1])
    return 0


@pytest.fixture(scope="module")
def town(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Where the runtime runs; the reason why one does not is found out by trying."""
    name, network = request.param
    if why := missing(name):
        pytest.skip(f"{name}: {why}")
    with Machine(tmp_path_factory.mktemp("m")) as machine:
        town = Town(machine, RUNTIMES[name](machine), network)
        (set_up_bridge if network == BRIDGE else set_up_routes)(town)
        town.runtime.start()
        town.runtime.load()
        yield town
        if network == CALICO:
            assert [line for line in machine.log("tortie").splitlines() if '"exception"' in line] == []


def towns(*networks: str, runtimes: Iterable[str] = RUNTIMES) -> pytest.MarkDecorator:
    """In which a test runs."""
    chosen = [(runtime, network) for runtime in runtimes for network in networks]
    return pytest.mark.parametrize("town", chosen, indirect=True, ids="-".join, scope="module")


# --- on either network --------------------------------------------------------------------------------------------


@towns(BRIDGE, CALICO)
def test_containers_reach_each_other(town: Town) -> None:
    with town.running("web1", "web2") as (one, two):
        start4, start6 = (BRIDGE4, BRIDGE6) if town.network == BRIDGE else (POOL4, POOL6)
        for container in (one, two):
            assert container.ipv4.startswith(start4)
            assert container.ipv6.startswith(start6)
        assert one.ipv4 != two.ipv4
        for ip in (two.ipv4, two.ipv6):
            reaches(one, ip)
        for ip in (one.ipv4, one.ipv6):
            reaches(two, ip)


@contextlib.contextmanager
def server_outside(town: Town) -> Iterator[Path]:
    """Somewhere else: a web server that everybody may ask. It says who asked in the file."""
    log = town.machine.directory / "asked"
    words = ["ip", "netns", "exec", town.machine.outside, "busybox", "httpd", "-f", "-vv", "-h"]
    with log.open("wb") as file:
        process = subprocess.Popen([*words, str(town.machine.directory / "www")], stderr=file)
    try:
        yield log
    finally:
        process.kill()
        process.wait()


@towns(BRIDGE, CALICO)
def test_containers_reach_what_is_outside(town: Town) -> None:
    (town.machine.directory / "www").mkdir(exist_ok=True)
    (town.machine.directory / "www" / "index.html").write_text("hello\n")
    with server_outside(town) as asked, town.running("web1") as (one,):
        reaches(one, OUTSIDE4)
        reaches(one, OUTSIDE6)
        text = asked.read_text()
    if town.network == CALICO:
        assert NODE4 in text, "natOutgoing: outside sees the node"
        assert one.ipv4 not in text
    else:
        assert one.ipv4 in text


ONLY_ONE = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: only-one}}
spec:
  selector: has(tortie)
  types: [Ingress]
  ingress:
  - {{action: Allow, source: {{nets: ["{one.ipv4}/32"]}}}}
  - {{action: Allow, source: {{nets: ["{one.ipv6}/128"]}}}}
"""


@towns(CALICO)
def test_policy_says_who_reaches_whom(town: Town) -> None:
    """The network's profile lets its containers reach each other, and nobody else reach them; a policy selects them by
    the label that the profile gives."""
    with town.running("web1", "web2") as (one, two):
        reaches(one, two.ipv4)
        reaches(two, one.ipv4)
        assert [town.outside_fetches(ip) for ip in (one.ipv4, one.ipv6)] == ["", ""]
        town.apply(ONLY_ONE.format(one=one))
        try:
            until(lambda: two.fetch(one.ipv4, seconds=1), lambda page: not page, "the policy is in force")
            assert two.fetch(one.ipv6, seconds=1) == ""
            for ip in (two.ipv4, two.ipv6):
                reaches(one, ip)
        finally:
            tortie(town.machine, "delete", "globalnetworkpolicy", "only-one")
        reaches(two, one.ipv4)


FROM_OUTSIDE = f"""
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: from-outside}}
spec:
  selector: has(tortie)
  types: [Ingress]
  ingress: [{{action: Allow, protocol: TCP, source: {{nets: [{OUTSIDE4}/32]}}, destination: {{ports: [80]}}}}]
"""


@towns(BRIDGE, CALICO, runtimes=["podman"])
def test_published_port_is_reached(town: Town) -> None:
    """Debian's `portmap`, chained behind, with its own rules in iptables."""
    published = town.run("web1", *SERVER, ports="8080:80")
    try:
        if town.network == CALICO:
            assert town.outside_fetches(NODE4, 8080) == "", "who may reach the container is the policy's matter"
            town.apply(FROM_OUTSIDE)
        until(lambda: town.outside_fetches(NODE4, 8080), lambda page: page == "hello\n", "the port is published")
    finally:
        published.stop()
        if town.network == CALICO:
            tortie(town.machine, "delete", "globalnetworkpolicy", "from-outside")
    assert town.outside_fetches(NODE4, 8080) == ""
    assert published.ipv4 not in town.machine.run("iptables-save")
    town.is_clean()


@towns(BRIDGE, CALICO, runtimes=["podman"])
def test_container_is_removed_twice(town: Town) -> None:
    with town.running("web1") as (one,):
        container_id = town.runtime.container_id("web1")
        one.stop()
        town.is_clean()
    for netns in ("", "/run/netns/gone", f"/proc/{one.pid}/ns/net"):
        say_goodbye(town, container_id, netns)
    town.is_clean()


def say_goodbye(town: Town, container_id: str, netns: str = "") -> None:
    """DEL by hand, as docs/install.md has it: of every plugin, the last first."""
    network = ROUTED if town.network == CALICO else BRIDGED
    env = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": container_id, "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    env["CNI_PATH"] = "/opt/cni/bin"
    for plugin in reversed(network["plugins"]):
        conf = {"cniVersion": network["cniVersion"], "name": network["name"], **plugin}
        town.machine.run(f"/opt/cni/bin/{plugin['type']}", env=env, input=json.dumps(conf))


@towns(BRIDGE, CALICO, runtimes=["containerd"])
def test_containerd_that_is_killed_leaves_containers_their_network(town: Town) -> None:
    one, two = (town.runtime.run(name, *SERVER, detach=True) for name in ("web1", "web2"))
    reaches(one, two.ipv4)
    town.machine.kill("containerd")
    reaches(one, two.ipv6)
    town.runtime.start()
    reaches(two, one.ipv4)
    for container in (one, two):
        container.stop()
        say_goodbye(town, town.runtime.container_id(container.name))
    town.is_clean()


@towns(CALICO, runtimes=["containerd"])
def test_client_that_loses_containerd_says_goodbye(town: Town) -> None:
    """The container runs on, without an address that might be the next one's."""
    one = town.run("web1", *SERVER)
    town.machine.kill("containerd")
    assert one.waiting is not None
    one.waiting.wait(30)
    assert endpoints(town.machine) == []
    assert town.machine.links() == set()
    town.runtime.start()
    assert town.runtime.pid("web1") == one.pid
    town.runtime.remove("web1")
    town.is_clean()


@towns(CALICO, runtimes=["containerd"])
def test_container_that_nobody_said_goodbye_for_comes_again(town: Town) -> None:
    """The next one of its name has a namespace of its own, and is connected like any other. (host-local refuses it.)"""
    for _ in range(2):
        one = town.runtime.run("web1", *SERVER, detach=True)
        two = town.run("web2", *SERVER)
        try:
            reaches(two, one.ipv4)
            reaches(two, one.ipv6)
        finally:
            two.stop()
            one.stop()
    for _ in range(2):
        say_goodbye(town, town.runtime.container_id("web1"))
    town.is_clean()


@towns(CALICO)
def test_agent_that_is_away_is_an_error_that_says_so(town: Town) -> None:
    """Nothing is left of the attempt, and it succeeds when the agent is there again."""
    pid = town.machine.run("cat", "/run/tortie/agent.lock").strip()
    town.machine.run("kill", "-9", pid)
    with pytest.raises((AssertionError, pytest.fail.Exception)) as caught:
        town.run("web1", *SERVER)
    assert "the agent did not serve this call on /run/tortie/agent.sock" in str(caught.value)
    town.runtime.forget("web1")
    start_agent(town.machine)
    town.is_clean()
    with town.running("web1", "web2") as (one, two):
        reaches(one, two.ipv4)


POD = """
apiVersion: v1
kind: Namespace
metadata: {name: red}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: red}
spec: {nodeName: node1, containers: [{name: main}]}
"""


@towns(BRIDGE, CALICO, runtimes=["containerd"])
def test_pod_of_the_kubelet_is_connected(town: Town) -> None:
    """Over CRI, with the pod's name in CNI_ARGS: on the same network a pod and a container reach each other."""
    if town.network == CALICO:
        town.apply(POD)
    cri = Cri(town.machine.directory / "run" / "containerd" / "containerd.sock")
    try:
        sandbox = cri.run_sandbox("red", "web", "4711", f"/{town.machine.name}")
        listed = town.machine.run("ctr", "--namespace", "k8s.io", "task", "ls").splitlines()[1:]
        pod = Container(town.runtime, sandbox, next(int(one.split()[1]) for one in listed if one.startswith(sandbox)))
        assert sorted(cri.addresses(sandbox)) == sorted(pod.addresses)
        one = town.run("web1", *SERVER)
        for ip in (one.ipv4, one.ipv6):
            reaches(pod, ip)
        if town.network == CALICO:
            [mine] = [one["spec"] for one in endpoints(town.machine) if one["spec"]["orchestrator"] == "k8s"]
            assert mine["pod"] == "web"
            assert sorted(net.split("/")[0] for net in mine["ipNetworks"]) == sorted(pod.addresses)
        one.stop()
        for _ in range(2):
            cri.stop_sandbox(sandbox)
        cri.remove_sandbox(sandbox)
    finally:
        cri.close()
    town.is_clean()


# --- the user's book ----------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "install.md"
HERE = "the tests of the runtimes do"
"""Why others do not run a block: the reason to run it here."""
_BLOCK = re.compile(r"^<!-- (file|not run): ([^\n]*?) -->\n+```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTION = {"containerd": "### containerd\n", "podman": "### podman\n"}


def blocks(text: str, files: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """The commands, each with what is printed below it; files on the way."""
    for kind, what, block in _BLOCK.findall(text):
        if kind == "file":
            files[what] = block
        elif what.startswith(HERE):
            for each in re.split(r"^# ", block, flags=re.MULTILINE)[1:]:
                command, *printed = each.splitlines()
                yield command, printed


def agrees(printed: list[str], output: str) -> bool:
    """`...` stands for any text, alone on a line for any lines; a command without output may print anything."""
    if not printed:
        return True
    pattern = ""
    for line in printed:
        words = " ".join(line.split())
        pattern += r"(?:.*\n)*?" if words == "..." else ".*".join(map(re.escape, words.split("..."))) + r"\n"
    said = "".join(" ".join(line.split()) + "\n" for line in output.splitlines())
    return re.fullmatch(pattern.replace(r"\ .*", r"\ ?.*"), said) is not None


@pytest.mark.parametrize("name", RUNTIMES)
def test_book_is_right(name: str, tmp_path: Path) -> None:
    """The section of docs/install.md, typed as it is printed there, on a machine of its own."""
    if why := missing(name):
        pytest.skip(f"{name}: {why}")
    text = PAGE.read_text()
    files: dict[str, str] = {}
    list(blocks(text, files))
    about = text.partition("## With containerd or podman\n")[2].partition("\n## ")[0]
    common, *_ = about.partition("### ")
    own = about.partition(SECTION[name])[2].partition("\n### ")[0]
    commands = [*blocks(common, {}), *blocks(own, {})]
    assert len(commands) >= 7
    with Machine(tmp_path) as machine:
        home = "/run/book"
        machine.run("mkdir", home, "/var/lib/tortie")
        for file, content in files.items():
            place(machine, f"{home}/{file}", content)
        tortie(machine, "apply", "-f", f"{home}/pool.yaml")
        start_agent(machine)
        runtime = RUNTIMES[name](machine)
        runtime.start()
        (machine.directory / "containers" / "containers.conf.d" / "cni.conf").unlink(missing_ok=True)
        runtime.load()
        for command, printed in commands:
            if command.startswith("ctr image pull"):
                continue  # it is there, and there is no registry here
            done = machine.attempt("sh", "-c", f"cd {home} && {in_cgroup(command, machine)}")
            assert done.returncode == 0, (command, done.stderr)
            assert agrees(printed, done.stdout), (command, done.stdout)
        assert endpoints(machine) == []
        assert machine.links() == set()


def in_cgroup(command: str, machine: Machine) -> str:
    """The control group is the only thing that is not as the book has it: so that the test can remove it."""
    command = command.replace("ctr run ", f"ctr run --cgroup /{machine.name}/book ")
    return command.replace("podman run ", f"podman run --cgroup-parent /{machine.name} ")
