"""What WireGuard devices are told: their private key, their port, and their peers.

Ours: all of that, on the devices that the state has; the links themselves are another stage's.
Order: behind the devices, before the routes that lead into them. A new peer takes over the networks of an old one
before that one goes.
Source: flannel's wireguard backend, which makes the devices anew when it starts. Here only what differs is changed, so
that sessions go on.

A peer whose endpoint is not what its node publishes may have roamed, or be behind NAT: WireGuard goes by the address
that the last good packet came from. While there is a session with it, and it answers, that is right.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

from tortie.base.addr import IP
from tortie.base.errors import KernelError, NotFound, TortieError
from tortie.base.plan import Op, Plan, Verb, diff
from tortie.dataplane.converge import Work
from tortie.flannel.state import FlannelState, Wireguard
from tortie.kernel import wireguard
from tortie.kernel.wireguard import Peer

SESSION = 180.0
"""Seconds after a handshake for which its keys are good (REJECT_AFTER_TIME of WireGuard's protocol)."""
QUIET = 15.0
"""Seconds in which who is sent to has answered, if with nothing else (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT there)."""
PRIVATE_KEY, LISTEN_PORT = "private-key", "listen-port"

Key = tuple[str, str]
"""The device, and which thing of it: PRIVATE_KEY, LISTEN_PORT, or a peer's public key."""
Value = Peer | str | int
Endpoint = tuple[IP, int]


def want_of(state: FlannelState, names: Iterable[str]) -> dict[Key, Value]:
    """What these devices should be told, in the order in which they are. A device is known to the kernel by its key, so
    that comes first."""
    wanted: dict[Key, Value] = {}
    for device in state.devices:
        if isinstance(device.kind, Wireguard) and device.name in names:
            wanted[device.name, PRIVATE_KEY] = wireguard.clamped(device.kind.private_key)
            wanted[device.name, LISTEN_PORT] = device.kind.port
    for one in state.peers:
        if one.device in names:
            peer = Peer(one.key, one.endpoint, frozenset(one.allowed), one.psk, one.keepalive)
            wanted[one.device, one.key] = peer
    return wanted


def have_of(name: str, device: wireguard.Device) -> dict[Key, Value]:
    """The same of a device that is there."""
    peers = {(name, peer.key): peer for peer in device.peers}
    return {(name, PRIVATE_KEY): device.private_key, (name, LISTEN_PORT): device.port, **peers}


def plan(
    want: Mapping[Key, Value],
    have: Mapping[Key, Value],
    told: Mapping[Key, Endpoint | None],
    quiet: Set[Key],
    now: float,
) -> Plan[Key, Value]:
    """The steps from what is to what should be. `told` are the endpoints that were wanted before, `quiet` the peers
    that do not answer. `now` is in seconds since 1970."""
    settled: dict[Key, Value] = {}
    for where, value in want.items():
        old = have.get(where)
        settled[where] = value
        if isinstance(value, Peer) and isinstance(old, Peer) and where not in quiet:
            moved = where in told and told[where] != value.endpoint
            port = where[0], LISTEN_PORT  # another one here is another one everywhere
            if not moved and have.get(port) == want.get(port) and _has_roamed(value, old, now):
                settled[where] = replace(value, endpoint=old.endpoint)
    return diff(settled, have, _words)


def _has_roamed(want: Peer, have: Peer, now: float) -> bool:
    """Within its IP version: that is a matter of configuration."""
    if want.endpoint is None or have.endpoint is None or now - have.handshake >= SESSION:
        return False
    return want.endpoint[0].version == have.endpoint[0].version


@dataclass(frozen=True, slots=True)
class Look:
    """At a peer's counters: when, and what they were. `answers` is what came of the look before."""

    at: float
    sent: int
    received: int
    answers: bool = True


def looked(have: Mapping[Key, Value], before: Mapping[Key, Look], now: float) -> dict[Key, Look]:
    """Each peer's newest look that there is need of: one is worth something once QUIET has gone by."""
    found: dict[Key, Look] = {}
    for where, peer in have.items():
        if isinstance(peer, Peer):
            last = before.get(where)
            if last is None:
                found[where] = Look(now, peer.sent, peer.received)
            elif now - last.at < QUIET:
                found[where] = last
            else:
                answers = peer.sent <= last.sent or peer.received > last.received
                found[where] = Look(now, peer.sent, peer.received, answers)
    return found


def _words(verb: Verb, where: Key, value: Value) -> str:
    """Without a secret: wg(8) reads those from files."""
    device, what = where
    if not isinstance(value, Peer):
        return f"wg set {device} {what} {'/dev/stdin' if what == PRIVATE_KEY else value}"
    if verb is Verb.DELETE:
        return f"wg set {device} peer {what} remove"
    words = f"wg set {device} peer {what}"
    if value.endpoint is not None:
        address, port = value.endpoint
        words += f" endpoint {f'[{address}]' if address.version == 6 else address}:{port}"
    if value.psk or verb is Verb.CHANGE:
        words += f" preshared-key {'/dev/stdin' if value.psk else '/dev/null'}"
    if value.keepalive or verb is Verb.CHANGE:
        words += f" persistent-keepalive {value.keepalive}"
    return f"{words} allowed-ips {','.join(sorted(map(str, value.allowed)))}"


class Peers:
    name = "WireGuard peers"
    guard = False

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._told: dict[Key, Endpoint | None] = {}
        """The endpoints that were wanted when all was as it should be."""
        self._looks: dict[Key, Look] = {}
        self._fresh: frozenset[str] = frozenset()
        """Devices that had no peers: others may have sessions with what was there before."""
        self._wanted: dict[Key, Value] = {}
        """What the plan before is to lead to."""

    def plan(self, state: FlannelState) -> Plan[Key, Value]:
        """The kernel tells nobody of changes, so it is asked each time. What of a device that is not there is lacking,
        the stage that makes it says."""
        names = [device.name for device in state.devices if isinstance(device.kind, Wireguard)]
        if not names:
            self._told, self._looks = {}, {}
            return Plan()
        have: dict[Key, Value] = {}
        there = set()
        with wireguard.Wireguard(self._netns) as wg:
            for name in names:
                try:
                    have |= have_of(name, wg.device(name))
                    there.add(name)
                except NotFound:
                    continue
        want, now = want_of(state, there), time.time()
        self._looks = looked(have, self._looks, now)
        quiet = {where for where, look in self._looks.items() if not look.answers}
        steps = plan(want, have, self._told, quiet, now)
        self._wanted = want
        self._fresh = frozenset(there - {name for (name, _), value in have.items() if isinstance(value, Peer)})
        if not any(op.makes for op in steps):
            self._remember()
        return steps

    def make(self, work: Work) -> None:
        """All steps, of all devices; the first refusal is raised after the others were tried."""
        assert isinstance(work, Plan)
        ops: list[Op[Key, Value]] = [op for op in work if op.makes]
        with wireguard.Wireguard(self._netns) as wg:
            refused = [problem for op in ops if (problem := _set(wg, op)) is not None]
            for name in dict.fromkeys(op.key[0] for op in ops):
                mine = [op for op in ops if op.key[0] == name and isinstance(op.want, Peer)]
                refused += [error for _, error in wg.set_peers(name, [_change(op) for op in mine])]
                if name in self._fresh:
                    idle = [op.key[1] for op in mine if isinstance(op.want, Peer) and not op.want.keepalive]
                    refused += [error for _, error in wg.wake_peers(name, idle)]
        if refused:
            self.unmake(work)  # what is wrong with one keeps nobody in that has to go
            raise refused[0]
        self._remember()

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        gone: dict[str, list[str]] = {}
        for op in work:
            if not op.makes:
                gone.setdefault(op.key[0], []).append(op.key[1])
        if not gone:
            return
        with wireguard.Wireguard(self._netns) as wg:
            refused = [error for name, keys in gone.items() for _, error in wg.remove_peers(name, keys)]
        if refused:
            raise refused[0]

    def forget(self) -> None:
        """Nothing of the kernel is remembered."""

    def _remember(self) -> None:
        self._told = {where: value.endpoint for where, value in self._wanted.items() if isinstance(value, Peer)}


def _change(op: Op[Key, Value]) -> tuple[Peer, Peer | None]:
    assert isinstance(op.want, Peer)
    return op.want, op.have if isinstance(op.have, Peer) else None


def _set(wg: wireguard.Wireguard, op: Op[Key, Value]) -> TortieError | None:
    """The device's own key or port; what stands in the way."""
    name, what = op.key
    try:
        if what == PRIVATE_KEY:
            wg.set_device(name, private_key=str(op.want))
        elif isinstance(op.want, int):
            wg.set_device(name, port=op.want)
    except KernelError as why:
        if why.errno == errno.EADDRINUSE:
            hint = "another program has this UDP port: stop it, or choose another Backend.ListenPort for all nodes"
            return KernelError(why.errno, why.doing, hint)
        return why
    except NotFound as why:
        return why
    return None
