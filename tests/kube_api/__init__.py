"""A Kubernetes API server for tests: what a client that works with it relies on, a real one does, too.

    from kube_api import KubeApi

    async with KubeApi(rbac=True) as api:
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        api.faults.fail(503, times=3)
        ...
        assert len(api.requests("GET", "/api/v1/pods")) == 1

As a program: `PYTHONPATH=tests python -m kube_api --port 0 --kubeconfig FILE`.

What it leaves out: tables, answers in protobuf, managedFields (server-side apply knows what each manager applied, not
what others changed), CEL rules, webhooks, conversion between versions but for the name, admission plugins (no Pod needs
its ServiceAccount, no token is mounted), aggregated discovery, RBAC's checks of escalation, priorities of requests, and
all controllers but garbage collection and namespaces: nothing makes pods, schedules them, or gives a new namespace its
ServiceAccount `default`. A pod's grace ends by the clock, for there is no kubelet; `KubeApi(kubelet=False)` waits for a
deletion with grace 0, as a real server does.
"""

from kube_api.access import User
from kube_api.faults import Faults
from kube_api.server import KubeApi, Logged
from kube_api.statuses import Refusal

__all__ = ["Faults", "KubeApi", "Logged", "Refusal", "User"]
