"""What an earlier flanneld left in iptables: it goes, once our own rules are in place.

    nat     FLANNEL-POSTRTG  and the rules that jump to it      as nftables shows them (iptables-nft), by nft
    filter  FLANNEL-FWD      and the rules that jump to it      in legacy iptables' tables, by its programs

One stays: FLANNEL-FWD, where everything else that is forwarded is dropped by the table it is in (Docker's policy of
FORWARD). Our own accept is in another table and could not overrule that; the chain does. Nothing of anybody else's is
touched, and no table is made: to look into one of legacy iptables by its programs would make it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tortie.base.errors import KernelError, NotFound, NotSupported
from tortie.kernel import iptables, nft
from tortie.kernel.netns import entered

log = logging.getLogger(__name__)

CHAINS = {"nat": "FLANNEL-POSTRTG", "filter": "FLANNEL-FWD"}
"""By the table that it is in."""
LEGACY = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
"""The programs that see legacy tables."""
SECONDS = 20.0
"""For another program that holds the lock of legacy iptables."""

_JUMP = re.compile(r"^-A (?P<chain>\S+) .*-j (?P<target>\S+)$")


# --- deciding -----------------------------------------------------------------------------------------------------


def removal(listed: Sequence[Mapping[str, Any]], chain: str) -> str:
    """The transaction of nft that takes a chain and what jumps to it out of a table, listed as JSON; "" for none."""
    chains = [item["chain"] for item in listed if "chain" in item]
    found = next((one for one in chains if one["name"] == chain), None)
    if found is None or (chain == CHAINS["filter"] and any(map(_drops, chains))):
        return ""
    table = f"{found['family']} {found['table']}"
    jumps = (rule for item in listed if (rule := item.get("rule")) is not None and _jumps(rule, chain))
    lines = [f"delete rule {table} {rule['chain']} handle {rule['handle']}" for rule in jumps]
    return "".join(f"{line}\n" for line in (*lines, f"flush chain {table} {chain}", f"delete chain {table} {chain}"))


def _drops(chain: Mapping[str, Any]) -> bool:
    return chain.get("hook") == "forward" and chain.get("policy") == "drop"


def _jumps(rule: Mapping[str, Any], chain: str) -> bool:
    verdicts = (one[word] for one in rule.get("expr", ()) for word in ("jump", "goto") if word in one)
    return any(verdict.get("target") == chain for verdict in verdicts)


def legacy_removal(saved: str, table: str, chain: str) -> str:
    """The same of a table of legacy iptables, as iptables-save prints it and iptables-restore --noflush takes it."""
    lines = saved.splitlines()
    there = any(line.startswith(f":{chain} ") for line in lines)
    if not there or (chain == CHAINS["filter"] and any(line.startswith(":FORWARD DROP") for line in lines)):
        return ""
    jumps = [line for line in lines if (match := _JUMP.match(line)) and match["target"] == chain]
    deletions = [f"-D{line.removeprefix('-A')}" for line in jumps]
    return "".join(f"{line}\n" for line in (f"*{table}", *deletions, f"-F {chain}", f"-X {chain}", "COMMIT"))


# --- doing --------------------------------------------------------------------------------------------------------


def clear(netns: str | None = None) -> tuple[str, ...]:
    """Takes it away, and tells what could not be taken away, in lines."""
    with nullcontext() if netns is None else entered(netns):
        return tuple(_clear())


def _clear() -> Iterator[str]:
    for family, program in LEGACY.items():
        for table, chain in CHAINS.items():
            try:
                _clear_nft(family, table, chain)
                if table in _legacy_tables(family):
                    _clear_legacy(program, table, chain)
            except (KernelError, NotSupported) as error:
                yield f"{chain}, a chain of an earlier flanneld in iptables' {table}, is still there: {error}"


def _clear_nft(family: str, table: str, chain: str) -> None:
    """A table that nft cannot list with its handles is nobody's of iptables."""
    try:
        listed = nft.list_json(["-a", "list", "table", family, table])
    except NotFound:
        return
    script = removal(listed, chain)
    if script:
        nft.apply(script)
        log.info("removed %s of an earlier flanneld from the table %s %s of iptables", chain, family, table)


def _legacy_tables(family: str) -> Iterable[str]:
    """Those that somebody has made in this network namespace."""
    try:
        return Path(f"/proc/thread-self/net/{family}_tables_names").read_text().split()
    except OSError:
        return ()


def _clear_legacy(program: str, table: str, chain: str) -> None:
    script = legacy_removal(iptables.run([f"{program}-save", "-t", table], seconds=2 * SECONDS), table, chain)
    if script:
        iptables.run([f"{program}-restore", "--noflush", "--wait", f"{SECONDS:.0f}"], script, 2 * SECONDS)
        log.info("removed %s of an earlier flanneld from the table %s of %s", chain, table, program)
