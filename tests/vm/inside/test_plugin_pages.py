"""The examples of plugins' pages that need links which development kernels lack, run as they are printed."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryFile

import pytest

import forked
from e2e.test_docs import _BLOCK, _COMMENT, ROOT, _commands, agrees
from tortie.kernel import netns

pytestmark = pytest.mark.root

PAGES = ("ipvlan", "vlan", "dummy", "vrf")
NAMESPACES = ("inner-", "tagged-", "anycast-", "vrf-")
"""How the names of the pages' namespaces begin."""


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    for path in Path("/run/netns").glob("*-*"):
        if path.name.startswith(NAMESPACES):
            subprocess.run(["ip", "netns", "delete", path.name], check=False)


def typed(command: str, directory: Path) -> tuple[int, str]:
    """Exit status and output of a command. `tortie` is a child of this process: to start it would take longest."""
    ours = re.fullmatch(r"(?:ip netns exec (\S+) )?tortie ([^|&;<>]+)", command)
    with TemporaryFile() as out:
        if ours:
            with netns.entered(netns.path(ours[1])) if ours[1] else nullcontext():
                status = forked.run(shlex.split(ours[2]), {}, (None, out, out), directory)
        else:
            status = subprocess.run(
                ["bash", "-c", command], cwd=directory, stdout=out, stderr=out, timeout=60, check=False
            ).returncode
        out.seek(0)
        return status, out.read().decode()


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, tmp_path: Path) -> None:
    ran = 0
    for match in re.finditer(_BLOCK, (ROOT / "docs" / "plugins" / f"{name}.md").read_text()):
        comments = dict(_COMMENT.findall(match[1]))
        if "file" in comments:
            (tmp_path / comments["file"]).write_text(match[3])
        if match[2] != "console" or "tests/vm/inside" not in comments.get("not run", ""):
            continue
        for command, printed in _commands(match[3]):
            status, said = typed(command, tmp_path)
            assert status == 0, f"{command}\n{said}"
            assert agrees(printed, said), f"{command}\n--- printed\n{printed}\n--- in fact\n{said}"
            ran += 1
    assert ran
