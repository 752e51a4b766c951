"""A guest that dies: what it has done is reported, the test that it was at has failed, and another does the rest."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from vm.guest import ROOT, Guest, obstacle

SUITE = """
from pathlib import Path

def test_passes(): pass

def test_fails(): assert 6 * 7 == 54

def test_the_kernel_panics(): Path("/proc/sysrq-trigger").write_text("c")

def test_after_it(): pass

def test_another_panic(): Path("/proc/sysrq-trigger").write_text("c")

def test_a_panic_before_anything_is_done(): Path("/proc/sysrq-trigger").write_text("c")

def test_that_nobody_comes_to(): pass
"""
DIED = "the guest ended, with status 125, before this test was done:"


@pytest.fixture(autouse=True)
def possible() -> None:
    if why := obstacle():
        pytest.skip(why)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """This one, with these tests in place of its own."""
    if Path(sys.executable).is_relative_to("/tmp"):
        pytest.skip("a guest has a /tmp of its own, and sees of this one's only its working directory: not this Python")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    for name in ("parts.py", "vm/__init__.py", "vm/conftest.py", "vm/guest.py", "vm/inside/__init__.py"):
        target = tmp_path / "tests" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, target)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["tests"]\n')
    (tmp_path / "tests/vm/inside/test_it.py").write_text(SUITE)
    return tmp_path


def test_what_a_guest_had_not_done_another_one_does(project: Path) -> None:
    # Without a summary: where CI is set it has the failures' texts a second time, and whole.
    words = [sys.executable, "-m", "pytest", "-v", "-rN", "-p", "no:cacheprovider", "tests/vm/inside"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, timeout=500, check=False)
    became = dict(re.findall(r"^\S+::test_(\w+) (\w+)", done.stdout, re.MULTILINE))
    assert became == {
        "passes": "PASSED",
        "fails": "FAILED",
        "the_kernel_panics": "FAILED",
        "after_it": "PASSED",
        "another_panic": "FAILED",
        "a_panic_before_anything_is_done": "FAILED",
        "that_nobody_comes_to": "FAILED",
    }, done.stdout + done.stderr
    assert done.stdout.count(DIED) == 4
    assert done.stdout.count("Kernel panic") == 4
    assert "assert (6 * 7) == 54" in done.stdout


def test_one_that_says_nothing_is_ended(tmp_path: Path) -> None:
    """Sooner than any can boot."""
    with closing(Guest(["tests/vm/inside/test_kernel.py"], tmp_path, silence=0.5)) as guest:
        assert guest.reports("tests/vm/inside/test_kernel.py::test_of_no_name") == []
        says = (
            r"the guest ended, with status [1-9]\d*, before this test was done, for it had said nothing for 0\.5 s:\n"
        )
        assert re.fullmatch(says, guest.ending())
        assert not guest.leaves_some
