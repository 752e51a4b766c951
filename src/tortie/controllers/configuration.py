"""What the controllers are to do: the cluster's configuration, what the environment says over it, and the defaults.

    KubeControllersConfiguration default ─┐
    LOG_LEVEL, ENABLED_CONTROLLERS, ...  ─┼─► in_force: Settings ─► controllers, at each of their passes
    defaults, by datastore               ─┘                      └► status.runningConfig, status.environmentVars

Source: Calico's kube-controllers and their environment. What differs: a changed configuration takes effect without a
restart, and one that is not there has its defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from tortie.base.duration import parse_duration
from tortie.base.errors import ConfigError, NotFound, suggest
from tortie.ipam.leak import GRACE
from tortie.model.controllers import KubeControllersConfiguration, KubeControllersConfigurationSpec, Switch
from tortie.model.meta import Metadata
from tortie.model.node import ClusterInformation
from tortie.model.store import Store

PERIOD = timedelta(minutes=5)
"""Calico's reconcilerPeriod, and its scan interval when there is no grace period to halve."""
NODE, LOAD_BALANCER = "node", "loadbalancer"
POLICY, NAMESPACE, ACCOUNT, ENDPOINT = "policy", "namespace", "serviceaccount", "workloadendpoint"
SERVICES = "services"
EVERYWHERE = frozenset({NODE, LOAD_BALANCER})
ALONE = frozenset({SERVICES})
"""What Kubernetes does where it has the services: its API server and its controller manager."""
COPYING = frozenset({POLICY, NAMESPACE, ACCOUNT, ENDPOINT})
"""What writes into Calico's datastore what Kubernetes' says: for Calico's own programs on etcd."""
ALIASES = {"profile": NAMESPACE}
FIELDS = {POLICY: "policy", NAMESPACE: "namespace", ACCOUNT: "service_account", ENDPOINT: "workload_endpoint"}
WORKERS = ("NODE_WORKERS", "PROFILE_WORKERS", "POLICY_WORKERS", "WORKLOAD_ENDPOINT_WORKERS")
"""How many threads upstream gives each: accepted, there are none here."""

_TRUE, _FALSE = frozenset({"1", "t", "true", "yes", "enabled"}), frozenset({"0", "f", "false", "no", "disabled"})


@dataclass(frozen=True)
class Settings:
    """What is in force. `environment`: the variables that say something of it."""

    spec: KubeControllersConfigurationSpec
    enabled: frozenset[str] = EVERYWHERE
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def grace(self) -> timedelta:
        """How long an address must look leaked."""
        return _duration(self.spec.controllers.node.leak_grace_period, GRACE)

    def period(self, option: str) -> timedelta:
        """Between two passes of the controllers that a word of ENABLED_CONTROLLERS stands for."""
        controllers = self.spec.controllers
        if option in FIELDS:
            said = getattr(controllers, FIELDS[option])
            return _duration(said.get("reconcilerPeriod") if isinstance(said, Mapping) else None, PERIOD)
        return _duration(controllers.node.reconciler_period, PERIOD)


def in_force(
    said: KubeControllersConfigurationSpec, environment: Mapping[str, str], datastore: str = "sqlite"
) -> Settings:
    """What a configuration and the environment come to. Raises ConfigError naming the variable."""
    used = {name: environment[name] for name in (*_VARIABLES, *WORKERS) if environment.get(name)}
    for name, text in used.items():
        try:
            said = _VARIABLES.get(name, _number)(said, text)
        except ConfigError as error:
            raise error.within(name) from None
    return Settings(_filled(said), _enabled(used.get("ENABLED_CONTROLLERS", ""), datastore), used)


def _filled(said: KubeControllersConfigurationSpec) -> KubeControllersConfigurationSpec:
    """With Calico's defaults where nothing is said."""
    controllers = said.controllers
    node, auto, balancer = controllers.node, controllers.node.host_endpoint, controllers.load_balancer
    auto = replace(
        auto,
        auto_create=auto.auto_create or "Disabled",
        create_default_host_endpoint=auto.create_default_host_endpoint or "Enabled",
    )
    node = replace(
        node,
        reconciler_period=node.reconciler_period or "5m",
        sync_labels=node.sync_labels or "Enabled",
        leak_grace_period=node.leak_grace_period or "15m",
        host_endpoint=auto,
    )
    balancer = replace(balancer, assign_ips=balancer.assign_ips or "AllServices")
    return replace(
        said,
        log_severity_screen=said.log_severity_screen or "Info",
        health_checks=said.health_checks or "Enabled",
        etcd_v3_compaction_period=said.etcd_v3_compaction_period or "10m",
        controllers=replace(controllers, node=node, load_balancer=balancer),
    )


