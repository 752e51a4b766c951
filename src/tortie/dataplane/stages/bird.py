"""BGP: the node's bird.conf and its BIRD.

Ours: the configuration file, and the daemon that answers on its control socket.
Order: in a worker of its own, so that no pod waits for a routing daemon. BIRD is started, and started again when it has
gone; a configuration that it refuses never replaces the one it runs. Routes that a BIRD before it left in the kernel
are held until its peers have sent them again; without such there is nothing to wait for (up to 240 s, for a peer that
is gone). A session whose address is not there to listen on when BIRD starts it stays down: it is started again, at once
when the node's addresses change, else ever more rarely. BIRD that routes through IP in IP is configured anew when the
link comes: a route is bound to a link as it is taken in. A log that has grown large loses its beginning.
Source: `render.bird`; `bird -p`, `configure` on the control socket.
"""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import dataclass, field

from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import links
from tortie.kernel.addresses import list_addresses
from tortie.kernel.bird import LOG_TAIL, Bird
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, RTPROT_BIRD
from tortie.kernel.routes import list_routes
from tortie.render.bird import BindMode, BirdConfig, render
from tortie.render.bird_config import TUNNEL
from tortie.render.routing import asks_tunnel, bird_config

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds in which BIRD is not told again to listen on an address that does not come."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A bird.conf to swap in, whether BIRD has to be started for it, and whether it has routes to hold then; or
    (`again`) whether what it has is to be loaded once more. `trim`: the log is too large."""

    text: str = field(default="", repr=False)  # it may hold passwords
    start: bool = False
    recover: bool = False
    again: bool = False
    trim: bool = False

    def __bool__(self) -> bool:
        return bool(self.text) or self.start or self.again or self.trim

    def __str__(self) -> str:
        trim = f"tail -c {LOG_TAIL} bird.log" if self.trim else ""
        configure = "bird -p; birdc configure" if self.text else "birdc configure" if self.again else ""
        start = ("bird -R" if self.recover else "bird") if self.start else ""
        return "\n".join(filter(None, (trim, configure, start)))


@dataclass(frozen=True, slots=True)
class Attempt:
    """When BIRD was told last to listen once more, in seconds of some clock, which addresses the node had then, and
    for how many seconds it is left alone while these stay."""

    at: float
    addresses: Set[str]
    pause: float = FIRST_PAUSE

    def is_due(self, addresses: Set[str], now: float) -> bool:
        return addresses != self.addresses or now >= self.at + self.pause

    def next(self, addresses: Set[str], now: float) -> Attempt:
        """The one after this."""
        longer = min(2 * self.pause, LONGEST_PAUSE)
        return Attempt(now, addresses, longer if addresses == self.addresses else FIRST_PAUSE)


class BirdDaemon:
    name = "bird"
    guard = False

    def __init__(self, bird: Bird, connect_delay: int) -> None:
        self._bird = bird
        self._delay = connect_delay
        self._have = ""
        self._rendered: tuple[BirdConfig, str] | None = None
        self._attempt: Attempt | None = None

    def plan(self, state: DesiredState) -> Configuration:
        there = not asks_tunnel(state) or TUNNEL in links.names(self._bird.netns_path).values()
        config = bird_config(state, self._delay, tunnel_there=there)
        if config is None:
            return Configuration()
        if self._rendered is None or self._rendered[0] != config:
            self._rendered = config, render(config)
        text = self._rendered[1]
        if not self._have and self._bird.has(text):
            self._have = text
        due = text if text != self._have else ""
        start = not self._bird.running()
        again = not start and config.bind_mode is BindMode.NODE_IP and self._is_to_listen()
        return Configuration(due, start, start and routes_left(self._bird.netns_path), again, self._bird.log_is_large())

    def _is_to_listen(self) -> bool:
        """Whether BIRD is to try once more to listen where it does not, which it does not do by itself."""
        before, now = self._attempt, time.monotonic()
        if not self._bird.deaf():
            if before is not None and before.is_due(before.addresses, now):  # sooner it may still be trying
                self._attempt = None
            return False
        return before is None or before.is_due(own_addresses(self._bird.netns_path), now)

    def make(self, work: Work) -> None:
        assert isinstance(work, Configuration)
        if work.trim:
            self._bird.trim_log()
        changed = bool(work.text) and self._bird.swap(work.text)
        self._have = work.text or self._have
        if work.again:
            there, now = own_addresses(self._bird.netns_path), time.monotonic()
            self._attempt = self._attempt.next(there, now) if self._attempt is not None else Attempt(now, there)
            if not changed:
                self._bird.reload()
        if work.start:
            self._bird.start(recover=work.recover)

    def unmake(self, work: Work) -> None:
        """Nothing: a configuration replaces the one before."""

    def forget(self) -> None:
        self._have = ""


def routes_left(netns: str | None) -> bool:
    """Whether the kernel has routes of a BIRD. `netns` is a path; None is the calling thread's namespace."""
    with Netlink(netns) as nl:
        return any(list_routes(nl, family, protocol=RTPROT_BIRD) for family in (AF_INET, AF_INET6))


def own_addresses(netns: str | None) -> frozenset[str]:
    """All that somebody may listen on, with their lengths, but for IPv6's link-local ones: every pod brings one."""
    with Netlink(netns) as nl:
        return frozenset(one.ip for one in list_addresses(nl) if one.usable and not one.ip.startswith("fe80:"))
