"""How the cluster's objects go: the `kubectl` commands in their order.

What acts goes before what it acts on, nodes are cleaned before what their agents need is gone, definitions last: an
object goes with its definition, and a finalizer nobody serves any more would hold both for ever.
"""

from __future__ import annotations

from collections.abc import Iterator

from tortie.calc.proxy.election import NAMESPACE as LAYER2
from tortie.render.crds import KINDS, crds
from tortie.render.manifest import flannel
from tortie.render.manifest.access import CONTROLLERS, FANOUT, NODE
from tortie.render.manifest.node import CONFIG
from tortie.render.manifest.options import NAMESPACE

FLANNELS = (
    f"kubectl delete --ignore-not-found namespace/{flannel.NAMESPACE} clusterrole/{flannel.ACCOUNT} "
    f"clusterrolebinding/{flannel.ACCOUNT}"
)
"""Said and not done: upstream's flannel has the same names, and may be what the pods' packets go by."""
FINALIZERS = '{"metadata":{"finalizers":null}}'


def transcript() -> Iterator[str]:
    """The lines; `#` begins what is for the reader."""
    kube = f"kubectl -n {NAMESPACE}"
    yield "# 1. nothing acts any more; pods keep the network that they have"
    yield f"{kube} delete deployment,poddisruptionbudget {CONTROLLERS} --ignore-not-found"
    yield f"{kube} delete daemonset {NODE} --ignore-not-found --wait"
    yield f"{kube} delete deployment,service,poddisruptionbudget {FANOUT} --ignore-not-found"
    yield "# 2. on every node, drained: tortie uninstall --apply"
    yield "# 3. what they were allowed and told"
    yield f"{kube} delete configmap {CONFIG} --ignore-not-found"
    yield f"kubectl delete clusterrolebinding,clusterrole {NODE} {CONTROLLERS} {FANOUT} --ignore-not-found"
    yield f"{kube} delete rolebinding,role {NODE} {CONTROLLERS} --ignore-not-found"
    yield f"{kube} delete serviceaccount {NODE} {CONTROLLERS} {FANOUT} --ignore-not-found"
    yield f"{kube} delete lease {CONTROLLERS} --ignore-not-found"
    yield f"kubectl delete namespace {LAYER2} --ignore-not-found"
    yield f"# flannel's, if it came from tortie manifest --network: {FLANNELS}"
    yield "# 4. what was configured: keep a copy (tortie datastore migrate export) if it may be needed again"
    for definition in crds():
        name, scope = definition["metadata"]["name"], definition["spec"]["scope"]
        everywhere = " --all-namespaces" if scope == "Namespaced" else ""
        yield f"kubectl delete {name} --all{everywhere} --ignore-not-found --wait=false"
    yield "# an object that stays has a finalizer whose program has gone: kubectl get KIND NAME -o yaml, then"
    yield f"#   kubectl patch KIND NAME --type merge --patch '{FINALIZERS}'"
    yield "# 5. definitions, last. Not with another program in the cluster that keeps its objects in them"
    for definition in crds():
        yield f"kubectl delete customresourcedefinition {definition['metadata']['name']} --ignore-not-found"
    yield f"# {len(KINDS)} kinds; then every node: tortie uninstall --verify"
