"""What a look at a machine finds, as values. What was not looked at is None or empty, and named in `Seen.skipped`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tortie.base.addr import IP, Net
from tortie.base.dialled import Answer
from tortie.bgp.sessions import BGP_PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A link of the machine. `info` has a tunnel's settings: `id`, `port` of a vxlan. `broken` are addresses that the
    kernel has found to be somebody else's."""

    name: str
    kind: str = ""
    mtu: int = 0
    up: bool = True
    carrier: bool = True
    addresses: tuple[IP, ...] = ()
    broken: tuple[IP, ...] = ()
    info: Mapping[str, object] = field(default_factory=dict)
    forwarding: bool = True
    """Of IPv4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain of somebody else's that packets on their way through the machine meet. `drops`: what no rule accepts;
    `accepts`: whether some rule accepts anything; `all_of_it`: a rule without conditions drops what gets to it."""

    where: str
    drops: bool = False
    accepts: bool = False
    all_of_it: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """A rule of `ip rule` that is not the kernel's own. `text` is how ip prints it, `command` what lists it. `past`: it
    ends at another table than main, or nowhere. `all_to_main`: it has everything looked up in main, whose default route
    may not count. `src`, `dst`, `iif`, `oif` may say nothing. `marked`: it is only for packets that somebody marks.
    `bits`: those of the mark that it asks for and that policy changes."""

    text: str
    command: str = "ip rule"
    priority: int = 0
    past: bool = False
    all_to_main: bool = False
    src: Net | None = None
    dst: Net | None = None
    iif: str = ""
    oif: str = ""
    marked: bool = False
    bits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """A table of somebody else's in which packets get `bits` of the mark by which policy remembers its decisions."""

    where: str
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The kernel and what is set up in it. `conntrack` is entries and room, `duplicates` address to MAC addresses of
    others that have it, `unmanaged` whether NetworkManager leaves pods' links alone (None: there is none)."""

    features: Mapping[str, bool] = field(default_factory=dict)
    forwarding: Mapping[int, bool] = field(default_factory=dict)
    loose_filter: bool = False
    conntrack: tuple[int, int] | None = None
    interfaces: tuple[Interface, ...] = ()
    duplicates: Mapping[IP, tuple[str, ...]] = field(default_factory=dict)
    chains: tuple[Chain, ...] = ()
    routes: tuple[Net, ...] = ()
    """Of protocol 80, which is the agent's."""
    rules: tuple[PolicyRule, ...] | None = None
    """In the order in which they are tried, by family; of each those up to the kernel's own for main."""
    markings: tuple[Marking, ...] | None = None
    unmanaged: bool | None = None
    unanswered: tuple[tuple[IP, str], ...] = ()
    """Addresses whose neighbour does not answer, each with the link on which it was asked for."""
    bird: str = ""
    """Its version; "" when it is not installed."""
    clock_ok: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the agent knows of itself and of the others. `twins` are other nodes with an address of this node's;
    `tunnels` the kinds that pools ask for; `pools` their networks; `failures` those of the dataplane and of
    BIRD's configuration, in words."""

    node: str = ""
    addresses: tuple[IP, ...] = ()
    twins: Mapping[IP, tuple[str, ...]] = field(default_factory=dict)
    tunnels: frozenset[str] = frozenset()
    flow_tables: bool = False
    """Whether established connections are to go by the kernel's flow tables."""
    vxlan: tuple[int, int] = (4096, 4789)
    """VNI and port."""
    pools: tuple[Net, ...] = ()
    in_sync: bool = True
    datastore: str = ""
    failures: tuple[str, ...] = ()
    bgp: bool = True
    bird_trouble: str = ""
    """Why BIRD does not answer."""
    pod_networks: Mapping[Net, str] = field(default_factory=dict)
    """Networks of stand-alone plugins that are reached through other nodes, with those nodes."""
    unrouted: Mapping[str, str] = field(default_factory=dict)
    """Of such networks, of this node and of others: why there is no route, by what is not routed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way to an address of another node. `tunnel`: `VXLAN` or `IPIP` where it is the node's end of a tunnel, and
    packets to it travel inside; else "". `error` is why nothing could be sent. `bgp` is a try at TCP `port`, made where
    there is to be a session; `largest` the bytes of the largest packet that passes uncut, of `link_mtu` at most."""

    node: str
    ip: IP
    tunnel: str = ""
    answers: bool = False
    error: str = ""
    bgp: Answer | None = None
    port: int = BGP_PORT
    largest: int | None = None
    link_mtu: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything. `cluster` is None without an agent."""

    machine: Machine = field(default_factory=Machine)
    cluster: Cluster | None = None
    ways: tuple[Way, ...] = ()
    skipped: tuple[str, ...] = ()
