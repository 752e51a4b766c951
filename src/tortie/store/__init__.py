"""Datastores: the only package that talks to one. Each module implements the `Store` protocol of `tortie.model.store`.

`memory` lives in this process, `sqlite` in a file that all processes of a machine share, `etcd` and `kubernetes` in
servers. `place` says which one a text means. Start with `open_store`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tortie.base.errors import NotSupported
from tortie.model.store import Store

if TYPE_CHECKING:
    from tortie.model.apiconfig import ApiConfig

__all__ = ["open_store"]


def open_store(
    where: str | Path | ApiConfig,
    *,
    node: str = "",
    environment: Mapping[str, str] = os.environ,
    patience: float | None = None,
) -> Store:
    """Open a datastore: `memory:`, `sqlite:PATH` or a bare path of an SQLite file, which is made if it is missing;
    `etcd:[ENDPOINTS]`, `kubernetes:[KUBECONFIG]`, `config:FILE` (a CalicoAPIConfig), or such a configuration.

    `node` is who asks, if it is a node. `environment` says what the text leaves out. `patience`: how many seconds a
    request goes on to a server that does not answer; None: its usual. A server is not asked yet.
    Raises ConfigError (one line) for what cannot be a datastore, NotFound for a configuration that is not there,
    NotSupported for a datastore that this machine cannot use, Unavailable.
    """
    from tortie.store.place import place

    found = place(where, environment)
    if found.backend == "memory":
        from tortie.store.memory import MemoryStore

        return MemoryStore()
    if found.backend == "sqlite":
        from tortie.store.sqlite import SqliteStore

        return SqliteStore(found.path)
    if found.backend == "kubernetes":
        return _kubernetes(found.config, node, environment, patience)
    if not found.kubernetes_too:
        return _etcd(found.config, patience)
    from tortie.store.composite import CompositeStore

    return CompositeStore(_etcd(found.config, patience), _kubernetes(found.config, node, environment, patience))


def _etcd(config: ApiConfig, patience: float | None) -> Store:
    try:
        from tortie.store.etcd.store import EtcdStore
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tortie"):
            raise
        what = f"etcd needs the Python package {error.name}: pip install 'tortie[etcd]'"
        raise NotSupported(what) from None
    return EtcdStore(config) if patience is None else EtcdStore(config, patience)


def _kubernetes(config: ApiConfig, node: str, environment: Mapping[str, str], patience: float | None) -> Store:
    from tortie.store.kube.access import access
    from tortie.store.kube.client import PATIENCE, Client
    from tortie.store.kubernetes import KubernetesStore

    client = Client(access(config, environment), patience=PATIENCE if patience is None else patience)
    return KubernetesStore(client, node=node, group=config.calico_api_group, use_pod_cidr=config.use_pod_cidr)
