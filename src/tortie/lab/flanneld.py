"""The flannelds of a lab's nodes: how one is run in its node's namespace, asking one how it is, waiting for all."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tortie.agent.client import ask
from tortie.base.errors import NotFound, Unavailable
from tortie.kernel import netns
from tortie.lab.keeping import Program, not_in_time
from tortie.lab.state import LabDirectory
from tortie.lab.topology import Host, Topology, names

if TYPE_CHECKING:
    from tortie.lab.steps import Step

HEALTH_PORT = 8081
"""As kube-flannel's; every node has its own."""
ETH0 = "eth0"
_ASK_SECONDS, _POLL_SECONDS = 5.0, 0.1


def program(directory: LabDirectory, lab: Topology, node: Host) -> Program:
    """The flanneld of a node, told what kube-flannel tells it."""
    entry = lab.blueprint.flannel
    argv = [
        sys.executable, "-m", "tortie.flannel", "--kube-subnet-mgr", "--ip-masq", f"--datastore={directory.store}",
        f"--net-config-path={directory.net_conf}", f"--subnet-file={directory.subnet_file(node.name)}",
        f"--iface={ETH0}", f"--healthz-port={HEALTH_PORT}",
    ]  # fmt: skip
    if entry is not None and entry.policy:
        argv.append("--ip-blackhole-route")
    return Program(
        f"flanneld of {node.name}",
        argv,
        directory.flanneld_pid(node.name),
        directory.flanneld_log(node.name),
        directory.flanneld_socket(node.name),
        netns.path(node.netns),
        {"NODE_NAME": node.name, "WIREGUARD_KEY_FILE": str(directory.node(node.name) / "wgkey")},
    )


@dataclass(frozen=True, slots=True)
class FlanneldState:
    """How a flanneld is, as far as it says. `neighbours` are the nodes that it knows."""

    answers: bool = False
    ready: bool = False
    neighbours: frozenset[str] = frozenset()
    why: str = ""


def state_of(path: Path) -> FlanneldState:
    """Asks the daemon at a socket. Blocks for some seconds at most. One that is away is no error, but says why."""
    try:
        found: dict[str, Any] = ask(path, "/status", _ASK_SECONDS, who="flanneld")
    except (NotFound, Unavailable) as error:
        return FlanneldState(why=str(error))
    troubles = [*found.get("failures", ()), *found.get("problems", ())]
    ready = bool(found["ready"] and found["in_sync"]) and not troubles
    why = "; ".join(map(str, troubles)) or ("" if ready else "not ready yet")
    return FlanneldState(True, ready, frozenset(one["node"] for one in found["neighbours"]), why)


async def ask_all(directory: LabDirectory, nodes: Sequence[Host]) -> dict[str, FlanneldState]:
    """How they are, by node."""
    asked = (asyncio.to_thread(state_of, directory.flanneld_socket(node.name)) for node in nodes)
    return dict(zip((node.name for node in nodes), await asyncio.gather(*asked), strict=True))


async def wait_joined(directory: LabDirectory, lab: Topology, step: Step, seconds: float) -> None:
    """Until every node's has what it wants in the kernel, for all the others. Raises Unavailable saying which has
    not, and why."""
    everyone = {node.name for node in lab.nodes}
    deadline = time.monotonic() + seconds
    late = list(lab.nodes)
    while True:
        states = await ask_all(directory, late)
        late = [node for node in late if not _joined(states[node.name], everyone - {node.name})]
        if not late:
            step.note("")
            return
        who = names(node.name for node in late)
        step.note(f"waiting for {who}")
        if time.monotonic() > deadline:
            raise not_in_time(who, states[late[0].name].why, directory.flanneld_log(late[0].name))
        await asyncio.sleep(_POLL_SECONDS)


def _joined(state: FlanneldState, others: set[str]) -> bool:
    return state.ready and others <= state.neighbours
