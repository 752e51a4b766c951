"""The commands of the user's book, run as they are printed there, against what is printed below them.

In README.md and docs/ every block

    ```console
    # tortie get ippools                 "# " as root, "$ " as anybody
    NAME                  CIDR    ...    what it prints
    ```

is run, pages in the order of PAGES, in one lab. HTML comments before a block say what cannot be seen in it:

    <!-- lab: pods -->       first bring the lab to this state: empty, pods, or policies (pods and the demo's policies)
    <!-- exit: 1 -->         the last command of the block ends with this status, all others with 0
    <!-- not run: why -->    the block is for reading only
    <!-- file: x.yaml -->    before a yaml block: it is saved under this name, for commands to read

A printed line `...` stands for any lines, `...` inside a line for any text; a command without output may print
anything. Addresses of pods, times, pids and counters differ from run to run and are not compared. The lab is `default`
in the book and has a name of its own here.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from tortie.cli.main import command_line
from tortie.cli.main import main as tortie
from tortie.lab import network
from tortie.lab.state import LabDirectory

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
PAGES = ("install", "lab", "policy", "ipam", "ipam-commands", "routing", "cni", "troubleshooting")
DEMO = ("pods", "1-kubernetes-policy", "2-calico-policy", "3-global-policy")

NAME = f"docs{os.getpid()}"
NAMES = {"default": NAME, "second": f"{NAME}b"}
"""Labs as the book calls them, and as they are called here."""

WIDTH = 110
PATIENCE = 15.0
ASKING = re.compile(r"tortie (get|explain|node|lab (status|matrix|logs|exec)) ")
"""What only asks is asked again until it answers as printed: a cluster takes a moment."""

ELSEWHERE = ("make ", "git ", "cd ", "apt-get ")
"""Commands that set this machine up or leave this directory: for reading only."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command with what it should print and how it should end; before that, a state of the lab and files."""

    command: str
    output: tuple[str, ...] = ()
    status: int = 0
    where: str = ""
    state: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


# --- reading the book ---------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n+)*)^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (lab|exit|file|not run): (.*?) -->")


def steps(page: Path) -> Iterator[Step]:
    """What is to be run of a page, in order."""
    text = page.read_text()
    files: dict[str, str] = {}
    for match in _BLOCK.finditer(text):
        comments = dict(_COMMENT.findall(match[1]))
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start(2)) + 1}"
        if "file" in comments:
            files[comments["file"]] = match[3]
        if match[2] != "console" or "not run" in comments:
            continue
        found = list(_commands(match[3]))
        for i, (command, output) in enumerate(found):
            status = int(comments.get("exit", 0)) if i == len(found) - 1 else 0
            if not command.startswith(ELSEWHERE):
                yield Step(command, output, status, where, comments.get("lab", "") if i == 0 else "", dict(files))


