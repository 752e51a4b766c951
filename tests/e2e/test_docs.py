"""The commands of the user's book, run as they are printed there, against what is printed below them.

In README.md and docs/ every block

    ```console
    # tortie get ippools                 "# " as root, "$ " as anybody
    NAME                  CIDR    ...    what it prints
    ```

(of which a block has one: where its commands begin with "$ ", "# " is printed)

is run, in two labs, by two readers who each read a half of PAGES in that order. HTML comments before a block say what
cannot be seen in it:

    <!-- lab: pods -->       first bring the lab to this state: none (there is no lab), empty, pods, or policies (pods
                             and the demo's policies); `none pods` is a new one, with no blocks of earlier pages'
    <!-- exit: 1 -->         the last command of the block ends with this status, all others with 0
    <!-- not run: why -->    the block is for reading only
    <!-- file: x.yaml -->    before a yaml block: it is saved under this name, for commands to read

A printed line `...` stands for any lines, `...` inside a line for any text; a command without output may print
anything. Addresses of pods, times, pids, counters and how full pools are differ from run to run and are not compared.
The lab is `default` in the book and has a name of its own here.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

import forked
from tortie.lab import network
from tortie.lab.state import LabDirectory

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
FOLDERS = ("annotations", "ipam-commands", "plugins")
"""Of pages that can be read in any order."""
PAGES = (
    *("install", "lab", "lab-topologies", "lab-cni", "policy", "recipes", "host-endpoints", "testing", "ipam"),
    *("routing", "cni"),
    "cni-validate",
    "calicoctl",
    *("upgrade", "offline-install", "uninstall", "migrate"),
    "datastores",
    "etcd",
    "qos",
    "overlays",
    "auto-routes",
    "flannel",
    "ipvlan-or-macvlan",
    "services",
    *("kube-proxy", "load-balancers"),
    "policy-tools",
    "choose-your-routing",
    "node-addresses",
    "node-status",
    "doctor",
    "outages",
    "fanout",
    "dns",
    "troubleshooting",
    *(
        f"{page.parent.name}/{page.stem}"
        for folder in FOLDERS
        for page in sorted((ROOT / "docs" / folder).glob("*.md"))
    ),
)
DEMO = ("pods", "1-kubernetes-policy", "2-calico-policy", "3-global-policy")

NAME = f"docs{os.getpid()}"
NAMES = {"default": NAME, "second": f"{NAME}b", "racks": f"{NAME}c"}
"""Labs as the book calls them, and as they are called here."""

WIDTH = 110
PATIENCE = 15.0
ASKING = re.compile(r"tortie (get|explain|node|doctor|bgp routes|services status|lab (status|matrix|logs|exec)) ")
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
    prompts = ("$ ",) if block.startswith("$ ") else ("# ", "$ ")
    for line in block.splitlines():
        if line.startswith(prompts):
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
    (r"^((10\.244\.|fd00:10:244:)\S+ +unicast +cali)[0-9a-f]{11}", r"\1<n>"),  # which pod got which address is chance
    (r"10\.244\.\d+\.\d+|fd00:10:244:[0-9a-f:]+", "<pod>"),
    (r"\d{4}-\d\d-\d\d[T ]", ""),
    (r"\d\d:\d\d:\d\d([.,]\d+)?(\+00:00|Z)?", "<time>"),
    (r"\b\d+(\.\d+)?( m?s\b)", r"<n>\2"),
    (r"\b(pid|process|kill) \d+", r"\1 <n>"),
    (r"\bport \d{4,}", "port <n>"),
    (r"\b(packets|bytes)( |:)\d+|\b\d+ (packets|bytes)", "<n>"),
    (r"[\d.e+]+ \(\d+%\)", "<share>"),
    (r"@if\d+", "@if<n>"),
    (r"BIRD \d+\.[0-9.]+", "BIRD"),
    (r"\d+ (second|minute)s? ago", "<ago>"),
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

PROCESSES = ("ps", "-eo", "pid,ppid,etime,stat,wchan:24,args")

LOG = re.compile(r"> (/\S+\.log)")
"""Where a command in the background says what it does."""


class Reader:
    """Somebody who types what the book says, in a directory of his own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "examples").symlink_to(ROOT / "examples")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        self.env = {"PATH": path, "LANG": "C.UTF-8", "TORTIE_LAB": NAME, "COLUMNS": str(WIDTH)}

    def type(self, command: str) -> tuple[int, str]:
        """Exit status and output, with the book's names of labs."""
        mine = re.sub(r"\blab up(?! --name)", f"lab up --name {NAME}", renamed(command, NAMES))
        with (self.directory / "output").open("w+b") as output:
            if PLAIN.fullmatch(mine):
                words = shlex.split(mine)[1:]
                status = forked.run(words, self.env, (None, output, output), self.directory)
            else:
                status = self._shell(mine, output)
            output.seek(0)
            said = output.read().decode()
        return status, renamed(said, {new: old for old, new in reversed(NAMES.items())})

    def _shell(self, command: str, output: IO[bytes]) -> int:
        try:
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
        except subprocess.TimeoutExpired as late:
            processes = subprocess.run(PROCESSES, capture_output=True, check=False).stdout
            late.add_note(Path(str(output.name)).read_text() + processes.decode(errors="replace"))
            raise

    def read(self, page: str) -> None:
        logs: list[str] = []
        try:
            for step in steps(ROOT / page):
                logs += LOG.findall(step.command)
                self.follow(step)
        except BaseException as error:
            for log in filter(os.path.exists, logs):
                error.add_note(f"--- {log}\n{Path(log).read_text(errors='replace')}")
            leave_no_lab()  # the next page does not begin in the middle of this one
            raise

    def follow(self, step: Step) -> None:
        for name, text in step.files.items():
            path = self.directory / name
            if not path.exists() or path.read_text() != text:  # a program in the background may be reading it
                path.write_text(text)
        for state in step.state.split():
            self.prepare(state)
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
        if state == "none":
            network.destroy(LabDirectory(NAME))
            return
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
        while self._running() != running:
            assert time.monotonic() < deadline, f"the lab does not get to the state {state}"
            time.sleep(0.1)

    def _running(self) -> int:
        """Pods that run and are not the cluster's own."""
        lines = self.type("tortie get pods -A")[1].splitlines()
        return sum(" Running " in line and not line.startswith("kube-system ") for line in lines)

    def _must(self, command: str) -> None:
        status, output = self.type(command)
        assert status == 0, output


