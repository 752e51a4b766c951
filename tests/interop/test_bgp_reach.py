"""Who learns whose routes from whom, foretold and in fact: fourteen BIRDs on one switch, in three clusters that do not
speak with each other.

    n1 – n2 (cluster 1) – n3 (cluster 2) – n4 (cluster 1) – n5        reflectors of which two are of one cluster
    n6 (AS 65001) – n7 (AS 65002) – n8 (AS 65003) ┬ n9 (AS 65001)     the first AS again at the end
                                                  └ n14 (the same, which allows its own AS once)
    n10 – n11 – n12 (AS 65011) – n13 (AS 65012)                       nodes of one AS, none of which reflects
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bgp_clusters import NO_MESH, block, node, peer, pool
from tortie.base.addr import parse_net
from tortie.bgp.birdc import parse_routes
from tortie.calc.admission import Objects
from tortie.calc.bgp_plan.moment import moment
from tortie.calc.cluster import Cluster
from tortie.kernel.bird import Bird
from tortie.model.meta import Resource
from tortie.render.bird import render
from tortie.render.routing import bird_config

pytestmark = pytest.mark.root

AS = {6: 65001, 7: 65002, 8: 65003, 9: 65001, 10: 65011, 11: 65011, 12: 65011, 13: 65012, 14: 65001}
CLUSTERS = {2: "1.0.0.1", 3: "1.0.0.2", 4: "1.0.0.1"}
SESSIONS = ((1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (14, 8), (10, 11), (11, 12), (12, 13))
NODES = range(1, 15)
SECONDS = 40.0


def objects() -> list[Resource]:
    found: list[Resource] = [pool(), NO_MESH, *map(block, NODES)]
    for i in NODES:
        bgp: dict[str, Any] = {"asNumber": AS[i]} if i in AS else {}
        bgp |= {"routeReflectorClusterID": CLUSTERS[i]} if i in CLUSTERS else {}
        found.append(node(i, **bgp))
    for a, b in SESSIONS:
        more = {"numAllowedLocalASNumbers": 1} if a == 14 else {}
        found.append(peer(f"n{a}-n{b}", node=f"n{a}", peerIP=f"10.0.0.{b}", asNumber=AS.get(b, 64512), **more))
    return found


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def birds(tmp_path: Path) -> Iterator[dict[str, Bird]]:
    """By node, each in a namespace of its own."""
    prefix = f"tt-{os.getpid()}-reach"
    switch = f"{prefix}-sw"
    with ExitStack() as stack:
        for name in (switch, *(f"{prefix}-n{i}" for i in NODES)):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
        ip("-n", switch, "link", "add", "br0", "up", "type", "bridge")
        made: dict[str, Bird] = {}
        for i in NODES:
            there = f"{prefix}-n{i}"
            ip("-n", there, "link", "set", "lo", "up")
            ip("-n", there, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{i}", "netns", switch)
            ip("-n", switch, "link", "set", f"port{i}", "master", "br0", "up")
            ip("-n", there, "link", "set", "eth0", "up")
            ip("-n", there, "addr", "add", f"10.0.0.{i}/24", "dev", "eth0")
            home = tmp_path / f"n{i}"
            made[f"n{i}"] = bird = Bird(home / "bird.conf", home / "bird.ctl", there, log=home / "bird.log")
            stack.callback(bird.stop)
        yield made


def configured(name: str, every: list[Resource]) -> str:
    cluster = Cluster(name)
    for one in every:
        cluster.put(one)
    config = bird_config(cluster.state(), 0)
    assert config is not None
    assert not cluster.problems
    return render(config)


def learned(birds: dict[str, Bird]) -> set[tuple[str, str]]:
    """Who has a route over BGP to whose block."""
    owner = {parse_net(f"10.244.{i}.0/26"): f"n{i}" for i in NODES}
    return {
        (name, owner[route.prefix])
        for name, bird in birds.items()
        for route in parse_routes(bird.ask("show route"))
        if route.prefix in owner and route.protocol.startswith("Node_")
    }


def test_routes_go_where_they_are_foretold_to_go(birds: dict[str, Bird]) -> None:
    every = objects()
    for name, bird in birds.items():
        bird.swap(configured(name, every))
        bird.start()
    foretold = {(way.source, way.owner) for way in moment(Objects(every)).told}
    assert ("n4", "n1") not in foretold, "cluster 1 has seen it"
    assert ("n9", "n6") not in foretold, "its own AS is in the path"
    assert {("n3", "n1"), ("n14", "n6"), ("n8", "n6"), ("n13", "n12"), ("n12", "n11")} <= foretold
    assert not {("n12", "n10"), ("n13", "n10")} & foretold
    assert ("n13", "n11") in foretold
    deadline = time.monotonic() + SECONDS
    while (fact := learned(birds)) != foretold:
        told = f"foretold only: {sorted(foretold - fact)}; in fact only: {sorted(fact - foretold)}"
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
    time.sleep(1.0)
    assert learned(birds) == foretold, "and so it stays"
