"""nftables through its documented interface: whole transactions of text in, JSON out.

Acts on the network namespace of the calling thread, or on `netns` (a path) by entering it for the run of the program.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

from tortie.base.errors import KernelError, NotFound, NotSupported
from tortie.kernel import libnftables
from tortie.kernel.netns import entered

log = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds for one transaction; the kernel needs well under one for 100,000 elements."""

LARGE = 1 << 18
"""Characters of a transaction from which on the start of a process makes no difference."""

Contents = dict[str, list[Any]]
"""A table's chains, rules and sets by kind and name, without what differs between equal tables."""

Counts = dict[str, tuple[int, int]]
"""Packets and bytes by rule comment."""

Begun = Callable[[int], None]
"""Called with the process that was started to run nft, before it knows what to do."""

_PASSING = frozenset({"handle", "packets", "bytes"})
_UNORDERED = frozenset({"elem", "set"})
_PLACE = re.compile(r"/proc/self/fd/\d+:(\d+):\d+-\d+: Error: (.*)")


def available() -> None:
    """Raises NotSupported when there is no nft on this machine."""
    if shutil.which("nft") is None:
        raise NotSupported("nft not found: apt-get install nftables")


def apply(script: str, netns: str | None = None, begun: Begun | None = None) -> None:
    """Run one transaction: all of it or nothing. Raises KernelError naming the refused line."""
    done = _run(["nft", "-f", "-"], netns, script, begun)
    if done.returncode != 0:
        raise _refusal(done.stderr, script)


def takes(script: str, netns: str | None = None) -> bool:
    """Whether the kernel would take a script; it is left as it is."""
    return _run(["nft", "--check", "-f", "-"], netns, script).returncode == 0


class Session:
    """Transactions into one network namespace, one after the other: that of the thread of the first, or `netns`.

    As `apply`, but by nft's library in this process where there is one: six times as fast. `in_process` False does
    without it. What is LARGE goes to the program all the same: the memory that nft needs for it, thirty times its size,
    goes with the process, where the library would keep it. Not to be shared by threads.
    """

    def __init__(self, netns: str | None = None, *, in_process: bool = True) -> None:
        self._netns = netns
        self._in_process = in_process
        self._context: libnftables.Context | None = None
        self.begun: Begun | None = None

    def open(self) -> None:
        """Make the socket now, not only when it is needed: whoever listens can know then what comes from it."""
        if self._in_process and self._context is None:
            self._context = self._open()
            if self._context is not None:
                # Any question gives the socket its port. This one is not about sets, which may have many elements.
                self._context.run("list ct helpers\n")

    def apply(self, script: str) -> None:
        """Run one transaction: all of it or nothing. Raises KernelError naming the refused line."""
        self.open()
        if self._context is None or len(script) > LARGE or not self._context.run(script):
            # What the library refuses, the program refuses too, and says where and why.
            apply(script, self._netns, self.begun)

    def _open(self) -> libnftables.Context | None:
        library = libnftables.load()
        if library is None:
            log.info("%s not found: every transaction starts nft, which is slower", libnftables.LIBRARY)
            self._in_process = False
            return None
        with nullcontext() if self._netns is None else entered(self._netns):
            return libnftables.Context(library)


def list_json(words: Sequence[str], netns: str | None = None) -> list[dict[str, Any]]:
    """`nft -j WORDS` as its list of objects. Raises NotFound when the named thing is not there."""
    done = _run(["nft", "-j", *words], netns, None)
    if done.returncode != 0:
        if "No such file or directory" in done.stderr:
            raise NotFound(f"nft {' '.join(words)}: not there")
        raise KernelError(5, f"nft {' '.join(words)}", _first_line(done.stderr))
    try:
        listed: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    except ValueError:  # as nft 1.0.6 writes a table with a flag that it does not know
        raise KernelError(71, f"nft {' '.join(words)}", "its JSON cannot be read") from None
    return listed


def listing(words: Sequence[str], netns: str | None = None) -> str:
    """`nft WORDS` as people read it. Raises NotFound when the named thing is not there."""
    done = _run(["nft", *words], netns, None)
    if done.returncode != 0:
        if "No such file or directory" in done.stderr:
            raise NotFound(f"nft {' '.join(words)}: not there")
        raise KernelError(5, f"nft {' '.join(words)}", _first_line(done.stderr))
    return done.stdout


