"""Whose a thing on the host is: a note of three words that rules and links of chained plugins carry.

    <container> <interface> <network>         ctr1 eth0 net1

None of the three can have a blank in it. Together they have 127 bytes at most, which nft, iptables and a link's alias
take: a longer name is there as its hash.
"""

from __future__ import annotations

from tortie.cni.attachments import valid_attachments
from tortie.cni.interface import hashed
from tortie.cni.spec import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONTAINER_BYTES, NETWORK_BYTES = 64, 46
"""An interface's name has 15."""


def words(container: str, ifname: str, network: str) -> str:
    return f"{_cut(container, CONTAINER_BYTES)} {ifname} {_cut(network, NETWORK_BYTES)}"


def of(call: Call) -> str:
    """The words for the attachment that a call is about."""
    return words(call.container_id, call.ifname, call.network)


def stale(call: Call) -> Callable[[str], bool]:
    """Whether a note is of an attachment of the call's network that is not among those that GC says are valid.

    Raises ConfigError when GC says nothing, or nonsense.
    """
    valid = {words(container, ifname, call.network) for container, ifname in valid_attachments(call)}
    network = _cut(call.network, NETWORK_BYTES)

    def is_stale(note: str) -> bool:
        return note.count(" ") == 2 and note.endswith(f" {network}") and note not in valid

    return is_stale


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else hashed(most, "", text)
