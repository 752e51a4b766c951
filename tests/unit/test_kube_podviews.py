"""The quick way from very many pods to their endpoints says what the slow one says, and is quick."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.model.meta import changed
from tortie.store.kube import pods, podviews

SOME = st.sampled_from


def parts(given_: dict[str, st.SearchStrategy] | None = None, **optional: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries(given_ or {}, optional=optional)


PORTS = st.lists(
    parts({"containerPort": SOME([0, 80, 443])}, name=SOME(["", "http"]), protocol=SOME(["TCP", "UDP", "DCCP"]),
          hostPort=SOME([0, 8080]), hostIP=SOME(["", "192.0.2.1"])), max_size=2)  # fmt: skip
IPS = SOME(["", "10.0.0.5", "10.0.0.05", "fd00::5", "FD00::0:6", "1.2.3.4\0", "none", "10.0.0.7", "1.2.3"])
ANNOTATIONS = st.fixed_dictionaries({}, optional={
    pods.POD_IP: SOME(["", "10.0.0.9/32", "x"]), pods.POD_IPS: SOME(["", "10.0.0.9/32, fd00::9/128", ","]),
    pods.CONTAINER_ID: SOME(["c1", ""]),
    pods.OWN: SOME(["", "{", "[]", '{"mac":"0a:00:00:00:00:01"}', '{"mac":"no","network":"\u20ac"}', '"\ud800"']),
    "cni.projectcalico.org/floatingIPs": SOME(['["172.16.0.9", "fd00::9"]', "x"]),
    "cni.projectcalico.org/allowedSourcePrefixes": SOME(['["10.9.0.1/16"]', "x"]),
    "qos.projectcalico.org/dscp": SOME(["EF", "?"]), "kubernetes.io/ingress-bandwidth": SOME(["10M", ""]),
    "example.org/note": SOME(["a", "\u20ac"])})  # fmt: skip
LABELS = st.dictionaries(SOME(["app", "projectcalico.org/namespace"]), SOME(["a", "\u20ac"]))
PODS = st.fixed_dictionaries({
    "metadata": parts({"name": SOME(["web-0", "web-1"]), "namespace": SOME(["red", "blue-sky"]),
                       "uid": SOME(["u-1", ""]), "resourceVersion": SOME(["7", "8"])},
                      labels=st.none() | LABELS, annotations=st.none() | ANNOTATIONS,
                      creationTimestamp=st.none() | st.just("2026-01-01T00:00:00Z")),
    "spec": parts(nodeName=SOME(["", "node-1"]), serviceAccountName=SOME(["", "robot", "r" * 64]),
                  serviceAccount=st.just("old"), hostNetwork=st.booleans(),
                  containers=st.none() | st.lists(parts(ports=st.none() | PORTS), max_size=2),
                  initContainers=st.none() | st.just([{"ports": [{"containerPort": 1, "name": "init"}]}])),
    "status": parts(phase=SOME(["Pending", "Running", "Succeeded"]), podIP=IPS,
                    podIPs=st.none() | st.lists(st.fixed_dictionaries({"ip": IPS}), max_size=2)),
})  # fmt: skip


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


@given(PODS)
def test_the_quick_way_to_an_endpoint_says_what_the_slow_one_says(document: dict) -> None:
    raw = encoded(document)
    try:
        slow = pods.pod_of(raw)
    except pods.Refused:
        return
    assert podviews.endpoint_of(podviews.seen(raw)) == pods.endpoint_of(slow)
    assert podviews.last_endpoint(podviews.seen(raw)) == pods.last_endpoint(slow)


@given(PODS, PODS, st.sets(SOME(["labels", "annotations", "spec", "status", "uid"])))
def test_what_has_one_shape_is_the_same_endpoint(one: dict, other: dict, swapped: set[str]) -> None:
    """The second pod has some parts of another, and so is often the same and often nearly."""
    second = json.loads(encoded(one))
    second["metadata"]["resourceVersion"] = "9"
    for name in swapped:
        of, from_ = (second, other) if name in other else (second["metadata"], other["metadata"])
        if name in from_:
            of[name] = from_[name]
    try:
        seen = [podviews.seen(encoded(document)) for document in (one, second)]
    except pods.Refused:
        return
    was, is_ = (podviews.endpoint_of(pod) for pod in seen)
    if podviews.shape(seen[0]) == podviews.shape(seen[1]):
        assert (was is None) == (is_ is None)
        assert was is None or is_ is None or is_ == changed(was, resource_version="9")
    elif not swapped:
        raise AssertionError("only the revision differs")


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("text", ['{"x":' + DEEP + "}", DEEP, '{"mac":"\ud800"}', '"\ud800'])
def test_no_annotation_ends_those_who_read_it(text: str) -> None:
    """Everybody's agents read every pod, and whoever may make a pod writes annotations."""
    document = {"metadata": {"name": "a", "namespace": "red", "annotations": {pods.OWN: text}},
                "spec": {"nodeName": "n1"}, "status": {"podIP": "10.0.0.5"}}  # fmt: skip
    found = podviews.endpoint_of(podviews.seen(encoded(document))) if text.isascii() else None
    assert found is None or (found.spec.mac, found.spec.ip_networks) == ("", ("10.0.0.5/32",))
    assert pods.own(text) == ("", "")


def test_what_pods_have_in_common_is_the_same_object() -> None:
    """A hundred thousand pods of some thousand Deployments have some thousand sets of labels."""
    document = {"metadata": {"name": "a", "namespace": "red", "labels": {"app": "web"}},
                "spec": {"nodeName": "n1", "containers": [{"ports": [{"containerPort": 80, "name": "http"}]}]},
                "status": {"podIP": "10.0.0.5"}}  # fmt: skip
    one = podviews.endpoint_of(podviews.seen(encoded(document)))
    other = podviews.endpoint_of(podviews.seen(encoded(document | {"status": {"podIP": "10.0.0.6"}})))
    assert one is not None
    assert other is not None
    assert one.labels is other.labels
    assert one.spec.ports is other.spec.ports
    assert (one.spec.ip_networks, other.spec.ip_networks) == (("10.0.0.5/32",), ("10.0.0.6/32",))
