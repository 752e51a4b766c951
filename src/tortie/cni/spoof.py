"""`macspoofchk`: a pod sends frames with its own MAC address only, by rules in nftables' family of bridges.

    table bridge nat
      chain PREROUTING (filter, prerouting, -300)     iifname "veth..." jump cni-br-iface-ID
      chain cni-br-iface-ID                           jump cni-br-iface-ID-mac
      chain cni-br-iface-ID-mac                       ether saddr (the pod's) return ; drop

ID is `<container>-<interface>`, and all four rules have the comment `macspoofchk-ID`. The names say nothing of a
network: GC takes what is not valid and whose port is gone, which is nobody's. Table and base chain stay: they may be
ebtables' too. Source: pkg/link/spoofcheck.go of the CNI reference plugins.
"""

from __future__ import annotations

from tortie.base.errors import NotSupported
from tortie.cni import nftables
from tortie.cni.interface import hashed
from tortie.cni.spec import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from tortie.cni.attachments import Attachments
    from tortie.cni.nftables import Listed

FAMILY, TABLE, BASE = "bridge", "nat", "PREROUTING"
COMMENT = "macspoofchk-"
_LONGEST = nftables.COMMENT_BYTES - len(COMMENT)


def set_up(call: Call, port: str, mac: str) -> None:
    """Frames that come in by the port `port` have this MAC address, or are dropped. Raises KernelError."""
    mine = identity(call.container_id, call.ifname)
    nftables.change(FAMILY, TABLE, lambda there: _deletions(there, mine) + _rules(mine, port, mac))


def tear_down(call: Call) -> None:
    """No rules or chains of this attachment. Raises KernelError."""
    mine = identity(call.container_id, call.ifname)
    _change_if_possible(lambda there: _deletions(there, mine))


def collect(valid: Attachments, ports: Collection[str]) -> None:
    """No rules or chains of attachments that are not valid and whose interface is not among `ports`."""
    kept = {identity(*each) for each in valid}

    def script(there: Listed) -> str:
        jumps = [rule for rule in nftables.rules(there) if rule["chain"] == BASE]
        found = {_identity_of(rule): _port_of(rule) for rule in jumps if rule.get("comment", "").startswith(COMMENT)}
        gone = [mine for mine, port in found.items() if mine not in kept and port not in ports]
        return "".join(_deletions(there, mine) for mine in gone)

    _change_if_possible(script)


def is_there(call: Call, port: str, mac: str) -> bool:
    """Whether the rules are as `set_up` makes them. Raises KernelError."""
    mine = identity(call.container_id, call.ifname)
    there = [rule for rule in nftables.rules(nftables.list_table(FAMILY, TABLE)) if _identity_of(rule) == mine]
    jumps = [rule for rule in there if rule["chain"] == BASE]
    macs = [rule for rule in there if rule["chain"] == f"{_chain(mine)}-mac"]
    return [_port_of(rule) for rule in jumps] == [port] and len(macs) == 2 and f"'{mac}'" in str(macs[0]["expr"])


def identity(container: str, ifname: str) -> str:
    """What the names of an attachment's chains end with: `<container>-<interface>`, or a hash if nft cannot read it."""
    text = f"{container}-{ifname}"
    readable = all(char.isalnum() or char in "-_." for char in text) and text.isascii()
    return text if readable and len(text) <= _LONGEST else hashed(32, "", text)


def _chain(mine: str) -> str:
    return f"cni-br-iface-{mine}"


def _identity_of(rule: dict[str, Any]) -> str:
    comment: str = rule.get("comment", "")
    return comment.removeprefix(COMMENT)


def _port_of(rule: dict[str, Any]) -> str:
    for expression in rule.get("expr", ()):
        match = expression.get("match") if isinstance(expression, dict) else None
        if isinstance(match, dict) and match.get("left") == {"meta": {"key": "iifname"}}:
            return str(match["right"])
    return ""


def _rules(mine: str, port: str, mac: str) -> str:
    where, chain = f"{FAMILY} {TABLE}", _chain(mine)
    comment = nftables.quoted(f"{COMMENT}{mine}")
    return (
        f"add table {where}\n"
        f"add chain {where} {BASE} {{ type filter hook prerouting priority -300; policy accept; }}\n"
        f"add chain {where} {chain}-mac\n"
        f"add chain {where} {chain}\n"
        f"add rule {where} {chain}-mac ether saddr {mac} return comment {comment}\n"
        f"add rule {where} {chain}-mac drop comment {comment}\n"
        f"add rule {where} {chain} jump {chain}-mac comment {comment}\n"
        f"add rule {where} {BASE} iifname {nftables.quoted(port)} jump {chain} comment {comment}\n"
    )


def _deletions(there: Listed, mine: str) -> str:
    """First who jumps, then where to."""
    script = nftables.deletions(there, lambda comment: comment == f"{COMMENT}{mine}")
    names = {item["chain"]["name"] for item in there if "chain" in item}
    chains = [name for name in (_chain(mine), f"{_chain(mine)}-mac") if name in names]
    script += "".join(f"flush chain {FAMILY} {TABLE} {name}\n" for name in chains)
    return script + "".join(f"delete chain {FAMILY} {TABLE} {name}\n" for name in chains)


def _change_if_possible(decide: Callable[[Listed], str]) -> None:
    try:
        nftables.change(FAMILY, TABLE, decide)
    except NotSupported:
        pass  # whoever has no nft has no rules
