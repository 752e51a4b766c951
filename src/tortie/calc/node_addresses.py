"""Which of a machine's addresses are its node's: Calico's methods of finding them, with a reason for every address.

    what is told (IP)        ""            autodetect     none         an address
    IPv4                     what is kept  detected       what is kept  that address
                             or detected
    IPv6                     what is kept  detected       what is kept  that address

Detecting gives a ranking: every address of every link, in the order in which the method looks at them, with the reason
why it was taken or passed over. The first that is taken is the node's. Source: Calico's node start-up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from tortie.base.addr import IP, Net, net_around, parse_ip
from tortie.base.errors import ConfigError

Interface = IPv4Interface | IPv6Interface

AUTODETECT, NONE = "autodetect", "none"
FIRST_FOUND, CAN_REACH, INTERFACE, SKIP_INTERFACE, CIDR, INTERNAL_IP = (
    "first-found", "can-reach", "interface", "skip-interface", "cidr", "kubernetes-internal-ip",
)  # fmt: skip
WITH_VALUE = (CAN_REACH, INTERFACE, SKIP_INTERFACE, CIDR)
METHODS = (FIRST_FOUND, INTERNAL_IP, *(f"{name}=..." for name in WITH_VALUE))

EXCLUDED = (
    "^docker.*", "^cbr.*", "^dummy.*", "^podman.*", "^virbr.*", "^lxcbr.*", "^veth.*", "^lo", "^br-.*", "^cali.*",
    "^tunl.*", "^flannel.*", "^kube-ipvs.*", "^cni.*", r"^vxlan\.calico.*", r"^vxlan-v6\.calico.*",
    r"^wireguard\.cali.*", r"^wg-v6\.cali.*", "^nodelocaldns.*",
)  # fmt: skip
"""Links that other programs, or we, make: Calico's default exclusions."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link of this machine. `addresses` are in the kernel's order; `mtu` is in bytes."""

    name: str
    index: int
    up: bool
    addresses: tuple[Interface, ...] = ()
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Method:
    """How to look. `text` is as it was written; of the others the one that the kind needs is there."""

    kind: str = FIRST_FOUND
    text: str = FIRST_FOUND
    destination: str = ""
    patterns: tuple[str, ...] = ()
    nets: tuple[Net, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address, or a link without one (`address` ""), in a ranking. `address` has its prefix length."""

    link: str
    index: int
    address: str
    taken: bool
    why: str


@dataclass(frozen=True, slots=True)
class Sight:
    """What a machine shows to a method: its links, the address from which it would reach the destination (None: it
    would not), and what Kubernetes calls the node's internal addresses."""

    links: tuple[Link, ...] = ()
    reach: IP | None = None
    internal: tuple[IP, ...] = ()


# --- methods ------------------------------------------------------------------------------------------------------


def method(text: str) -> Method:
    """Reads a method; "" is first-found. Raises ConfigError."""
    text = text.strip() or FIRST_FOUND
    kind, equals, value = text.partition("=")
    if text in (FIRST_FOUND, INTERNAL_IP):
        return Method(text, text)
    if kind not in WITH_VALUE or not equals:
        raise ConfigError(f'"{text}" is not a method: write {", ".join(METHODS)}')
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    if not parts:
        raise ConfigError(f'"{text}" names nothing after "="')
    if kind == CAN_REACH:
        return Method(kind, text, destination=value.strip())
    if kind == CIDR:
        return Method(kind, text, nets=tuple(net_around(part) for part in parts))
    for part in parts:
        try:
            re.compile(part)
        except re.error as error:
            raise ConfigError(f'"{part}" is not a regular expression: {error}') from None
    return Method(kind, text, patterns=parts)


def matching(name: str, patterns: Iterable[str]) -> str:
    """The first expression that a link's name matches; it need not match from the beginning. "" for none."""
    return next((pattern for pattern in patterns if re.search(pattern, name)), "")


# --- the ranking --------------------------------------------------------------------------------------------------