def _enabled(text: str, datastore: str) -> frozenset[str]:
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not words:
        alone = ALONE if datastore != "kubernetes" else frozenset[str]()
        return EVERYWHERE | alone | (COPYING if datastore == "etcd" else frozenset())
    known = EVERYWHERE | ALONE | COPYING
    for word in words:
        if word == "flannelmigration":
            raise ConfigError(f'"{word}" is not supported', "ENABLED_CONTROLLERS")
        if ALIASES.get(word, word) not in known:
            hint = suggest(word, (*known, *ALIASES))
            raise ConfigError(f'"{word}" is not a controller; {hint}', "ENABLED_CONTROLLERS")
    chosen = frozenset(ALIASES.get(word, word) for word in words)
    return chosen - COPYING - ALONE if datastore == "kubernetes" else chosen


Said = KubeControllersConfigurationSpec


def _node(said: Said, **fields: Any) -> Said:
    return replace(said, controllers=replace(said.controllers, node=replace(said.controllers.node, **fields)))


def _period(said: Said, text: str) -> Said:
    parse_duration(text)
    said = _node(said, reconciler_period=text)
    every = {name: {"reconcilerPeriod": text} for name in FIELDS.values()}
    return replace(said, controllers=replace(said.controllers, **every))


def _compaction(said: Said, text: str) -> Said:
    parse_duration(text)
    return replace(said, etcd_v3_compaction_period=text)


def _auto_hosts(said: Said, text: str) -> Said:
    host = replace(said.controllers.node.host_endpoint, auto_create=_switch(text))
    return _node(said, host_endpoint=host)


def _switch(text: str) -> Switch:
    if text.lower() not in _TRUE | _FALSE:
        raise ConfigError(f'"{text}" is neither enabled nor disabled')
    return "Enabled" if text.lower() in _TRUE else "Disabled"


def _number(said: Said, text: str) -> Said:
    if not text.isdecimal():
        raise ConfigError(f'"{text}" is not a number')
    return said


_VARIABLES: dict[str, Callable[[Said, str], Said]] = {
    "LOG_LEVEL": lambda said, text: replace(said, log_severity_screen=text.capitalize()),
    "RECONCILER_PERIOD": _period,
    "ENABLED_CONTROLLERS": lambda said, text: said,
    "COMPACTION_PERIOD": _compaction,
    "HEALTH_ENABLED": lambda said, text: replace(said, health_checks=_switch(text)),
    "SYNC_NODE_LABELS": lambda said, text: _node(said, sync_labels=_switch(text)),
    "AUTO_HOST_ENDPOINTS": _auto_hosts,
}
"""What each variable of the environment says over the configuration."""


def _duration(text: Any, default: timedelta) -> timedelta:
    """Not every datastore's objects come through the model's checks: what cannot be read counts as not said."""
    try:
        return parse_duration(text) if isinstance(text, str) and text else default
    except ConfigError:
        return default


# --- reading it -------------------------------------------------------------------------------------------------------


async def configuration(store: Store) -> KubeControllersConfiguration:
    """The cluster's, or an empty one. Raises Unavailable, NotSupported when it cannot be read."""
    try:
        return await store.get(KubeControllersConfiguration, "default")
    except NotFound:
        return KubeControllersConfiguration(metadata=Metadata(name="default"))


@dataclass(frozen=True)
class Configured:
    """Where the settings come from: `await configured(store)` are those of this moment. `kubernetes`: on etcd, whether
    a cluster is named beside it."""

    environment: Mapping[str, str] = field(default_factory=dict)
    datastore: str = "sqlite"
    kubernetes: bool = True

    async def __call__(self, store: Store) -> Settings:
        """Raises Unavailable, NotSupported when the configuration cannot be read, ConfigError for the environment."""
        return in_force((await configuration(store)).spec, self.environment, self.datastore)


async def locked(store: Store) -> bool:
    """Whether an operator has asked everybody to leave the datastore alone."""
    try:
        return (await store.get(ClusterInformation, "default")).spec.datastore_ready is False
    except NotFound:
        return False


async def grace_period(store: Store) -> timedelta:
    """How long an address must look leaked: `leakGracePeriod` of the configuration, else 15 minutes."""
    return (await Configured()(store)).grace
