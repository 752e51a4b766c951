"""What may enter the embedded datastore, and what may leave it, decided on values.

Where a cluster has Kubernetes' API server and Calico's admission in front of its datastore, a plain file has nothing:
whoever writes for a user asks here first. What a document can get wrong by itself is checked as well, by `model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from tortie.base.errors import ConfigError
from tortie.calc.defaults import NAME_LABEL, defaulted
from tortie.calc.versions import CALICO_VERSION
from tortie.model.bgp import BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.document import check
from tortie.model.ipam import IPAMBlock, IPPool
from tortie.model.k8s import Container, Namespace, Pod, PodSpec, ServiceAccount
from tortie.model.kinds import KINDS
from tortie.model.meta import Metadata, Problem, Resource, Value
from tortie.model.misfit import fields, join
from tortie.model.node import ClusterInformation, ClusterInformationSpec
from tortie.model.policy import (
    BUILT_IN_TIERS,
    EntityRule,
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    NetworkPolicy,
    NetworkSet,
    Profile,
    Tier,
    TierSpec,
)
from tortie.model.secret import Secret
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedNetworkPolicy
from tortie.model.workload import WorkloadEndpoint, endpoint_name
from tortie.policy.selector import Global, parse
from tortie.policy.translate import DEFAULT_ALLOW, NAMESPACE, AnyPolicy, policy_of

R = TypeVar("R", bound=Resource)

TIERED = (NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy)
"""The kinds of policies that say in which tier they are."""
FIRST_NAMESPACES = ("default", "kube-system")


class View(Protocol):
    """What is stored, together with what is about to be."""

    def get(self, kind: type[R], name: str, namespace: str = "") -> R | None:
        """The object, or None."""
        ...

    def all(self, kind: type[R], namespace: str | None = None) -> Iterable[R]:
        """The objects of a kind, in one namespace or (None) in all."""
        ...


class Objects:
    """A View of objects that are put into it."""

    def __init__(self, objects: Iterable[Resource] = ()) -> None:
        self._by_kind: dict[type[Resource], dict[tuple[str, str], Resource]] = {}
        for one in objects:
            self.put(one)

    def get(self, kind: type[R], name: str, namespace: str = "") -> R | None:
        return self._by_kind.get(kind, {}).get((namespace, name))  # type: ignore[return-value]

    def all(self, kind: type[R], namespace: str | None = None) -> Iterable[R]:
        every = self._by_kind.get(kind, {})
        return [one for (where, _), one in sorted(every.items()) if namespace in (None, where)]  # type: ignore[misc]

    def put(self, one: Resource) -> None:
        self._by_kind.setdefault(type(one), {})[one.namespace, one.name] = one

    def drop(self, one: Resource) -> None:
        self._by_kind.get(type(one), {}).pop((one.namespace, one.name), None)


class Offline(Objects):
    """A View without a datastore: every namespace and service account that a document names is taken to be there."""

    def get(self, kind: type[R], name: str, namespace: str = "") -> R | None:
        found = super().get(kind, name, namespace)
        if found is None and issubclass(kind, Namespace | ServiceAccount):
            return kind(metadata=Metadata(name=name, namespace=namespace))
        return found


def admit(new: R, old: R | None, view: View) -> R:
    """What to store when a user writes `new` over `old`, defaults filled in. Raises ConfigError, field path first."""
    if new.KIND.read_only:
        raise ConfigError(f"{new.KIND.kind} is read-only: the network writes it, users look at it")
    check(new)
    new = defaulted(new, old)
    for path, problem in _namespace_problems(new, view):
        raise ConfigError(problem, path)
    _check_selectors(new, "")
    if isinstance(new, AnyPolicy):
        policy_of(new)  # what cannot be translated would count as absent, and be open where it should be closed
    for path, problem in _CHECKS.get(type(new), _nothing)(new, old, view):
        raise ConfigError(problem, path)
    return new


def companions(new: Resource) -> tuple[Resource, ...]:
    """What comes into being with a new object: a namespace has a service account `default`."""
    if isinstance(new, Namespace):
        return (ServiceAccount(metadata=Metadata(name="default", namespace=new.name)),)
    return ()


def deletable(resource: Resource, view: View) -> tuple[Resource, ...]:
    """What goes when a user deletes an object: its contents first, itself last. Raises ConfigError if it must stay."""
    if resource.KIND.read_only:
        raise ConfigError(f"{resource.KIND.kind} is read-only: the network writes it, users look at it")
    if isinstance(resource, Tier):
        _check_tier_may_go(resource, view)
    if isinstance(resource, ServiceAccount) and resource.name == "default":
        raise ConfigError("every namespace has its default service account; it goes with the namespace")
    if not isinstance(resource, Namespace):
        return (resource,)
    if resource.name in FIRST_NAMESPACES:
        raise ConfigError(f"the namespace {resource.name} is always there and cannot be deleted")
    contents = [one for kind in reversed(KINDS) if kind.KIND.namespaced for one in view.all(kind, resource.name)]
    return (*(one for one in contents if not _of_a_pod(one)), resource)


def bootstrap(guid: str) -> tuple[Resource, ...]:
    """The objects of an empty cluster, in the order in which they are created. `guid`: 32 hex digits.

    ClusterInformation is the last: where it is there, the others have been created.
    """
    information = ClusterInformationSpec(
        cluster_guid=guid, cluster_type="tortie", calico_version=CALICO_VERSION, datastore_ready=True
    )
    tiers = (
        Tier(metadata=Metadata(name=name), spec=TierSpec(order=order, default_action=action))
        for name, order, action in BUILT_IN_TIERS
    )
    namespaces = [
        Namespace(metadata=Metadata(name=name, labels={NAME_LABEL: name}), status={"phase": "Active"})
        for name in FIRST_NAMESPACES
    ]
    accounts = (account for namespace in namespaces for account in companions(namespace))
    cluster = ClusterInformation(metadata=Metadata(name="default"), spec=information)
    return (*namespaces, *accounts, *tiers, cluster)


def _namespace_problems(new: Resource, view: View) -> Iterator[Problem]:
    if new.KIND.namespaced and view.get(Namespace, new.namespace) is None:
        yield "metadata.namespace", f'namespace "{new.namespace}" does not exist: create it first'


def _check_selectors(value: Any, path: str) -> None:
    """Reads every selector of an object, wherever it is: a text in a field whose name ends so."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            _check_selectors(item, f"{path}[{i}]")
    if not isinstance(value, Value):
        return
    for name, attribute in fields(type(value)):
        inside, where = getattr(value, attribute), join(path, name)
        if isinstance(inside, str) and attribute.endswith("selector"):
            alone = isinstance(value, EntityRule) and attribute == "namespace_selector"
            _check_selector(inside, where, alone)
        elif isinstance(inside, Value | tuple):
            _check_selectors(inside, where)


