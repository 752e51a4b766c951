"""The station of the tour that shows services: one address for three pods, from inside, by name, from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tortie.lab import cluster
from tortie.lab.guide import PATIENCE, Guide, demand, pods_of
from tortie.lab.matrix import Outcome
from tortie.lab.places import opened
from tortie.lab.podspec import PodKey
from tortie.lab.probe import Endpoint, probe
from tortie.model.k8s import Pod

SHOP, NODE_PORTS = "../services/1-shop.yaml", "../services/2-node-port.yaml"
ADDRESS, NODE_PORT = "10.96.0.80", 30080
"""What the manifests ask for."""
CLIENT: PodKey = ("shop", "client")
BACKENDS = frozenset({"shop/web-1", "shop/web-2", "shop/web-3"})
KILLED = "web-2"
_POLL_SECONDS = 0.1
_CALLS = 30
"""So many in a row that none of three backends is missed but by a miracle."""


async def show(guide: Guide) -> None:
    """The shop comes, is asked in each way, loses a backend, and goes."""
    guide.title("Services: one address for three pods, wherever they are")
    with guide.check("the shop is applied, and its pods are ready", vital=True):
        await guide.tortie("apply", "-f", SHOP, "-f", NODE_PORTS)
        pods = await _ready(guide, pods_of(guide.folder / Path(SHOP)))
        client = next(one for one in cluster.endpoints(guide.lab, pods) if one.name == "/".join(CLIENT))
    with guide.check(f"{client.name} gets every one of the three at {ADDRESS}"):
        await _answered_by(client, ADDRESS, 80, BACKENDS)
    with guide.check("and by name"):
        found = await guide.tortie("lab", "exec", client.name, "--", "getent", "ahostsv4", "web")
        demand(ADDRESS in found, found)
    *_, outside = cluster.endpoints(guide.lab, [])
    for node in guide.lab.nodes:
        with guide.check(f"the outside host gets them at {node.name}, port {NODE_PORT}"):
            await _answered_by(outside, str(node.ipv4.ip), NODE_PORT, BACKENDS)
    with guide.check(f"{KILLED} is deleted, and nobody is sent there any more"):
        await guide.tortie("delete", "pod", KILLED, "-n", CLIENT[0])
        await _answered_by(client, ADDRESS, 80, BACKENDS - {f"{CLIENT[0]}/{KILLED}"})
    with guide.check("the shop is gone again"):
        await guide.tortie("delete", "-s", "-f", NODE_PORTS, "-f", SHOP)


async def _ready(guide: Guide, wanted: list[PodKey]) -> list[Pod]:
    """These pods, once all are ready. Raises Unavailable, CheckFailed."""
    deadline = time.monotonic() + PATIENCE
    async with opened(guide.directory) as store:
        while True:
            pods = await cluster.wait_running(store, wanted, PATIENCE)
            late = [pod.title for pod in pods if not pod.ready]
            if not late:
                return pods
            demand(time.monotonic() < deadline, f"not ready: {', '.join(late)}")
            await asyncio.sleep(_POLL_SECONDS)


async def _answered_by(source: Endpoint, address: str, port: int, wanted: frozenset[str]) -> None:
    """Until a series of calls is answered by exactly these. Raises CheckFailed."""
    deadline = time.monotonic() + PATIENCE
    while (found := frozenset([who async for who in _calls(source, address, port)])) != wanted:
        demand(time.monotonic() < deadline, f"{address} port {port} is answered by {', '.join(sorted(found))}")


async def _calls(source: Endpoint, address: str, port: int) -> AsyncIterator[str]:
    """Who answers, of each; or how one failed, which is the last."""
    to = Endpoint(f"{address}:{port}", "", address)
    for _ in range(_CALLS):
        result = await probe(source, to, port=port)
        yield result.detail if result.outcome is Outcome.WRONG else str(result)
        if result.outcome is not Outcome.WRONG:
            return
