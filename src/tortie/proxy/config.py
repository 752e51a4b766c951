"""How services are to be served on a node: what `tortie agent` and `tortie proxy` are told alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.proxy.kube_proxy import Asked, asked_for

MODE, NODE_PORTS, MASQUERADE_ALL = "TORTIE_SERVICES", "TORTIE_NODEPORT_ADDRESSES", "TORTIE_MASQUERADE_ALL"
CLUSTER_CIDR = "TORTIE_CLUSTER_CIDR"
TRUE, FALSE = ("true", "1", "yes"), ("", "false", "0", "no")


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """`asked` auto: services are served unless kube-proxy does it. `node_ports` None: NodePorts are answered at all of
    the node's addresses but loopback's. `masquerade_all`: who asks at a ClusterIP is always masqueraded. `healthz_port`
    is kube-proxy's, 0: none. `cluster_cidrs` None: pools say where pods are."""

    asked: Asked = "auto"
    node_ports: tuple[Net, ...] | None = None
    masquerade_all: bool = False
    healthz_port: int = 0
    cluster_cidrs: tuple[Net, ...] | None = None


def proxy_config(
    asked: str = "",
    node_ports: str = "",
    cluster_cidr: str = "",
    *,
    healthz_port: int = 0,
    environment: Mapping[str, str] = os.environ,
) -> ProxyConfig:
    """What the command line says, and where it says nothing the environment. Raises ConfigError."""
    masquerade = environment.get(MASQUERADE_ALL, "").lower()
    if masquerade not in TRUE + FALSE:
        raise ConfigError(f'"{masquerade}" is neither true nor false', MASQUERADE_ALL)
    return ProxyConfig(
        asked_for(asked, "--services") if asked else asked_for(environment.get(MODE, "") or "auto", MODE),
        _nets(node_ports, "--nodeport-addresses") if node_ports else _nets(environment.get(NODE_PORTS, ""), NODE_PORTS),
        masquerade in TRUE,
        healthz_port,
        _nets(cluster_cidr, "--cluster-cidr")
        if cluster_cidr
        else _nets(environment.get(CLUSTER_CIDR, ""), CLUSTER_CIDR),
    )


def _nets(text: str, where: str) -> tuple[Net, ...] | None:
    """Networks with commas; nothing is None."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        return tuple(parse_net(word) for word in words) or None
    except ConfigError as error:
        raise error.within(where) from None
