"""What becomes of each address at each port of a node that is elected for it. Pure: frames in and out, `now` given.

    probing ──nobody has it──► held: questions are answered; announced three times
       ▲ └──somebody has it──► refused ──after a while──┐
       └────────────────────────────────────────────────┘

A node that has just been relieved may still answer when its successor probes, so that the first refusals are no problem
yet. An address that is held is defended when another host claims it, unless this node itself may have been relieved
without hearing of it (`doubtful`): then whoever probes or claims it has it.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from tortie.base.addr import IP
from tortie.proxy.layer2 import frames
from tortie.proxy.layer2.frames import Heard
from tortie.proxy.layer2.ports import Port

Place = tuple[IP, Port]
Send = tuple[Port, bytes]

PROBES, PROBE_GAP = 2, 0.25
"""As kernel.arp asks: two probes, and half a second in all for an answer."""
ANNOUNCEMENTS, ANNOUNCE_GAP = 3, 1.0
PATIENT, SOON, LATER = 3, 0.5, 5.0
"""Seconds until an address is probed again that was refused, at first (fewer times than PATIENT) and then."""
DEFENCE = 10.0
"""Seconds between two announcements against another host's claims (RFC 5227, 2.4)."""
REMEMBERED = 60.0
"""Seconds for which a claim of another host is told as a problem."""
AT_ONCE = 128
"""Frames that are handed out together: more would not fit into a socket."""
NAMED = 3
"""Addresses that a line names."""


class Phase(Enum):
    PROBING = "probing"
    REFUSED = "refused"
    HELD = "held"


@dataclass(slots=True)
class _Claim:
    phase: Phase
    left: int
    """Rounds of frames to be sent yet."""
    at: float
    """When there is something to be done; infinite for never."""
    refusals: int = 0
    rival: bytes = b""
    rival_at: float = float("-inf")
    defended: float = float("-inf")


