"""The agent as the DaemonSet of `tortie manifest` confines it: these capabilities and no more, /proc/sys read-only
until the container makes its own writable, pods' namespaces seen as the host makes them. It connects pods all the same.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agent_node import Node, Site, applied, ips, udp, until
from agent_pods import MakeSandbox

from tortie.model.store import Store
from tortie.render.manifest import Options, documents
from tortie.render.manifest.node import CAPABILITIES, WRITABLE_PROC

pytestmark = pytest.mark.root

# What a container runtime does: a mount namespace that hears of the host's mounts, and /proc/sys read-only.
RUNTIME = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'


class Confined(Node):
    """A node whose agent is started as a container of the DaemonSet is."""

    def command(self, *more: str) -> list[str]:
        nsenter, *agent = super().command(*more)
        network, *agent = agent
        inner = f"{WRITABLE_PROC} && exec {shlex.join(agent)}"
        return [nsenter, network, *confined(CAPABILITIES), "sh", "-c", inner]


def confined(capabilities: Any) -> list[str]:
    """Words before those of a command."""
    bounding = ",".join(("-all", *(f"+{name.lower()}" for name in capabilities)))
    mounts = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", RUNTIME, "sh"]
    return [*mounts, "setpriv", "--bounding-set", bounding, "--inh-caps", "-all"]


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    plain = site.node("node1")
    site.nodes.remove(plain)
    confined_node = Confined(site, plain.name, plain.ns, plain.words)
    site.nodes.append(confined_node)
    return confined_node.start()


def test_the_daemon_set_asks_for_just_these() -> None:
    (found,) = (one for one in documents(Options()) if one["kind"] == "DaemonSet")
    (agent,) = found["spec"]["template"]["spec"]["containers"]
    assert agent["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": list(CAPABILITIES)}
    assert "privileged" not in agent["securityContext"]
    assert agent["command"] == ["/bin/sh", "-c", f"{WRITABLE_PROC} && exec tortie agent"]


def test_the_agent_has_no_other_capability(node: Node) -> None:
    assert node.process is not None
    lines = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    decoded = subprocess.run(["capsh", f"--decode={status['CapEff']}"], capture_output=True, text=True, check=True)
    held = decoded.stdout.strip().partition("=")[2].split(",")
    assert set(held) == {f"cap_{name.lower()}" for name in CAPABILITIES}


async def test_pods_are_connected_and_policy_holds(node: Node, store: Store, sandbox: MakeSandbox) -> None:
    one, two = await sandbox("one"), await sandbox("two")
    first, second = await one.add(), await two.add()
    assert one.ns is not None
    assert two.ns is not None
    receiver, sender = udp(two.ns, port=5000), udp(one.ns)
    with receiver, sender:
        receiver.settimeout(5)
        sender.sendto(b"open", (ips(second)[0], 5000))
        assert receiver.recv(10) == b"open"
        deny = (
            "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: deny, namespace: red},"
            " spec: {selector: all(), types: [Ingress]}}"
        )
        async with applied(store, deny):
            receiver.settimeout(0.2)

            def closed() -> bool:
                sender.sendto(b"shut", (ips(second)[0], 5000))
                try:
                    return receiver.recv(10) == b""
                except TimeoutError:
                    return True

            until(closed, what="the policy is enforced")
    await one.delete()
    await two.delete()
    assert ips(first) != ips(second)


async def test_bird_runs_beside_it(node: Node) -> None:
    until(lambda: node.bird_pid, what="BIRD runs")
    until(lambda: json.loads(node.ask("/health")[1])["bird"]["state"] == "ready", what="BIRD answers")


def test_without_a_capability_it_does_not_work(site: Site, node: Node) -> None:
    """So that the list is not longer than it has to be: the part that needs each is refused without it."""
    probes = {
        "NET_ADMIN": "ip link add tt-probe type dummy 2>&1 || ip link add tt-probe type veth 2>&1; "
        "ip link show tt-probe >/dev/null 2>&1",
        "SYS_ADMIN": WRITABLE_PROC,
        "NET_BIND_SERVICE": f"{sys.executable} -c 'import socket; socket.socket().bind((\"0.0.0.0\", 178))'",
        "NET_RAW": f"{sys.executable} -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
    }
    assert probes.keys() == CAPABILITIES.keys()
    network = ["nsenter", f"--net={node.ns.path}"]
    for missing, probe in probes.items():
        rest = [name for name in CAPABILITIES if name != missing]
        for held, expected in ((CAPABILITIES, True), (rest, False)):
            words = [*network, *confined(held), "sh", "-c", f"({probe}); echo =$?"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
            assert done.stdout.strip().endswith("=0") is expected, (missing, expected, done.stdout, done.stderr)
            subprocess.run(["ip", "-n", node.ns.name, "link", "del", "tt-probe"], capture_output=True, check=False)
