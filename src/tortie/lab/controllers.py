"""The controllers of a lab: addresses and EndpointSlices of services, and a cluster's housekeeping.

They run in the first node's namespace, as a pod on the host's network would: there nobody else has their ports.
One process, which the kubelet keeps running, so no lease is written every two seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

from tortie.controllers.health import judge, uptime
from tortie.kernel import netns
from tortie.lab import agents, processes
from tortie.lab.defaults import SERVICE_CIDRS
from tortie.lab.keeping import Program, not_in_time
from tortie.lab.state import LabDirectory
from tortie.lab.steps import Step
from tortie.lab.topology import Topology

NAME = "process of the controllers"
_POLL_SECONDS = 0.05


def program(directory: LabDirectory, lab: Topology) -> Program:
    argv = [
        *agents.command(), "controllers", "--datastore", str(directory.store), "--no-leader-elect",
        "--status-file", str(directory.controllers_status), "--service-cidr", ",".join(SERVICE_CIDRS),
    ]  # fmt: skip
    return Program(
        NAME,
        argv,
        directory.controllers_pid,
        directory.controllers_log,
        directory.controllers_status,
        netns.path(lab.nodes[0].netns),
        {"HEALTH_ENABLED": "true"},  # else a cluster's configuration could switch off what `state_of` reads
    )


@dataclass(frozen=True, slots=True)
class ControllersState:
    """How they are: `pid` is 0 when they do not run, `why` says what is wrong."""

    pid: int = 0
    why: str = ""

    @property
    def ready(self) -> bool:
        return bool(self.pid) and not self.why


def state_of(directory: LabDirectory) -> ControllersState:
    """By what they have written last, which must be of the process that runs."""
    running = processes.read_pid(directory.controllers_pid)
    if running is None:
        return ControllersState(why="not running")
    path = directory.controllers_status
    try:
        # A file that is older than the process was left by one that was killed.
        if path.stat().st_mtime < directory.controllers_pid.stat().st_mtime:
            return ControllersState(running.pid, "they are starting")
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        return ControllersState(running.pid, "they are starting")
    except (OSError, ValueError) as error:
        return ControllersState(running.pid, f"{path}: {error}")
    return ControllersState(running.pid, judge(said if isinstance(said, dict) else {}, uptime(), ready=True))


async def wait_ready(directory: LabDirectory, step: Step, seconds: float) -> None:
    """Raises Unavailable saying why they are not."""
    deadline = time.monotonic() + seconds
    while not (state := await asyncio.to_thread(state_of, directory)).ready:
        step.note(state.why)
        if time.monotonic() > deadline:
            raise not_in_time("controllers", state.why, directory.controllers_log)
        await asyncio.sleep(_POLL_SECONDS)
    step.note("")
