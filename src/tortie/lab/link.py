"""Faults of the link between a node and its switch: unplugged, another MTU, losses and delays.

    node: eth0 ═══════ port of the switch, called after the node

Unplugging is done at the switch's end, as somebody who pulls a cable does it: the node loses its carrier and keeps its
addresses and routes.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from tortie.base.errors import ConfigError, KernelError, NotFound, NotSupported, Unavailable
from tortie.kernel import links, netns
from tortie.kernel.netlink import Netlink
from tortie.lab.network import ETH0
from tortie.lab.topology import Host, Topology

_TC_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """Of the packets of each direction so many are lost, percent from 0 to 100, and so many milliseconds late. None:
    nothing is said of it."""

    loss: float | None = None
    delay: float | None = None

    @property
    def words(self) -> list[str]:
        """As `tc` has them; empty for a link without trouble."""
        found = []
        if self.delay:
            found += ["delay", f"{self.delay:g}ms"]
        if self.loss:
            found += ["loss", f"{self.loss:g}%"]
        return found


def percent(text: str) -> float | None:
    """`5%` or `0.5`. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%?", text)
    if not text:
        return None
    if match is None or float(match[1]) > 100:
        raise ConfigError(f'"{text}" is not a share such as 5%', "--loss")
    return float(match[1])


def milliseconds(text: str) -> float | None:
    """`20ms`, `1.5s`, `0`. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|)", text)
    if not text:
        return None
    if match is None or (not match[2] and float(match[1])):
        raise ConfigError(f'"{text}" is not a time such as 20ms', "--delay")
    return float(match[1]) * (1000 if match[2] == "s" else 1)


def plug(lab: Topology, node: str, up: bool) -> None:
    """Raises ConfigError for a node that the lab has not."""
    host = lab.node(node)
    with Netlink(netns.path(lab.router_of(host).netns)) as switch:
        (links.set_up if up else links.set_down)(switch, node)


def set_mtu(lab: Topology, node: str, mtu: int) -> None:
    """Of both ends."""
    host = lab.node(node)
    for namespace, device in _ends(lab, host):
        with Netlink(netns.path(namespace)) as nl:
            links.set_mtu(nl, device, mtu)


def disturb(lab: Topology, node: str, trouble: Trouble) -> None:
    """In both directions; what `trouble` says nothing of stays as it is. Raises NotSupported without netem."""
    host = lab.node(node)
    for namespace, device in _ends(lab, host):
        old = _trouble_of(namespace, device)
        new = Trouble(
            old.loss if trouble.loss is None else trouble.loss,
            old.delay if trouble.delay is None else trouble.delay,
        )
        if new.words:
            _tc(namespace, "replace", "dev", device, "root", "netem", "limit", "10000", *new.words)
        elif old.words:
            _tc(namespace, "delete", "dev", device, "root")


def _ends(lab: Topology, host: Host) -> list[tuple[str, str]]:
    """Namespace and interface of both."""
    return [(host.netns, ETH0), (lab.router_of(host).netns, host.name)]


def _trouble_of(namespace: str, device: str) -> Trouble:
    """What is there by now."""
    import json

    for qdisc in json.loads(_tc(namespace, "show", "dev", device) or "[]"):
        if qdisc.get("kind") == "netem":
            options = qdisc.get("options", {})
            loss = options.get("loss-random", {}).get("loss", 0)  # a share of 1
            delay = options.get("delay", {}).get("delay", 0)  # seconds
            return Trouble(round(loss * 100, 4), round(delay * 1000, 3))
    return Trouble()


def _tc(namespace: str, verb: str, *words: str) -> str:
    """Raises NotSupported for a qdisc that this kernel has not, KernelError."""
    command = ["tc", "-n", namespace, "-j", "qdisc", verb, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TC_SECONDS)
    except FileNotFoundError:
        raise NotSupported("losses and delays are made by tc: apt-get install iproute2") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"tc in {namespace} took more than {_TC_SECONDS:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    problem = (done.stderr.strip() or "refused").splitlines()[0]
    if "kind is unknown" in problem:
        raise NotSupported("this kernel has no netem (CONFIG_NET_SCH_NETEM), which makes losses and delays; MTU it can")
    if "Cannot find device" in problem:
        raise NotFound(f"{' '.join(command)}: {problem}")
    raise KernelError(0, " ".join(command), problem)
