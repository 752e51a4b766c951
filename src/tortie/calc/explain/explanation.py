"""The answer as a value: steps that decide or translate, and the routes between them."""

from __future__ import annotations

from dataclasses import dataclass

from tortie.base.addr import IP, Net
from tortie.calc.explain.party import Party
from tortie.calc.explain.services import Door


@dataclass(frozen=True, slots=True)
class Note:
    """Something on the way that decides nothing: a Log rule that fires, a Pass, what a staged policy would do."""

    text: str
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One decision on the way. `rule` is the kernel's name of what decides, "" where no rule does; `interface` is that
    of the pod whose policy it is, `door` the service's whose address is translated, or refused."""

    node: str
    hook: str
    allowed: bool
    reason: str
    tier: str = ""
    policy: str = ""
    rule: str = ""
    notes: tuple[Note, ...] = ()
    interface: str = ""
    door: Door | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a node sends the packet, as far as the datastore knows. `source` and `destination` are what the routing
    table is asked about, `interface` where the packet comes from: "" for the node's own.

    `out` is the pod's interface that it must leave by, `block` and `owner` whose addresses these are on another node.
    """

    node: str
    source: IP
    destination: IP
    interface: str
    words: str
    out: str = ""
    block: Net | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Past:
    """How a node that wants flow tables forwards what follows the first packet: `past` the rules or by them, and why.
    `interfaces` are those of its pods."""

    node: str
    past: bool
    reason: str
    interfaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """All steps of the first packet of a connection; those after a denial are not reached."""

    source: Party
    destination: Party
    version: int
    protocol: str
    port: int
    steps: tuple[Step, ...]
    routes: tuple[Route, ...] = ()
    source_port: int = 40000
    icmp: tuple[int, int] | None = None
    past: tuple[Past, ...] = ()

    @property
    def allowed(self) -> bool:
        return all(step.allowed for step in self.steps)

    @property
    def decisive(self) -> Step:
        """The step that a person wants to see first: the denial, else the last."""
        return next((step for step in self.steps if not step.allowed), self.steps[-1])
