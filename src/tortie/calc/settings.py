"""The settings of a node, from the FelixConfigurations that concern it: its own, one that selects it, the default."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tortie.base.addr import Net, parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.state import Settings
from tortie.model.node import (
    ESTABLISHED_FLOWS,
    FELIX_ANNOTATIONS,
    FLOW_TABLES,
    FelixConfiguration,
    FelixConfigurationSpec,
    ProtocolPort,
)
from tortie.model.policy import protocol_number
from tortie.policy.selector import parse
from tortie.policy.verdict import Failsafe, Failsafes

_DEFAULTS = Settings()
_RATE = re.compile(r"[1-9][0-9]{0,3}/(second|minute|hour|day)")


class SettingsInputs:
    """FelixConfigurations as they come; `settings(node)` is what holds on one node."""

    def __init__(self) -> None:
        self._configurations: dict[str, FelixConfiguration] = {}
        self._environment: tuple[FelixConfigurationSpec, ...] = ()

    def told(self, environment: FelixConfigurationSpec) -> None:
        """What the node's environment says: it beats every configuration. Raises ConfigError."""
        settings_of(environment)
        self._environment = (environment,)

    def on_configuration(self, configuration: FelixConfiguration | None, namespace: str, name: str) -> None:
        self._configurations.pop(name, None)
        if configuration is not None:
            settings_of(configuration.spec)
            for annotation in FELIX_ANNOTATIONS:
                annotated(annotation, configuration)
            parse(configuration.spec.node_selector)
            self._configurations[name] = configuration

    def settings(self, node: str | None, labels: Mapping[str, str]) -> Settings:
        """What holds on `node`, whose labels are given; with None what holds where nothing else is said."""
        names = [] if node is None else [f"node.{node}", *self._selecting(labels)[:1]]
        found = [one for name in (*names, "default") if (one := self._configurations.get(name)) is not None]
        specs = (*self._environment, *(one.spec for one in found))
        return replace(
            settings_of(*specs),
            established=annotated(ESTABLISHED_FLOWS, *found),
            flow_tables=annotated(FLOW_TABLES, *found) == "Enabled",
        )

    def _selecting(self, labels: Mapping[str, str]) -> list[str]:
        """Those that select a node, the oldest first: it is the only one that counts."""
        found = [
            (one.metadata.creation_timestamp or "", name)
            for name, one in self._configurations.items()
            if name != "default" and not name.startswith("node.")
            if one.spec.node_selector and parse(one.spec.node_selector).matches(labels)
        ]
        return [name for _, name in sorted(found)]