class Claims:
    """Of one node. `macs` are those of all of its links: what they say is not another's claim."""

    def __init__(self) -> None:
        self.macs: frozenset[bytes] = frozenset()
        self.taken: list[IP] = []
        """Held since somebody has last emptied this list."""
        self.lost: list[IP] = []
        """Given up to others since then."""
        self._claims: dict[Place, _Claim] = {}
        self._agenda: list[tuple[float, int, Place]] = []
        self._count = 0

    @property
    def places(self) -> Collection[Place]:
        """All that is listened for."""
        return self._claims.keys()

    @property
    def held(self) -> set[Place]:
        return {place for place, claim in self._claims.items() if claim.phase is Phase.HELD}

    def answering(self) -> dict[IP, str]:
        """The interfaces at which each address is answered for."""
        found: dict[IP, list[str]] = {}
        for ip, port in self._claims:
            if self._claims[ip, port].phase is Phase.HELD:
                found.setdefault(ip, []).append(port.name)
        return {ip: ", ".join(sorted(names)) for ip, names in found.items()}

    def want(self, places: Collection[Place], now: float) -> None:
        """This node is to answer here, and nowhere else."""
        for place in [place for place in self._claims if place not in places]:
            del self._claims[place]
        for place in places:
            if place not in self._claims:
                self._claims[place] = _Claim(Phase.PROBING, PROBES, now)
                self._plan(place)

    def announce_again(self, now: float) -> None:
        """Others may have answered meanwhile."""
        for place in self.held:
            self._announce(place, ANNOUNCEMENTS, now)

    def hear(self, port: Port, heard: Heard, now: float, *, doubtful: bool = False) -> bytes | None:
        """The answer to what was heard at a port, if there is one to give."""
        if heard.mac in self.macs:
            return None
        if heard.claimed is not None and (place := (heard.claimed, port)) in self._claims:
            self._challenged(place, heard.mac, now, doubtful)
        if heard.asked is None:
            return None
        place = heard.asked, port
        claim = self._claims.get(place)
        if claim is None or claim.phase is not Phase.HELD:
            return None
        if doubtful and heard.source is None:  # a successor asks whether anybody has it
            self._yield(place)
            return None
        return frames.answer(heard, port.mac)

    def _challenged(self, place: Place, rival: bytes, now: float, doubtful: bool) -> None:
        claim = self._claims[place]
        claim.rival, claim.rival_at = rival, now
        if claim.phase is Phase.PROBING:
            claim.refusals += 1
            claim.phase, claim.at = Phase.REFUSED, now + (SOON if claim.refusals < PATIENT else LATER)
            self._plan(place)
        elif claim.phase is Phase.HELD and doubtful:
            self._yield(place)
        elif claim.phase is Phase.HELD and now - claim.defended >= DEFENCE:
            claim.defended = now
            self._announce(place, 1, now)

    def _yield(self, place: Place) -> None:
        del self._claims[place]
        self.lost.append(place[0])

    def due(self, now: float) -> list[Send]:
        """What is to be sent now; no more than fits. Ask again while `next` is not later than `now`."""
        sends: list[Send] = []
        while self._agenda and self._agenda[0][0] <= now and len(sends) < AT_ONCE:
            at, _, place = heapq.heappop(self._agenda)
            claim = self._claims.get(place)
            if claim is not None and claim.at == at:
                sends += self._act(place, claim, now)
        return sends

    def _act(self, place: Place, claim: _Claim, now: float) -> Iterator[Send]:
        ip, port = place
        if claim.phase is Phase.REFUSED:
            claim.phase, claim.left = Phase.PROBING, PROBES
        elif claim.phase is Phase.PROBING and not claim.left:
            claim.phase, claim.left, claim.refusals, claim.rival = Phase.HELD, ANNOUNCEMENTS, 0, b""
            self.taken.append(ip)
        if claim.phase is Phase.PROBING:
            yield port, frames.probe(ip, port.mac)
            claim.at = now + PROBE_GAP
        else:
            yield from ((port, frame) for frame in frames.announcements(ip, port.mac))
            claim.at = now + ANNOUNCE_GAP if claim.left > 1 else float("inf")
        claim.left -= 1
        self._plan(place)

    def next(self) -> float | None:
        """When something is due. It may turn out to be nothing."""
        return self._agenda[0][0] if self._agenda else None

    def problems(self, now: float) -> tuple[str, ...]:
        """Addresses that other hosts have, by host and interface."""
        refused: dict[tuple[Port, bytes], list[IP]] = {}
        shared: dict[tuple[Port, bytes], list[IP]] = {}
        for (ip, port), claim in self._claims.items():
            if claim.phase is Phase.HELD and claim.rival and now - claim.rival_at < REMEMBERED:
                shared.setdefault((port, claim.rival), []).append(ip)
            elif claim.phase is not Phase.HELD and claim.refusals >= PATIENT:
                refused.setdefault((port, claim.rival), []).append(ip)
        return (
            *(
                f"{port}: {some(ips)} not answered for, because {mac.hex(':')} has it: take it from that host, or keep "
                "it out of the pool"
                for (port, mac), ips in refused.items()
            ),
            *(
                f"{port}: {mac.hex(':')} says that it has {some(ips)}, too, which this node answers for"
                for (port, mac), ips in shared.items()
            ),
        )

    def _announce(self, place: Place, rounds: int, now: float) -> None:
        claim = self._claims[place]
        claim.left, claim.at = max(claim.left, rounds), now
        self._plan(place)

    def _plan(self, place: Place) -> None:
        at = self._claims[place].at
        if at < float("inf"):
            self._count += 1
            heapq.heappush(self._agenda, (at, self._count, place))


def some(ips: Collection[IP]) -> str:
    """A few of many addresses, for a line that a person reads."""
    first = ", ".join(str(ip) for ip in sorted(ips, key=lambda ip: (ip.version, ip))[:NAMED])
    return first + (f" and {len(ips) - NAMED} more" if len(ips) > NAMED else "")
