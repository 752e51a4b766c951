"""The Deployment `tortie-controllers`: the cluster's housekeeping, of which one at a time works."""

from __future__ import annotations

from typing import Any

from tortie.render.manifest.access import CONTROLLERS
from tortie.render.manifest.node import contained, datastore, endpoint, secret_mounts, secret_volumes
from tortie.render.manifest.options import NAMESPACE, NOBODY, Options

LABELS = {"k8s-app": CONTROLLERS}
STATUS_FILE = "/tmp/controllers.json"
"""What probes read; the one place where a container that is not root may write."""


def disruption_budget() -> dict[str, Any]:
    """Draining nodes waits for one of them to come up elsewhere."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": CONTROLLERS, "namespace": NAMESPACE, "labels": LABELS},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": LABELS}},
    }


def deployment(options: Options) -> dict[str, Any]:
    """The workload as a document."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": CONTROLLERS, "namespace": NAMESPACE, "labels": LABELS},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": LABELS},
            "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": LABELS}, "spec": _pod(options)},
        },
    }


def _pod(options: Options) -> dict[str, Any]:
    tainted = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
    return {
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [
            {"key": "CriticalAddonsOnly", "operator": "Exists"},
            *({"key": key, "effect": "NoSchedule"} for key in tainted),
        ],
        "serviceAccountName": CONTROLLERS,
        "priorityClassName": "system-cluster-critical",
        **({"hostNetwork": True} if options.datastore == "etcd" else {}),
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


def _container(options: Options) -> dict[str, Any]:
    enabled = "node,loadbalancer"
    if options.datastore == "etcd":
        enabled = "policy,namespace,serviceaccount,workloadendpoint,node,loadbalancer"
    return {
        "name": CONTROLLERS,
        "image": options.where,
        "imagePullPolicy": "IfNotPresent",
        "command": ["tortie", "controllers"],
        **endpoint(),
        "env": [
            *datastore(options),
            {"name": "ENABLED_CONTROLLERS", "value": enabled},
            {"name": "TORTIE_CONTROLLERS_STATUS", "value": STATUS_FILE},
        ],
        "livenessProbe": {**_probe("--live"), "initialDelaySeconds": 10, "failureThreshold": 6},
        "readinessProbe": _probe("--ready"),
        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}},
        "securityContext": contained(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *secret_mounts(options)],
    }


def _probe(option: str) -> dict[str, Any]:
    return {"exec": {"command": ["tortie", "controllers", option]}, "periodSeconds": 10, "timeoutSeconds": 10}
