"""The stand-alone plugins, a file each. None of them knows another, and none needs an agent."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tortie.cni.plugin import Plugin

# The name of the program, and the module it is.
NAMES = {
    "bandwidth": "bandwidth",
    "bridge": "bridge",
    "dhcp": "dhcp",
    "dummy": "dummy",
    "firewall": "firewall",
    "flannel": "flannel",
    "host-device": "host_device",
    "host-local": "host_local",
    "ipvlan": "ipvlan",
    "loopback": "loopback",
    "macvlan": "macvlan",
    "portmap": "portmap",
    "ptp": "ptp",
    "sbr": "sbr",
    "static": "static",
    "tap": "tap",
    "tuning": "tuning",
    "vlan": "vlan",
    "vrf": "vrf",
}

program = ""
"""The file that this process was started as, which is a plugin under any of the names; "" when it is something else."""


def load(name: str) -> Plugin:
    """The plugin of that name. Raises KeyError for a name that is none of ours."""
    module = __import__(f"tortie.cni.plugins.{NAMES[name]}", fromlist=["PLUGIN"])
    plugin: Plugin = module.PLUGIN
    return plugin
