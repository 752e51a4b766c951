"""What a node does once, before it runs: its name, its addresses, and what every cluster has from its first node on.

    environment ─► the node's name ─► the datastore is ready ─► Kubernetes' Node ─► ours
                ─► first pools ─► default objects ─► nodename file

Source: Calico's node start-up. A cluster itself is not made here: a mistyped path is an empty datastore, and must not
become the state of a node.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import random
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tortie.agent import kubeadm
from tortie.agent.addresses import NodeAddresses
from tortie.agent.config import AgentConfig
from tortie.agent.environment import BIRD, Environment, read_environment
from tortie.agent.host import has_ipv6
from tortie.agent.kubernetes import KubernetesNode
from tortie.agent.registration import RETRY, StartUpError, hopeless, ready
from tortie.base.addr import Net
from tortie.base.errors import ConfigError, Conflict, Exists, NotFound, Unavailable
from tortie.base.logs import Seldom
from tortie.calc.default_pools import NONE, RANDOM_BYTES, first_pool, pod_subnets
from tortie.calc.node_addresses import Link, check_told
from tortie.model.bgp import BGPConfiguration
from tortie.model.ipam import IPAMConfig, IPAMConfigSpec, IPPool
from tortie.model.meta import Metadata, Resource
from tortie.model.node import ClusterInformation, FelixConfiguration, FelixConfigurationSpec
from tortie.model.store import Store
from tortie.store.kube.api import Api

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)
T = TypeVar("T")

DEFAULTS: tuple[Resource, ...] = (
    BGPConfiguration(metadata=Metadata(name="default")),
    IPAMConfig(
        metadata=Metadata(name="default"),
        spec=IPAMConfigSpec(auto_allocate_blocks=True, kube_virt_vm_address_persistence="Enabled"),
    ),
)
"""Objects that are made where there are none; what is in them is Calico's defaults."""
KDD = "kdd"
"""Calico's word in the cluster's type for one whose datastore is Kubernetes."""
SET_UP = 1.0
"""Seconds for whoever sets up a cluster to write its pools, too, before there are default ones."""
FELIX_DEFAULTS: Mapping[str, Any] = {"reporting_interval": "0s", "log_severity_screen": "Info"}
"""Fields of the FelixConfiguration `default` that are filled in where it has none."""


def told(config: AgentConfig, variables: Mapping[str, str] = os.environ) -> tuple[AgentConfig, Environment]:
    """The options with what the environment says where they say nothing; an option wins over its variable.

    Raises ConfigError for an option, StartUpError for a variable.
    """
    try:
        environment = read_environment(variables)
    except ConfigError as error:
        raise StartUpError(str(error)) from None
    for text, version in ((config.ipv4, 4), (config.ipv6, 6)):
        try:
            check_told(text, version)
        except ConfigError as error:
            raise error.within(f"--ipv{version}") from None
    subnets(config)
    ipv4, ipv6 = environment.ipv4, environment.ipv6
    environment = replace(
        environment,
        ipv4=replace(ipv4, address=config.ipv4 or ipv4.address),
        ipv6=replace(ipv6, address=config.ipv6 or ipv6.address),
    )
    node = config.node or _node_name(environment, nodename_file(config, environment))
    return replace(config, node=node, bgp=config.bgp and environment.backend == BIRD), environment


def nodename_file(config: AgentConfig, environment: Environment) -> Path:
    """Where the node's name is noted; when it was written last, says when the node started."""
    return environment.nodename_file or config.files / "nodename"


def age(nodename: Path, now: float) -> float:
    """Seconds since the node started; 0 while it has not."""
    try:
        return max(0.0, now - nodename.stat().st_mtime)
    except OSError:
        return 0.0


def _node_name(environment: Environment, noted: Path) -> str:
    if environment.node:
        return environment.node
    try:
        name = noted.read_text().strip()
    except OSError:
        name = ""
    return name or (environment.hostname or platform.node()).lower()


def subnets(config: AgentConfig) -> tuple[Net, ...]:
    """kubeadm's pod subnets, where the option says them. Raises ConfigError."""
    try:
        return pod_subnets(config.pod_subnet)
    except ConfigError as error:
        raise error.within("--pod-subnet") from None


