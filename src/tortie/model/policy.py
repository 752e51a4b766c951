"""Policy as Calico writes it: rules, policies, tiers, network sets, profiles (projectcalico.org/v3)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.model.meta import SHORT_NAME, Kind, Problem, Resource, Value, cidr_problem

Action = Literal["Allow", "Deny", "Log", "Pass"]
Direction = Literal["Ingress", "Egress"]

PROTOCOLS = {"TCP": 6, "UDP": 17, "ICMP": 1, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}
PORT_PROTOCOLS = (6, 17, 132)
PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}\Z")
PORT_RANGE = re.compile(r"(\d{1,5}):(\d{1,5})\Z")
MAX_SELECTOR = 1024
MAX_NETS = 256
MAX_PORTS = 50
MAX_RULES = 1024

_PROTOCOL_BY_LOWER = {name.lower(): number for name, number in PROTOCOLS.items()}


def protocol_number(protocol: int | str) -> int | None:
    """The IP protocol number of a name in any case, a number, or a number as text; None when it is none."""
    if isinstance(protocol, int):
        return protocol if 1 <= protocol <= 255 else None
    if protocol.isdecimal() and 1 <= int(protocol) <= 255:
        return int(protocol)
    return _PROTOCOL_BY_LOWER.get(protocol.lower())


def no_protocol(protocol: int | str) -> str:
    """What is said of one for which there is no number."""
    return f'"{protocol}" is not a protocol: {", ".join(PROTOCOLS)} or a number from 1 to 255'


def protocol_problem(path: str, protocol: int | str | None) -> Iterator[Problem]:
    if protocol is not None and protocol_number(protocol) is None:
        yield path, no_protocol(protocol)


def port_range(port: int | str) -> tuple[int, int] | str:
    """A port of a rule: (first, last), or the name of a named port. Raises ConfigError when it is neither."""
    if isinstance(port, int):
        if 0 <= port <= 65535:
            return port, port
        raise ConfigError(f"{port} is not from 0 to 65535")
    if match := PORT_RANGE.match(port):
        first, last = int(match[1]), int(match[2])
        if first <= last <= 65535:
            return first, last
        raise ConfigError(f'"{port}" is not a range of ports: write "first:last", first not above last, at most 65535')
    if port.isdecimal():
        return port_range(int(port))
    if PORT_NAME.match(port):
        return port
    raise ConfigError(f'"{port}" is neither a port, a range "first:last" nor a port name')


def selector_problem(path: str, selector: str | None) -> Iterator[Problem]:
    """Only the length: the language belongs to `policy.selector`, which admission asks."""
    if selector is not None and len(selector) > MAX_SELECTOR:
        yield path, f"a selector has at most {MAX_SELECTOR} characters, this one {len(selector)}"


class ICMPFields(Value, frozen=True, kw_only=True):
    type: Annotated[int, Meta(ge=0, le=254)] | None = None
    code: Annotated[int, Meta(ge=0, le=255)] | None = None

    def problems(self) -> Iterator[Problem]:
        if self.code is not None and self.type is None:
            yield "code", "needs a type"


class ServiceAccountMatch(Value, frozen=True, kw_only=True):
    names: tuple[str, ...] = ()
    selector: str = ""


class ServiceMatch(Value, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""


class HTTPPath(Value, frozen=True, kw_only=True):
    exact: str = ""
    prefix: str = ""

    def problems(self) -> Iterator[Problem]:
        if bool(self.exact) == bool(self.prefix):
            yield "", "give exactly one of exact and prefix"
        text = self.exact or self.prefix
        if text and (not text.startswith("/") or len(text) > 1024 or re.search(r"[?# ]", text)):
            yield "", f'"{text}" must start with "/", hold no "?", "#" or space, and have at most 1024 characters'


class HTTPMatch(Value, frozen=True, kw_only=True):
    methods: Annotated[tuple[str, ...], Meta(max_length=20)] = ()
    paths: Annotated[tuple[HTTPPath, ...], Meta(max_length=20)] = ()

    def problems(self) -> Iterator[Problem]:
        if len(set(self.methods)) != len(self.methods):
            yield "methods", "names a method twice"


class EntityRule(Value, frozen=True, kw_only=True):
    """One side of a rule. Everything that is present must match."""

    nets: tuple[str, ...] = ()
    not_nets: tuple[str, ...] = ()
    selector: str = ""
    not_selector: str = ""
    namespace_selector: str = ""
    ports: tuple[int | str, ...] = ()
    not_ports: tuple[int | str, ...] = ()
    service_accounts: ServiceAccountMatch | None = None
    services: ServiceMatch | None = None

    def problems(self) -> Iterator[Problem]:
        for name, nets in (("nets", self.nets), ("notNets", self.not_nets)):
            if len(nets) > MAX_NETS:
                yield name, f"at most {MAX_NETS} networks, here {len(nets)}"
            for i, net in enumerate(nets):
                yield from cidr_problem(f"{name}[{i}]", net)
        for i, net in enumerate(self.not_nets):
            if net in ("0.0.0.0/0", "::/0"):
                yield f"notNets[{i}]", f'"{net}" excludes everything, the rule could never match'
        for name, ports in (("ports", self.ports), ("notPorts", self.not_ports)):
            if len(ports) > MAX_PORTS:
                yield name, f"at most {MAX_PORTS} ports, here {len(ports)}"
            for i, port in enumerate(ports):
                try:
                    port_range(port)
                except ConfigError as error:
                    yield f"{name}[{i}]", str(error)
        yield from selector_problem("selector", self.selector)
        yield from selector_problem("notSelector", self.not_selector)
        yield from selector_problem("namespaceSelector", self.namespace_selector)
        yield from self._service_problems()

    def _service_problems(self) -> Iterator[Problem]:
        if self.services is None:
            return
        if not self.services.name:
            yield "services.name", "is required"
        elif len(self.services.name) > 253:
            yield "services.name", f"has {len(self.services.name)} characters, at most 253 are allowed"
        for name in ("selector", "not_selector", "namespace_selector", "service_accounts", "nets", "not_nets"):
            if getattr(self, name):
                yield "services", f"cannot be combined with {name.replace('_', ' ')}"

    @property
    def families(self) -> set[int]:
        """IP versions of the listed networks."""
        return {parse_net(net).version for net in (*self.nets, *self.not_nets)}


class RuleMetadata(Value, frozen=True, kw_only=True):
    annotations: dict[str, str] = field(default_factory=dict)


class Rule(Value, frozen=True, kw_only=True):
    action: Action
    ip_version: Literal[4, 6] | None = field(name="ipVersion", default=None)
    protocol: int | str | None = None
    not_protocol: int | str | None = None
    icmp: ICMPFields | None = None
    not_icmp: ICMPFields | None = field(name="notICMP", default=None)
    source: EntityRule = EntityRule()
    destination: EntityRule = EntityRule()
    http: HTTPMatch | None = None
    metadata: RuleMetadata | None = None

    def problems(self) -> Iterator[Problem]:
        yield from protocol_problem("protocol", self.protocol)
        yield from protocol_problem("notProtocol", self.not_protocol)
        number = protocol_number(self.protocol) if self.protocol is not None else None
        for side, entity in (("source", self.source), ("destination", self.destination)):
            for name, ports in (("ports", entity.ports), ("notPorts", entity.not_ports)):
                numeric = any(isinstance(port, int) or port[:1].isdigit() for port in ports)
                named_only = self.protocol is None and not numeric
                if ports and number not in PORT_PROTOCOLS and not named_only:
                    yield f"{side}.{name}", "ports need protocol TCP, UDP or SCTP in the rule"
        for name, icmp in (("icmp", self.icmp), ("notICMP", self.not_icmp)):
            if icmp is not None and number not in (1, 58):
                yield name, "needs protocol ICMP or ICMPv6"
        try:
            families = self.source.families | self.destination.families
        except ConfigError:
            return  # the entity itself reports the bad network
        if len(families) > 1:
            yield "", "mixes IPv4 and IPv6 networks; write one rule for each"
        implied = {1: 4, 58: 6}.get(number or 0)
        if self.ip_version and implied and implied != self.ip_version:
            yield "ipVersion", f"{self.ip_version} does not go with protocol {self.protocol}"
        elif families and (self.ip_version or implied) and families != {self.ip_version or implied}:
            yield "ipVersion", f"the rule is for IPv{self.ip_version or implied}, its networks are not"
        for name in ("ports", "not_ports"):
            if self.destination.services is not None and getattr(self.destination, name):
                yield "destination.services", f"cannot be combined with {name.replace('_', ' ')}"
        if self.http is not None and (self.action != "Allow" or number not in (None, 6)):
            yield "http", "goes with action Allow and protocol TCP only"


Rules = Annotated[tuple[Rule, ...], Meta(max_length=MAX_RULES)]


class PolicySpec(Value, frozen=True, kw_only=True):
    """What NetworkPolicy and GlobalNetworkPolicy share."""

    tier: str = ""
    order: float | None = None
    selector: str = ""
    service_account_selector: str = ""
    types: tuple[Direction, ...] = ()
    ingress: Rules = ()
    egress: Rules = ()
    performance_hints: tuple[Literal["AssumeNeededOnEveryNode"], ...] = ()

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions that the policy isolates: as said, else derived from the rules that are there."""
        if self.types:
            return self.types
        if self.egress:
            return ("Ingress", "Egress") if self.ingress else ("Egress",)
        return ("Ingress",)

    def problems(self) -> Iterator[Problem]:
        if self.tier and not (SHORT_NAME.match(self.tier) and len(self.tier) <= 63):
            yield "tier", f'"{self.tier}" is not the name of a tier: lower-case letters, digits and "-", at most 63'
        yield from selector_problem("selector", self.selector)
        yield from selector_problem("serviceAccountSelector", self.service_account_selector)
        if len(set(self.types)) != len(self.types):
            yield "types", "names a direction twice"
        if len(self.performance_hints) > 1:
            yield "performanceHints", "names a hint twice"
        yield from _rule_problems(self.ingress, self.egress)


