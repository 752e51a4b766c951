"""The agents of a lab's nodes: how one is run in its node's namespace, and asking one how it is."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tortie.agent.client import ask
from tortie.base.errors import NotFound, Unavailable
from tortie.bgp.birdc import ESTABLISHED
from tortie.kernel import netns
from tortie.lab.keeping import Program
from tortie.lab.state import LabDirectory
from tortie.lab.topology import Host, Topology

_ASK_SECONDS = 5.0
WITHOUT_ROUTES = {"CALICO_NETWORKING_BACKEND": "none"}
"""What an agent is told beside which flannel makes the routes."""


def command() -> list[str]:
    """How this very installation runs `tortie`."""
    beside = shutil.which("tortie", path=str(Path(sys.executable).parent))
    return [beside] if beside else [sys.executable, "-m", "tortie.cli.main"]


def program(directory: LabDirectory, lab: Topology, node: Host) -> Program:
    """The agent of a node. Beside flannel there is no pool that would tell it where pods are."""
    ipv4, ipv6 = node.addresses
    flannel = lab.blueprint.flannel
    argv = [
        sys.executable, "-m", "tortie.agent", "--node", node.name, "--datastore", str(directory.store),
        "--run-dir", str(directory.node(node.name)), "--ipv4", ipv4, "--ipv6", ipv6, "--connect-delay", "0",
        "--no-defaults", "--services", "on" if lab.has_services else "off",
    ]  # fmt: skip
    return Program(
        f"agent of {node.name}",
        argv,
        directory.agent_pid(node.name),
        directory.agent_log(node.name),
        directory.agent_socket(node.name),
        netns.path(node.netns),
        {**WITHOUT_ROUTES, "TORTIE_CLUSTER_CIDR": ",".join(map(str, flannel.nets))} if flannel is not None else {},
    )


# --- asking -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentState:
    """How an agent is, as far as it says. `sessions` are BIRD's protocols by name, and whether each is established."""

    answers: bool = False
    ready: bool = False
    sessions: Mapping[str, bool] = field(default_factory=dict)
    why: str = ""

    @property
    def established(self) -> frozenset[str]:
        return frozenset(name for name, up in self.sessions.items() if up)


def state_of(path: Path) -> AgentState:
    """Asks the agent at a socket. Blocks for some seconds at most. One that is away is no error, but says why."""
    try:
        reports = ask(path, "/readiness", _ASK_SECONDS)
        peers = ask(path, "/node", _ASK_SECONDS).get("peers", [])
    except (NotFound, Unavailable) as error:
        return AgentState(why=str(error))
    why = "; ".join(f"{name}: {report['reason']}" for name, report in reports.items() if not report["ready"])
    sessions = {peer["name"]: peer["state"] == ESTABLISHED for peer in peers}
    return AgentState(True, not why, sessions, why)
