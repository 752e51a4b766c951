"""A look at this machine for the doctor: kernel, links, addresses, firewalls of others. Reads; only ARP is sent."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from tortie.agent.policy_routing import markings, policy_rules
from tortie.base.addr import IP, Net, parse_ip
from tortie.base.errors import KernelError, NotFound, TortieError
from tortie.calc.doctor import Chain, Interface, Machine
from tortie.kernel import arp, links, nft, sysctl
from tortie.kernel.addresses import AddressFlag, list_addresses
from tortie.kernel.features import features
from tortie.kernel.neighbours import list_neighbours
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6
from tortie.kernel.routes import list_routes
from tortie.render.bird_config import CLUSTER_ROUTE_PROTOCOL
from tortie.render.ruleset import TABLE

BIRD_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin"
NETWORK_MANAGER = Path("/run/NetworkManager")
UNMANAGED_IN = (Path("/etc/NetworkManager/conf.d"), Path("/usr/lib/NetworkManager/conf.d"))
LEGACY_TABLES = Path("/proc/thread-self/net/ip_tables_names")
SECONDS = 5.0
"""For a program to answer that is asked once."""
_STA_UNSYNC, _TIME_ERROR = 0x0040, 5  # linux/timex.h
_TIMEX_BYTES = 256  # struct timex has 208
_STATUS_AT = 40  # timex.status: after modes, offset, freq, maxerror, esterror with their padding


def machine(own: Iterable[IP], skipped: list[str]) -> Machine:
    """All of it, in a second or two. `own` are the addresses that nobody else may have; what cannot be looked at is
    added to `skipped`, with the reason."""
    have = _tried(interfaces, "links and addresses", skipped, ())
    return Machine(
        features=_tried(features, "what the kernel can do", skipped, {}),
        forwarding=_forwarding(),
        loose_filter=_number("net/ipv4/conf/all/rp_filter") == 2,
        conntrack=_conntrack(),
        interfaces=have,
        duplicates=_tried(lambda: _duplicates(own, have), "who else has our addresses", skipped, {}),
        chains=_tried(lambda: (*foreign_chains(), *_legacy()), "firewalls of others", skipped, ()),
        routes=_tried(_routes, "routes of protocol 80", skipped, ()),
        rules=_tried(policy_rules, "rules of policy routing", skipped, None),
        markings=_tried(lambda: tuple(markings()), "marks of others", skipped, None),
        unanswered=_tried(unanswered, "neighbours that do not answer", skipped, ()),
        unmanaged=_tried(_unmanaged, "settings of NetworkManager", skipped, None),
        bird=_bird(),
        clock_ok=_clock_ok(),
    )


def _tried(look: Callable[[], Any], what: str, skipped: list[str], instead: Any) -> Any:
    try:
        return look()
    except (TortieError, OSError, subprocess.SubprocessError, UnicodeError) as error:
        skipped.append(f"{what}: {error}")
        return instead


# --- links --------------------------------------------------------------------------------------------------------


def interfaces() -> tuple[Interface, ...]:
    with Netlink() as nl:
        every = links.list_links(nl)
        addresses = list_addresses(nl)
    found = []
    for link in every:
        own = [one for one in addresses if one.index == link.index]
        found.append(
            Interface(
                name=link.name,
                kind=link.kind,
                mtu=link.mtu,
                up=link.up,
                carrier=link.carrier,
                addresses=tuple(_ip(one.ip) for one in own),
                broken=tuple(_ip(one.ip) for one in own if one.flags & AddressFlag.DADFAILED),
                info=dict(link.info),
                forwarding=_number(f"net/ipv4/conf/{link.name}/forwarding") != 0,
            )
        )
    return tuple(found)


def unanswered() -> tuple[tuple[IP, str], ...]:
    """Addresses that the links were asked for in vain, for as long as the kernel remembers it. Raises KernelError."""
    with Netlink() as nl:
        names = {link.index: link.name for link in links.list_links(nl)}
        every = list_neighbours(nl)
    return tuple((_ip(one.ip), names.get(one.dev, "")) for one in every if one.state in ("incomplete", "failed"))


def _ip(text: str) -> IP:
    return parse_ip(text.partition("/")[0])


def _duplicates(own: Iterable[IP], have: Iterable[Interface]) -> Mapping[IP, tuple[str, ...]]:
    """Asked on the link that has the address. IPv6 finds its duplicates by itself."""
    with Netlink() as nl:
        macs = {link.name: link.mac for link in links.list_links(nl) if link.mac}
    found: dict[IP, tuple[str, ...]] = {}
    for one in have:
        for ip in (ip for ip in one.addresses if ip in tuple(own)):
            if isinstance(ip, IPv4Address) and one.up and one.name in macs:
                others = arp.others(ip, one.name, macs[one.name]) - frozenset(macs.values())
                if others:
                    found[ip] = tuple(sorted(others))
    return found


# --- settings -----------------------------------------------------------------------------------------------------


def _forwarding() -> dict[int, bool]:
    found = {4: _number("net/ipv4/ip_forward"), 6: _number("net/ipv6/conf/all/forwarding")}
    return {version: value != 0 for version, value in found.items() if value is not None}


def _conntrack() -> tuple[int, int] | None:
    count, room = (_number(f"net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    return (count, room) if count is not None and room is not None else None


def _number(path: str) -> int | None:
    with suppress(KernelError, ValueError):
        return int(sysctl.read(path))
    return None


def _routes() -> tuple[Net, ...]:
    with Netlink() as nl:
        families = (AF_INET, AF_INET6)
        return tuple(one.dst for family in families for one in list_routes(nl, family, protocol=CLUSTER_ROUTE_PROTOCOL))


# --- others -------------------------------------------------------------------------------------------------------


def foreign_chains() -> Iterator[Chain]:
    """The base chains of other tables at the forward hook. Raises KernelError."""
    for item in nft.list_json(["list", "chains"]):
        chain = item.get("chain", {})
        table = f"{chain.get('family')} {chain.get('table')}"
        if chain.get("hook") == "forward" and chain.get("type") == "filter" and table != TABLE:
            yield _chain(table, chain["name"], chain.get("policy") == "drop")


def _chain(table: str, name: str, drops: bool) -> Chain:
    try:
        listed = nft.list_json(["list", "chain", *table.split(), name])
    except (NotFound, KernelError):  # gone meanwhile
        listed = []
    rules = [item["rule"].get("expr", []) for item in listed if "rule" in item]
    return Chain(
        where=f"nft list chain {table} {name}",
        drops=drops,
        accepts=any(_words(rule) & {"accept", "jump", "goto"} for rule in rules),
        all_of_it=any(_words(rule) <= {"counter", "drop"} and "drop" in _words(rule) for rule in rules),
    )


def _words(rule: Iterable[Mapping[str, Any]]) -> set[str]:
    """What a rule's expressions are: match, counter, drop, ..."""
    return {word for expression in rule for word in expression}


