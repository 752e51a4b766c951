"""How services are to be served: what the environment says where the command line says nothing."""

from __future__ import annotations

import pytest

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.proxy.config import proxy_config


def test_environment_says_where_pods_are() -> None:
    nets = parse_net("10.244.0.0/16"), parse_net("fd00:10:244::/56")
    config = proxy_config(environment={"TORTIE_CLUSTER_CIDR": "10.244.0.0/16, fd00:10:244::/56"})
    assert config.cluster_cidrs == nets
    assert proxy_config(environment={}).cluster_cidrs is None, "pools do"


@pytest.mark.parametrize("name", ["TORTIE_CLUSTER_CIDR", "TORTIE_NODEPORT_ADDRESSES", "TORTIE_MASQUERADE_ALL"])
def test_nonsense_is_told_by_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        proxy_config(environment={name: "nonsense"})


def test_option_wins_over_the_environment() -> None:
    config = proxy_config(cluster_cidr="10.1.0.0/16", environment={"TORTIE_CLUSTER_CIDR": "10.2.0.0/16"})
    assert config.cluster_cidrs == (parse_net("10.1.0.0/16"),)
