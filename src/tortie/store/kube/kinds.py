"""Where each kind is in one cluster, and in which form: the one place that decides it.

    kind ──► Kubernetes' own?   Native, Pods             /api/v1/pods, /apis/networking.k8s.io/v1/networkpolicies
         ──► a view of one?     Nodes, Endpoints         annotations of nodes and pods
         ──► Calico's?          Custom, in the Layout that this cluster has

Whoever knows Calico's libcalico-go will look for `backend/k8s/resources`: its clients of node, workloadendpoint,
profile and customresource are `nodes`, `pods`, `profiles` and `crd` here, and its `k8s.go`, which maps kinds to
clients, is this file. The names of IPAM's resources (`ipamblocks`, `blockaffinities`, ...) are those of `crd.Layout`.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from tortie.base.errors import Compacted, ConfigError, NotFound, NotSupported, Unavailable
from tortie.model.k8s import Pod
from tortie.model.meta import Resource
from tortie.model.node import Node
from tortie.model.workload import WorkloadEndpoint
from tortie.store.kube import crd, natives
from tortie.store.kube.api import Api
from tortie.store.kube.forms import Custom, Endpoints, Form, Native, Nodes, Pods

R = TypeVar("R", bound=Resource)

ABSENT = 180.0
"""Seconds between two looks whether the cluster has a kind by now."""
MANIFEST = "apply the manifest: tortie manifest | kubectl apply -f -"


class Kinds:
    """Of one cluster. `group` is Calico's API group where it is not to be found out; `pause` is in
    seconds, between two looks whether a kind is there by now. Raises ConfigError for a group that is none."""

    def __init__(self, api: Api, *, group: str = "", use_pod_cidr: bool = False, pause: float = ABSENT) -> None:
        self._api = api
        self._layout = crd.layout_of(group) if group else None
        if group and self._layout is None:
            raise ConfigError(f'"{group}" is not one of {", ".join(crd.LAYOUTS)}', "CALICO_API_GROUP")
        self._looking = asyncio.Lock()
        self._pause = pause
        self._forms: dict[type[Resource], Form[Any]] = {kind: Native(kind) for kind in natives.NATIVE}
        self._forms |= {Pod: Pods(), Node: Nodes(use_pod_cidr=use_pod_cidr), WorkloadEndpoint: Endpoints()}

    async def form(self, kind: type[R]) -> Form[R]:
        """How a kind is kept here. Raises Unavailable, NotSupported."""
        if kind not in self._forms:
            if kind not in crd.CUSTOM:
                raise NotSupported(f"{kind.KIND.kind} cannot be kept in Kubernetes")
            async with self._looking:  # many kinds are asked for at the same time, when an agent starts
                self._layout = self._layout or await self._find_layout()
            if self._layout is None:
                return Custom(kind, crd.V1)
            self._forms[kind] = Custom(kind, self._layout)
        return self._forms[kind]

    async def until_there(self, kind: type[Resource], closed: asyncio.Event) -> None:
        """Looks now and then; raises Compacted when there is such a kind. Comes back when `closed` is set."""
        while not closed.is_set():
            form = await self.form(kind)
            try:
                await self._api.request("GET", form.place.collection(), query={"limit": "1"})
            except NotFound:
                try:
                    await asyncio.wait_for(closed.wait(), self._pause)
                except TimeoutError:
                    continue
            else:
                raise Compacted(f"watch {form.place.plural}: the cluster has them now: list")

    async def _find_layout(self) -> crd.Layout | None:
        """Custom resources of Calico's that the cluster has; None while it has none. Raises Unavailable."""
        for layout in (crd.V1, crd.V3):
            try:
                await self._api.request("GET", f"/apis/{layout.version}")
                return layout
            except NotFound:
                continue
        return None


def no_kind(form: Form[Any]) -> Unavailable:
    """What to say of a kind that a cluster must have, and has not."""
    return Unavailable(f"the cluster does not know {form.place.plural} of {form.place.group}: {MANIFEST}")