async def start_up(
    config: AgentConfig,
    environment: Environment,
    store: Store,
    addresses: NodeAddresses,
    kubernetes: KubernetesNode | None = None,
    *,
    restored: bool = False,
    api: Api | None = None,
) -> None:
    """Everything, however long the datastore is away. One that has `restored` what an earlier agent knew has work to do
    meanwhile, and always waits. `api` is Kubernetes', where there is one. Raises StartUpError, ConfigError."""
    for note in environment.notes:
        log.info("%s", note)
    if await ready(store, lambda error: not restored and hopeless(error, environment.waits)):
        await asyncio.sleep(SET_UP)
    if kubernetes is not None:
        await _patiently("look for the Kubernetes Node", kubernetes.demand)
    await addresses.start()
    if config.defaults:
        await _patiently("make the first pools", lambda: _make_pools(config, environment, store, addresses.links, api))
        await _patiently("make the default objects", lambda: _make_defaults(environment, store))
        if kubernetes is not None and kubernetes.demanded:
            await _patiently("note the cluster's type", lambda: _name_type(KDD, store))
    _note_name(nodename_file(config, environment), config.node)
    log.info("Calico node started successfully")


async def _make_pools(
    config: AgentConfig, environment: Environment, store: Store, links: Sequence[Link], api: Api | None
) -> None:
    versions = {pool.spec.version for pool in (await store.list(IPPool)).items}
    addresses = [address for link in links for address in link.addresses]
    wishes = [wish for wish in environment.pools if wish.version not in versions and wish.cidr != NONE]
    wishes = [wish for wish in wishes if wish.version == 4 or has_ipv6()]
    try:
        told = subnets(config)
        if api is not None and not told and any(not wish.cidr for wish in wishes):
            told = await kubeadm.subnets_of(api)
        pools = [first_pool(wish, addresses, told, secrets.token_bytes(RANDOM_BYTES)) for wish in wishes]
    except ConfigError as error:
        raise StartUpError(str(error)) from None
    for pool in pools:
        await _create(store, pool)


async def _make_defaults(environment: Environment, store: Store) -> None:
    for one in DEFAULTS:
        await _create(store, one)
    await _fill_in(store)
    await _name_type(environment.cluster_type, store)


async def _create(store: Store, one: R) -> None:
    try:
        await store.create(one)
    except Exists:
        return
    log.info("made %s", one.title)


async def _fill_in(store: Store) -> None:
    """What the FelixConfiguration does not say. Raises Conflict."""
    default = FelixConfiguration(metadata=Metadata(name="default"), spec=FelixConfigurationSpec(**FELIX_DEFAULTS))
    try:
        old = await store.get(FelixConfiguration, default.name)
    except NotFound:
        await _create(store, default)
        return
    missing = {field: value for field, value in FELIX_DEFAULTS.items() if getattr(old.spec, field) in (None, "")}
    if missing:
        await store.update(msgspec.structs.replace(old, spec=msgspec.structs.replace(old.spec, **missing)))


async def _name_type(cluster_type: str, store: Store) -> None:
    """Every word of CLUSTER_TYPE is in the ClusterInformation. Raises Conflict, NotFound."""
    old = await store.get(ClusterInformation, "default")
    words = [word for word in old.spec.cluster_type.split(",") if word]
    new = [word for part in cluster_type.split(",") if (word := part.strip()) and word not in words]
    if new:
        spec = msgspec.structs.replace(old.spec, cluster_type=",".join((*words, *new)))
        await store.update(msgspec.structs.replace(old, spec=spec))


async def _patiently(what: str, do: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Until it is done: again when somebody else wrote at the same time, and when the datastore is away."""
    complain = Seldom(log)
    while True:
        try:
            return await do()
        except (Conflict, NotFound) as error:
            log.debug("%s: %s; trying again", what, error)
            await asyncio.sleep(random.uniform(0, RETRY))  # many nodes may write the same at a time
        except Unavailable as error:
            complain.warning(f"{what}: {error}; trying again")
            await asyncio.sleep(RETRY)


def _note_name(file: Path, name: str) -> None:
    """For the CNI plugins of others, and for the next start. Raises StartUpError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    except OSError as error:
        raise StartUpError(f"{file}: {error.strerror}") from None
