"""The proxies of a lab's nodes where no agent serves services, as kube-proxy runs beside flannel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tortie.agent.client import ask
from tortie.base.errors import NotFound, Unavailable
from tortie.kernel import netns
from tortie.lab import agents
from tortie.lab.keeping import Program, not_in_time
from tortie.lab.state import LabDirectory
from tortie.lab.steps import Step
from tortie.lab.topology import Host, Topology, names

BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
"""It is there where rules see what bridges carry, as kube-proxy wants it. flannel's pods of one node are on one bridge:
an answer that no rule has seen comes from an address that nobody has asked. Masqueraded it goes by the node."""
_ASK_SECONDS, _POLL_SECONDS = 5.0, 0.1


def program(directory: LabDirectory, lab: Topology, node: Host) -> Program:
    """The proxy of a node, told where pods are as kube-proxy is."""
    entry = lab.blueprint.flannel
    pods = [net for net in (entry.network, entry.network6) if net] if entry is not None else []
    argv = [
        *agents.command(), "proxy", "--datastore", str(directory.store), "--node", node.name,
        "--run-dir", str(directory.proxy(node.name)), "--cluster-cidr", ",".join(pods), "--services", "on",
    ]  # fmt: skip
    return Program(
        f"proxy of {node.name}",
        argv,
        directory.proxy_pid(node.name),
        directory.proxy_log(node.name),
        directory.proxy_socket(node.name),
        netns.path(node.netns),
        {} if BRIDGED.exists() else {"TORTIE_MASQUERADE_ALL": "true"},
    )


@dataclass(frozen=True, slots=True)
class ProxyAnswer:
    """How a proxy is, as far as it says."""

    answers: bool = False
    ready: bool = False
    why: str = ""


def state_of(directory: LabDirectory, node: str) -> ProxyAnswer:
    """Asks the proxy of a node. Blocks for some seconds at most. One that is away is no error, but says why."""
    try:
        found: dict[str, Any] = ask(directory.proxy_socket(node), "/services", _ASK_SECONDS, who="proxy")
    except (NotFound, Unavailable) as error:
        return ProxyAnswer(why=str(error))
    why = "; ".join(map(str, found.get("failures", ()))) or ("" if found.get("on") else str(found.get("why", "")))
    return ProxyAnswer(True, bool(found.get("on")) and not why, why)


async def ask_all(directory: LabDirectory, nodes: Sequence[Host]) -> dict[str, ProxyAnswer]:
    """How they are, by node."""
    asked = (asyncio.to_thread(state_of, directory, node.name) for node in nodes)
    return dict(zip((node.name for node in nodes), await asyncio.gather(*asked), strict=True))


async def wait_ready(directory: LabDirectory, lab: Topology, step: Step, seconds: float) -> None:
    """Until every node's serves services. Raises Unavailable saying which does not, and why."""
    deadline = time.monotonic() + seconds
    late = list(lab.nodes)
    while True:
        states = await ask_all(directory, late)
        late = [node for node in late if not states[node.name].ready]
        if not late:
            step.note("")
            return
        who = names(node.name for node in late)
        step.note(f"waiting for {who}")
        if time.monotonic() > deadline:
            raise not_in_time(who, states[late[0].name].why, directory.proxy_log(late[0].name))
        await asyncio.sleep(_POLL_SECONDS)