def ranking(how: Method, version: int, sight: Sight) -> tuple[Candidate, ...]:
    """Every address of that IP version as the method sees it; at most one is taken."""
    found: list[Candidate] = []
    taken = False
    # As Calico looks: the link with the highest index first.
    for link in sorted(sight.links, key=lambda link: -link.index):
        own = [address for address in link.addresses if address.version == version]
        if not own:
            found.append(Candidate(link.name, link.index, "", False, f"has no IPv{version} address"))
        for address in own:
            good, why = _verdict(how, sight, link, address)
            if good and taken:
                good, why = False, f"would do ({why}), but comes after the one that is taken"
            taken = taken or good
            found.append(Candidate(link.name, link.index, str(address), good, why))
    return tuple(found)


def chosen(candidates: Iterable[Candidate]) -> Candidate | None:
    """The one that is taken."""
    return next((one for one in candidates if one.taken), None)


Verdict = tuple[bool, str]
"""Whether an address will do, and why or why not."""


def _verdict(how: Method, sight: Sight, link: Link, address: Interface) -> Verdict:
    if not link.up:
        return False, "the link is down"
    wrong = _not_global(address)
    return (False, wrong) if wrong else _JUDGES[how.kind](how, sight, link, address)


def _not_global(address: Interface) -> str:
    """Why an address is not global unicast, as Go's IsGlobalUnicast has it; "" if it is."""
    ip = address.ip
    for word, wrong in (
        ("a loopback", ip.is_loopback),
        ("a link-local", ip.is_link_local),
        ("a multicast", ip.is_multicast),
        ("no host's", ip.is_unspecified or str(ip) == "255.255.255.255"),
    ):
        if wrong:
            return f"is {word} address"
    return ""


def _usual(link: Link) -> Verdict:
    pattern = matching(link.name, EXCLUDED)
    return (False, f"links {pattern} are left out") if pattern else (True, "the first that will do")


def _first(how: Method, sight: Sight, link: Link, address: Interface) -> Verdict:
    return _usual(link)


def _by_reach(how: Method, sight: Sight, link: Link, address: Interface) -> Verdict:
    if sight.reach is None:
        return False, f"{how.destination} cannot be reached"
    good = address.ip == sight.reach
    return good, f"packets to {how.destination} leave from {'it' if good else sight.reach}"


def _by_name(how: Method, sight: Sight, link: Link, address: Interface) -> Verdict:
    pattern = matching(link.name, how.patterns)
    return bool(pattern), f"{link.name} matches {pattern or 'none of ' + ', '.join(how.patterns)}"


def _by_other_names(how: Method, sight: Sight, link: Link, address: Interface) -> Verdict:
    pattern = matching(link.name, how.patterns)
    return (False, f"{link.name} matches {pattern}, to be skipped") if pattern else _usual(link)


def _by_net(how: Method, sight: Sight, link: Link, address: Interface) -> Verdict:
    usual, why = _usual(link)
    if not usual:
        return False, why
    net = next((net for net in how.nets if address.ip in net), None)
    return net is not None, f"is in {net or 'none of ' + ', '.join(map(str, how.nets))}"


def _by_kubernetes(how: Method, sight: Sight, link: Link, address: Interface) -> Verdict:
    if address.ip in sight.internal:
        return True, "is the InternalIP of the Kubernetes Node"
    named = [str(ip) for ip in sight.internal if ip.version == address.version]
    return False, f"the InternalIP of the Kubernetes Node is {', '.join(named) or 'not known'}"


_JUDGES: dict[str, Callable[[Method, Sight, Link, Interface], Verdict]] = {
    FIRST_FOUND: _first,
    CAN_REACH: _by_reach,
    INTERFACE: _by_name,
    SKIP_INTERFACE: _by_other_names,
    CIDR: _by_net,
    INTERNAL_IP: _by_kubernetes,
}


# --- what is told, what is kept, what is detected -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """What an operator says of one family: `address` is "", autodetect, none, or an address."""

    address: str = ""
    method: Method = field(default_factory=Method)

    @property
    def recorded(self) -> bool:
        """Whether it is one of the settings with which Calico notes a node's interfaces."""
        return self.address not in ("", NONE)


