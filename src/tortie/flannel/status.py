"""What the daemon knows of itself, and its form for `tortie flannel status`. Pure."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tortie import __version__
from tortie.dataplane.converge import Failure
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Lease
from tortie.flannel.manager import Leases
from tortie.flannel.state import FlannelState, Path, Place


@dataclass(frozen=True, slots=True)
class Picture:
    """`since` is in seconds since 1970. `waiting`: for what, "" for nothing. `in_sync`: the neighbours are known, and
    `passed`: the kernel was brought to the state once. `undone` is what a backend could not carry out, `findings` what
    was found wrong with the network when this node joined."""

    since: float
    config: NetworkConfig | None = None
    place: Place | None = None
    pod_mtu: int = 0
    leases: Leases = field(default_factory=dict)
    state: FlannelState = field(default_factory=FlannelState)
    failures: tuple[Failure, ...] = ()
    undone: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    waiting: str = ""
    in_sync: bool = False
    passed: bool = False
    ready: bool = False

    def at(self, place: Place, pod_mtu: int) -> Picture:
        """Begun, for the first time or anew: nothing is known yet of what is there. Pods that could come still can."""
        return replace(
            self,
            place=place,
            pod_mtu=pod_mtu,
            leases={},
            state=FlannelState(),
            undone=(),
            findings=(),
            waiting="",
            in_sync=False,
            passed=False,
        )

    def failed(self, stages: Collection[str]) -> bool:
        return any(failure.stage in stages for failure in self.failures)


def document(
    picture: Picture, mode: str, where: str, problems: Sequence[str], counters: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All of it as JSON. `problems` are the manager's."""
    waiting = (f"waiting: {picture.waiting}",) if picture.waiting else ()
    return {
        "version": __version__,
        "pid": os.getpid(),
        "since": _time(picture.since),
        "mode": mode,
        "where": where,
        "backend": picture.config.backend_type if picture.config else None,
        "node": _node(picture),
        "neighbours": list(_neighbours(picture)),
        "in_sync": picture.in_sync,
        "ready": picture.ready,
        "failures": [str(failure) for failure in picture.failures],
        "problems": [*waiting, *problems, *picture.state.problems, *picture.undone],
        "findings": list(picture.findings),
        "counters": counters,
    }


def _node(picture: Picture) -> dict[str, Any] | None:
    if picture.place is None:
        return None
    site, lease = picture.place.site, picture.place.lease
    return _lease(lease) | {
        "public_ip": _text(site.public_ip),
        "public_ipv6": _text(site.public_ipv6),
        "interface": site.external.name,
        "mtu": site.external.mtu,
        "pod_mtu": picture.pod_mtu,
    }


def _neighbours(picture: Picture) -> Iterator[dict[str, Any]]:
    paths = {path.dst: path for path in picture.state.paths}
    for key, lease in sorted(picture.leases.items()):
        found = (paths.get(net) for net in (lease.subnet, lease.subnet6) if net is not None)
        yield _lease(lease) | {
            "key": key,
            "node": lease.node or None,
            "public_ip": _text(lease.attrs.public_ip),
            "public_ipv6": _text(lease.attrs.public_ipv6),
            "type": lease.attrs.backend_type,
            "path": "; ".join(_way(path) for path in found if path is not None) or None,
        }


def _lease(lease: Lease) -> dict[str, Any]:
    return {
        "subnet": _text(lease.subnet),
        "subnet6": _text(lease.subnet6),
        "expires": None if lease.expires is None else _time(lease.expires),
    }


def _way(path: Path) -> str:
    via = f"via {path.via} " if path.via is not None else ""
    return f"{via}dev {path.device}"


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
