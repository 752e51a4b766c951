"""How a packet ends: the chains behind every rule of ours that denies, and the number that tells which rule it was.

    ... counter meta mark set 0x5f1c0a3e goto denied comment "np/red/web|ingress|0"

    denied     a policy, a tier's end, no profile: what FelixConfiguration's nftablesFilterDenyAction says
    dropped    what is dropped whatever that says: anti-spoofing, no endpoint, invalid, limits, ...
    refused    a TCP connection too many: reset

The mark of a packet that ends here is nobody's any more, so it carries the rule's number. Each chain first tells
netfilter's log group, which costs a limit and a look for a listener; the kernel's message has the mark, and so whoever
listens knows the rule for certain. The limit is that of the whole node, by chain.
"""

from __future__ import annotations

import hashlib

from tortie.render.ruleset import Chain

DENIED = "denied"
DROPPED = "dropped"
REFUSED = "refused"

GROUP = 86
"""The netfilter log group of denied packets."""
HEADERS = 128
"""Bytes of a packet that are told: addresses and ports behind IPv6 extension headers, too."""
TOLD = f"limit rate 100/second burst 200 packets log group {GROUP} snaplen {HEADERS}"

PROBE = f"""\
add table inet tortie-probe
add chain inet tortie-probe told
add rule inet tortie-probe told {TOLD}
"""
"""What a kernel only takes that can tell a log group; not to be applied."""


def number(name: str) -> int:
    """A rule's number: the same on every node and after every restart. `name` is the rule's comment, made fit."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def denial_chains(action: str, *, told: bool = True) -> dict[str, Chain]:
    """`action` is nftablesFilterDenyAction. Where the kernel has no log group, nothing is `told`.

    A rejection takes the number off again: the kernel may copy a packet's mark to its answer (fwmark_reflect).
    """
    reject = "meta mark set 0x00000000 reject"
    verdicts = {DENIED: reject if action == "Reject" else "drop", DROPPED: "drop", REFUSED: f"{reject} with tcp reset"}
    return {name: Chain((*([TOLD] if told else []), verdict)) for name, verdict in verdicts.items()}
