"""What kubeadm was told of pods' addresses when it made the cluster, for the first pools: `podSubnet` of its ConfigMap.

    kube-system/kubeadm-config: data.ClusterConfiguration, as YAML: networking.podSubnet: 10.244.0.0/16,fd00:10:244::/56

Who may not read it, or has a cluster of another make, goes without. Source: Calico's node start-up.
"""

from __future__ import annotations

import json
import logging

from tortie.base.addr import Net
from tortie.base.errors import ConfigError, NotFound, Unavailable
from tortie.calc.default_pools import pod_subnets
from tortie.store.kube.api import Api

log = logging.getLogger(__name__)

WHERE = "ConfigMap kube-system/kubeadm-config"
PATH = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"
KEY = "ClusterConfiguration"
UNAUTHORIZED = "connection is unauthorized"
"""How the client's Unavailable begins when the server is there and does not let us."""


def subnets_in(raw: bytes) -> tuple[Net, ...]:
    """Those that a ConfigMap names; none where it names none. Raises ConfigError."""
    from tortie.model.text import load_all  # YAML takes a while to load, and is needed once in a cluster's life

    data = _field(json.loads(raw), "data")
    text = _field(data, KEY)
    try:
        documents = [*load_all(text)] if isinstance(text, str) else []
        said = _field(_field(documents[0] if documents else None, "networking"), "podSubnet")
        return pod_subnets(said) if isinstance(said, str) else ()
    except ConfigError as error:
        raise error.within(WHERE, f"{KEY}: networking.podSubnet") from None


def _field(mapping: object, name: str) -> object:
    """None where there is no such field, or no mapping."""
    return mapping.get(name) if isinstance(mapping, dict) else None


async def subnets_of(api: Api) -> tuple[Net, ...]:
    """Those that kubeadm was told. Raises Unavailable, ConfigError."""
    try:
        return subnets_in(await api.request("GET", PATH))
    except NotFound:
        return ()
    except Unavailable as error:
        if not str(error).startswith(UNAUTHORIZED):
            raise
        log.info("the first pools are not kubeadm's podSubnet: %s: %s", WHERE, error)
        return ()
