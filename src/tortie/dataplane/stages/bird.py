"""BGP: the node's bird.conf and its BIRD.

Ours: the configuration file, and the daemon that answers on its control socket.
Order: in a worker of its own, so that no pod waits for a routing daemon. BIRD is started, and started again when it has
gone; a configuration that it refuses never replaces the one it runs.
Source: `render.bird`; `bird -p`, `configure` on the control socket.
"""

from __future__ import annotations

from dataclasses import dataclass

from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel.bird import Bird
from tortie.render.bird import render
from tortie.render.routing import bird_config


@dataclass(frozen=True, slots=True)
class Configuration:
    """A bird.conf to swap in, and whether BIRD has to be started for it."""

    text: str
    start: bool

    def __bool__(self) -> bool:
        return bool(self.text) or self.start

    def __str__(self) -> str:
        return "\n".join(("bird -p; birdc configure" if self.text else "", "bird -R" if self.start else "")).strip()


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
        return Configuration(text if text != self._have else "", not self._bird.running())

    def make(self, work: Work) -> None:
        assert isinstance(work, Configuration)
        if work.text:
            self._bird.swap(work.text)
            self._have = work.text
        if work.start:
            self._bird.start()

    def unmake(self, work: Work) -> None:
        """Nothing: a configuration replaces the one before."""

    def forget(self) -> None:
        self._have = ""