def _commands(block: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    command, output = "", []
    for line in block.splitlines():
        if line.startswith(("# ", "$ ")):
            if command:
                yield command, tuple(output)
            command, output = line[2:].removeprefix("sudo ").replace(".venv/bin/tortie", "tortie"), []
        else:
            output.append(line)
    if command:
        yield command, tuple(output)


# --- comparing ----------------------------------------------------------------------------------------------------

_VOLATILE = (
    (r"\x1b\[[0-9;]*m", ""),
    (r"10\.244\.\d+\.\d+|fd00:10:244:[0-9a-f:]+", "<pod>"),
    (r"\d{4}-\d\d-\d\d[T ]", ""),
    (r"\d\d:\d\d:\d\d([.,]\d+)?(\+00:00|Z)?", "<time>"),
    (r"\b\d+(\.\d+)?( m?s\b)", r"<n>\2"),
    (r"\b(pid|port) \d{4,}", r"\1 <n>"),
    (r"\b(packets|bytes)( |:)\d+|\b\d+ (packets|bytes)", "<n>"),
    (r"@if\d+", "@if<n>"),
    (r"BIRD \d+\.[0-9.]+", "BIRD"),
    (r"\d+ seconds? ago", "<ago>"),
    (r"\b[0-9a-f]{64}\b", "<container>"),
    (r"\b[0-9a-f-]{32,36}\b", "<uid>"),
    (r"[─━]+", "─"),
    (r"[┬┳┼╇┴┻]", "┼"),
    (r"\s+", " "),
)


def stable(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, instead in _VOLATILE:
        line = re.sub(pattern, instead, line)
    return line.strip()


def agrees(printed: Sequence[str], output: str) -> bool:
    """Whether an output is as printed. Lines that begin with addresses, as routes do, come in the order of those, and
    which pod got which is chance: without gaps, the order of lines does not count."""
    if not printed:
        return True
    if not any("..." in line for line in printed):
        return sorted(map(stable, printed)) == sorted(map(stable, output.splitlines()))
    pattern = ""
    for line in printed:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(map(re.escape, map(stable, line.split("...")))) + r"\n"
    actual = "".join(f"{stable(line)}\n" for line in output.splitlines())
    return re.fullmatch(pattern.replace(r"\ .*", r"\ ?.*"), actual) is not None


def renamed(text: str, names: Mapping[str, str]) -> str:
    """With other names for labs, wherever a lab is named."""
    for old, new in names.items():
        for before, after in (("/lab/", "/"), ("tortie-", "-"), ("--name ", ""), ("--lab ", ""), ("lab ", "")):
            text = re.sub(rf"{before}{old}\b(?={after})", f"{before}{new}", text)
    return text


# --- running ------------------------------------------------------------------------------------------------------


PLAIN = re.compile(r"tortie [^|;&<>$`*?()#~]*")
"""A command that needs no shell."""

WARM = ("cli.output", "calc.explain", "lab.kubelet", "lab.tables", "lab.verdicts", "store.sqlite")
"""What most commands import; children of this process have it already."""


class Reader:
    """Somebody who types what the book says, in a directory of his own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "examples").symlink_to(ROOT / "examples")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        for name in WARM:
            importlib.import_module(f"tortie.{name}")
        command_line()
        self.env = {"PATH": path, "LANG": "C.UTF-8", "TORTIE_LAB": NAME, "COLUMNS": str(WIDTH)}

    def type(self, command: str) -> tuple[int, str]:
        """Exit status and output, with the book's names of labs."""
        mine = re.sub(r"\blab up(?! --name)", f"lab up --name {NAME}", renamed(command, NAMES))
        with (self.directory / "output").open("w+b") as output:
            status = self._fork(mine, output) if PLAIN.fullmatch(mine) else self._shell(mine, output)
            output.seek(0)
            said = output.read().decode()
        return status, renamed(said, {new: old for old, new in reversed(NAMES.items())})

    def _shell(self, command: str, output: IO[bytes]) -> int:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env=os.environ | self.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=60,
            check=False,
        ).returncode

    def _fork(self, command: str, output: IO[bytes]) -> int:
        """The same program in a process of its own, without the time that Python takes to start and to import it."""
        pid = os.fork()
        if pid == 0:
            status = 70  # EX_SOFTWARE of sysexits.h
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                os.chdir(self.directory)
                os.environ.update(self.env)
                status = tortie(shlex.split(command)[1:])
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def follow(self, step: Step) -> None:
        for name, text in step.files.items():
            (self.directory / name).write_text(text)
        if step.state:
            self.prepare(step.state)
        deadline = time.monotonic() + PATIENCE
        while True:
            status, output = self.type(step.command)
            good = status == step.status and agrees(step.output, output)
            if good or not ASKING.search(step.command + " ") or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        printed = "\n".join(step.output)
        assert status == step.status, f"{step.where}: {step.command}\nexit status {status}\n{output}"
        assert good, f"{step.where}: {step.command}\n--- printed\n{printed}\n--- in fact\n{output}"

    def prepare(self, state: str) -> None:
        """A lab with the demo's objects, as far as the state has them, and no others of the demo's."""
        if not LabDirectory(NAME).exists:
            self._must("tortie lab up")
        wanted = {"empty": (), "pods": DEMO[:1], "policies": DEMO}[state]
        unwanted = [f"-f examples/demo/{one}.yaml" for one in reversed(DEMO) if one not in wanted]
        if unwanted:
            self._must(f"tortie delete -s {' '.join(unwanted)}")
        if wanted:
            self._must(f"tortie apply {' '.join(f'-f examples/demo/{one}.yaml' for one in wanted)}")
        running = 9 if wanted else 0
        deadline = time.monotonic() + PATIENCE
        while self.type("tortie get pods -A")[1].count(" Running ") != running:
            assert time.monotonic() < deadline, f"the lab does not get to the state {state}"
            time.sleep(0.1)

    def _must(self, command: str) -> None:
        status, output = self.type(command)
        assert status == 0, output


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("docs"))
    try:
        yield reader
    finally:
        for name in NAMES.values():
            network.destroy(LabDirectory(name))


@pytest.mark.parametrize("page", [*(f"docs/{page}.md" for page in PAGES), "README.md"])
def test_the_commands_of(page: str, reader: Reader) -> None:
    for step in steps(ROOT / page):
        reader.follow(step)


def test_a_block_is_read_as_described() -> None:
    block = "$ true\n# tortie lab up\nlab default is up, in ... s\n...\nthe end\n"
    assert list(_commands(block)) == [
        ("true", ()),
        ("tortie lab up", ("lab default is up, in ... s", "...", "the end")),
    ]


@pytest.mark.parametrize(
    ("printed", "output", "agree"),
    [
        ([], "anything\n", True),
        (["lab default is up, in 5.1 s"], "lab default is up, in 12.0 s\n", True),
        (["lab default is up"], "lab default is down\n", False),
        (["a", "..."], "a\n", True),
        (["a", "..."], "a\nb\nc\n", True),
        (["a"], "a\nb\n", False),
        (["...", "c"], "a\nb\nc\n", True),
        (["10.244.1.2 is ..."], "10.244.16.64    is here\n", True),
        (["50 of 90 pass"], "51 of 90 pass\n", False),
        (["rule x: 3 packets, 120 bytes"], "rule x: 4 packets, 240 bytes\n", True),
        (["│ a │ 1 │"], "│ a    │ 1 │\n", True),
    ],
)
def test_outputs_are_compared_as_described(printed: list[str], output: str, agree: bool) -> None:
    assert agrees(printed, output) is agree
