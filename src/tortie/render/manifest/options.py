"""What an installation is to be like, as the operator says it, and whether that can be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

import tortie
from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.model.apiconfig import is_of_a_server

Datastore = Literal["kubernetes", "etcd"]
Encapsulation = Literal["IPIP", "IPIPCrossSubnet", "VXLAN", "VXLANCrossSubnet", "None"]
Network = Literal["calico", "flannel", "canal"]
NETWORKS: tuple[Network, ...] = ("calico", "flannel", "canal")
FLANNEL_OVERHEAD = {"vxlan": 50, "host-gw": 0, "udp": 28, "ipip": 20, "wireguard": 80, "alloc": 0}
"""Backends of flannel that need no more than their name, and the bytes of a packet that each takes over IPv4."""
FLANNEL_NETWORK = "10.244.0.0/16"
"""kube-flannel's."""
DATASTORES: tuple[Datastore, ...] = ("kubernetes", "etcd")
ENCAPSULATIONS: tuple[Encapsulation, ...] = ("IPIP", "IPIPCrossSubnet", "VXLAN", "VXLANCrossSubnet", "None")

IMAGE = f"tortie:{tortie.__version__}"
"""What the Containerfile makes. No registry on the internet has it."""
NOBODY = 65532
"""The image's own user for what needs no root."""
NAMESPACE = "kube-system"
"""Where Kubernetes lets pods be as important as these (system-node-critical)."""

ETHERNET_MTU = 1500

BLOCK = {4: 26, 6: 122}
"""Prefix lengths of the blocks that first pools are made of: what a node takes at a time."""

_IMAGE = re.compile(r"[a-z0-9][a-z0-9._/:@-]*\Z")
_REGISTRY = re.compile(r"[a-z0-9][a-z0-9.-]*(:\d{1,5})?(/[a-z0-9][a-z0-9._/-]*)?\Z")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]*=[A-Za-z0-9._-]*\Z")


@dataclass(frozen=True, slots=True)
class Options:
    """`pools`: the first of IPv4 and of IPv6, as networks. `mtu` 0: each node finds its own out. `registry`: where a
    cluster without the internet has its images. `bgp_passwords`: nodes may read Secrets of their own namespace.
    `fanout`: servers between the datastore and the agents. `network`: `flannel` is flanneld and its plugin alone,
    `canal` flanneld beside agents that only enforce policy. `elsewhere`: networks of pods that no pool has."""

    datastore: Datastore = "kubernetes"
    etcd_endpoints: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    encapsulation: Encapsulation = "IPIP"
    bgp: bool = True
    policy_only: bool = False
    mtu: int = 0
    image: str = IMAGE
    registry: str = ""
    node_selector: tuple[str, ...] = ()
    bgp_passwords: bool = False
    fanout: int = 0
    network: Network = "calico"
    flannel_backend: str = "vxlan"
    nets: tuple[Net, ...] = field(default=(), compare=False)
    elsewhere: tuple[Net, ...] = ()

    @property
    def where(self) -> str:
        """The image with the registry that it is pulled from."""
        if not self.registry:
            return self.image
        first, slash, rest = self.image.partition("/")
        own = slash and ("." in first or ":" in first or first == "localhost")
        return f"{self.registry}/{rest if own else self.image}"

    @property
    def backend(self) -> str:
        """CALICO_NETWORKING_BACKEND."""
        return "none" if self.policy_only else "bird" if self.bgp else "vxlan"

    @property
    def tls(self) -> bool:
        """Whether etcd is asked over TLS."""
        return any(url.startswith("https://") for url in self.etcd_endpoints)

    @property
    def flannel_nets(self) -> tuple[Net, ...]:
        """flannel's networks."""
        return self.nets or (parse_net(FLANNEL_NETWORK),)

    @property
    def agents(self) -> Options:
        """What the part with the agents is to be like."""
        if self.network != "canal":
            return self
        taken = FLANNEL_OVERHEAD[self.flannel_backend]
        if self.flannel_backend == "vxlan" and any(net.version == 6 for net in self.nets):
            taken += 20  # by the nodes' IPv6, whose header is longer
        mtu = self.mtu or (ETHERNET_MTU - taken if taken else 0)
        return replace(self, policy_only=True, pools=(), nets=(), elsewhere=self.flannel_nets, mtu=mtu)

    def pool(self, version: int) -> str:
        return next((text for text, net in zip(self.pools, self.nets, strict=True) if net.version == version), "")


