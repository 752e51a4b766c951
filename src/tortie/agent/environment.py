"""The environment of a node, read once at its start: the variables of `calico/node`, with its names and meanings.

Each is acted on, or named in a line of the log as one that is not: `docs/reference/environment.md` has all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tortie.agent.booleans import boolean
from tortie.agent.felix_variables import felix_settings
from tortie.base.addr import Net, parse_net
from tortie.base.duration import parse_duration
from tortie.base.errors import ConfigError
from tortie.calc.default_pools import NONE, PoolWish
from tortie.calc.node_addresses import Told, check_told, method
from tortie.calc.routing import BgpEnvironment
from tortie.calc.settings import settings_of
from tortie.calc.unserved import unserved
from tortie.model.bgp import as_problem
from tortie.model.ipam import BLOCK_SIZES, EncapMode
from tortie.model.node import FelixConfiguration, FelixConfigurationSpec
from tortie.policy.selector import parse

BIRD, VXLAN = "bird", "vxlan"
BACKENDS = (BIRD, VXLAN, NONE)
MODES: Mapping[str, EncapMode] = {
    "": "Never",
    "off": "Never",
    "never": "Never",
    "cross-subnet": "CrossSubnet",
    "crosssubnet": "CrossSubnet",
    "always": "Always",
}
POLL_SECONDS = 60.0
SHORTEST_POLL = 1.0

WITHOUT_EFFECT: Mapping[str, str] = {
    "CALICO_STARTUP_LOGLEVEL": "the agent's log has one level, --log-level",
    "CALICO_MANAGE_CNI": "the plugin holds no token that would have to be renewed",
    "CALICO_CNI_SERVICE_ACCOUNT": "the plugin holds no token that would have to be renewed",
    "CNI_TOKEN_REFRESH_INTERVAL": "the plugin holds no token that would have to be renewed",
    "USE_POD_CIDR": "addresses are IPAM's; host-local can be given the node's pod CIDR in the CNI configuration",
    "CALICO_DISABLE_FELIX": "the agent is one program, and always enforces policy",
    "CALICO_DISABLE_FILE_LOGGING": "the agent logs to standard error only",
    "BGP_LOGSEVERITYSCREEN": "BIRD's configuration is made by the agent, whose log has one level, --log-level",
}
PREFIXES_WITHOUT_EFFECT: Mapping[str, str] = {
    "CALICO_TYPHA": "the agent is one program: FELIX_TYPHA... say where fan-out servers are",
    "CONFD_": "BIRD's configuration is made by the agent",
}


@dataclass(frozen=True, slots=True)
class Environment:
    """What it says. `notes` are the lines about variables that have no effect. `poll` is in seconds."""

    node: str = ""
    nodename_file: Path | None = None
    shutdown_file: Path | None = None
    waits: bool = True
    """For a datastore that is away when the node starts."""
    hostname: str = ""
    ipv4: Told = field(default_factory=Told)
    ipv6: Told = field(default_factory=Told)
    poll: float = POLL_SECONDS
    check_conflicts: bool = True
    as_number: int | str | None = None
    backend: str = BIRD
    kubernetes_node: str = ""
    bgp: BgpEnvironment = field(default_factory=BgpEnvironment)
    pools: tuple[PoolWish, ...] = (PoolWish(4, nat_outgoing=True), PoolWish(6))
    """Of the families that may get a first pool."""
    cluster_type: str = ""
    felix: FelixConfigurationSpec = field(default_factory=FelixConfigurationSpec)
    notes: tuple[str, ...] = ()


def read_environment(variables: Mapping[str, str]) -> Environment:
    """Raises ConfigError naming the variable."""
    told = {name: text for name, raw in variables.items() if (text := raw.strip())}
    felix, unknown = felix_settings(told)
    settings_of(felix)
    return Environment(
        node=told.get("NODENAME", ""),
        nodename_file=Path(file) if (file := told.get("CALICO_NODENAME_FILE", "")) else None,
        shutdown_file=Path(file) if (file := told.get("CALICO_SHUTDOWN_TIMESTAMP_FILE", "")) else None,
        waits=boolean(told.get("WAIT_FOR_DATASTORE", ""), default=True),
        hostname=told.get("HOSTNAME", ""),
        ipv4=_told(told, 4),
        ipv6=_told(told, 6),
        poll=_seconds(told, "AUTODETECT_POLL_INTERVAL"),
        # Only this word, in lower case, switches it off.
        check_conflicts=told.get("DISABLE_NODE_IP_CHECK") != "true",
        as_number=_as_number(told.get("AS", "")),
        backend=_backend(told),
        kubernetes_node=told.get("CALICO_K8S_NODE_REF", ""),
        bgp=_bgp(told),
        pools=_pools(told, felix),
        cluster_type=told.get("CLUSTER_TYPE", ""),
        felix=felix,
        notes=(*_without_effect(told), *_felix_notes(felix, unknown)),
    )


def _told(told: Mapping[str, str], version: int) -> Told:
    variable = "IP" if version == 4 else "IP6"
    how = f"{variable}_AUTODETECTION_METHOD"
    address = told.get(variable, "")
    try:
        check_told(address, version)
        variable = how
        return Told(address, method(told.get(how, "")))
    except ConfigError as error:
        raise error.within(variable) from None


def _seconds(told: Mapping[str, str], variable: str) -> float:
    """A duration, or a number of seconds."""
    text = told.get(variable, "")
    if not text:
        return POLL_SECONDS
    try:
        seconds = parse_duration(f"{text}s" if text.isdecimal() else text).total_seconds()
    except ConfigError as error:
        raise error.within(variable) from None
    if seconds < SHORTEST_POLL:
        raise ConfigError(f'"{text}" is shorter than {SHORTEST_POLL:g} s', variable)
    return seconds


def _as_number(text: str) -> int | str | None:
    for _, problem in as_problem("", text or None):
        raise ConfigError(problem, "AS")
    return int(text) if text.isdecimal() else text or None


def _bgp(told: Mapping[str, str]) -> BgpEnvironment:
    return BgpEnvironment(
        told.get("CALICO_ROUTER_ID", ""),
        told.get("NAMESPACE", BgpEnvironment().secrets),
        _nets(told, "CALICO_ADVERTISE_CLUSTER_IPS") if "CALICO_ADVERTISE_CLUSTER_IPS" in told else None,
        told.get("CALICO_K8S_NODE_REF", ""),
    ).checked()


def _backend(told: Mapping[str, str]) -> str:
    if told.get("CALICO_NETWORKING", "").lower() == "false":  # what it was called before there was a choice
        return NONE
    found = told.get("CALICO_NETWORKING_BACKEND", BIRD)
    if found not in BACKENDS:
        raise ConfigError(f'"{found}" is not one of {", ".join(BACKENDS)}', "CALICO_NETWORKING_BACKEND")
    return found


def _nets(told: Mapping[str, str], variable: str) -> tuple[Net, ...]:
    try:
        return tuple(parse_net(part.strip()) for part in told[variable].split(",") if part.strip())
    except ConfigError as error:
        raise error.within(variable) from None


# --- pools --------------------------------------------------------------------------------------------------------


def _pools(told: Mapping[str, str], felix: FelixConfigurationSpec) -> tuple[PoolWish, ...]:
    """What each family's first pool should be; no entry for a family that must not get one."""
    wishes = tuple(_pool(told, version) for version in (4, 6))
    if boolean(told.get("NO_DEFAULT_POOLS", "")):
        for wish in wishes:
            if wish.cidr:
                raise ConfigError(f"there are to be no default pools, but {wish.variable} is set", "NO_DEFAULT_POOLS")
        return ()
    return tuple(wish for wish in wishes if wish.version == 4 or felix.ipv6_support is not False)


