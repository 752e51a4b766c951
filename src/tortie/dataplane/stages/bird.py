"""BGP: the node's bird.conf and its BIRD.

Ours: the configuration file, and the daemon that answers on its control socket.
Order: in a worker of its own, so that no pod waits for a routing daemon. BIRD is started, and started again when it has
gone; a configuration that it refuses never replaces the one it runs. Routes that a BIRD before it left in the kernel
are held until its peers have sent them again; without such there is nothing to wait for (up to 240 s, for a peer that
is gone).
Source: `render.bird`; `bird -p`, `configure` on the control socket.
"""

from __future__ import annotations

from dataclasses import dataclass

from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel.bird import Bird
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6
from tortie.kernel.routes import list_routes
from tortie.render.bird import render
from tortie.render.routing import bird_config

BIRD_PROTOCOL = 12
"""RTPROT_BIRD (linux/rtnetlink.h)."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A bird.conf to swap in, whether BIRD has to be started for it, and whether it has routes to hold then."""

    text: str
    start: bool
    recover: bool = False

    def __bool__(self) -> bool:
        return bool(self.text) or self.start

    def __str__(self) -> str:
        start = "bird -R" if self.recover else "bird"
        return "\n".join(("bird -p; birdc configure" if self.text else "", start if self.start else "")).strip()


class BirdDaemon:
    name = "bird"
    guard = False

    def __init__(self, bird: Bird, connect_delay: int) -> None:
        self._bird = bird
        self._delay = connect_delay
        self._have = ""

    def plan(self, state: DesiredState) -> Configuration:
        config = bird_config(state, self._delay)
        if config is None:
            return Configuration("", False)
        text = render(config)
        start = not self._bird.running()
        return Configuration(text if text != self._have else "", start, start and routes_left())

    def make(self, work: Work) -> None:
        assert isinstance(work, Configuration)
        if work.text:
            self._bird.swap(work.text)
            self._have = work.text
        if work.start:
            self._bird.start(recover=work.recover)

    def unmake(self, work: Work) -> None:
        """Nothing: a configuration replaces the one before."""

    def forget(self) -> None:
        self._have = ""


def routes_left() -> bool:
    """Whether the kernel has routes of a BIRD."""
    with Netlink() as nl:
        return any(list_routes(nl, family, protocol=BIRD_PROTOCOL) for family in (AF_INET, AF_INET6))
