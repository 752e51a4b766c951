"""BIRD without any of ours: the smallest configuration that does a thing, and a daemon with it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from bench.node import NotReady, memory_of
from tortie.base.errors import Unavailable
from tortie.bgp.birdc import parse_protocols
from tortie.kernel import netns
from tortie.kernel.bird import Bird

AS = 64512  # as Calico's clusters have it
RTF_GATEWAY = 2  # linux/route.h
PATIENCE = 60.0
"""Seconds until what should come about has not."""


@dataclass(frozen=True, slots=True)
class Session:
    """An iBGP session from an address to another. `passive` waits for the other end to dial; `more` are lines of BIRD's
    for the protocol, `channel` for its IPv4 channel. Several with one neighbour need several ports: BIRD holds a lock
    on the neighbour's address and port, even where it never dials."""

    here: str
    there: str
    port: int = 179
    passive: bool = False
    more: str = ""
    channel: str = "import all; export where source != RTS_DEVICE;"


def configuration(router_id: str, sessions: Iterable[Session], more: str = "") -> str:
    """BIRD for IPv4: what it learns and hears goes to the kernel, without our priorities, filters and guards."""
    head = f"""
log stderr {{ warning, error, fatal }};
router id {router_id};
protocol device {{ scan time 2; }}
protocol direct {{ ipv4; }}
protocol kernel {{ learn; persist; scan time 2; metric 0; ipv4 {{ import all; export where source = RTS_BGP; }}; }}
"""
    return head + more + "".join(f"\n{_session(number, one)}" for number, one in enumerate(sessions, 1))


def _session(number: int, one: Session) -> str:
    passive = "passive on;" if one.passive else ""
    return f"""protocol bgp session{number} {{
  local {one.here} as {AS}; neighbor {one.there} port {one.port} as {AS}; multihop; {passive} {one.more}
  connect delay time 0; connect retry time 5; error wait time 5,30;
  ipv4 {{ {one.channel} gateway recursive; }};
}}"""


@contextlib.contextmanager
def running(text: str, directory: Path, name: str, path: str) -> Iterator[Bird]:
    """A daemon with this configuration in a namespace (a path). Raises ConfigError for what BIRD refuses."""
    bird = Bird(directory / f"{name}.conf", directory / f"{name}.ctl", path, log=directory / f"{name}.log")
    bird.check(text)
    bird.config.write_text(text)
    bird.start(recover=False)
    try:
        yield bird
    finally:
        bird.stop()


def established(bird: Bird) -> int:
    """How many sessions are."""
    try:
        protocols = parse_protocols(bird.ask("show protocols all"))
    except Unavailable:
        return 0
    return sum(one.session is not None and one.session.established for one in protocols)


def pid(bird: Bird) -> int:
    return int(bird.pid_file.read_text())


def cpu(bird: Bird) -> float:
    """Seconds of CPU that the daemon has taken: /proc/PID/schedstat, nanoseconds first."""
    return int(Path(f"/proc/{pid(bird)}/schedstat").read_text().split()[0]) / 1e9


def memory(bird: Bird) -> float:
    """The most that the daemon ever had in memory, in MB."""
    return memory_of(pid(bird)).peak


def until(condition: Callable[[], bool], what: str, pause: float = 0.005) -> None:
    """Returns when something is so. Raises NotReady."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise NotReady(f"after {PATIENCE:g} s still not: {what}")
        time.sleep(pause)


def routes(path: str) -> set[str]:
    """The destinations of a namespace's main IPv4 table that lead through a gateway, such as "10.0.1.0/24"."""
    with netns.entered(path):
        lines = Path("/proc/thread-self/net/route").read_text().splitlines()[1:]
    rows = (line.split() for line in lines)
    return {f"{_address(row[1])}/{bin(int(row[7], 16)).count('1')}" for row in rows if int(row[3], 16) & RTF_GATEWAY}


def _address(text: str) -> IPv4Address:
    """Of the kernel's hexadecimal number, which is in the machine's own order of bytes."""
    return IPv4Address(int(text, 16).to_bytes(4, sys.byteorder))