def leave_no_lab() -> None:
    for name in NAMES.values():
        network.destroy(LabDirectory(name))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("docs"))
    try:
        yield reader
    finally:
        leave_no_lab()


def halves(pages: Sequence[str]) -> tuple[list[str], list[str]]:
    """Pages in two parts with about as many commands each, which two workers can take."""
    found: tuple[list[str], list[str]] = ([], [])
    counts = [0, 0]
    for page in pages:
        fewer = counts.index(min(counts))
        found[fewer].append(page)
        counts[fewer] += sum(1 for _ in steps(ROOT / page))
    return found


HALVES = halves([*(f"docs/{page}.md" for page in PAGES), "README.md"])


class TestOneHalf:
    @pytest.mark.parametrize("page", HALVES[0])
    def test_the_commands_of(self, page: str, reader: Reader) -> None:
        reader.read(page)


class TestTheOtherHalf:
    @pytest.mark.parametrize("page", HALVES[1])
    def test_the_commands_of(self, page: str, reader: Reader) -> None:
        reader.read(page)


def test_a_block_is_read_as_described() -> None:
    block = "# true\n$ tortie lab up\nlab default is up, in ... s\n...\nthe end\n"
    assert list(_commands(block)) == [
        ("true", ()),
        ("tortie lab up", ("lab default is up, in ... s", "...", "the end")),
    ]
    assert list(_commands("$ sudo tortie services release\n# 1. it goes\n$ true\n")) == [
        ("tortie services release", ("# 1. it goes",)),
        ("true", ()),
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
