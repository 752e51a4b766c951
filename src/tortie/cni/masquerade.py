"""`ipMasq`: what leaves the pods' own subnet has the node's address, by rules in nftables.

    table inet cni_plugins_masquerade
      chain postrouting (nat, srcnat)   224.0.0.0/4, ff00::/8 return ; goto masq_checks
      chain masq_checks                 per address: ip saddr 10.1.2.3 ip daddr != 10.1.2.0/24 masquerade
                                        comment "H(network)-H(interface:container), net: ..., if: ..., id: ..."

A rule is its attachment's by the beginning of its comment, so that DEL and GC find it without knowing its address: when
the pod's namespace is gone, too. The Go plugins' own rules of this table have the same names and comments.
Source: pkg/ip/ipmasq_nftables_linux.go of the CNI reference plugins.
"""

from __future__ import annotations

from tortie.base.errors import KernelError, NotSupported
from tortie.cni import nftables
from tortie.cni.interface import failed, hashed
from tortie.cni.span import cidr
from tortie.cni.spec import Call, CniError, Code, member, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from tortie.cni.attachments import Attachments
    from tortie.cni.nftables import Listed

FAMILY, TABLE = "inet", "cni_plugins_masquerade"
BACKENDS = ("", "iptables", "nftables")
"""Of `ipMasqBackend`. All of them are nftables here."""

MULTICAST = (("ip", "224.0.0.0", 4), ("ip6", "ff00::", 8))

_HASH = 16  # characters


def wanted(call: Call) -> bool:
    """`ipMasq`. Raises CniError for a back end that nobody has."""
    if not member(call.conf, "ipMasq", bool, False):
        return False
    backend = member(call.conf, "ipMasqBackend", str, "")
    if backend not in BACKENDS:
        raise failed(f"unknown ipmasq backend {quote(backend)}")
    return True


def set_up(call: Call, addresses: Iterable[str]) -> None:
    """Rules for these addresses (`10.1.2.3/24`) in place of all that this attachment had. Raises KernelError."""
    wanted = [cidr(each) for each in addresses]
    mine = identity(call.network, call.ifname, call.container_id)
    comment = nftables.quoted(f"{mine}, net: {call.network}, if: {call.ifname}, id: {call.container_id}")
    rules = ""
    for each in wanted:
        ip = "ip6" if each.bits == 128 else "ip"
        match = f"{ip} saddr {each.ip} {ip} daddr != {each.network}/{each.length}"
        rules += f"add rule {FAMILY} {TABLE} masq_checks {match} masquerade comment {comment}\n"
    nftables.change(FAMILY, TABLE, lambda there: _frame(there) + _deletions(there, mine) + rules)


def tear_down(call: Call) -> None:
    """No rules of this attachment. Raises KernelError."""
    mine = identity(call.network, call.ifname, call.container_id)
    try:
        nftables.change(FAMILY, TABLE, lambda there: _deletions(there, mine))
    except NotSupported:
        pass  # whoever has no nft has no rules


def collect(call: Call, valid: Attachments) -> None:
    """No rules of this network but those of valid attachments. Raises KernelError."""
    network = f"{_hash(call.network)}-"
    kept = {identity(call.network, ifname, container) for container, ifname in valid}

    def is_leftover(comment: str) -> bool:
        return comment.startswith(network) and comment[: 2 * _HASH + 1] not in kept

    try:
        nftables.delete_by_comment(FAMILY, TABLE, is_leftover)
    except NotSupported:
        pass


def check(call: Call, addresses: Iterable[str]) -> None:
    """Every one of the addresses has a rule. Raises CniError, KernelError."""
    mine = identity(call.network, call.ifname, call.container_id)
    there = [each for each in nftables.rules(nftables.list_table(FAMILY, TABLE)) if _is_of(mine, each)]
    for address in addresses:
        if not any(f"'{cidr(address).ip}'" in str(each["expr"]) for each in there):
            raise failed(f"{address} is not masqueraded: table {FAMILY} {TABLE} has no rule for it")


def check_available() -> None:
    """Raises CniError 50 on a machine whose nftables cannot be used."""
    try:
        nftables.list_table(FAMILY, TABLE)
    except (KernelError, NotSupported) as why:
        raise CniError(Code.NOT_AVAILABLE, str(why)) from None


def identity(network: str, ifname: str, container: str) -> str:
    """What the comments of an attachment's rules begin with."""
    return f"{_hash(network)}-{_hash(f'{ifname}:{container}')}"


def _is_of(mine: str, rule: dict[str, Any]) -> bool:
    return bool(rule.get("comment", "").startswith(mine))


def _hash(text: str) -> str:
    return hashed(_HASH, "", text)


def _deletions(there: Listed, mine: str) -> str:
    return nftables.deletions(there, lambda comment: comment.startswith(mine))


def _frame(there: Listed) -> str:
    """The table and its chains, with what comes before all attachments; "" if it is there.

    A rule that is deleted is waited for at the end of the process, so it is not made anew without need.
    """
    before = [each["expr"] for each in nftables.rules(there) if each["chain"] == "postrouting"]
    if before == [[_daddr(*each), {"return": None}] for each in MULTICAST] + [[{"goto": {"target": "masq_checks"}}]]:
        return ""
    where = f"{FAMILY} {TABLE}"
    return (
        f"add table {where}\n"
        f"add chain {where} masq_checks\n"
        f"add chain {where} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}\n"
        f"flush chain {where} postrouting\n"
        + "".join(f"add rule {where} postrouting {ip} daddr {net}/{bits} return\n" for ip, net, bits in MULTICAST)
        + f"add rule {where} postrouting goto masq_checks\n"
    )


def _daddr(ip: str, net: str, bits: int) -> dict[str, Any]:
    """How `nft -j` lists `ip daddr NET/BITS`."""
    left = {"payload": {"protocol": ip, "field": "daddr"}}
    return {"match": {"op": "==", "left": left, "right": {"prefix": {"addr": net, "len": bits}}}}
