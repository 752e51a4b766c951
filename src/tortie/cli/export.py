"""A whole datastore as one text, in the form that Calico's `datastore migrate export` has.

    pools, policies, nodes, ...   YAML, a List for each kind
    ===
    ClusterInformation            JSON
    ===
    IPAM                          JSON: keys and values as in Calico's etcd; below "tortie" what Calico leaves out

What Calico leaves out: workload endpoints, profiles and node statuses; and what a Kubernetes cluster has anyhow, such
as pods and namespaces, where no such cluster but the datastore itself has it. Secrets are in no export, nor are leases.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tortie.base.errors import ConfigError, NotFound, NotSupported
from tortie.cli.ipam_pairs import GROUPS, document
from tortie.cli.node_names import kubernetes_names, renamed
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.controllers import KubeControllersConfiguration
from tortie.model.document import dump
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import IPPool, IPReservation
from tortie.model.k8s import Pod
from tortie.model.kinds import KINDS
from tortie.model.lease import Lease
from tortie.model.meta import Resource, changed
from tortie.model.node import ClusterInformation, FelixConfiguration, Node
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, NetworkSet, Profile, Tier
from tortie.model.secret import Secret
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from tortie.model.store import Store
from tortie.model.text import dump as yaml_dump
from tortie.policy.translate import DEFAULT_ALLOW
from tortie.store.composite import OF_KUBERNETES

SEPARATOR = "===\n"
V3: tuple[type[Resource], ...] = (
    IPPool, BGPPeer, Tier, GlobalNetworkPolicy, StagedGlobalNetworkPolicy, GlobalNetworkSet, HostEndpoint,
    KubeControllersConfiguration, NetworkPolicy, StagedNetworkPolicy, StagedKubernetesNetworkPolicy, NetworkSet, Node,
    BGPConfiguration, FelixConfiguration, IPReservation, BGPFilter,
)  # fmt: skip
"""In the order in which Calico's exporter has them."""
IPAM = tuple(GROUPS)
NEVER = (Secret, Lease)
BESIDE = tuple(kind for kind in KINDS if kind not in (*V3, *IPAM, *NEVER, ClusterInformation))
OF_CONTROLLERS = "knp.default."
"""How the names of policies begin that Calico's controllers make of those of Kubernetes, here and elsewhere."""
MADE = (DEFAULT_ALLOW, "kns.", "ksa.")
"""How the names of profiles begin that are always there, or made of namespaces and accounts."""
OURS, OBJECTS = "tortie", "objects"
"""Where the third part has what Calico's importer does not know, and passes over."""

UNLOCKED = "the datastore is not locked: lock it, so that nothing changes meanwhile: tortie datastore migrate lock"
PAUSE = 2.0
"""Seconds between two lines that say how far it has come."""


@dataclass
class Progress:
    """Says how far a long work has come, a line every few seconds; a short one stays silent."""

    say: Callable[[str], None]
    what: str
    done: int = 0
    _said: float = field(default_factory=time.monotonic)

    def more(self, number: int, of: str = "") -> None:
        self.done += number
        if time.monotonic() - self._said >= PAUSE:
            self._said = time.monotonic()
            self.say(f"{self.what} {self.done}{of}")


class Remarks(logging.Handler):
    """What a datastore remarks while it is read: that an object, or a field of one, is not known to this version."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(_OF_SERVERS):
            self.lines.append(record.getMessage())

    def __enter__(self) -> Remarks:
        _STORES.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        _STORES.removeHandler(self)


_STORES = logging.getLogger("tortie.store")
_OF_SERVERS = ("tortie.store.kube.client", "tortie.store.kube.access")
"""Those remark what a server says, not what is stored."""


async def exported(
    store: Store, elsewhere: bool, keep_names: bool, say: Callable[[str], None], lossy: bool = False
) -> str:
    """The text. `elsewhere`: Kubernetes' own kinds are a cluster's. `keep_names`: nodes keep Calico's names. `lossy`:
    without what cannot be read.

    Raises NotSupported when the datastore is not locked, or was unlocked meanwhile, and for what cannot be read.
    """
    before = await _locked(store)
    progress = Progress(say, "read")
    found: list[Resource] = []
    with Remarks() as remarks:
        for kind in (*V3, *IPAM, *BESIDE):
            if elsewhere and kind in OF_KUBERNETES:
                continue
            items = (await store.list(kind)).items
            found += (one for one in items if counts(one))
            progress.more(len(items), " objects")
    if remarks.lines and not lossy:
        more = f" (and {len(remarks.lines) - 1} more)" if len(remarks.lines) > 1 else ""
        raise NotSupported(f"{remarks.lines[0]}{more}: upgrade first, or give --leave-out-unknown and lose that")
    if not elsewhere and (secrets := len((await store.list(Secret)).items)):
        say(f"left out: {secrets} Secret(s), which are to be in no file: write them into the new datastore yourself")
    if await _locked(store) != before:
        raise NotSupported("the ClusterInformation was changed while the datastore was read: lock it, and begin again")
    names = {} if keep_names else kubernetes_names(one for one in found if isinstance(one, Node))
    return text_of(before, [renamed(one, names) for one in found])


def counts(one: Resource) -> bool:
    """Whether an object is somebody's own: not made of others, or by itself, here and elsewhere."""
    match one:
        case Profile():
            return not one.name.startswith(MADE)
        case NetworkPolicy():
            return not one.name.startswith(OF_CONTROLLERS)
    return True


async def _locked(store: Store) -> ClusterInformation:
    try:
        information = await store.get(ClusterInformation, "default")
    except NotFound:
        raise NotFound("there is no cluster in this datastore yet: nothing to export") from None
    if information.spec.datastore_ready is not False:
        raise NotSupported(UNLOCKED)
    return information


def text_of(information: ClusterInformation, objects: Iterable[Resource]) -> str:
    """The three parts."""
    kinds: dict[type[Resource], list[Resource]] = {}
    for one in objects:
        kinds.setdefault(type(one), []).append(one)
    lists = "".join(f"{_list(kind, kinds.get(kind, ()))}---\n" for kind in V3)
    ipam = document(one for kind in IPAM for one in kinds.get(kind, ()))
    beside = [_bare(one) for kind in BESIDE for one in kinds.get(kind, ())]
    parts = (lists, _json(_bare(information)), _json({**ipam, **({OURS: {OBJECTS: beside}} if beside else {})}))
    return SEPARATOR.join(parts)


def _list(kind: type[Resource], objects: Sequence[Resource]) -> str:
    items = [_bare(one) for one in objects]
    name = kind.KIND
    return yaml_dump({"apiVersion": name.api_version, "kind": f"{name.kind}List", "metadata": {}, "items": items})


def _bare(one: Resource) -> dict[str, Any]:
    """Without what is of one datastore only."""
    gone: dict[str, Any] = {"uid": "", "resource_version": "", "creation_timestamp": None, "generation": None}
    if not isinstance(one, Pod):
        gone |= {"deletion_timestamp": None, "deletion_grace_period_seconds": None}
    return dump(changed(one, **gone, managed_fields=None, self_link=""))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def parts_of(text: str, source: str) -> tuple[str, str, str]:
    """The three parts of an export. Raises ConfigError."""
    parts = text.split(f"\n{SEPARATOR}")
    if len(parts) != 3:
        what = 'has not the three parts of an export, which lines of "===" separate'
        raise ConfigError(what, source)
    lists, information, ipam = parts
    return lists, information, ipam
