"""A link of ours thing by thing, the steps to it, and taking them: what the stages of tunnels' devices do alike.

    wanted: link, mac, mtu, ... ─┐
    there:  link, mac, mtu, ... ─┴─► plan ─► LinkStage.make, step by step in the order in which things are wanted

What cannot be changed on a link (VNI, port, local address, link below, learning) makes a new one of it.
"""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from tortie.base.errors import KernelError, NotFound, NotSupported, TortieError
from tortie.base.plan import Op, Plan, Verb, diff
from tortie.dataplane.converge import Work
from tortie.kernel import links, sysctl
from tortie.kernel.addresses import add_address, delete_address
from tortie.kernel.links import Link
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.netlink import Netlink

LOOSE = 2
"""net.ipv4.conf.*.rp_filter: there is a route back, by whatever link (ip-sysctl)."""
SETTINGS = {"rp_filter": "net/ipv4/conf/{}/rp_filter", "accept_ra": "net/ipv6/conf/{}/accept_ra"}
"""Things of a link that are files, not netlink's."""
RETRY = 10.0
"""Seconds between two tries to make a device of a kind that the kernel does not have."""

Key = tuple[str, str]
"""The link, and which thing of it: `link`, `alias`, `mac`, `mtu`, `up`, one of SETTINGS, or an address."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a link is made with and keeps. Zeroes: nothing is said, or it does not matter."""

    kind: str
    vni: int = 0
    port: int = 0
    local: str = ""
    parent: int = 0
    learning: int = 0
    gbp: int = 0
    remote: str = ""

    def __str__(self) -> str:
        if self.kind != "vxlan":
            ends = (("local", self.local), ("remote", self.remote))
            return " ".join((f"type {self.kind}", *(f"{which} {ip}" for which, ip in ends if ip)))
        words = f"type vxlan id {self.vni} local {self.local} dstport {self.port}"
        words += (f" dev if{self.parent}" if self.parent else "") + ("" if self.learning else " nolearning")
        return words + " gbp" * self.gbp


Value = Base | str | int
Steps = Plan[Key, Value]


def vxlan_base(link: Link) -> Base:
    """What the VXLAN device was made with."""
    info = link.info
    local, learning = str(info.get("local") or info.get("local6") or ""), int(info.get("learning", 0))
    return Base("vxlan", info.get("id", 0), info.get("port", 0), local, link.parent, learning, int(info.get("gbp", 0)))


def setting(name: str, what: str, netns: str | None) -> int | None:
    """What one of SETTINGS is on a link; None where there is no such setting."""
    with suppress(KernelError):
        return int(sysctl.read(SETTINGS[what].format(name), netns=netns))
    return None


def plan(want: Mapping[Key, Value], have: Mapping[Key, Value]) -> Steps:
    """The steps from what is to what should be. A link that must be made anew has nothing to start with."""
    anew = {name for (name, what), value in want.items() if what == "link" and have.get((name, what), value) != value}
    gone = {name for name, what in have if (name, "link") not in want}
    rest = {key: value for key, value in have.items() if key[1] == "link" or key[0] not in anew | gone}
    return diff(want, rest, lambda verb, key, value: _words(verb, *key, value))


def _words(verb: Verb, name: str, what: str, value: Value) -> str:
    if what == "link":
        if verb is Verb.DELETE:
            return f"ip link delete {name}"
        anew = f"ip link delete {name}; " if verb is Verb.CHANGE else ""
        return f"{anew}ip link add {name} {value}"
    if what in SETTINGS:
        return f"sysctl -w {SETTINGS[what].format(name)}={value}"
    if value == "address":
        return f"ip address {'delete' if verb is Verb.DELETE else 'add'} {what} dev {name}"
    words = {"mac": f"address {value}", "up": "up"}.get(what, f"{what} {value}")
    return f"ip link set {name} {words}"


