"""nftables through its documented interface: whole transactions of text in, JSON out.

Acts on the network namespace of the calling thread, or on `netns` (a path) by entering it for the run of the program.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from tortie.base.errors import KernelError, NotFound, NotSupported

TIMEOUT = 60.0
"""Seconds for one transaction; the kernel needs well under one for 100,000 elements."""

_PLACE = re.compile(r"/dev/stdin:(\d+):\d+-\d+: Error: (.*)")


def available() -> None:
    """Raises NotSupported when there is no nft on this machine."""
    if shutil.which("nft") is None:
        raise NotSupported("nft not found: apt-get install nftables")


def apply(script: str, netns: str | None = None) -> None:
    """Run one transaction: all of it or nothing. Raises KernelError naming the refused line."""
    done = _run(["nft", "-f", "-"], netns, script)
    if done.returncode != 0:
        raise _refusal(done.stderr, script)


def list_json(words: Sequence[str], netns: str | None = None) -> list[dict[str, Any]]:
    """`nft -j WORDS` as its list of objects. Raises NotFound when the named thing is not there."""
    done = _run(["nft", "-j", *words], netns, None)
    if done.returncode != 0:
        if "No such file or directory" in done.stderr:
            raise NotFound(f"nft {' '.join(words)}: not there")
        raise KernelError(5, f"nft {' '.join(words)}", _first_line(done.stderr))
    listed: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    return listed


def rules(table: str, netns: str | None = None) -> Iterator[dict[str, Any]]:
    """Every rule of a table (`inet tortie`), as nft's JSON has it. A missing table has none."""
    try:
        listed = list_json(["list", "table", *table.split()], netns)
    except NotFound:
        return
    for item in listed:
        if "rule" in item:
            yield item["rule"]


def counters(table: str, netns: str | None = None) -> dict[str, tuple[int, int]]:
    """(packets, bytes) by rule comment; rules with the same comment add up."""
    found: dict[str, tuple[int, int]] = {}
    for rule in rules(table, netns):
        for expression in rule.get("expr", ()):
            counter = expression.get("counter") if isinstance(expression, dict) else None
            if isinstance(counter, dict) and "comment" in rule:
                packets, octets = found.get(rule["comment"], (0, 0))
                found[rule["comment"]] = (packets + counter["packets"], octets + counter["bytes"])
    return found


def _run(command: list[str], netns: str | None, script: str | None) -> subprocess.CompletedProcess[str]:
    if netns is not None:
        command = ["nsenter", f"--net={netns}", *command]
    try:
        return subprocess.run(command, input=script, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError as error:
        raise NotSupported(f"{error.filename} not found: apt-get install nftables util-linux") from None
    except subprocess.TimeoutExpired:
        raise KernelError(110, " ".join(command), f"no answer within {TIMEOUT:g} s") from None


def _refusal(stderr: str, script: str) -> KernelError:
    """nft's complaint together with the line of the script that it is about."""
    match = _PLACE.search(stderr)
    if match is None:
        return KernelError(22, "nft -f -", _first_line(stderr))
    lines = script.splitlines()
    number = int(match[1])
    line = lines[number - 1] if number <= len(lines) else ""
    return KernelError(22, f"nft {line[:200]}", match[2])


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"