def settings_of(*specs: FelixConfigurationSpec) -> Settings:
    """What the first says that says anything, field by field; Calico's defaults else. Raises ConfigError."""

    def said(name: str, default: Any) -> Any:
        return next((value for spec in specs if (value := getattr(spec, name)) not in (None, "")), default)

    address = said("nat_outgoing_address", None)
    return Settings(
        endpoint_to_host=said("default_endpoint_to_host_action", _DEFAULTS.endpoint_to_host),
        drop_invalid=not said("disable_conntrack_invalid_check", not _DEFAULTS.drop_invalid),
        deny=said("nftables_filter_deny_action", _DEFAULTS.deny),
        log_prefix=said("log_prefix", _DEFAULTS.log_prefix),
        log_rate=_log_rate(said("log_action_rate_limit", _DEFAULTS.log_rate)),
        log_burst=_log_burst(said("log_action_rate_limit_burst", _DEFAULTS.log_burst)),
        allow_vxlan=said("allow_vxlan_packets_from_workloads", _DEFAULTS.allow_vxlan),
        allow_ipip=said("allow_ipip_packets_from_workloads", _DEFAULTS.allow_ipip),
        vxlan_port=said("vxlan_port", _DEFAULTS.vxlan_port),
        nat_exclude_hosts=said("nat_outgoing_exclusions", None) == "IPPoolsAndHostIPs",
        nat_address=parse_ip(address) if address else None,
        floating_ips=said("floating_ips", "Enabled") == "Enabled",
        source_spoofing=said("workload_source_spoofing", "Disabled") == "Any",
        priority={
            version: said(f"ipv{version}_normal_route_priority", _DEFAULTS.priority[version]) for version in (4, 6)
        },
        failsafes=Failsafes(
            _failsafes(said("failsafe_inbound_host_ports", None), _DEFAULTS.failsafes.inbound),
            _failsafes(said("failsafe_outbound_host_ports", None), _DEFAULTS.failsafes.outbound),
        ),
        interface_exclude=_interfaces(said("interface_exclude", ",".join(_DEFAULTS.interface_exclude))),
        service_loops=said("service_loop_prevention", _DEFAULTS.service_loops),
        external_nodes=_nets(said("external_nodes_list", ())),
        mtu_interfaces=_pattern(said("mtu_iface_pattern", _DEFAULTS.mtu_interfaces)),
        wireguard=frozenset(
            version
            for version, on in ((4, said("wireguard_enabled", False)), (6, said("wireguard_enabled_v6", False)))
            if on
        ),
        wireguard_mtu={4: said("wireguard_mtu", 0), 6: said("wireguard_mtu_v6", 0)},
        vxlan_enabled=said("vxlan_enabled", None),
        ipip_enabled=said("ipip_enabled", None),
        vxlan_vni=said("vxlan_vni", _DEFAULTS.vxlan_vni),
        vxlan_mtu={4: said("vxlan_mtu", 0), 6: said("vxlan_mtu_v6", 0)},
        ipip_mtu=said("ipip_mtu", 0),
        cluster_routes=said("program_cluster_routes", None),
    )


def annotated(name: str, *configurations: FelixConfiguration) -> str:
    """One of the annotation's FELIX_ANNOTATIONS, as the first says that says anything. Raises ConfigError."""
    choices = FELIX_ANNOTATIONS[name]
    said = (one.metadata.annotations.get(name) for one in configurations)
    value = next((value for value in said if value is not None), choices[0])
    if value not in choices:
        raise ConfigError(f'"{value}" is not one of {", ".join(choices)}', f'metadata.annotations["{name}"]')
    return value


def _failsafes(ports: Iterable[ProtocolPort] | None, default: tuple[Failsafe, ...]) -> tuple[Failsafe, ...]:
    """An empty list is no failsafe at all."""
    if ports is None:
        return default
    return tuple(
        Failsafe(protocol_number(one.protocol) or 0, one.port, parse_net(one.net) if one.net else None) for one in ports
    )


def _interfaces(text: str) -> tuple[str, ...]:
    names = tuple(name for part in text.split(",") if (name := part.strip()) and name != "none")
    for name in names:
        if (regular := regular_expression(name)) is not None:
            try:
                re.compile(regular)
            except re.error as error:
                raise ConfigError(f'"{name}" is not a regular expression: {error}', "interfaceExclude") from None
    return names


def regular_expression(name: str) -> str | None:
    """What stands between the slashes of `/.../`; None for a plain name."""
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] == "/" else None


def _nets(values: object) -> tuple[Net, ...]:
    if not isinstance(values, list | tuple):
        raise ConfigError(f"is {values!r}, not a list of networks", "externalNodesList")
    try:
        return tuple(parse_net(str(value)) for value in values)
    except ConfigError as error:
        raise error.within("externalNodesList") from None


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ConfigError(f'"{text}" is not a regular expression: {error}', "mtuIfacePattern") from None
    return text


def _log_rate(value: object) -> str:
    """Goes into a rule as it is."""
    if value == "" or (isinstance(value, str) and _RATE.fullmatch(value)):
        return value
    raise ConfigError(f"is {value!r}, not 1 to 9999 per second, minute, hour or day: 10/second", "logActionRateLimit")


def _log_burst(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9999:
        return value
    raise ConfigError(f"is {value!r}, not a number from 0 to 9999", "logActionRateLimitBurst")