def rules(table: str, netns: str | None = None) -> Iterator[dict[str, Any]]:
    """Every rule of a table (`inet tortie`), as nft's JSON has it. A missing table has none."""
    try:
        listed = list_json(["list", "table", *table.split()], netns)
    except NotFound:
        return
    for item in listed:
        if "rule" in item:
            yield item["rule"]


def counters(table: str, netns: str | None = None) -> Counts:
    """(packets, bytes) by rule comment; rules with the same comment add up."""
    return counted(rules(table, netns))


def counted(listed: Iterable[dict[str, Any]]) -> Counts:
    """The same of rules that are listed already."""
    found: Counts = {}
    for rule in listed:
        for expression in rule.get("expr", ()):
            counter = expression.get("counter") if isinstance(expression, dict) else None
            if isinstance(counter, dict) and "comment" in rule:
                packets, octets = found.get(rule["comment"], (0, 0))
                found[rule["comment"]] = (packets + counter["packets"], octets + counter["bytes"])
    return found


def contents(table: str, netns: str | None = None) -> Contents | None:
    """What a table holds, to be compared with `contents_of`; None when there is none that could be compared."""
    try:
        return comparable(list_json(["list", "table", *table.split()], netns))
    except (NotFound, KernelError):
        return None


def contents_of(script: str, table: str) -> Contents:
    """What the kernel would make of a script: tried out in a network namespace that ends with the command.

    The kernel lists rules in other words than they were written in, so a table can only be compared with a table.
    """
    done = _run(["unshare", "--net", "sh", "-c", f"nft -f - && nft -j list table {table}"], None, script)
    if done.returncode != 0:
        raise _refusal(done.stderr, script)
    return comparable(json.loads(done.stdout)["nftables"])


def comparable(listed: list[dict[str, Any]]) -> Contents:
    """What has been listed, by kind and name."""
    found: Contents = {}
    for item in listed:
        for kind, thing in item.items():
            if kind != "metainfo":
                name = thing["chain"] if kind == "rule" else thing["name"]
                found.setdefault(f"{kind} {name}", []).append(_bare(thing))
    return found


def _bare(value: Any) -> Any:
    """Without handles and counts, and with the elements of sets, which come in any order, in one order."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    bare = {key: _bare(each) for key, each in value.items() if key not in _PASSING}
    for key in bare.keys() & _UNORDERED:
        if isinstance(bare[key], list):
            bare[key].sort(key=json.dumps)
    return bare


def _run(
    command: list[str], netns: str | None, script: str | None, begun: Begun | None = None
) -> subprocess.CompletedProcess[str]:
    if netns is not None:
        command = ["nsenter", f"--net={netns}", *command]
    pipe = subprocess.PIPE
    try:
        with ExitStack() as stack:
            fds, told = _handed(script, stack) if script is not None else ((), None)
            process = stack.enter_context(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, pass_fds=fds)
            )
            try:
                if begun is not None:
                    begun(process.pid)
                out, err = process.communicate(told, TIMEOUT)
            except BaseException:
                process.kill()
                raise
            return subprocess.CompletedProcess(command, process.returncode, out, err)
    except (FileNotFoundError, PermissionError) as error:
        raise NotSupported(f"{error.filename} cannot be run: apt-get install nftables util-linux") from None
    except subprocess.TimeoutExpired:
        raise KernelError(110, " ".join(command), f"no answer within {TIMEOUT:g} s") from None


def _handed(script: str, stack: ExitStack) -> tuple[tuple[int, ...], str]:
    """A script in a file that nft has from its start, and the line that tells it to read that. Of a script in a pipe
    nft would do the first part when we are killed, if that ends with a line."""
    file = os.memfd_create("nft script", 0)
    stack.callback(os.close, file)
    with open(file, "w", encoding="utf-8", closefd=False) as whole:
        whole.write(script)
    return (file,), f'include "/proc/self/fd/{file}"\n'


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