def _rule_problems(ingress: Rules, egress: Rules) -> Iterator[Problem]:
    """What may stand in rules of one direction only."""
    for i, rule in enumerate(ingress):
        if rule.destination.services is not None:
            yield f"ingress[{i}].destination.services", "only in the source of ingress rules"
    for i, rule in enumerate(egress):
        if rule.source.services is not None:
            yield f"egress[{i}].source.services", "only in the destination of egress rules"
        if rule.http is not None:
            yield f"egress[{i}].http", "only in ingress rules"


class NetworkPolicySpec(PolicySpec, frozen=True, kw_only=True):
    pass


class GlobalNetworkPolicySpec(PolicySpec, frozen=True, kw_only=True):
    namespace_selector: str = ""
    do_not_track: bool = False
    pre_dnat: bool = field(name="preDNAT", default=False)
    apply_on_forward: bool = False

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from selector_problem("namespaceSelector", self.namespace_selector)
        if self.do_not_track and self.pre_dnat:
            yield "preDNAT", "cannot be combined with doNotTrack"
        if (self.do_not_track or self.pre_dnat) and not self.apply_on_forward:
            yield "applyOnForward", "must be true with doNotTrack or preDNAT"
        if self.pre_dnat and (self.egress or "Egress" in self.types):
            yield "egress", "a preDNAT policy has ingress rules only"
        yield from _without_namespace(self.ingress, self.egress, "a global policy")