def checked(options: Options) -> Options:
    """The same with `nets` filled in. Raises ConfigError naming the option."""
    nets = tuple(_net(text) for text in options.pools)
    _check_network(options, nets)
    for version in (4, 6):
        if sum(net.version == version for net in nets) > 1:
            more = "give the first; apply others when the cluster is up"
            raise ConfigError(f"there is one first pool of IPv{version}: {more}", "--pool")
    _check_words(options)
    _check_datastore(options)
    if (
        options.network == "calico"
        and any(net.version == 6 for net in nets)
        and options.encapsulation.startswith("IPIP")
        and len(nets) == 1
    ):
        raise ConfigError("IPIP carries IPv4 only, and the pool is of IPv6: take VXLAN or None", "--encapsulation")
    if options.policy_only and options.pools:
        raise ConfigError("addresses are not ours to give with --policy-only", "--pool")
    if options.policy_only and options.encapsulation != Options().encapsulation:
        raise ConfigError("routes are not ours to make with --policy-only", "--encapsulation")
    return replace(options, nets=nets)


def _net(text: str) -> Net:
    try:
        net = parse_net(text)
    except ConfigError as error:
        raise error.within("--pool") from None
    if net.prefixlen > (block := BLOCK[net.version]):
        raise ConfigError(f'"{text}" has no room for a block, which is a /{block}', "--pool")
    return net


def _check_network(options: Options, nets: tuple[Net, ...]) -> None:
    """That nothing is asked of a network which it does not have."""
    for option, value, known in (
        ("--network", options.network, NETWORKS),
        ("--flannel-backend", options.flannel_backend, FLANNEL_OVERHEAD),
    ):
        if value not in known:
            raise ConfigError(f'"{value}" is not one of {", ".join(known)}', option)
    usual = Options()
    if options.network == "calico":
        if options.flannel_backend != usual.flannel_backend:
            raise ConfigError("goes with --network flannel and --network canal", "--flannel-backend")
        return
    refused = {"encapsulation": "--encapsulation", "bgp": "--no-bgp", "policy_only": "--policy-only"}
    if options.network == "flannel":
        refused |= {
            "mtu": "--mtu",
            "bgp_passwords": "--bgp-passwords",
            "fanout": "--fanout",
            "datastore": "--datastore",
        }
    for name, option in refused.items():
        if getattr(options, name) != getattr(usual, name):
            raise ConfigError(f"does not go with --network {options.network}", option)
    if nets and not any(net.version == 4 for net in nets):
        raise ConfigError("flannel's network has IPv4: give a pool of it, too", "--pool")
    if len(nets) > 1 and options.flannel_backend in ("udp", "ipip", "alloc"):
        raise ConfigError(f"{options.flannel_backend} carries IPv4 alone", "--pool")


def _check_words(options: Options) -> None:
    for option, value, known in (
        ("--datastore", options.datastore, DATASTORES),
        ("--encapsulation", options.encapsulation, ENCAPSULATIONS),
    ):
        if value not in known:
            raise ConfigError(f'"{value}" is not one of {", ".join(known)}', option)
    if not _IMAGE.match(options.image):
        raise ConfigError(f'"{options.image}" is not an image such as {IMAGE}', "--image")
    if options.registry and not _REGISTRY.match(options.registry):
        raise ConfigError(f'"{options.registry}" is not a registry such as registry.example:5000/net', "--offline")
    if not (options.mtu == 0 or 576 <= options.mtu <= 65535):
        raise ConfigError(f"{options.mtu} is not from 576 to 65535, and not 0", "--mtu")
    if not 0 <= options.fanout <= 100:
        raise ConfigError(f"{options.fanout} is not from 0 to 100", "--fanout")
    for label in options.node_selector:
        if not _LABEL.match(label):
            raise ConfigError(f'"{label}" is not a label such as tortie.dev/network=tortie', "--node-selector")


def _check_datastore(options: Options) -> None:
    if options.datastore == "etcd" and not options.etcd_endpoints:
        raise ConfigError("is required with --datastore etcd: URLs such as https://192.0.2.1:2379", "--etcd-endpoints")
    if options.datastore != "etcd" and options.etcd_endpoints:
        raise ConfigError("goes with --datastore etcd", "--etcd-endpoints")
    for url in options.etcd_endpoints:
        if not re.fullmatch(r"https?://[^/\s,]+/?", url) or not is_of_a_server(url):
            raise ConfigError(f'"{url}" is not a URL such as https://192.0.2.1:2379', "--etcd-endpoints")
    if len({url.partition(":")[0] for url in options.etcd_endpoints}) > 1:
        raise ConfigError("all are http, or all are https", "--etcd-endpoints")