def _legacy() -> Iterator[Chain]:
    """iptables of before nftables, where somebody uses it."""
    program = shutil.which("iptables-legacy", path=BIRD_PATH)
    if program is None or not LEGACY_TABLES.exists() or "filter" not in LEGACY_TABLES.read_text().split():
        return
    listed = subprocess.run(
        [program, "-S", "FORWARD"], capture_output=True, text=True, timeout=SECONDS, check=False
    ).stdout
    lines = listed.splitlines()
    yield Chain(
        where="iptables-legacy -S FORWARD",
        drops="-P FORWARD DROP" in lines,
        accepts=any("-j ACCEPT" in line for line in lines),
        all_of_it="-A FORWARD -j DROP" in lines,
    )


def _unmanaged() -> bool | None:
    if not NETWORK_MANAGER.exists():
        return None
    files = (file for directory in UNMANAGED_IN if directory.is_dir() for file in directory.glob("*.conf"))
    return any("unmanaged-devices" in text and "cali" in text for text in (file.read_text() for file in files))


def _bird() -> str:
    program = shutil.which("bird", path=BIRD_PATH)
    if program is None:
        return ""
    with suppress(OSError, subprocess.SubprocessError, UnicodeError):
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=SECONDS, check=False)
        return (done.stderr or done.stdout).strip() or "BIRD"
    return ""


def _clock_ok() -> bool | None:
    """Whether something keeps the clock, as adjtimex(2) knows it."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except AttributeError:
        return None
    if answer < 0:
        return None
    status = int.from_bytes(buffer.raw[_STATUS_AT : _STATUS_AT + 4], "little")
    return int(answer) != _TIME_ERROR and not status & _STA_UNSYNC