def _check_selector(text: str, path: str, global_alone: bool) -> None:
    try:
        selector = parse(text)
    except ConfigError as error:
        raise error.within(path) from None
    if global_alone and isinstance(selector, Global):
        return
    if any(isinstance(leaf, Global) for leaf in selector.leaves()):
        raise ConfigError("global() is the whole of a rule's namespaceSelector or nowhere", path)


def _pool(new: IPPool, old: IPPool | None, view: View) -> Iterator[Problem]:
    spec = new.spec
    if old is not None:
        if spec.net != old.spec.net:
            yield "spec.cidr", f"cannot change from {old.spec.cidr} to {spec.cidr}: create another pool"
        if spec.blocks != old.spec.blocks:
            yield "spec.blockSize", f"cannot change from {old.spec.blocks} to {spec.blocks}: create another pool"
        if "LoadBalancer" in old.spec.uses and "LoadBalancer" not in spec.uses:
            yield "spec.allowedUses", "a LoadBalancer pool cannot get another use: create another pool"
        return
    for other in view.all(IPPool):
        if other.name != new.name and spec.net.overlaps(other.spec.net):
            mine, theirs = f"IPPool({new.name})", f"IPPool({other.name})"
            yield "spec.cidr", f"{mine} CIDR overlaps with {theirs} CIDR {other.spec.cidr}"
    for block in view.all(IPAMBlock):
        size = block.spec.net.prefixlen
        if spec.net.overlaps(block.spec.net) and size != spec.blocks:
            yield "spec.blockSize", f"must be {size}: there is the block {block.spec.cidr} in the pool already"


def _tier(new: Tier, old: Tier | None, view: View) -> Iterator[Problem]:
    for name, order, action in BUILT_IN_TIERS:
        if new.name == name and new.spec.order != order:
            yield "spec.order", f"must be {order:.0f} in the built-in tier {name}"
        if new.name == name and new.spec.default_action != action:
            yield "spec.defaultAction", f"must be {action} in the built-in tier {name}"


def _check_tier_may_go(tier: Tier, view: View) -> None:
    if tier.name in (name for name, _, _ in BUILT_IN_TIERS):
        raise ConfigError(f"the tier {tier.name} is built in and cannot be deleted")
    policies = [policy for kind in TIERED for policy in view.all(kind)]
    held = [policy for policy in policies if policy.spec.tier == tier.name]  # type: ignore[attr-defined]
    if held:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise ConfigError(f"the tier holds {held[0].title}{more}: delete them first")


