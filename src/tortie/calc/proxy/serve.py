"""One service as this node serves it: what it asks for, put together with who is behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from tortie.base.addr import IP
from tortie.calc.proxy.backends import Candidates, Choice, PortKey, choose, ready_here
from tortie.calc.proxy.frontends import Asked
from tortie.calc.proxy.state import Entrance, Frontend, HealthCheck, Served, ServiceKey

MAX_TOLD = 3
"""Frontends that a problem names one by one."""


def serve(
    asked: Asked,
    held: Iterable[Entrance],
    ports: Mapping[PortKey, Candidates],
    node: str,
    zone: str,
    old: Served | None,
) -> Served:
    """`held`: those of its entrances that no other service has. What is as in `old` is the very same object."""
    chosen: dict[PortKey, Choice] = {}
    known = {one.frontend: one for one in old.entrances} if old is not None else {}
    entrances: list[Entrance] = []
    for empty in held:
        key = empty.frontend.version, empty.port_name, empty.frontend.protocol
        if key not in chosen:
            chosen[key] = choose(ports.get(key, ()), node, zone)
        one = opened(empty, chosen[key], inside_local=asked.inside_local)
        before = known.get(one.frontend)
        entrances.append(before if before is not None and before == one else one)
    check = HealthCheck(asked.check_port, ready_here(ports, node)) if asked.check_port else None
    made = Served(asked.key, tuple(entrances), asked.cluster_ips, check)
    return old if old is not None and old == made else made


def opened(empty: Entrance, choice: Choice, *, inside_local: bool) -> Entrance:
    """The entrance with its backends. Nobody at all behind a service: who asks is told so. Nobody on this node, where
    only those count: who asks is dropped, for another node may be the right one to ask."""
    give = partial(
        Entrance,
        empty.kind,
        empty.frontend,
        empty.port_name,
        sources=empty.sources,
        affinity=empty.affinity,
        unserved="drop" if choice.anywhere and not choice.local else "reject",
    )
    if empty.kind == "ClusterIP" and inside_local:
        return give(backends=choice.local)
    if empty.local is not None:
        return give(backends=choice.cluster, local=choice.local)
    return give(backends=choice.cluster, unserved="reject")


def addresses_here(served: Served, node: str) -> frozenset[IP]:
    """The addresses of its backends on this node."""
    return frozenset(
        backend.ip
        for entrance in served.entrances
        for backend in (*entrance.backends, *(entrance.local or ()))
        if node and backend.node == node
    )


def told(lost: Mapping[ServiceKey, Iterable[Frontend]]) -> Iterator[str]:
    """Why some of a service's frontends are not served, by the service that has them."""
    for (namespace, name), frontends in sorted(lost.items()):
        texts = [*map(str, frontends)]
        more = f" and {len(texts) - MAX_TOLD} more" if len(texts) > MAX_TOLD else ""
        shown = ", ".join(texts[:MAX_TOLD]) + more
        verb = "belongs" if len(texts) == 1 else "belong"
        yield f"{shown} {verb} to Service {namespace}/{name}, which came first; give this one another address or port"
