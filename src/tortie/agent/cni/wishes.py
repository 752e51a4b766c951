"""What a pod wants of its network: the configuration, with what its annotations and its namespace's add to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tortie.agent.netconf import CALICO_IPAM, NetConf
from tortie.base.addr import IP
from tortie.base.errors import ConfigError
from tortie.calc import annotations as asked
from tortie.model.workload import IPNAT


@dataclass(frozen=True, slots=True)
class Wishes:
    """`fixed` are taken in IPAM, `given` are not in IPAM at all; with neither, IPAM chooses. `mac` "": the kernel's."""

    conf: NetConf
    fixed: tuple[IP, ...] = ()
    given: tuple[IP, ...] = ()
    mac: str = ""
    floating: tuple[IP, ...] = ()

    def nats(self, pod: Mapping[str, str], ips: tuple[IP, ...]) -> tuple[IPNAT, ...]:
        """The floating IPs on the addresses that the pod got. Raises ConfigError when it has none of their family."""
        return asked.nats(pod, ips) if self.floating else ()


def wishes(conf: NetConf, pod: Mapping[str, str], namespace: Mapping[str, str]) -> Wishes:
    """Read the annotations of a pod and its namespace. Raises ConfigError naming the annotation or the switch."""
    fixed = asked.addresses(pod, asked.IP_ADDRS)
    given = asked.addresses(pod, asked.IP_ADDRS_NO_IPAM)
    floating = asked.floating_ips(pod)
    if fixed and given:
        text = f"cannot be combined with {asked.IP_ADDRS_NO_IPAM}"
        raise ConfigError(text, f"annotation {asked.IP_ADDRS}")
    if (fixed or given) and not conf.assigns:
        which = asked.IP_ADDRS if fixed else asked.IP_ADDRS_NO_IPAM
        raise ConfigError(f'needs ipam.type "{CALICO_IPAM}", and it is "{conf.ipam_type}"', f"annotation {which}")
    for wanted, switch, on in (
        (given, "ip_addrs_no_ipam", conf.may_skip_ipam),
        (floating, "floating_ips", conf.may_float),
    ):
        if wanted and not on:
            raise ConfigError(f"requested feature is not enabled: {switch}", "feature_control")
    return Wishes(_pools(conf, pod, namespace), fixed, given, asked.mac(pod), floating)


def _pools(conf: NetConf, pod: Mapping[str, str], namespace: Mapping[str, str]) -> NetConf:
    """The pod's pools and families before its namespace's, those before the configuration's."""
    pools4, pools6 = (asked.pools(pod, namespace, version) for version in (4, 6))
    families = asked.families(pod, namespace)
    return replace(
        conf,
        pools4=conf.pools4 if pools4 is None else pools4,
        pools6=conf.pools6 if pools6 is None else pools6,
        ipv4=conf.ipv4 if families is None else families[0],
        ipv6=conf.ipv6 if families is None else families[1],
    )