def _policy(new: Resource, old: Resource | None, view: View) -> Iterator[Problem]:
    if new.name.startswith("knp.default."):
        yield "metadata.name", f'"{new.name}" is the name of a Kubernetes policy: write that one instead'
    yield from _policy_name(new, old, view)


def _policy_name(new: Resource, old: Resource | None, view: View) -> Iterator[Problem]:
    """The tier may stand before the name, as it once had to."""
    if new.name.count(".") > 1 and not new.name.startswith("ossg.default."):
        yield "metadata.name", f'"{new.name}" has more than one dot: a name, or the tier, a dot and a name'


def _network_set(new: Resource, old: Resource | None, view: View) -> Iterator[Problem]:
    if NAMESPACE in new.labels:
        yield f"metadata.labels[{NAMESPACE}]", "is what Calico gives the sets of a namespace: take another label"


def _profile(new: Profile, old: Profile | None, view: View) -> Iterator[Problem]:
    if new.name == DEFAULT_ALLOW or new.name.startswith(("kns.", "ksa.")):
        yield "metadata.name", f'"{new.name}" is a profile that namespaces and service accounts make by themselves'


def _peer(new: BGPPeer, old: BGPPeer | None, view: View) -> Iterator[Problem]:
    missing = [name for name in new.spec.filters if view.get(BGPFilter, name) is None]
    if missing:
        yield "spec.filters", f"BGPFilter(s) not found: {', '.join(missing)}"


def _secret(new: Secret, old: Secret | None, view: View) -> Iterator[Problem]:
    if old is not None and old.immutable and (new.data, new.immutable) != (old.data, old.immutable):
        yield "data", "cannot change, for the secret is immutable: delete it and create another"


def _endpoint(new: WorkloadEndpoint, old: WorkloadEndpoint | None, view: View) -> Iterator[Problem]:
    spec = new.spec
    workload = {"k8s": spec.pod, "cni": spec.container_id, "libnetwork": "libnetwork"}.get(
        spec.orchestrator, spec.workload
    )
    for name, part in (("node", spec.node), ("orchestrator", spec.orchestrator), ("endpoint", spec.endpoint)):
        if not part:
            yield f"spec.{name}", "is required"
    right = endpoint_name(spec.node, spec.orchestrator, workload, spec.endpoint)
    if new.name != right:
        yield "metadata.name", f'"{new.name}" must be "{right}", made of what spec says'


def _pod(new: Pod, old: Pod | None, view: View) -> Iterator[Problem]:
    account = new.service_account
    if old is None:
        if view.get(ServiceAccount, account, new.namespace) is None:
            what = f'service account "{account}" does not exist in namespace "{new.namespace}": create it first'
            yield "spec.serviceAccountName", what
        return
    node, other = old.spec.node_name, new.spec.node_name
    if node and other != node:
        yield "spec.nodeName", f'cannot change from "{node}" to "{other}": a pod does not move'
    before, after = _fixed(old), _fixed(new)
    for name, attribute in fields(type(before)):
        if getattr(before, attribute) != getattr(after, attribute):
            yield f"spec.{name}", "cannot change once the pod is there: delete the pod and create it again"


def _fixed(pod: Pod) -> PodSpec:
    """The part of a pod that never changes: all but what Kubernetes allows to change, and where it runs."""

    def bare(containers: tuple[Container, ...]) -> tuple[Container, ...]:
        return tuple(replace(container, image="") for container in containers)

    return replace(
        pod.spec,
        containers=bare(pod.spec.containers),
        init_containers=bare(pod.spec.init_containers),
        node_name="",
        active_deadline_seconds=msgspec.UNSET,
        termination_grace_period_seconds=None,
        tolerations=msgspec.UNSET,
        scheduling_gates=msgspec.UNSET,
        service_account_name=pod.service_account,
        service_account="",
    )


def _of_a_pod(resource: Resource) -> bool:
    """The endpoint of a pod goes when the pod's network is taken down, with its addresses; not before."""
    return isinstance(resource, WorkloadEndpoint) and resource.spec.orchestrator == "k8s"


def _nothing(new: Resource, old: Resource | None, view: View) -> Iterator[Problem]:
    return iter(())


_CHECKS: dict[type[Resource], Callable[[Any, Any, View], Iterator[Problem]]] = {
    IPPool: _pool,
    Tier: _tier,
    NetworkPolicy: _policy,
    GlobalNetworkPolicy: _policy_name,
    StagedNetworkPolicy: _policy,
    StagedGlobalNetworkPolicy: _policy_name,
    NetworkSet: _network_set,
    GlobalNetworkSet: _network_set,
    Profile: _profile,
    BGPPeer: _peer,
    Secret: _secret,
    WorkloadEndpoint: _endpoint,
    Pod: _pod,
}
"""What else must hold of a kind, beside its own values."""
