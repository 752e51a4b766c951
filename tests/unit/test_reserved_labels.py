"""Labels that only the network gives: who could give them himself would be let in where others let in a namespace."""

from __future__ import annotations

from tortie.calc.cluster import Cluster
from tortie.calc.workloads import pod_labels
from tortie.model.document import convert
from tortie.model.k8s import Namespace, Pod
from tortie.model.policy import GlobalNetworkPolicy, NetworkSet
from tortie.model.workload import WorkloadEndpoint

CONTAINERS = [{"name": "main", "image": "x"}]
SPOOFED = {
    "app": "web",
    "pcns.team": "trusted",
    "pcns.projectcalico.org/name": "kube-system",
    "pcsa.role": "admin",
    "projectcalico.org/serviceaccount": "admin",
    "projectcalico.org/orchestrator": "k8s",
}


def test_a_network_set_does_not_slip_into_what_is_allowed_to_a_namespace() -> None:
    cluster = Cluster("n1")
    cluster.put(convert(Namespace, {"metadata": {"name": "evil", "labels": {"team": "evil"}}}))
    spec = {"node": "n1", "interfaceName": "cali0"}
    cluster.put(convert(WorkloadEndpoint, {"metadata": {"name": "n1-k8s-a-eth0", "namespace": "red"}, "spec": spec}))
    selectors = [*(f"has({label})" for label in SPOOFED), "pcns.team == 'trusted'", "pcns.team == 'evil'"]
    rules = [{"action": "Allow", "source": {"selector": selector}} for selector in selectors]
    cluster.put(
        convert(GlobalNetworkPolicy, {"metadata": {"name": "g"}, "spec": {"selector": "all()", "ingress": rules}})
    )
    metadata = {"name": "s", "namespace": "evil", "labels": SPOOFED}
    cluster.put(convert(NetworkSet, {"metadata": metadata, "spec": {"nets": ["203.0.113.0/24"]}}))
    found = {str(ref): bool(members) for ref, members in cluster.state().sets.items()}
    inside = {"has(app)", "has(pcns.team)", "has(pcns.projectcalico.org/name)", 'pcns.team == "evil"'}
    assert {selector for selector, there in found.items() if there} == inside


def test_a_pod_has_the_labels_of_its_account_or_none() -> None:
    """One with a name that is too long for a label has none, and not what its owner would like it to have."""
    body = {
        "metadata": {"name": "a", "namespace": "red", "labels": SPOOFED},
        "spec": {"serviceAccountName": "x" * 63, "containers": CONTAINERS},
    }
    assert pod_labels(convert(Pod, body)) == {
        "app": "web",
        "projectcalico.org/namespace": "red",
        "projectcalico.org/orchestrator": "k8s",
    }
