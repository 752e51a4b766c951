"""Which routes BGP peers may send, and are told: BGPFilter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.model.bgp import as_problem, community
from tortie.model.meta import Kind, Problem, Resource, Value

Priority = Annotated[int, Meta(ge=1, le=2147483646)]
ASNumbers = tuple[int | str, ...]

_INTERFACE = re.compile(r"[a-zA-Z0-9_.*-]{1,15}\Z")
"""A name that the kernel allows, with `*` for any characters."""


def community_problem(path: str, text: str) -> Iterator[Problem]:
    """The problem of a field that must hold a community, if it has one."""
    try:
        community(text)
    except ConfigError as error:
        yield path, str(error)


class PrefixLength(Value, frozen=True, kw_only=True):
    """How long a prefix may be; how far that can go is for the rule to say."""

    min: int | None = None
    max: int | None = None


class CommunityMatch(Value, frozen=True, kw_only=True):
    values: tuple[str, ...] = ()

    def problems(self) -> Iterator[Problem]:
        if len(self.values) != 1:
            yield "values", f"has {len(self.values)} communities, must have exactly one"
        for i, value in enumerate(self.values):
            yield from community_problem(f"values[{i}]", value)


class AddCommunityOperation(Value, frozen=True, kw_only=True):
    value: str = ""

    def problems(self) -> Iterator[Problem]:
        yield from community_problem("value", self.value)


class PrependASPathOperation(Value, frozen=True, kw_only=True):
    prefix: Annotated[ASNumbers, Meta(max_length=10)] = ()

    def problems(self) -> Iterator[Problem]:
        if not self.prefix:
            yield "prefix", "must have 1 to 10 AS numbers"
        for i, number in enumerate(self.prefix):
            yield from as_problem(f"prefix[{i}]", number)


class SetPriorityOperation(Value, frozen=True, kw_only=True):
    value: Priority


class FilterOperation(Value, frozen=True, kw_only=True):
    """What is done to a route that is accepted: one thing."""

    add_community: AddCommunityOperation | None = None
    prepend_as_path: PrependASPathOperation | None = field(name="prependASPath", default=None)
    set_priority: SetPriorityOperation | None = None

    def problems(self) -> Iterator[Problem]:
        given = [one for one in (self.add_community, self.prepend_as_path, self.set_priority) if one is not None]
        if len(given) != 1:
            yield "", "must have exactly one of addCommunity, prependASPath, setPriority"


class BGPFilterRule(Value, frozen=True, kw_only=True):
    action: Literal["Accept", "Reject"]
    cidr: str = ""
    match_operator: Literal["", "Equal", "NotEqual", "In", "NotIn"] = ""
    prefix_length: PrefixLength | None = None
    source: Literal["", "RemotePeers"] = ""
    interface: str = ""
    peer_type: Literal["", "eBGP", "iBGP"] = ""
    communities: CommunityMatch | None = None
    as_path_prefix: ASNumbers = field(name="asPathPrefix", default=())
    priority: Priority | None = None
    operations: Annotated[tuple[FilterOperation, ...], Meta(max_length=10)] = ()

    def problems(self) -> Iterator[Problem]:
        if self.cidr and not self.match_operator:
            yield "matchOperator", "is required with cidr: Equal, NotEqual, In or NotIn"
        if self.match_operator and not self.cidr:
            yield "cidr", "is required with matchOperator"
        if self.interface and not _INTERFACE.match(self.interface):
            yield "interface", f'"{self.interface}" is not an interface name or pattern such as eth1 or veth*'
        for i, number in enumerate(self.as_path_prefix):
            yield from as_problem(f"asPathPrefix[{i}]", number)
        if self.operations and self.action != "Accept":
            yield "operations", "go with action Accept only"

    def family_problems(self, version: int) -> Iterator[Problem]:
        """What must be of the family of the list that the rule is in."""
        if self.prefix_length is not None and not self.cidr:
            yield "prefixLength", "needs cidr"
        if not self.cidr:
            return
        try:
            net = parse_net(self.cidr)
        except ConfigError as error:
            yield "cidr", str(error)
            return
        if net.version != version:
            yield "cidr", f'"{self.cidr}" is not an IPv{version} network'
        elif self.prefix_length is not None:
            yield from _length_problems(self.prefix_length, self.match_operator, net.prefixlen, net.max_prefixlen)


def _length_problems(lengths: PrefixLength, operator: str, shortest: int, longest: int) -> Iterator[Problem]:
    if operator not in ("In", "NotIn"):
        yield "prefixLength", "goes with matchOperator In or NotIn only"
    for name, value in (("min", lengths.min), ("max", lengths.max)):
        if value is not None and not 0 <= value <= longest:
            yield f"prefixLength.{name}", f"{value} is not from 0 to {longest}"
    least, most = max(shortest, lengths.min or 0), longest if lengths.max is None else lengths.max
    if most < least:
        yield "prefixLength", f"allows no prefix: {least} at least, {most} at most"


RULES = {"importV4": "import_v4", "exportV4": "export_v4", "importV6": "import_v6", "exportV6": "export_v6"}
"""The lists of rules, by their name in documents; it ends in the IP version."""


class BGPFilterSpec(Value, frozen=True, kw_only=True):
    import_v4: tuple[BGPFilterRule, ...] = field(name="importV4", default=())
    export_v4: tuple[BGPFilterRule, ...] = field(name="exportV4", default=())
    import_v6: tuple[BGPFilterRule, ...] = field(name="importV6", default=())
    export_v6: tuple[BGPFilterRule, ...] = field(name="exportV6", default=())

    def problems(self) -> Iterator[Problem]:
        for name, attribute in RULES.items():
            for i, rule in enumerate(getattr(self, attribute)):
                for path, problem in rule.family_problems(int(name[-1])):
                    yield f"{name}[{i}].{path}", problem


class BGPFilter(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="BGPFilter",
        plural="bgpfilters",
        aliases=("bgpfilter", "bgpf", "bgpfs", "bf", "bfs"),
    )
    spec: BGPFilterSpec = BGPFilterSpec()
    status: Any = None
