"""Which FelixConfiguration holds on a node."""

from __future__ import annotations

import pytest

from tortie.calc.cluster import Cluster
from tortie.model.document import convert, shape
from tortie.model.node import FelixConfiguration, Node


def felix(name: str, prefix: str, created: str | None = None, **spec: object) -> FelixConfiguration:
    metadata = {"name": name, "creationTimestamp": created}
    return shape(FelixConfiguration, {"metadata": metadata, "spec": {"logPrefix": prefix, **spec}})


def prefix(*resources: FelixConfiguration, rack: str = "r1", node: str | None = "n1") -> str:
    cluster = Cluster(node)
    cluster.put(convert(Node, {"metadata": {"name": "n1", "labels": {"rack": rack}}, "spec": {}}))
    for resource in resources:
        cluster.put(resource)
    return cluster.settings().log_prefix


def test_the_nodes_own_beats_one_that_selects_it_beats_the_default() -> None:
    default, selecting, own = (
        felix("default", "d"),
        felix("racks", "s", nodeSelector="rack == 'r1'"),
        felix("node.n1", "o"),
    )
    assert prefix(default, selecting, own) == "o"
    assert prefix(default, selecting) == "s"
    assert prefix(default, selecting, rack="r2") == "d"
    assert prefix() == "calico-packet"
    assert prefix(default, selecting, own, node=None) == "d"


def test_of_several_that_select_a_node_the_oldest_counts() -> None:
    old = felix("z", "old", "2024-01-01T00:00:00Z", nodeSelector="all()")
    new = felix("a", "new", "2025-01-01T00:00:00Z", nodeSelector="all()")
    assert prefix(new, old) == prefix(old, new) == "old"


def test_a_selection_follows_the_nodes_labels() -> None:
    cluster = Cluster("n1")
    cluster.put(felix("racks", "s", nodeSelector="rack == 'r1'"))
    seen = []
    for rack in ("r1", "r2", "r1"):
        cluster.put(convert(Node, {"metadata": {"name": "n1", "labels": {"rack": rack}}, "spec": {}}))
        seen.append(cluster.state().settings.log_prefix)
    assert seen == ["s", "calico-packet", "s"]


@pytest.mark.parametrize(
    "spec",
    [
        {"natOutgoingAddress": "nowhere"},
        {"nodeSelector": "has("},
        {"logActionRateLimit": "10 per second"},
        {"logActionRateLimit": "0/second"},
        {"logActionRateLimit": 10},
        {"logActionRateLimit": "10/second\n"},
        {"logActionRateLimitBurst": "5"},
        {"logActionRateLimitBurst": 10000},
        {"logActionRateLimitBurst": True},
    ],
)
def test_what_cannot_be_understood_counts_as_absent(spec: dict[str, object]) -> None:
    cluster = Cluster("n1")
    cluster.put(felix("default", "d"))
    cluster.put(felix("node.n1", "o", **spec))
    assert list(cluster.problems) == ["FelixConfiguration node.n1"]
    assert cluster.state().settings.log_prefix == "d"
