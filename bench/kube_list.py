"""The cost of a long list of pods: client CPU of `KubernetesStore` per pod, HTTP and decompression left out.

Pages of 500 pods of 5 to 6 KB, as an API server sends them, are handed to the store from memory. The peer decodes the
same bytes into plain dicts with msgspec, and does nothing with them. Both take turns. What a watch costs is measured
with the same pods as events: what is news of an endpoint, and what is not.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, cast

import msgspec

from bench.figures import Report, against, median
from bench.progress import Advance, alone
from tortie.model.k8s import Pod
from tortie.model.meta import Resource
from tortie.model.workload import WorkloadEndpoint
from tortie.store.kubernetes import KubernetesStore

NAME = "kube_list"
TITLE = "Kubernetes: long lists and busy watches of pods"
PAGES, PAGE = 20, 500
ROUNDS = 7
PEER = "plain dicts"
FIGURES = {
    "endpoints": ("list of endpoints, each", 0.5),
    "pods": ("list of pods, each", 0.7),
    "change": ("a change of an endpoint", 1.5),
    "beat": ("a change of a pod that is none of its endpoint", 1.0),
}
"""What is measured, and how many times the cost of plain dicts of the same bytes it may come to."""
US = 1e6


def pod(number: int) -> dict[str, Any]:
    """Of a Deployment, three of which are in each namespace, on one of a thousand nodes."""
    app, ip = f"app-{number // 20:05}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    name, namespace, node = f"{app}-7d4b9c6f5-{number:05}", f"team-{number // 60:04}", f"node-{number % 1000:04}"
    labels = {"app.kubernetes.io/name": app, "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7d4b9c6f5"}
    when = "2026-01-02T03:04:05Z"
    conditions = [
        {"type": one, "status": "True", "lastProbeTime": None, "lastTransitionTime": when, "observedGeneration": 1}
        for one in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    annotations = {
        "cni.projectcalico.org/containerID": f"{number:064x}",
        "cni.projectcalico.org/podIP": f"{ip}/32",
        "cni.projectcalico.org/podIPs": f"{ip}/32",
        "tortie.dev/endpoint": '{"mac":"0a:00:00:00:00:01","network":"k8s-pod-network"}',
        "prometheus.io/scrape": "true",
    }
    return {
        "metadata": {
            "name": name, "generateName": f"{app}-7d4b9c6f5-", "namespace": namespace,
            "uid": f"00000000-0000-4000-8000-{number:012}", "resourceVersion": str(1000 + number),
            "creationTimestamp": when, "labels": labels, "annotations": annotations,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{app}-7d4b9c6f5",
                                 "uid": "9" * 36, "controller": True, "blockOwnerDeletion": True}],
            "managedFields": [_managed(manager, when) for manager in ("kube-controller-manager", "kubelet", "calico")],
        },
        "spec": {
            "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}],
            "containers": [_container(one, app) for one in ("web", "proxy")],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": app, "serviceAccount": app, "nodeName": node, "securityContext": {},
            "schedulerName": "default-scheduler", "priority": 0, "enableServiceLinks": True,
            "tolerations": [{"key": f"node.kubernetes.io/{one}", "operator": "Exists", "effect": "NoExecute",
                             "tolerationSeconds": 300} for one in ("not-ready", "unreachable")],
            "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {
            "phase": "Running", "conditions": conditions, "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}],
            "podIP": ip, "podIPs": [{"ip": ip}], "startTime": when, "qosClass": "Burstable",
            "containerStatuses": [_status(one, app, when) for one in ("web", "proxy")],
        },
    }  # fmt: skip


def _managed(manager: str, when: str) -> dict[str, Any]:
    fields = {f"f:{one}": {} for one in ("image", "imagePullPolicy", "name", "resources", "terminationMessagePath")}
    parts = {"f:spec": {"f:containers": {'k:{"name":"web"}': {".": {}, **fields}}}, "f:metadata": {"f:labels": {}}}
    return {"manager": manager, "operation": "Update", "apiVersion": "v1", "time": when, "fieldsType": "FieldsV1",
            "fieldsV1": parts}  # fmt: skip


def _container(name: str, app: str) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, "timeoutSeconds": 1,
             "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}  # fmt: skip
    return {
        "name": name, "image": f"registry.example.org/shop/{app}:1.2.3", "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": f"{name}-port", "containerPort": 8080, "protocol": "TCP"}],
        "env": [{"name": f"SETTING_{one}", "value": "a value"} for one in range(4)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "livenessProbe": probe, "readinessProbe": probe, "terminationMessagePath": "/dev/termination-log",
        "volumeMounts": [{"name": "kube-api-access", "readOnly": True, "mountPath": "/var/run/secrets"}],
    }  # fmt: skip


def _status(name: str, app: str, when: str) -> dict[str, Any]:
    return {"name": name, "state": {"running": {"startedAt": when}}, "lastState": {}, "ready": True,
            "restartCount": 0, "image": f"registry.example.org/shop/{app}:1.2.3", "started": True,
            "imageID": "registry.example.org/shop/app@sha256:" + "0" * 64,
            "containerID": "containerd://" + "0" * 64}  # fmt: skip


class Memory:
    """The API of a server that has its answers ready."""

    def __init__(self, pages: list[bytes], events: list[bytes], beats: list[bytes]) -> None:
        self.pages, self.events, self.beats = pages, events, beats

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        content_type: str = "",
    ) -> bytes:
        asked = query or {}
        if asked.get("limit") == "1":
            return b'{"metadata":{"resourceVersion":"1000000"}}'
        return self.pages[int(asked.get("continue", 0))]

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        for line in (*self.events, *self.beats):
            yield line
        yield _event("ADDED", pod(PAGES * PAGE), 2_000_000)
        await asyncio.Event().wait()

    async def close(self) -> None:
        return None


def _event(type_: str, one: dict[str, Any], revision: int) -> bytes:
    one["metadata"]["resourceVersion"] = str(revision)
    return msgspec.json.encode({"type": type_, "object": {"kind": "Pod", "apiVersion": "v1", **one}})


def memory() -> Memory:
    pages: list[bytes] = []
    events: list[bytes] = []
    beats: list[bytes] = []
    for page in range(PAGES):
        found = [pod(number) for number in range(page * PAGE, (page + 1) * PAGE)]
        more = {"continue": str(page + 1)} if page + 1 < PAGES else {}
        head = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1000000", **more}}
        pages.append(msgspec.json.encode({**head, "items": found}))
        for one in found if page < PAGES // 4 else []:
            events.append(_event("MODIFIED", one, 1_000_001 + len(events)))
            beats.append(_event("MODIFIED", one, 1_500_001 + len(beats)))
    return Memory(pages, events, beats)


async def _list(api: Memory, kind: type[Resource]) -> float:
    with _counted() as spent:
        count = len((await KubernetesStore(api).list(kind)).items)
    return spent() / count


async def _watch(api: Memory, told: bool) -> float:
    """Of a change that is told, or one that is none to an endpoint."""
    heard, wanted = 0, len(api.events)
    async with aclosing(cast(Any, KubernetesStore(api).watch(WorkloadEndpoint, "1000000"))) as watch:
        with _counted() as first:
            while heard < wanted:
                heard += len(await anext(watch))
        with _counted() as second:
            (last,) = await anext(watch)
    assert (heard, last.type.value) == (wanted, "ADDED")
    return (first if told else second)() / wanted


async def _dicts(bodies: list[bytes], count: int) -> float:
    with _counted() as spent:
        for body in bodies:
            msgspec.json.decode(body)
    return spent() / count


@contextmanager
def _counted() -> Iterator[Callable[[], float]]:
    """Seconds of CPU of the block, once it is over."""
    gc.collect()
    spent = 0.0
    begin = time.process_time()
    yield lambda: spent
    spent = time.process_time() - begin


def measure(advance: Advance) -> Report:
    report = Report(NAME, TITLE)
    api = memory()
    advance(f"{sum(map(len, api.pages)) / PAGES / PAGE:.0f} bytes each")
    ways: dict[str, Callable[[], Awaitable[float]]] = {
        "endpoints": lambda: _list(api, WorkloadEndpoint),
        "pods": lambda: _list(api, Pod),
        "change": lambda: _watch(api, True),
        "beat": lambda: _watch(api, False),
        "dicts": lambda: _dicts(api.pages, PAGES * PAGE),
        "dicts of events": lambda: _dicts(api.events, len(api.events)),
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name, way in ways.items():
            samples[name].append(asyncio.run(_run(way)))
        advance(f"{NAME}: round {number + 1}")
    for name, (figure, most) in FIGURES.items():
        theirs = median(samples["dicts of events" if name in ("change", "beat") else "dicts"])
        report.figures.append(against(figure, US * median(samples[name]), "us", PEER, US * theirs, at_most=most))
    report.samples = {f"{name} us": [US * one for one in values] for name, values in samples.items()}
    return report


async def _run(way: Callable[[], Awaitable[float]]) -> float:
    return await way()


STEPS = ROUNDS + 1


if __name__ == "__main__":
    sys.exit(alone(NAME))