def change(nl: Netlink, op: Op[Key, Value], netns: str | None) -> None:
    """One step that makes, on a link that is there."""
    name, what = op.key
    match what, op.want:
        case "mac", mac:
            links.set_mac(nl, name, str(mac))
        case "mtu", int(mtu):
            links.set_mtu(nl, name, mtu)
        case "alias", alias:
            links.set_alias(nl, name, str(alias))
        case "up", _:
            links.set_up(nl, name)
        case setting, int(value) if setting in SETTINGS:
            sysctl.write(SETTINGS[setting].format(name), value, netns=netns)
        case address, _:
            add_address(nl, links.link_index(nl, name), address, nodad=True, replace=True)


def take_away(nl: Netlink, op: Op[Key, Value]) -> None:
    """One step that unmakes: the link, or an address of its. Raises NotFound."""
    name, what = op.key
    if op.have == "address":
        delete_address(nl, links.link_index(nl, name), what)
    elif what == "link":
        links.delete_link(nl, name)


@dataclass(frozen=True, slots=True)
class LinkWork:
    """The steps, and what stands in the way of more."""

    steps: Steps
    problems: tuple[TortieError, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.problems)

    def __str__(self) -> str:
        return "\n".join((str(self.steps), *(f"# {problem}" for problem in self.problems)))


class LinkStage(ABC):
    """Takes the steps that a stage's plan decides on. How a link is made, and what a refusal means, the stage says."""

    guard = False

    def __init__(self, live: LiveLinks, netns: str | None) -> None:
        self._live = live
        self._netns = netns
        self._missing: dict[str, tuple[float, NotSupported]] = {}
        """Kinds that the kernel does not have, and when that was found."""

    @abstractmethod
    def _apply(self, nl: Netlink, op: Op[Key, Value], steps: Steps) -> None:
        """One step that makes, of these."""

    def _undo(self, nl: Netlink, op: Op[Key, Value]) -> None:
        """One step that unmakes. Raises NotFound."""
        take_away(nl, op)

    @abstractmethod
    def _explained(self, op: Op[Key, Value], problem: TortieError) -> TortieError:
        """Why a step was refused, as a person is told."""

    def _look(self) -> None:
        """At what there is after making."""
        self._live.refresh()

    def make(self, work: Work) -> None:
        """All steps, of all devices; what goes wrong first is raised last, and keeps nothing that has to go."""
        assert isinstance(work, LinkWork)
        problems = list(work.problems)
        refused: set[str] = set()
        with Netlink(self._netns) as nl:
            for op in work.steps:
                if op.makes and op.key[0] not in refused:
                    try:
                        self._apply(nl, op, work.steps)
                    except TortieError as problem:
                        refused.add(op.key[0])
                        problems.append(self._explained(op, problem))
        if any(op.want == "address" for op in work.steps):
            self._live.forget()  # of an IPv6 address the kernel tells some time after it is there
        self._look()
        if problems:
            self.unmake(work)
            raise problems[0]

    def unmake(self, work: Work) -> None:
        assert isinstance(work, LinkWork)
        with Netlink(self._netns) as nl:
            for op in work.steps:
                if not op.makes:
                    with suppress(NotFound):
                        self._undo(nl, op)

    def forget(self) -> None:
        self._live.forget()

    def _not_missing(self, kind: str) -> None:
        """Raises NotSupported for a kind that the kernel did not have a moment ago."""
        missing = self._missing.get(kind)
        if missing is not None and time.monotonic() - missing[0] < RETRY:
            raise missing[1]

    def _lacking(self, kind: str, text: str) -> NotSupported:
        """Remembers, and says in these words, that the kernel has no such kind."""
        self._missing[kind] = time.monotonic(), NotSupported(text)
        return self._missing[kind][1]


def is_unknown(problem: TortieError) -> bool:
    """Whether that is the answer of a kernel without this kind of link."""
    return isinstance(problem, KernelError) and problem.errno == errno.EOPNOTSUPP