def _without_namespace(ingress: Rules, egress: Rules, where: str) -> Iterator[Problem]:
    """Where there is no own namespace, a service has to say its."""
    for name, rules in (("ingress", ingress), ("egress", egress)):
        for i, rule in enumerate(rules):
            for side, entity in (("source", rule.source), ("destination", rule.destination)):
                if entity.services is not None and not entity.services.namespace:
                    yield f"{name}[{i}].{side}.services.namespace", f"is required in {where}"


class NetworkPolicy(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="NetworkPolicy",
        plural="networkpolicies",
        namespaced=True,
        aliases=("networkpolicy", "np", "policy", "policies", "pol", "pols", "cnp"),
    )
    spec: NetworkPolicySpec = NetworkPolicySpec()


class GlobalNetworkPolicy(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="GlobalNetworkPolicy",
        plural="globalnetworkpolicies",
        aliases=("globalnetworkpolicy", "gnp", "gnps", "cgnp"),
    )
    spec: GlobalNetworkPolicySpec = GlobalNetworkPolicySpec()


class NetworkSetSpec(Value, frozen=True, kw_only=True):
    nets: tuple[str, ...] = ()

    def problems(self) -> Iterator[Problem]:
        for i, net in enumerate(self.nets):
            yield from cidr_problem(f"nets[{i}]", net)


class NetworkSet(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="NetworkSet",
        plural="networksets",
        namespaced=True,
        aliases=("networkset", "netset", "netsets"),
    )
    spec: NetworkSetSpec = NetworkSetSpec()


class GlobalNetworkSet(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="GlobalNetworkSet",
        plural="globalnetworksets",
        aliases=("globalnetworkset", "gns", "gnetset", "gnetsets"),
    )
    spec: NetworkSetSpec = NetworkSetSpec()


class ProfileSpec(Value, frozen=True, kw_only=True):
    ingress: Rules = ()
    egress: Rules = ()
    labels_to_apply: dict[str, str] = field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        yield from _rule_problems(self.ingress, self.egress)
        yield from _without_namespace(self.ingress, self.egress, "a profile")


class Profile(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="Profile",
        plural="profiles",
        aliases=("profile", "pro", "pros"),
    )
    spec: ProfileSpec = ProfileSpec()


class TierSpec(Value, frozen=True, kw_only=True):
    order: float | None = None
    default_action: Literal["Deny", "Pass"] | None = None


class Tier(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(api_version="projectcalico.org/v3", kind="Tier", plural="tiers", aliases=("tier",))
    spec: TierSpec = TierSpec()
    status: Any = None


BUILT_IN_TIERS: tuple[tuple[str, float, Literal["Deny", "Pass"]], ...] = (
    ("kube-admin", 1_000.0, "Pass"),
    ("default", 1_000_000.0, "Deny"),
    ("kube-baseline", 1e7, "Pass"),
)
"""Name, order, default action; they exist always and cannot be deleted."""
