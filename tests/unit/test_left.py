"""tools/left: real commands, that leave something behind and that do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LEFT = Path(__file__).parents[2] / "tools" / "left"


def run(directory: Path, script: str, *places: str) -> tuple[int, list[str]]:
    """The exit status, and the lines of what it says was left; seen from a directory."""
    words = [sys.executable, str(LEFT), *places, "--", "sh", "-c", script]
    environment = os.environ | {"LEFT_PATIENCE": "1"}
    done = subprocess.run(
        words, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr.splitlines()


def test_what_was_there_may_stay(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    assert run(tmp_path, "touch new && rm new", "*") == (0, [])
    assert run(tmp_path, "echo more >old && touch elsewhere", "o*") == (0, [])


def test_what_is_new_is_named(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    assert run(tmp_path, "touch .history b a old", "*") == (1, ["left behind:", "  .history", "  a", "  b"])


def test_what_goes_soon_after_is_not_left(tmp_path: Path) -> None:
    script = "touch late; (sleep 0.5; rm late) >/dev/null 2>&1 &"
    assert run(tmp_path, script, "*") == (0, [])


@pytest.mark.parametrize("script", ["exit 3", "touch new; exit 3"])
def test_the_status_is_the_command_s(tmp_path: Path, script: str) -> None:
    assert run(tmp_path, script, "*")[0] == 3


def test_a_file_among_the_places_that_are_looked_at() -> None:
    """Others may leave something there meanwhile, so this one only has to be among it."""
    name = f"/tmp/tortie-left-behind-by-{Path(__file__).stem}"
    try:
        status, said = run(Path("/"), f"touch {name}")
        assert status == 1
        assert f"  {name}" in said
    finally:
        Path(name).unlink()
