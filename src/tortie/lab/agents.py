"""The agents of a lab's nodes: keeping one running in every node's namespace, and asking one how it is."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tortie.agent.client import ask
from tortie.base.errors import NotFound, Unavailable
from tortie.kernel import netns
from tortie.lab import processes
from tortie.lab.state import LabDirectory
from tortie.lab.topology import Host

RESTART_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds before a dead agent is started again, doubled while it dies young
_YOUNG = 2.0  # seconds
_ASK_SECONDS = 5.0
_ESTABLISHED = "Established"  # as BIRD says it

log = logging.getLogger(__name__)


def command() -> list[str]:
    """How this very installation runs `tortie`."""
    beside = shutil.which("tortie", path=str(Path(sys.executable).parent))
    return [beside] if beside else [sys.executable, "-m", "tortie.cli.main"]


def agent_command(directory: LabDirectory, node: Host) -> list[str]:
    ipv4, ipv6 = node.addresses
    return [
        sys.executable, "-m", "tortie.agent", "--node", node.name, "--datastore", str(directory.store),
        "--run-dir", str(directory.node(node.name)), "--ipv4", ipv4, "--ipv6", ipv6, "--connect-delay", "0",
    ]  # fmt: skip


async def keep_running(directory: LabDirectory, node: Host) -> None:
    """Starts the node's agent, or takes over the one that runs, and starts another whenever it ends. For ever."""
    pause = RESTART_PAUSE
    while True:
        began = time.monotonic()
        how = await _run_once(directory, node)
        pause = RESTART_PAUSE if time.monotonic() - began > _YOUNG else min(2 * pause, LONGEST_PAUSE)
        log.warning("the agent of %s %s; starting it again in %.1f s", node.name, how, pause)
        await asyncio.sleep(pause)


async def _run_once(directory: LabDirectory, node: Host) -> str:
    """Until the agent ends; how it ended."""
    pid_file = directory.agent_pid(node.name)
    adopted = processes.read_pid(pid_file)
    if adopted:
        log.info("the agent of %s runs already, pid %d", node.name, adopted.pid)
        await adopted.ended()
        return "ended"
    child = await asyncio.to_thread(
        processes.spawn,
        agent_command(directory, node),
        pid_file,
        directory.agent_log(node.name),
        netns_path=netns.path(node.netns),
    )
    log.info("the agent of %s is pid %d", node.name, child.pid)
    running = processes.process(child.pid)
    if running:
        await running.ended()
    code = await asyncio.to_thread(child.wait)
    return f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"


# --- asking -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentState:
    """How an agent is, as far as it says. Of its BGP `sessions` so many are `established`."""

    answers: bool = False
    ready: bool = False
    sessions: int = 0
    established: int = 0
    why: str = ""


def state_of(path: Path) -> AgentState:
    """Asks the agent at a socket. Blocks for some seconds at most. One that is away is no error, but says why."""
    try:
        reports = ask(path, "/readiness", _ASK_SECONDS)
        peers = ask(path, "/node", _ASK_SECONDS).get("peers", [])
    except (NotFound, Unavailable) as error:
        return AgentState(why=str(error))
    why = "; ".join(f"{name}: {report['reason']}" for name, report in reports.items() if not report["ready"])
    established = sum(peer["state"] == _ESTABLISHED for peer in peers)
    return AgentState(True, not why, len(peers), established, why)
