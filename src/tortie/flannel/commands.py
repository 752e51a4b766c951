"""Commands of the operator's, run for the extension backend: how a line becomes words, and a process that always ends.

"ip route add $SUBNET via $PUBLIC_IP" ─words─► ["ip", "route", "add", "10.5.2.0/24", "via", "192.0.2.2"]
"read MAC; bridge fdb add $MAC dev x"  ──────► ["/bin/sh", "-c", ...]
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from tortie.base.errors import TortieError

SHELL = "/bin/sh"
LONGEST = 1 << 16
"""Bytes of its output that are kept, the last ones."""
GRACE = 0.2
"""Seconds that are left to what a command has started and that writes for it, once the command itself has ended."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
_FOR_A_SHELL = re.compile(
    r"""(^|\s)['"]"""  # a word in quotes
    r"""|\$\(|`"""  # the output of another command
    r"""|(^|\s)(\|\|?|&&)(\s|$)"""  # one command and another
    r"""|[^\s\\];\s+\S"""
    r"""|(^|\s)\d?>""",  # output to a file
)


class CommandFailed(TortieError):
    """A command did not do what it should. The message has its line, how it ended, and what it said."""


def is_for_a_shell(line: str) -> bool:
    """Whether only a shell can make sense of it. Without one, words are what is between blanks, whatever they hold;
    what is found here would be passed on to a program that has no use for it."""
    return _FOR_A_SHELL.search(line) is not None


def words(line: str, shell: bool | None, variables: Mapping[str, str]) -> list[str]:
    """What is executed: `shell` says by what, None to go by the line. Without a shell each word has its variables
    replaced, and stays one word; those that nobody has set are empty."""
    if shell or (shell is None and is_for_a_shell(line)):
        return [SHELL, "-c", line]

    def value(found: re.Match[str]) -> str:
        return variables.get(found[1] or found[2], "")

    return [_VARIABLE.sub(value, word) for word in line.split()]


@dataclass(slots=True)
class Tail:
    """The end of what comes out of a pipe, however much it is."""

    descriptor: int
    data: bytearray = field(default_factory=bytearray)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> None:
        """Some of what is there: a program that never stops writing must not keep the loop from everything else."""
        with suppress(BlockingIOError):
            more = os.read(self.descriptor, LONGEST)
            self.data += more
            del self.data[:-LONGEST]
            if not more:
                self.ended.set()
                asyncio.get_running_loop().remove_reader(self.descriptor)

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace").strip()


async def run(line: str, shell: bool | None, variables: Mapping[str, str], stdin: str, timeout: float) -> str:
    """Its standard output, without blanks around it. What it leaves running goes on. Raises CommandFailed; what takes
    too long is killed, with all that it has started."""
    environment = {**os.environ, **variables}
    argv = words(line, shell, environment)
    loop = asyncio.get_running_loop()
    tails: list[Tail] = []
    ends: list[int] = []
    given = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        os.write(given, stdin.encode())
        os.lseek(given, 0, os.SEEK_SET)
        for _ in range(2):
            ours, theirs = os.pipe()
            os.set_blocking(ours, False)
            tails.append(Tail(ours))
            ends.append(theirs)
        process = await _started(line, argv, environment, (given, ends[0], ends[1]))
        while ends:
            os.close(ends.pop())
        for tail in tails:
            loop.add_reader(tail.descriptor, tail.take)
        await _finished(process, line, tails, timeout)
    finally:
        for tail in tails:
            loop.remove_reader(tail.descriptor)
            os.close(tail.descriptor)
        for end in (*ends, given):
            os.close(end)
    return tails[0].text


async def _started(
    line: str, argv: list[str], environment: Mapping[str, str], descriptors: tuple[int, int, int]
) -> asyncio.subprocess.Process:
    stdin, stdout, stderr = descriptors
    try:
        return await asyncio.create_subprocess_exec(
            *argv, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
        )
    except OSError as why:
        raise CommandFailed(f"failed to run command: {line}: {argv[0]}: {why.strerror}") from None
    except ValueError as why:
        raise CommandFailed(f"failed to run command: {line}: {why}") from None


async def _finished(process: asyncio.subprocess.Process, line: str, tails: list[Tail], timeout: float) -> None:
    how = ""
    try:
        async with asyncio.timeout(timeout):
            code = await process.wait()
        how = "" if code == 0 else f"exit {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
    except TimeoutError:
        how = f"not done after {timeout:g} s, killed"
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE):
            for tail in tails:
                await tail.ended.wait()
    if how:
        output = " | ".join(text for tail in tails if (text := " ".join(tail.text.split())))
        raise CommandFailed(f"failed to run command: {line}: {how}" + (f". Output: {output}" if output else ""))