@dataclass(frozen=True, slots=True)
class Family:
    """One family's address, with prefix length, or "" for none. `source` is told, kept, detected or none. `failure` is
    the reason why the node cannot start; `warning` is for the log."""

    version: int
    address: str = ""
    source: str = NONE
    ranking: tuple[Candidate, ...] = ()
    warning: str = ""
    failure: str = ""


def check_told(text: str, version: int) -> None:
    """Raises ConfigError for what is none of "", autodetect, none, an address with or without prefix length."""
    if text in ("", AUTODETECT, NONE):
        return
    try:
        right = "%" not in text and ip_interface(text).version == version
    except ValueError:
        right = False
    if not right:
        example = "192.0.2.7/24" if version == 4 else "fd00::7/64"
        text = f'"{text}" is not an IPv{version} address with its prefix length, as {example}'
        raise ConfigError(f"{text}, nor {AUTODETECT}, nor {NONE}")


def family(version: int, told: Told, kept: str, sight: Sight) -> Family:
    """The address of one family. `kept` is what the Node says so far."""
    candidates = ranking(told.method, version, sight)
    if told.address == AUTODETECT or (version == 4 and not told.address and not kept):
        return _detected(version, told, kept, candidates)
    if told.address in ("", NONE):
        return Family(version, kept, "kept" if kept else NONE, candidates)
    return _told(version, told.address, sight.links, candidates)


def _detected(version: int, told: Told, kept: str, candidates: tuple[Candidate, ...]) -> Family:
    best = chosen(candidates)
    if best is not None:
        return Family(version, best.address, "detected", candidates)
    why = f"no IPv{version} address is found by the method {told.method.text}"
    if kept:
        return Family(version, kept, "kept", candidates, warning=f"{why}; {kept} is kept, which the Node has so far")
    right = f"choose another with IP{'' if version == 4 else 6}_AUTODETECTION_METHOD, or give the address"
    return Family(version, "", NONE, candidates, failure=f"{why}: {right}")


def _told(version: int, text: str, links: Sequence[Link], candidates: tuple[Candidate, ...]) -> Family:
    wanted = ip_interface(text)
    there = next((one for link in links for one in link.addresses if one.ip == wanted.ip), None)
    # Only IPv4 takes the length from its interface: as in Calico.
    if "/" not in text and there is not None and version == 4:
        wanted = there
    warning = "" if there is not None else f"{wanted.ip} is told to be this node's, and is not on this machine"
    return Family(version, str(wanted), "told", candidates, warning)


def internal_addresses(status: object) -> tuple[IP, ...]:
    """The addresses of the type InternalIP in the status of a Kubernetes Node, whatever else is in it."""
    listed = status.get("addresses") if isinstance(status, dict) else None
    found = (
        _bare(str(one.get("address", "")))
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, dict) and one.get("type") == "InternalIP"
    )
    return tuple(ip for ip in found if ip is not None)


# --- the machine as the Node records it, and other machines ---------------------------------------------------------


def recorded(links: Iterable[Link]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Names and addresses of the links that are up and not left out, for `spec.interfaces`, sorted by name."""
    return tuple(
        (link.name, addresses)
        for link in sorted(links, key=lambda link: link.name)
        if link.up and not matching(link.name, EXCLUDED)
        if (addresses := tuple(str(one) for one in link.addresses if not _not_global(one)))
    )


def conflict(ipv4: str, ipv6: str, others: Iterable[tuple[str, str, str]]) -> tuple[int, str] | None:
    """The IP version and the name of a node that has one of our addresses, whatever its prefix length. `others` are
    names with IPv4 and IPv6 addresses."""
    mine = {4: _bare(ipv4), 6: _bare(ipv6)}
    for name, *theirs in others:
        for version, text in zip((4, 6), theirs, strict=True):
            if mine[version] is not None and mine[version] == _bare(text):
                return version, name
    return None


def _bare(text: str) -> IP | None:
    """Without the prefix length. What another node has that is no address is in nobody's way."""
    try:
        return parse_ip(text.partition("/")[0]) if text else None
    except ConfigError:
        return None
