"""The backends, a file each, under the names that `Backend.Type` has. None of them knows another."""

from __future__ import annotations

from tortie.base.errors import ConfigError
from tortie.flannel.backend import Backend, Setting
from tortie.flannel.config import NetworkConfig

MODULES = {
    "vxlan": "vxlan",
    "host-gw": "host_gw",
    "udp": "udp",
    "ipip": "ipip",
    "wireguard": "wireguard",
    "alloc": "alloc",
    "extension": "extension",
    "aws-vpc": "aws_vpc",
}
_CLOUD = 'use "alloc" where {} makes the routes, "vxlan" anywhere'
REFUSED = {
    "gce": _CLOUD.format("Google's cloud controller manager"),
    "ali-vpc": _CLOUD.format("Alibaba's cloud controller manager"),
    "tencent-vpc": _CLOUD.format("Tencent's route controller"),
    "ipsec": 'flannel calls it deprecated; use "wireguard", which encrypts as well',
}
"""Types that flannel has or had and that are not here, and what to do instead."""


def load(config: NetworkConfig, setting: Setting) -> Backend:
    """The backend that the configuration asks for. Raises ConfigError."""
    name = config.backend_type
    if name in REFUSED:
        raise ConfigError(f'"{name}" is not here: {REFUSED[name]}', "Backend.Type")
    if name not in MODULES:
        raise ConfigError(f"unknown backend type: {name} (known: {', '.join(MODULES)})", "Backend.Type")
    module = __import__(f"tortie.flannel.backends.{MODULES[name]}", fromlist=["backend"])
    made: Backend = module.backend(config, setting)
    return made
