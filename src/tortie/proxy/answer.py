"""What a node says of its services, as JSON: `GET /services`, of the agent's socket or the stand-alone proxy's.

?namespace=NS&name=NAME    only these; the fields about the node are there all the same
?services=none             only what is about the node, which costs nothing
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tortie.base.addr import IP
from tortie.calc.proxy.state import Backend, Entrance, Frontend, HealthCheck, ProxyState, Served

if TYPE_CHECKING:
    from tortie.dataplane.service_hits import Hit

NONE = "none"
"""The value of `services` in a question about the node alone."""

Place = tuple[Frontend, bool, IP, int]
"""Of an element in the kernel: a frontend, whether it is for who comes from outside to a local backend, the backend."""


class FoundKubeProxy(Protocol):
    """A kube-proxy, or what one has left, which does not run. `pid` 0: its process cannot be seen, or there is none."""

    @property
    def mode(self) -> str: ...
    @property
    def evidence(self) -> Sequence[str]: ...
    @property
    def pid(self) -> int: ...
    @property
    def runs(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AboutNode:
    """How services stand on a node. `asked` is the mode that a person chose, `on` what came of it and `why`;
    `served_by` is another program of ours that serves here.

    `failures` is what the kernel refused, `problems` what else cannot be carried out, by what it is about; `layer2` has
    the addresses of load balancers with the node that answers for each, and the interface where that is this one.
    """

    node: str
    asked: str
    on: bool
    why: str = ""
    served_by: str = ""
    kube_proxy: Sequence[FoundKubeProxy] = ()
    failures: Sequence[str] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    layer2: Mapping[IP, tuple[str, str]] = field(default_factory=dict)
    datastore: str = ""


def wants_hits(query: Mapping[str, str]) -> bool:
    """Whether the kernel has to be asked for its counters, which takes a while on a large cluster."""
    return query.get("services") != NONE


def answer(
    state: ProxyState, hits: Iterable[Hit], about: AboutNode, query: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`hits` is what the kernel has: a backend that is in none of them has `connections` null."""
    query = query or {}
    namespace, name = query.get("namespace", ""), query.get("name", "")
    wanted = (
        [
            served
            for key, served in sorted(state.services.items())
            if (not namespace or key[0] == namespace) and (not name or key[1] == name)
        ]
        if wants_hits(query)
        else []
    )
    counted: dict[Place, int] = {}
    for hit in hits:
        place = hit.frontend, hit.local, hit.backend.ip, hit.backend.port
        counted[place] = counted.get(place, 0) + hit.connections
    return {**_about(state, about), "services": [_service(served, counted) for served in wanted]}


def _about(state: ProxyState, about: AboutNode) -> dict[str, Any]:
    return {
        "node": about.node,
        "datastore": about.datastore,
        "asked": about.asked,
        "on": about.on,
        "why": about.why,
        "servedBy": about.served_by,
        "kubeProxy": [
            {"mode": one.mode, "evidence": list(one.evidence), "pid": one.pid, "runs": one.runs}
            for one in about.kube_proxy
        ],
        "problems": {**state.problems, **about.problems},
        "failures": list(about.failures),
        "layer2": {str(ip): {"node": node, "interface": interface} for ip, (node, interface) in _ordered(about.layer2)},
    }


def _ordered(layer2: Mapping[IP, tuple[str, str]]) -> list[tuple[IP, tuple[str, str]]]:
    return sorted(layer2.items(), key=lambda item: (item[0].version, int(item[0])))


def _service(served: Served, counted: Mapping[Place, int]) -> dict[str, Any]:
    namespace, name = served.key
    return {
        "namespace": namespace,
        "name": name,
        "entrances": [_entrance(one, counted) for one in served.entrances],
        "healthCheck": _check(served.check),
    }


def _check(check: HealthCheck | None) -> dict[str, int] | None:
    return {"port": check.port, "local": check.local} if check is not None else None


def _entrance(entrance: Entrance, counted: Mapping[Place, int]) -> dict[str, Any]:
    local = entrance.local
    return {
        "kind": entrance.kind,
        "frontend": str(entrance.frontend).lower(),
        "ipVersion": entrance.frontend.version,
        "portName": entrance.port_name,
        "policy": "Cluster" if local is None else "Local",
        "affinity": entrance.affinity,
        "sources": None if entrance.sources is None else [str(net) for net in entrance.sources],
        "backends": [_backend(entrance.frontend, one, False, counted) for one in entrance.backends],
        "local": None if local is None else [_backend(entrance.frontend, one, True, counted) for one in local],
        "unserved": entrance.unserved,
    }


def _backend(frontend: Frontend, backend: Backend, local: bool, counted: Mapping[Place, int]) -> dict[str, Any]:
    connections = counted.get((frontend, local, backend.ip, backend.port))
    return {"address": str(backend), "node": backend.node, "connections": connections}
