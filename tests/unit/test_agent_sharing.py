"""What endpoints say alike is kept once."""

from __future__ import annotations

import gc
import weakref

import msgspec

from tortie.agent.sharing import MOST, share
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


class Word(str):
    """One that can be seen to go, other than a plain one."""

    __slots__ = ("__weakref__",)


def test_words_that_nobody_says_again_are_forgotten_and_those_of_all_are_not() -> None:
    common = read()
    share(common)
    gone: list[weakref.ref[Word]] = []
    for number in range(MOST + 100):
        one, word = read(), Word(f"pod-{number}")
        one.metadata.labels["statefulset.kubernetes.io/pod-name"] = word
        gone.append(weakref.ref(word))
        share(one)
        assert one.metadata.labels["app.example.org/kind"] is common.metadata.labels["app.example.org/kind"]
    del one, word
    gc.collect()
    assert [word() for word in gone[:100]] == [None] * 100
