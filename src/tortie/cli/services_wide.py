"""`tortie get services -o wide`: what is behind services, from EndpointSlices, and how often it is used, from agents.

    ENDPOINTS   ready ones, of all that there are; of one IP version, where a pod has addresses of both
    HITS        connections that the nodes have led to a backend since their rules were made; `-` where no agent says

With one service by its name a tree follows: frontends, below each the endpoints behind its port, with the connections
of every node.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tortie.agent.client import ask
from tortie.base.addr import IP
from tortie.base.errors import TortieError
from tortie.calc.proxy.inputs import ProxyInputs
from tortie.calc.proxy.state import Backend, Entrance
from tortie.cli.columns import Columns
from tortie.cli.explain_kernel import same_datastore
from tortie.cli.node import ASKED_AT_ONCE, sockets
from tortie.cli.services import nearest
from tortie.model.meta import title
from tortie.model.service import Endpoint, EndpointSlice, Service
from tortie.model.store import Store

SECONDS = 20.0
"""For an agent to list what its kernel has, which is much on a large node."""

Answers = Mapping[str, Mapping[str, Any]]
"""What agents said to `GET /services`, by node."""
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Wide:
    """What the columns are made of."""

    slices: Mapping[Key, Sequence[EndpointSlice]]
    answers: Answers

    def columns(self) -> Columns:
        """What is put beside the columns that kubectl has."""
        hits = hits_of(self.answers) if any(answer["on"] for answer in self.answers.values()) else None

        def endpoints(service: Service) -> str:
            ready, every = counted(self.slices.get((service.namespace, service.name), ()))
            return f"{ready}/{every}"

        def hit(service: Service) -> str:
            return "-" if hits is None else str(hits[service.namespace, service.name])

        return {"ENDPOINTS": endpoints, "HITS": hit}


async def slices_of(store: Store, namespace: str | None) -> Mapping[Key, Sequence[EndpointSlice]]:
    """By service."""
    found: dict[Key, list[EndpointSlice]] = defaultdict(list)
    for one in (await store.list(EndpointSlice, namespace)).items:
        found[one.namespace, one.service].append(one)
    return found


def agents(lab: str) -> Mapping[str, Path]:
    """The sockets that may be asked, of proxies too. None is no error: then nobody says."""
    try:
        return {name: nearest(path) for name, path in sockets(lab).items()}
    except TortieError:
        return {}


def answers_of(places: Mapping[str, Path], datastore: str, namespace: str = "", name: str = "") -> Answers:
    """Of those that answer, if they follow this datastore."""
    query = urlencode({key: value for key, value in (("namespace", namespace), ("name", name)) if value})

    def asked(path: Path) -> Mapping[str, Any] | None:
        try:
            answer = ask(path, f"/services?{query}", SECONDS)
        except TortieError:
            return None
        fits = isinstance(answer, Mapping) and "services" in answer
        return answer if fits and same_datastore(str(answer.get("datastore", "")), datastore) else None

    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        found = list(threads.map(asked, places.values()))
    return {str(one["node"]): one for one in found if one is not None}


def hits_of(answers: Answers) -> Counter[Key]:
    """Connections by service, of all nodes."""
    found: Counter[Key] = Counter()
    for answer in answers.values():
        for service in answer["services"]:
            for entrance in service["entrances"]:
                for one in (*entrance["backends"], *(entrance["local"] or ())):
                    found[service["namespace"], service["name"]] += one["connections"] or 0
    return found


def counted(slices: Iterable[EndpointSlice]) -> tuple[int, int]:
    """Endpoints that are ready, and all of them."""
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for one in slices:
        for endpoint in one.endpoints:
            if endpoint.addresses:
                there = found[one.address_type]
                address = endpoint.addresses[0]
                there[address] = there.get(address, False) or endpoint.conditions.ready is not False
    return max(((sum(there.values()), len(there)) for there in found.values()), default=(0, 0))


# --- one service as a tree ----------------------------------------------------------------------------------------


def tree(service: Service, slices: Sequence[EndpointSlice], answers: Answers) -> Iterator[str]:
    """Its frontends with what is behind each, then what is wrong."""
    entrances, problem = _entrances(service, slices)
    if not entrances and not problem:
        yield "no frontends: the service has no address that is translated"
    used = _used(service, answers)
    for entrance in entrances:
        yield _head(entrance)
        rows = [*_rows(entrance, slices, used, bool(answers))]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        for i, row in enumerate(rows):
            branch = "└─" if i == len(rows) - 1 else "├─"
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True))
            yield f"  {branch} {cells}  {row[3]}".rstrip()
    yield from (f"✘ {text}" for text in [problem] if text)
    own = title(Service.KIND, service.name, service.namespace)
    for node, answer in sorted(answers.items()):
        if not answer["on"]:
            yield f"· {node}: Tortie serves no services: {answer['why'] or 'they are switched off'}"
        elif answer["problems"].get(own, problem) != problem:
            yield f"✘ {node}: {answer['problems'][own]}"


def _entrances(service: Service, slices: Iterable[EndpointSlice]) -> tuple[tuple[Entrance, ...], str]:
    """As no node in particular has them, and what cannot be served."""
    inputs = ProxyInputs("")
    inputs.set_service(service.namespace, service.name, service)
    for one in slices:
        inputs.set_slice(one.namespace, one.name, one)
    state = inputs.state()
    served = state.services.get((service.namespace, service.name))
    problem = state.problems.get(title(Service.KIND, service.name, service.namespace), "")
    return served.entrances if served is not None else (), problem


def _head(entrance: Entrance) -> str:
    words = [entrance.kind, entrance.port_name]
    words += ["externalTrafficPolicy Local"] if entrance.local is not None else []
    words += [f"the same backend for {entrance.affinity} s"] if entrance.affinity else []
    if entrance.sources is not None:
        words.append(f"only from {', '.join(map(str, entrance.sources)) or 'nowhere'}")
    family = " (IPv6)" if entrance.frontend.ip is None and entrance.frontend.version == 6 else ""
    return f"{entrance.frontend}{family}  {', '.join(word for word in words if word)}"


def _rows(
    entrance: Entrance, slices: Iterable[EndpointSlice], used: Mapping[tuple[str, int, str], Counter[str]], told: bool
) -> Iterator[tuple[str, str, str, str]]:
    """Address, node, readiness, and connections by node."""
    version = entrance.frontend.version
    found: dict[tuple[IP, int], Endpoint] = {}
    for one in slices:
        ports = [p.port for p in one.ports if p.name == entrance.port_name and p.port]
        for endpoint in one.endpoints:
            if one.version == version and (ip := endpoint.ip(version)) is not None:
                for port in ports:
                    found.setdefault((ip, port), endpoint)
    for ip, port in sorted(found, key=lambda place: (int(place[0]), place[1])):
        address, endpoint = str(Backend(ip, port)), found[ip, port]
        nodes = used.get((str(entrance.frontend).lower(), version, address), Counter())
        hits = ", ".join(f"{node} {count}" for node, count in sorted(nodes.items()))
        yield address, endpoint.node_name or "-", _readiness(endpoint), (hits or "0") if told else "-"
    if not found:
        yield "no endpoints", "", "", ""


def _readiness(endpoint: Endpoint) -> str:
    says = endpoint.conditions
    if says.terminating:
        return "ends, still serves" if says.serving is not False else "ends"
    return "not ready" if says.ready is False else "ready"


def _used(service: Service, answers: Answers) -> Mapping[tuple[str, int, str], Counter[str]]:
    """Connections by frontend and backend, of each node."""
    found: dict[tuple[str, int, str], Counter[str]] = defaultdict(Counter)
    for node, answer in answers.items():
        for one in answer["services"]:
            if (one["namespace"], one["name"]) != (service.namespace, service.name):
                continue
            for entrance in one["entrances"]:
                for backend in (*entrance["backends"], *(entrance["local"] or ())):
                    if backend["connections"]:
                        place = entrance["frontend"], entrance["ipVersion"], backend["address"]
                        found[place][node] += backend["connections"]
    return found
