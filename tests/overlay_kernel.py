"""What an overlay looks like in the kernel, as ip and bridge tell it, and pings that are counted while it changes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from namespaces import Ns

PACE = 0.01
"""Seconds from one ping to the next."""
REST = 0.5
"""Seconds of pings at the end, of which those are not counted whose answers may still be on their way."""


@dataclass
class Pinging:
    """What came of pings."""

    lost: int = -1
    sent: int = 0


@contextmanager
def pinging(source: Ns, ip: str, pace: float = PACE) -> Iterator[Pinging]:
    """For as long as the block lasts, one every `pace` seconds."""
    found = Pinging()
    words = ["ip", "netns", "exec", source.name, "ping", "-i", str(pace), "-n", ip]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(0.3)
        yield found
        time.sleep(REST)
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        transmitted = re.search(r"(\d+) packets transmitted", said)
        assert transmitted is not None, said
        found.sent = int(transmitted[1]) - round(REST / pace / 2)
        answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", said)}
        found.lost = sum(number not in answered for number in range(1, found.sent + 1))


# --- what is in the kernel, as other programs read it -------------------------------------------------------------


def device(ns: Ns, name: str) -> dict[str, Any]:
    """A tunnel's device; nothing when there is none."""
    found = [link for link in ns.json("link", "show") if link["ifname"] == name]
    if not found:
        return {}
    (link,) = found
    data = link["linkinfo"].get("info_data", {})
    settings = {key: data.get(key) for key in ("id", "port", "local", "local6", "link", "learning") if key in data}
    addresses = [one for each in ns.json("address", "show") if each["ifname"] == name for one in each["addr_info"]]
    own = sorted(f"{one['local']}/{one['prefixlen']}" for one in addresses if one["scope"] == "global")
    mac = link.get("address", "")  # WireGuard has none
    return {"mac": mac, "mtu": link["mtu"], "up": "UP" in link["flags"], "addresses": own, **settings}


def neighbours(ns: Ns, name: str) -> set[tuple[str, str]]:
    """Permanent ones: address and MAC address."""
    every = [one for version in (4, 6) for one in ns.json(f"-{version}", "neigh", "show", "dev", name)]
    return {(one["dst"], one["lladdr"]) for one in every if "PERMANENT" in one["state"]}


def forwarding(ns: Ns, name: str) -> set[tuple[str, str]]:
    """MAC address and destination."""
    listed = json.loads(ns.run("bridge", "-j", "fdb", "show", "dev", name) or "[]")
    return {(one["mac"], one["dst"]) for one in listed if "dst" in one}


def cluster_routes(ns: Ns) -> dict[str, tuple[str, ...]]:
    """Of protocol 80, by destination: type, next hop, link, flags."""
    every = [one for version in (4, 6) for one in ns.json(f"-{version}", "route", "show", "proto", "80")]
    return {
        one["dst"]: (one["type"], one.get("gateway", ""), one.get("dev", ""), *sorted(set(one["flags"]) & {"onlink"}))
        for one in every
    }


def snapshot(ns: Ns, *names: str) -> dict[str, Any]:
    """All that the overlay is made of."""
    found: dict[str, Any] = {"routes": cluster_routes(ns)}
    for name in names:
        found[name] = device(ns, name)
        if found[name]:
            found[f"{name} neighbours"], found[f"{name} forwarding"] = neighbours(ns, name), forwarding(ns, name)
    return found
