"""What endpoints say alike is kept once."""

from __future__ import annotations

import msgspec

from tortie.agent.sharing import share
from tortie.model.workload import WorkloadEndpoint

TEXT = b"""{
 "metadata": {"name": "a", "namespace": "red-team", "labels": {"app.example.org/kind": "web-server"}},
 "spec": {"orchestrator": "kubernetes", "node": "node-one", "endpoint": "eth-zero", "profiles": ["kns.red-team"],
          "ports": [{"name": "metrics-port", "protocol": "TCP", "port": 9100}]}}"""


def read() -> WorkloadEndpoint:
    return msgspec.json.decode(TEXT, type=WorkloadEndpoint)


def words(endpoint: WorkloadEndpoint) -> list[str]:
    spec, metadata = endpoint.spec, endpoint.metadata
    named = [metadata.namespace, spec.orchestrator, spec.node, spec.endpoint, *spec.profiles]
    return [*named, *metadata.labels, *metadata.labels.values(), *(port.name for port in spec.ports)]


def test_two_endpoints_have_the_same_words_afterwards() -> None:
    one, other = read(), read()
    assert any(mine is not theirs for mine, theirs in zip(words(one), words(other), strict=True))
    share(one)
    share(other)
    assert one == other == read()
    assert len(words(one)) == 8
    assert all(mine is theirs for mine, theirs in zip(words(one), words(other), strict=True))
