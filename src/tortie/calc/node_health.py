"""Whether a node is ready, as Calico's probe tells it: the rules on values, with Calico's words.

BIRD's peers count all for a while after the node has started, so that an upgrade does not go on to the next node before
this one has its routes; later one of them is enough, so that a peer which is down does not make nodes unready.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tortie.bgp.birdc import ESTABLISHED

RECOVERING = "recovering"
LOCAL_WORKLOAD = "Local_Workload_"
"""How sessions with workloads are called: they are the workloads' business."""
NOT_READY = 503
"""What a probe of Felix is answered then (HTTP)."""
PROBES = {True: "liveness", False: "readiness"}


@dataclass(frozen=True, slots=True)
class Check:
    """One question: of `felix`, or of BIRD with the peers of one IP version; `live` or else `ready`."""

    part: str
    live: bool

    @property
    def option(self) -> str:
        return f"--{self.part}-{'live' if self.live else 'ready'}"


FELIX, BIRD, BIRD6 = "felix", "bird", "bird6"
CHECKS = tuple(Check(part, live) for part in (FELIX, BIRD, BIRD6) for live in (True, False))


def reason(checks: Iterable[Check], answer: Mapping[str, Any], threshold: float) -> str:
    """Why the node is not ready, by the first check that fails; "" if it is. `answer` is the agent's to `/health`, and
    `threshold` the seconds in which all peers count."""
    return next((why for check in checks if (why := _failure(check, answer, threshold))), "")


def _failure(check: Check, answer: Mapping[str, Any], threshold: float) -> str:
    what = "live" if check.live else "ready"
    if check.part == FELIX:
        good = answer["felix"][what]
        return "" if good else f"felix is not {what}: {PROBES[check.live]} probe reporting {NOT_READY}"
    bird, version = answer["bird"], 6 if check.part == BIRD6 else 4
    why = _bird_is_away(bird)
    if not why and not check.live:
        peers = [peer for peer in answer["peers"] if (":" in peer["ip"]) == (version == 6)]
        why = bird_problem(peers, bird["state"] == RECOVERING, answer["age"], threshold)
    return f"{check.part.upper()} is not {what}: {why}" if why else ""


def _bird_is_away(bird: Mapping[str, Any]) -> str:
    if bird["state"] == "none":
        return "this node runs without BGP"
    return f"Error querying BIRD: {bird.get('reason', '')}" if bird["state"] == "not ready" else ""


def bird_problem(peers: Sequence[Mapping[str, Any]], recovering: bool, age: float, threshold: float) -> str:
    """Why BIRD is not ready, "" if it is. `age`: seconds since the node started."""
    counted = [peer for peer in peers if not peer["name"].startswith(LOCAL_WORKLOAD)]
    down = [peer["ip"] for peer in counted if peer["state"] != ESTABLISHED]
    if age < threshold and recovering:
        return "graceful restart in progress"
    if down and (age < threshold or len(down) == len(counted)):
        return f"BGP not established with {','.join(down)}"
    return ""
