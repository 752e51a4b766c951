"""What `calicoctl node status` prints, of an agent's answer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tortie.bgp.birdc import ESTABLISHED
from tortie.cli.ipam_text import boxed

RUNNING, NOT_RUNNING = "Calico process is running.", "Calico process is not running."
HEADINGS = ("PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO")
TYPES = {"Mesh": "node-to-node mesh", "Global": "global", "Node": "node specific", "Local": "local workload"}
DAEMONS = {4: ("BIRDv4", "bird"), 6: ("BIRDv6", "bird6")}
"""calicoctl knows a daemon for each family; here one serves both."""


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """`answer` is that of `/node`; what it does not say of BIRD, its `reason` says."""
    yield RUNNING
    runs = "version" in answer["bird"]
    for version in (4, 6):
        yield ""
        if not runs:
            yield "INFO: {} process: '{}' is not running.".format(*DAEMONS[version])
            continue
        yield f"IPv{version} BGP status"
        peers = [peer for peer in answer["peers"] if (":" in peer["ip"]) is (version == 6)]
        if peers:
            yield boxed(HEADINGS, map(_row, peers)).rstrip("\n")
        else:
            yield f"No IPv{version} peers found."
    yield ""


def _row(peer: Mapping[str, Any]) -> tuple[str, ...]:
    """BIRD's words: up or start, and then the state of BGP's machine, with the error if there is one."""
    state = "up" if peer["state"] == ESTABLISHED else "start"
    info = f"{peer['state']} {peer['error']}".strip()
    kind = TYPES.get(peer["name"].partition("_")[0], "")
    return peer["ip"], kind, state, time_of(peer["since"]), info


def time_of(since: str) -> str:
    """The time of day of a moment as BIRD has it, to the second; a bare day stays.

    >>> time_of("2026-01-02 10:20:30.123"), time_of("10:20:30.5"), time_of("2026-01-02")
    ('10:20:30', '10:20:30', '2026-01-02')
    """
    return since.replace("T", " ").rpartition(" ")[2].partition(".")[0]
