"""`tortie node checksystem` and `node diags` on a real machine: the kernel is asked, and nothing is left of that."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from tortie.cli.main import main
from tortie.cli.node_check import GOOD, NEEDS, Need, tried

pytestmark = pytest.mark.root


def _links() -> str:
    return subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout


def test_this_machine_has_what_a_node_needs(capsys: pytest.CaptureFixture[str]) -> None:
    before = _links()
    assert main(["node", "checksystem", "-f", "/boot/config"], "calicoctl") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == GOOD
    assert {line.split("\t")[2].strip() for line in lines if line.startswith("\t\t")} >= {need.name for need in NEEDS}
    assert "probe" not in _links()
    assert _links().count("\n") == before.count("\n")


def test_what_is_not_there_is_found_missing() -> None:
    assert not tried(Need("x", "ip link add probe0 type nonsense"))
    assert not tried(Need("x", "nft -c -f -", True, "table inet a { chain c { nonsense; } }\n"))
    assert not tried(Need("x", "no-such-program --version"))


def test_the_archive_of_a_machine_without_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "diags.tar.gz"
    assert main(["node", "diags", "-o", str(file), "--log-dir", str(tmp_path), "--node", "x"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Collecting diagnostics\n")
    assert out.endswith(f"Diags saved to {file}\n")
    with tarfile.open(file) as tar:
        (links,) = (member for member in tar.getmembers() if member.name.endswith("/links.txt"))
        opened = tar.extractfile(links)
        assert opened is not None
        assert b" lo: <LOOPBACK" in opened.read()
