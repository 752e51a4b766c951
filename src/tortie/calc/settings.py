"""The settings of a node, from the FelixConfigurations that concern it: its own, one that selects it, the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tortie.base.addr import parse_ip
from tortie.calc.state import Settings
from tortie.model.node import FelixConfiguration, FelixConfigurationSpec
from tortie.policy.selector import parse

_DEFAULTS = Settings()


class SettingsInputs:
    """FelixConfigurations as they come; `settings(node)` is what holds on one node."""

    def __init__(self) -> None:
        self._configurations: dict[str, FelixConfiguration] = {}

    def on_configuration(self, configuration: FelixConfiguration | None, namespace: str, name: str) -> None:
        self._configurations.pop(name, None)
        if configuration is not None:
            settings_of(configuration.spec)
            parse(configuration.spec.node_selector)
            self._configurations[name] = configuration

    def settings(self, node: str | None, labels: Mapping[str, str]) -> Settings:
        """What holds on `node`, whose labels are given; with None what holds where nothing else is said."""
        names = [] if node is None else [f"node.{node}", *self._selecting(labels)[:1]]
        found = (self._configurations.get(name) for name in (*names, "default"))
        return settings_of(*(one.spec for one in found if one is not None))

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
        allow_vxlan=said("allow_vxlan_packets_from_workloads", _DEFAULTS.allow_vxlan),
        allow_ipip=said("allow_ipip_packets_from_workloads", _DEFAULTS.allow_ipip),
        vxlan_port=said("vxlan_port", _DEFAULTS.vxlan_port),
        nat_exclude_hosts=said("nat_outgoing_exclusions", None) == "IPPoolsAndHostIPs",
        nat_address=parse_ip(address) if address else None,
        floating_ips=said("floating_ips", "Enabled") == "Enabled",
        priority={
            version: said(f"ipv{version}_normal_route_priority", _DEFAULTS.priority[version]) for version in (4, 6)
        },
    )
