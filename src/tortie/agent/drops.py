"""What this node denies, packet by packet, for everybody who watches; the kernel is only asked while somebody does.

    log group ─► Reader ─► Tally: equal ones are counted ─► every second: names ─► a line of JSON each ─► watchers

Every bound is said when it is met: the kernel tells some hundred packets a second (`render.denials`), the socket's
buffer and each watcher hold so much; what is beyond is a line that says how many are missing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tortie.agent.names import AddressNames, Name, RuleNames
from tortie.base.addr import IP
from tortie.base.errors import KernelError, NotSupported
from tortie.base.flow import PROTOCOLS
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.kernel import headers
from tortie.kernel.headers import Headers
from tortie.kernel.nflog import Logged, Lost, Reader
from tortie.render.denials import DENIED, GROUP, TOLD
from tortie.render.ruleset import Ruleset

log = logging.getLogger(__name__)

SECOND = 1.0
DISTINCT = 2000
"""Different drops that are told in one second; other programs' rules may tell our group, too, and without a limit."""
WAITING = 30
"""Seconds' worth of lines that are kept for a watcher who does not read."""
HEARTBEAT = 1.0
"""Seconds after which a watcher hears nothing rather than something, so that it may look whether it is still there."""


@dataclass(frozen=True, slots=True)
class Drop:
    """What makes drops equal. `headers` is None of a packet whose headers cannot be read."""

    mark: int
    hook: str
    indev: str
    outdev: str
    headers: Headers | None


class Tally:
    """The drops of one second, equal ones counted; those beyond `DISTINCT` different ones only as missing."""

    def __init__(self) -> None:
        self.counts: dict[Drop, int] = {}
        self.since: dict[Drop, float] = {}
        self.missing = 0

    def add(self, drop: Drop, when: float) -> None:
        if drop not in self.counts and len(self.counts) >= DISTINCT:
            self.missing += 1
            return
        self.counts[drop] = self.counts.get(drop, 0) + 1
        self.since.setdefault(drop, when)

    def __bool__(self) -> bool:
        return bool(self.counts or self.missing)


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of JSON, and how many packets they tell of."""

    text: bytes
    packets: int


class Watcher:
    """One who watches, with what it has not read yet."""

    def __init__(self) -> None:
        self._waiting: deque[Lines] = deque()
        self._news = asyncio.Event()
        self.missing = 0
        self.ended = False

    def give(self, lines: Lines) -> None:
        if len(self._waiting) >= WAITING:
            self.missing += lines.packets
        else:
            self._waiting.append(lines)
        self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()

    async def take(self) -> bytes:
        """All that is waiting; nothing when nothing comes for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT):
                await self._news.wait()
        self._news.clear()
        text = b"".join(lines.text for lines in self._waiting)
        self._waiting.clear()
        return text


