"""The `calico` plugin's configuration, as upstream's conflists write it, read from a CNI call.

Keys match in any case and unknown ones are ignored, as Go decodes. What is accepted and not acted on yet is refused
only where ignoring it would change what the pod gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tortie.cni.external import ExternalDataplane, external_dataplane
from tortie.cni.spec import Call, CniError, Code, load_args, lookup, member

MTU_FILE = Path("/var/lib/calico/mtu")
K8S_ARGS = ("K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID", "IP")


@dataclass(frozen=True, slots=True)
class NetConf:
    """What of the configuration and arguments decides about a pod. `pools` are names or CIDRs; none: any."""

    network: str
    pod: str
    namespace: str
    mtu: int
    num_queues: int
    ip_forwarding: bool
    ipv4: bool
    ipv6: bool
    pools4: tuple[str, ...]
    pools6: tuple[str, ...]
    ip: str = ""
    """The very address that the caller asks for."""
    dataplane: ExternalDataplane | None = None
    """Who connects pods instead of us."""
    may_skip_ipam: bool = False
    may_float: bool = False
    """What `feature_control` lets pods ask for: addresses outside IPAM, floating IPs."""

    @property
    def interface_mtu(self) -> int:
        """`mtu`, else what the agent wrote for the plugin, else 0: the kernel's. Raises CniError."""
        if self.mtu:
            return self.mtu
        try:
            return int(MTU_FILE.read_text().strip())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError):
            raise CniError(Code.INTERNAL, f"{MTU_FILE} does not hold a number") from None


def read_netconf(call: Call) -> NetConf:
    """Raises CniError 999 for values of the wrong type, 7 for an IPAM that is not ours."""
    conf = call.conf
    ipam: dict[str, Any] = member(conf, "ipam", dict, {})
    ipam_type = member(ipam, "type", str, "")
    if ipam_type and ipam_type != "calico-ipam":
        text = f'ipam.type: "{ipam_type}" is not supported yet, write "calico-ipam"'
        raise CniError(Code.INVALID_CONFIG, text)
    settings: dict[str, Any] = member(conf, "container_settings", dict, {})
    features: dict[str, Any] = member(conf, "feature_control", dict, {})
    args = load_args(f"IgnoreUnknown=1;{call.args_text}" if call.args_text else "", K8S_ARGS)
    return NetConf(
        call.network,
        args.get("K8S_POD_NAME", ""),
        args.get("K8S_POD_NAMESPACE", ""),
        member(conf, "mtu", int, 0),
        max(1, member(conf, "num_queues", int, 1)),
        member(settings, "allow_ip_forwarding", bool, False),
        # Strings, not booleans: only the exact words count.
        lookup(ipam, "assign_ipv4", "true") != "false",
        lookup(ipam, "assign_ipv6", "false") == "true",
        _strings(ipam, "ipv4_pools"),
        _strings(ipam, "ipv6_pools"),
        args.get("IP", ""),
        external_dataplane(conf),
        member(features, "ip_addrs_no_ipam", bool, False),
        member(features, "floating_ips", bool, False),
    )


def _strings(conf: Any, key: str) -> tuple[str, ...]:
    found = member(conf, key, list, [])
    if not all(isinstance(one, str) for one in found):
        raise CniError(Code.INTERNAL, f"failed to load netconf: ipam.{key} must be a list of strings")
    return tuple(found)
