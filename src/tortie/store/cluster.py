"""The API server behind a store, for what no kind of ours is about."""

from __future__ import annotations

from tortie.model.store import Store
from tortie.store.composite import CompositeStore
from tortie.store.fanout.client import FanoutStore
from tortie.store.kube.api import Api
from tortie.store.kubernetes import KubernetesStore


def api_of(store: Store) -> Api | None:
    """None where there is no Kubernetes."""
    match store:
        case FanoutStore():
            return api_of(store.direct)
        case CompositeStore():
            return api_of(store.apart)
        case KubernetesStore():
            return store.api
    return None
