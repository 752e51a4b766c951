"""An agent's node and what may be wrong around it: a town of addresses, each with a BIRD that is wrong in its own way.

    agent ── eth0 10.9.0.1  ── town: 10.9.0.2, .5, ...: a BIRD for each that has a session
          ── eth1 10.11.0.1 ── town: 10.11.0.9
          ── eth2 10.10.0.1 ── far end down

BIRD holds one session with a neighbour at a time, so there is one of them for each.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from namespaces import Ns
from tortie.kernel.bird import Bird

NODE, TOWN_AS = "10.9.0.1", 65009


def connect(agent: Ns, town: Ns, number: int, inside: str, outside: str = "") -> None:
    """A link of the agent's node, and its far end in the town."""
    agent.ip("link", "add", f"eth{number}", "type", "veth", "peer", "name", f"town{number}", "netns", town.name)
    agent.ip("link", "set", f"eth{number}", "up")
    agent.ip("address", "add", inside, "dev", f"eth{number}")
    if outside:
        town.ip("link", "set", f"town{number}", "up")
        town.ip("address", "add", outside, "dev", f"town{number}")


def session(own: str, neighbor: str = NODE, asn: int = 64512, own_as: int = TOWN_AS, more: str = "") -> str:
    """bird.conf with a session of the town's, which listens on its own address only."""
    return f"""router id {own};
log stderr all;
protocol device {{ scan time 1; }}
protocol bgp peer {{
  local {own} as {own_as};
  neighbor {neighbor} as {asn};
  multihop;
  strict bind on;
  connect delay time 1;
  connect retry time 1;
  error wait time 1, 2;
  {more}
  ipv4 {{ import all; export all; }};
}}
"""


@contextmanager
def bird(ns: Ns, home: Path, text: str) -> Iterator[Bird]:
    """A BIRD that runs in a namespace while the block does."""
    home.mkdir(parents=True, exist_ok=True)
    daemon = Bird(home / "bird.conf", home / "bird.ctl", ns.name, log=home / "bird.log")
    daemon.swap(text)
    daemon.start(recover=False)
    try:
        yield daemon
    finally:
        resume(daemon)
        daemon.stop()


def hang(daemon: Bird) -> None:
    """It does nothing any more, and the kernel goes on to accept connections for it."""
    os.kill(int(daemon.pid_file.read_text()), signal.SIGSTOP)


def resume(daemon: Bird) -> None:
    os.kill(int(daemon.pid_file.read_text()), signal.SIGCONT)


def drop(ns: Ns, what: str) -> None:
    """Packets that a namespace must not hear: `ip saddr 10.9.0.1 tcp dport 179`."""
    script = f"table inet deaf {{ chain c {{ type filter hook input priority 0; {what} drop\n}}\n}}\n"
    subprocess.run(["ip", "netns", "exec", ns.name, "nft", "-f", "-"], input=script, text=True, check=True, timeout=30)
