"""The Deployment and Service `tortie-fanout`: one watch set on the datastore for the agents of many nodes.

In the nodes' own network, as agents need it before there is another. Agents find it by its Service, and do without it:
who reaches none asks the datastore.
"""

from __future__ import annotations

from typing import Any

from tortie.render.manifest.access import FANOUT
from tortie.render.manifest.node import contained, datastore, endpoint, secret_mounts, secret_volumes
from tortie.render.manifest.options import NAMESPACE, NOBODY, Options

LABELS = {"k8s-app": FANOUT}
PORT, HEALTH_PORT = 5473, 9098
PORT_NAME = "calico-typha"
"""Typha's, by which agents know it among a Service's ports."""


def documents(options: Options) -> list[dict[str, Any]]:
    """Nothing where none is wanted."""
    return [_disruption_budget(), _service(), _deployment(options)] if options.fanout else []


def _named(api_version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": FANOUT, "namespace": NAMESPACE, "labels": LABELS}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def _disruption_budget() -> dict[str, Any]:
    return _named("policy/v1", "PodDisruptionBudget", {"maxUnavailable": 1, "selector": {"matchLabels": LABELS}})


def _service() -> dict[str, Any]:
    port = {"name": PORT_NAME, "port": PORT, "protocol": "TCP", "targetPort": PORT_NAME}
    return _named("v1", "Service", {"selector": LABELS, "ports": [port]})


def _deployment(options: Options) -> dict[str, Any]:
    spec = {
        "replicas": options.fanout,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": LABELS},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": "100%"}},
        "template": {"metadata": {"labels": LABELS}, "spec": _pod(options)},
    }
    return _named("apps/v1", "Deployment", spec)


def _pod(options: Options) -> dict[str, Any]:
    return {
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "hostNetwork": True,
        "tolerations": [
            {"key": "CriticalAddonsOnly", "operator": "Exists"},
            {"effect": "NoSchedule", "operator": "Exists"},
            {"effect": "NoExecute", "operator": "Exists"},
        ],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_spread()]}},
        "serviceAccountName": FANOUT,
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": 300,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
            "fsGroup": NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(options)],
        "volumes": [{"name": "tmp", "emptyDir": {}}, *secret_volumes(options)],
    }


def _spread() -> dict[str, Any]:
    """One on a node, where there are enough nodes."""
    term = {"labelSelector": {"matchLabels": LABELS}, "topologyKey": "kubernetes.io/hostname"}
    return {"weight": 1, "podAffinityTerm": term}


def _container(options: Options) -> dict[str, Any]:
    return {
        "name": FANOUT,
        "image": options.where,
        "imagePullPolicy": "IfNotPresent",
        "command": ["tortie", "fanout"],
        **endpoint(),
        "env": datastore(options),
        "ports": [{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}],
        "livenessProbe": {**_probe("/liveness"), "initialDelaySeconds": 30},
        "readinessProbe": _probe("/readiness"),
        "resources": {"requests": {"cpu": "200m", "memory": "256Mi"}},
        "securityContext": contained(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *secret_mounts(options)],
    }


def _probe(path: str) -> dict[str, Any]:
    return {
        "httpGet": {"host": "127.0.0.1", "path": path, "port": HEALTH_PORT},
        "periodSeconds": 10,
        "timeoutSeconds": 10,
    }
