"""How this node stands: what probes are told, what `tortie status` shows, what Prometheus sees of the datastore.

Values in, values out, but for looking at the agent's parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tortie import __version__
from tortie.agent.datastore import Datastore
from tortie.agent.departures import Departures
from tortie.agent.pending import Pending
from tortie.agent.stock import Stock
from tortie.agent.view import Progress, View
from tortie.model.k8s import Pod

Report = Mapping[str, Any]

STUCK = 90.0
"""Seconds in one pass after which the dataplane counts as dead: Calico's dataplaneWatchdogTimeout."""


def graph_report(view: View, now: float) -> Report:
    """Whether the picture is the datastore's. One that was, and is away for now, is still worth to be used."""
    disbelief = view.datastore.disbelief
    if disbelief:
        return {"live": True, "ready": False, "reason": f"the datastore is not believed: {disbelief}"}
    if view.snapshot_from is not None:
        age = max(0.0, now - view.snapshot_from)
        return {"live": True, "ready": False, "reason": f"the datastore is away: this is as it was {age:.0f} s ago"}
    synced = view.in_sync.is_set() and view.live
    return {"live": True, "ready": synced, "reason": "" if synced else "not in sync"}


def dataplane_report(progress: Progress, busy_for: float) -> Report:
    """Whether the kernel has what it should. `busy_for`: seconds that this pass has taken so far."""
    programmed, stuck = progress.generation > 0, busy_for > STUCK
    return {
        "live": not stuck,
        "ready": programmed and not progress.failures,
        "reason": "; ".join(progress.failures)
        or ("" if programmed else "nothing programmed yet")
        or (f"one pass has taken {STUCK:g} s so far" if stuck else ""),
    }


def failing(reasons: Mapping[str, str]) -> dict[str, Report]:
    """Reports of those parts that have something to complain of, by their names."""
    return {name: {"live": True, "ready": False, "reason": why} for name, why in reasons.items() if why}


class Standing:
    """Of one agent. `text` names the datastore, without a credential. Runs on the event loop."""

    def __init__(
        self,
        node: str,
        text: str,
        view: View,
        progress: Progress,
        stock: Stock,
        pending: Pending,
        departures: Departures,
        reports: Callable[[], Mapping[str, Report]],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._text = text
        self.view = view
        self._progress = progress
        self._stock = stock
        self._pending = pending
        self._departures = departures
        self._reports = reports
        self._wall = wall
        self._began = wall()

    @property
    def datastore(self) -> Datastore:
        return self.view.datastore

    @property
    def pending(self) -> int:
        """Pods that came or went, and the datastore is to be told of."""
        return self._pending.waiting + self._departures.waiting

    @property
    def picture_age(self) -> float:
        """Seconds since the picture was that of the datastore for certain; that of a snapshot is older than we are."""
        if self.view.snapshot_from is not None:
            return max(0.0, self._wall() - self.view.snapshot_from)
        return self.datastore.age or 0.0 if self.datastore.away or self.datastore.disbelief else 0.0

    def answer(self, bird: Mapping[str, Any], flow_table: Mapping[str, Any]) -> dict[str, Any]:
        """`bird` is what is known of BIRD: its state and peers."""
        reports = self._reports()
        wrong = {name: report["reason"] for name, report in reports.items() if not (report["live"] and report["ready"])}
        if self.datastore.away and "CalculationGraph" not in wrong:
            wrong["Datastore"] = f"it is away: {self.datastore.away}"
        broken = {kind.KIND.plural: word.why for kind, word in self.view.following.words.items() if word.why}
        if broken and not wrong.keys() & {"CalculationGraph", "Datastore"}:
            wrong["Kinds"] = f"{len(broken)} are not followed: {next(iter(broken.values()))}"
        bgp = _of_bird(bird)
        if bgp["established"] < bgp["peers"]:
            up = f"{bgp['established']} of {bgp['peers']} sessions are up"
            wrong["BGP"] = f"{up}: tortie node status says why"
        latest = self.view.latest
        return {
            "node": self._node,
            "wrong": wrong,
            "agent": {"version": __version__, "seconds": round(self._wall() - self._began)},
            "datastore": self._of_datastore(),
            "dataplane": {
                "generation": latest.generation if latest is not None else 0,
                "enforced": self._progress.generation,
                "failures": list(self._progress.failures),
                "endpoints": len(latest.endpoints) if latest is not None else 0,
            },
            "flowTable": flow_table,
            "cni": {
                "serves": self.view.in_sync.is_set(),
                "pods": len(self.view.known.all(Pod)),
                "ready": len(self._stock.ready),
                "pending": self._pending.waiting,
                "leaving": self._departures.waiting,
            },
            "bgp": bgp,
        }

    def _of_datastore(self) -> dict[str, Any]:
        datastore, now = self.datastore, time.monotonic()
        kinds = {
            kind.KIND.key: {
                "objects": len(self.view.objects(kind)),
                "listed": word.listed,
                "heard": None if word.heard is None else round(now - word.heard, 1),
                "why": word.why,
            }
            for kind, word in self.view.following.words.items()
        }
        return {
            "datastore": self._text,
            "cluster": datastore.guid,
            "connected": not datastore.away,
            "why": datastore.away,
            "believed": not datastore.disbelief,
            "disbelief": datastore.disbelief,
            "source": _source(self.view),
            "age": round(self.picture_age, 1),
            "kinds": dict(sorted(kinds.items())),
        }


def _source(view: View) -> str:
    if view.snapshot_from is not None:
        return "snapshot"
    return "datastore" if view.live and view.in_sync.is_set() else "none"


def _of_bird(bird: Mapping[str, Any]) -> dict[str, Any]:
    peers: Sequence[Mapping[str, Any]] = bird["peers"]
    up = sum(peer["state"] == "Established" for peer in peers)
    return {"state": bird["bird"]["state"], "peers": len(peers), "established": up}