def _pool(told: Mapping[str, str], version: int) -> PoolWish:
    prefix = f"CALICO_IPV{version}POOL_"

    def said(name: str) -> str:
        return told.get(prefix + name, "")

    try:
        name = "CIDR"
        cidr = said(name)
        if cidr not in ("", NONE):
            parse_net(cidr)
        name = "NODE_SELECTOR"
        parse(said(name) or "all()")
    except ConfigError as error:
        raise error.within(prefix + name) from None
    ipip, vxlan = (_mode(told, prefix + name) for name in ("IPIP", "VXLAN"))
    if ipip != "Never" and version == 6:
        raise ConfigError("IPIP carries IPv4 only: leave it out", f"{prefix}IPIP")
    if ipip != "Never" and vxlan != "Never":
        raise ConfigError(f"a pool has one tunnel: switch it off, or {prefix}IPIP", f"{prefix}VXLAN")
    return PoolWish(
        version,
        cidr,
        _block_size(told, f"{prefix}BLOCK_SIZE", version),
        ipip,
        vxlan,
        boolean(said("NAT_OUTGOING"), default=version == 4),
        said("NODE_SELECTOR") or "all()",
        boolean(said("DISABLE_BGP_EXPORT")),
    )


def _mode(told: Mapping[str, str], variable: str) -> EncapMode:
    text = told.get(variable, "")
    found = MODES.get(text.lower())
    if found is None:
        raise ConfigError(f'"{text}" is not one of Never, CrossSubnet, Always', variable)
    return found


def _block_size(told: Mapping[str, str], variable: str, version: int) -> int | None:
    text = told.get(variable, "")
    if not text:
        return None
    sizes = BLOCK_SIZES[version]
    if not text.isdecimal() or int(text) not in sizes:
        raise ConfigError(f'"{text}" is not a prefix length from {sizes[0]} to {sizes[-1]}', variable)
    return int(text)


def _felix_notes(felix: FelixConfigurationSpec, unknown: Iterable[str]) -> Iterator[str]:
    yield from (f"{name} has no effect: there is no such field of FelixConfiguration" for name in unknown)
    for line in unserved(FelixConfiguration(spec=felix)):
        yield f"FELIX_...: {line.removeprefix('spec: ')}"


def _without_effect(told: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(told):
        why = WITHOUT_EFFECT.get(name)
        why = why or next((why for prefix, why in PREFIXES_WITHOUT_EFFECT.items() if name.startswith(prefix)), None)
        if why:
            yield f"{name} has no effect: {why}"