class Drops:
    """Runs on the event loop, in the namespace of the node. `ruleset` is what the kernel has, where that is known."""

    def __init__(self, node: str, cluster: Cluster, ruleset: Callable[[], Ruleset | None]) -> None:
        self._node = node
        self._cluster = cluster
        self._ruleset = ruleset
        self._state: DesiredState | None = None
        self._watchers: set[Watcher] = set()
        self._closed = False
        self._reader: Reader | None = None
        self._tally = Tally()
        self._addresses = AddressNames(cluster)
        self._rules = RuleNames()
        self._interfaces: dict[int, str] = {}

    def applied(self, ruleset: Ruleset | None) -> None:
        """The kernel has this now, or had it a moment ago: what it denied is told later than it may go again."""
        if self._reader is not None:
            self._rules.learn(ruleset)

    def see(self, state: DesiredState) -> None:
        """The node must look like this now."""
        self._state = state
        self._addresses.changed()

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """Lines of JSON from now on, and nothing now and then. Raises NotSupported, Unavailable before the first."""
        watcher = Watcher()
        if self._reader is None:
            self._open()
        self._watchers.add(watcher)
        try:
            yield _line({"node": self._node, "watching": True})
            while not (watcher.ended or self._closed):
                text = await watcher.take()
                if missing := watcher.missing:
                    watcher.missing = 0
                    text += self._lost(missing, "the watcher did not read them in time")
                yield text
        finally:
            self._watchers.discard(watcher)
            if not self._watchers and self._reader is not None:
                self._close()

    def close(self) -> None:
        """The agent stops: nobody watches any more."""
        self._closed = True
        self._end_all()

    def counted(self, counters: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        """Of every rule that denies what the kernel has counted, and what it is in words."""
        rules = RuleNames()
        rules.learn(self._ruleset())
        policies = self._state.policies if self._state is not None else {}
        found: dict[str, Any] = {}
        for name in sorted(rules.all() & counters.keys()):
            packets, octets = counters[name]
            denial = rules.say(name, policies)
            words, direction = denial.words, denial.direction
            found[denial.name] = {"packets": packets, "bytes": octets, "words": words, "direction": direction}
        return found

    def _end_all(self) -> None:
        for watcher in self._watchers:
            watcher.end()

    def _open(self) -> None:
        ruleset = self._ruleset()
        if ruleset is not None and DENIED in ruleset.chains and TOLD not in ruleset.chains[DENIED].rules:
            raise NotSupported("this kernel has no log groups for nftables: it lacks nfnetlink_log")
        self._reader = Reader(GROUP)
        self._tally, self._rules, self._interfaces = Tally(), RuleNames(), {}
        self._rules.learn(ruleset)
        asyncio.get_running_loop().add_reader(self._reader.fileno(), self._read)

    def _close(self) -> None:
        assert self._reader is not None
        asyncio.get_running_loop().remove_reader(self._reader.fileno())
        self._reader.close()
        self._reader = None
        self._addresses = AddressNames(self._cluster)
        self._rules = RuleNames()

    def _read(self) -> None:
        assert self._reader is not None
        had = bool(self._tally)
        try:
            found = self._reader.read()
        except KernelError as error:
            log.warning("denied packets cannot be watched any more: %s", error)
            self._close()
            self._end_all()
            return
        for item in found:
            if isinstance(item, Lost):
                self._tally.missing += item.count
            else:
                self._tally.add(self._drop(item), item.time or time.time())
        if self._tally and not had:
            asyncio.get_running_loop().call_later(SECOND, self._tell)

    def _drop(self, logged: Logged) -> Drop:
        found: Headers | None = None
        with suppress(ValueError):
            found = headers.read(logged.payload)
        ends = self._interface(logged.indev), self._interface(logged.outdev)
        return Drop(logged.mark, logged.hook, *ends, found)

    def _interface(self, index: int) -> str:
        """Its name, which is asked for at once: a second later its pod may be gone."""
        if index not in self._interfaces:
            with suppress(OSError):
                self._interfaces[index] = socket.if_indextoname(index) if index else ""
        return self._interfaces.get(index, "")

    def _tell(self) -> None:
        """What has come in a second, to everybody."""
        tally, self._tally = self._tally, Tally()
        if self._reader is None:
            return
        self._rules.learn(self._ruleset())
        text = b"".join(_line(self._told(drop, count, tally.since[drop])) for drop, count in tally.counts.items())
        if tally.missing:
            text += self._lost(tally.missing, "more than the agent could read in time")
        lines = Lines(text, sum(tally.counts.values()) + tally.missing)
        for watcher in self._watchers:
            watcher.give(lines)

    def _told(self, drop: Drop, count: int, when: float) -> dict[str, Any]:
        denial = self._rules.of(drop.mark, self._state.policies if self._state is not None else {})
        rule: dict[str, Any] = {"name": denial.name, "words": denial.words}
        parts = {"tier": denial.tier, "policy": denial.policy, "index": denial.index}
        rule |= {key: value for key, value in parts.items() if value not in ("", None)}
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds"),
            "node": self._node,
            "count": count,
            "direction": denial.direction,
            "rule": rule,
            "hook": drop.hook,
        }
        found = drop.headers
        if found is not None:
            ports = found.ports or (None, None)
            told["protocol"] = PROTOCOLS.get(found.protocol, str(found.protocol))
            if found.icmp is not None:
                told["icmp"] = {"type": found.icmp[0], "code": found.icmp[1]}
            told["source"] = self._end(found.source, ports[0], drop.indev)
            told["destination"] = self._end(found.destination, ports[1], drop.outdev)
        return told

    def _end(self, ip: IP, port: int | None, interface: str) -> dict[str, Any]:
        """One end of a packet. `pod` is whose interface it came from or would go to, whatever address it bears; when
        that is not its own, `owner` is whose it is."""
        end: dict[str, Any] = {"address": str(ip)}
        if port is not None:
            end["port"] = port
        if interface:
            end["interface"] = interface
        local = self._state.endpoints.get(interface) if self._state is not None else None
        pod = self._addresses.pod(local.key) if local is not None else None
        name = self._addresses.of(ip)
        if pod is not None and name != Name("pod", pod):
            return end | {"pod": pod, "ownAddress": False} | ({"owner": name.text} if name is not None else {})
        return end | ({name.kind: name.text} if name is not None else {})

    def _lost(self, count: int, why: str) -> bytes:
        return _line({"node": self._node, "lost": count, "why": why})


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"
