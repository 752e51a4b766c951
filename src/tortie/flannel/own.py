"""By what a link of ours is known: the names that are wanted, and an alias that the rest of our doings leaves alone.

`ip link` shows it: `alias tortie flannel 10.5.0.0/16`. Another daemon on this node, for another network, has another.
"""

from __future__ import annotations

from collections.abc import Iterable

from tortie.flannel.state import FlannelState
from tortie.kernel.links import Link


def alias(state: FlannelState) -> str:
    """That of this daemon's links; "" while it has no network, and owns nothing."""
    return f"tortie flannel {state.networks[0]}" if state.networks else ""


def own_links(state: FlannelState, links: Iterable[Link]) -> dict[str, Link]:
    """By name, the wanted first: one that a flanneld before this daemon made, without the alias, becomes ours."""
    mark = alias(state)
    there = {link.name: link for link in links}
    wanted = {device.name: there[device.name] for device in state.devices if device.name in there}
    return wanted | {name: link for name, link in there.items() if mark and link.alias == mark}
