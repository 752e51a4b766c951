"""Which WireGuard peers do not answer: packets go out to them, and no handshake comes of it. Decisions on values.

A peer that is idle says nothing either, and is left alone: only one that is sent to, from one look to the next and
again to the one after, and that has no session, does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tortie.kernel.wireguard import Peer

LOOK = 10.0
"""Seconds from one look to the next: two tries of a handshake (REKEY_TIMEOUT of WireGuard's protocol is 5)."""
SESSION = 195.0
"""Seconds after a handshake by which there was another, or nothing to send (REJECT_AFTER_TIME and some tries)."""
STRIKES = 2


@dataclass(frozen=True, slots=True)
class Heard:
    """Of a peer at a look: bytes sent by then, and how often in a row that had grown without an answer."""

    sent: int
    strikes: int = 0

    @property
    def silent(self) -> bool:
        return self.strikes >= STRIKES


def listened(peers: Iterable[Peer], before: Mapping[str, Heard], now: float) -> dict[str, Heard]:
    """By key. `now` is in seconds since 1970."""
    found: dict[str, Heard] = {}
    for peer in peers:
        last = before.get(peer.key)
        if last is None or now - peer.handshake < SESSION:
            found[peer.key] = Heard(peer.sent)
        else:
            found[peer.key] = Heard(peer.sent, last.strikes + 1 if peer.sent > last.sent else 0)
    return found
