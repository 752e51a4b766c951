"""`tortie node checksystem`: has this machine what a node needs? calicoctl's lines, our own needs.

Each thing is tried in a network namespace of its own, which goes with the program that it is tried by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tortie.base.errors import Unavailable

LEAST_KERNEL = (6, 1)
"""Debian 12's: the oldest that this is tested with."""
SECONDS = 20.0
GOOD = "System meets minimum system requirements to run Calico!"
BAD = "System doesn't meet one or more minimum systems requirements to run Calico"


@dataclass(frozen=True, slots=True)
class Need:
    """Something that is tried by a shell's command, with `stdin` to read. `required`, or only good for something."""

    name: str
    command: str
    required: bool = True
    stdin: str = ""
    good_for: str = ""


def _rules(text: str, family: str = "inet", hook: str = "filter hook forward priority 0") -> str:
    return f"table {family} probe {{\n chain c {{ type {hook};\n {text}\n }}\n}}\n"


def _nft(name: str, text: str, required: bool = True, good_for: str = "") -> Need:
    return Need(name, "nft -c -f -", required, text, good_for)


def _link(kind: str, arguments: str = "", good_for: str = "") -> Need:
    return Need(kind, f"ip link add probe0 type {kind} {arguments}", False, good_for=good_for)


_SETS = (
    "table inet probe {\n set a { type ipv4_addr . inet_proto . inet_service; flags interval; }\n"
    " map v { type ifname : verdict; }\n chain c { type filter hook forward priority 0;"
    " ip saddr . meta l4proto . th dport @a accept; iifname vmap @v; }\n}\n"
)
NEEDS: tuple[Need, ...] = (
    Need("namespaces", "true"),
    Need("ip", "ip -V"),
    Need("nft", "nft --version"),
    Need("veth", "ip link add probe0 type veth peer name probe1"),
    _nft("nf_tables", _rules("")),
    _nft("nft_ct", _rules("ct state established,related accept; ct mark set 1")),
    _nft("sets and maps", _SETS),
    _nft("nft_fib", _rules("fib saddr . iif oif 0 drop", hook="filter hook prerouting priority raw")),
    _nft("nft_nat, nft_masq", _rules("masquerade", hook="nat hook postrouting priority srcnat")),
    _nft("nft_reject", _rules("reject")),
    _nft("nft_limit", _rules("limit rate 10/second accept")),
    _nft("nft_log", _rules("log group 1"), False, "tortie watch drops"),
    _nft("notrack", _rules("notrack", hook="filter hook prerouting priority raw"), False, "doNotTrack policies"),
    Need("tbf", "ip link add p0 type veth peer name p1; tc qdisc add dev p0 root tbf rate 1mbit burst 10k latency 10ms",
         False, good_for="bandwidths of pods"),
    _link("vxlan", "id 4096 dstport 4789", "pools with vxlanMode"),
    _link("ipip", "remote 192.0.2.1", "pools with ipipMode"),
    Need("bird", "bird --version || bird2 --version", False, good_for="BGP"),
)  # fmt: skip


def checksystem(
    kernel_config: Annotated[
        str, typer.Option("--kernel-config", "-f", metavar="FILE", help="Not needed: the kernel is tried itself.")
    ] = "",
) -> None:
    """Try whether this machine has what a node needs. Exit status 1 if something that is required is missing."""
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    found = {need.name: tried(need) for need in NEEDS}
    for line in lines(release, found):
        typer.echo(line)
    if missing(release, found):
        raise Unavailable(BAD)
    typer.echo(GOOD)


def tried(need: Need) -> bool:
    """Whether it works. Blocks."""
    import subprocess

    command = ["unshare", "--net", "sh", "-c", need.command]
    try:
        done = subprocess.run(
            command, input=need.stdin, text=True, capture_output=True, timeout=SECONDS, check=False,
            env={"PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def new_enough(release: str) -> bool:
    """Whether a kernel's release, such as 6.1.0-26-amd64, is not older than LEAST_KERNEL."""
    numbers = tuple(map(int, re.findall(r"\d+", release)[:2]))
    return numbers >= LEAST_KERNEL


def missing(release: str, found: dict[str, bool]) -> list[str]:
    """What is required and not there."""
    old = [] if new_enough(release) else ["kernel"]
    return old + [need.name for need in NEEDS if need.required and not found[need.name]]


def lines(release: str, found: dict[str, bool], needs: Iterable[Need] = NEEDS) -> Iterator[str]:
    """In calicoctl's form: `\\t\\tnf_tables                \\tOK`."""
    yield "Checking kernel version..."
    yield _line(release, "OK" if new_enough(release) else f"FAIL, at least {'.'.join(map(str, LEAST_KERNEL))}")
    yield "Checking what the kernel and this machine have..."
    for need in needs:
        lacks = "FAIL" if need.required else f"WARNING, needed for {need.good_for}"
        yield _line(need.name, "OK" if found[need.name] else lacks)


def _line(name: str, word: str) -> str:
    return f"\t\t{name:<20}\t\t{word}"
