"""tools/level: what it makes of tests that pass, fail, and pass once they are alone. Real runs of tiny tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LEVEL = Path(__file__).parents[2] / "tools" / "level"
TWICE = """
def fails_at_first(request):
    mark = Path(__file__).with_name(request.node.name)
    again = mark.exists()
    mark.touch()
    assert again
"""
"""Of a file of tests: what fails in one run and passes in the next."""
HEAD = f"import pytest\nfrom pathlib import Path\n{TWICE}\n"
PASSES = "def test_passes(): pass\n"
FAILS = "def test_fails(): assert False\n"
FIRST = "def test_at_first(request): fails_at_first(request)\n"
CLASS = """
class TestClass:
    def test_begin(self): type(self).begun = True
    def test_end(self, request):
        assert self.begun
        fails_at_first(request)
"""
"""Its second test takes the first one."""
ALONE = "once more, alone: "
NAMED = "failed among others and passed alone, which is to be mended:"


class Level:
    """A folder of tests, and what the program says of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
        self.folder = directory / "tests"
        self.folder.mkdir()

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / f"{name}.py").write_text(HEAD + text)

    def run(self, workers: str = "0", folder: str = "tests") -> tuple[int, list[str]]:
        """Exit status and the lines of its output."""
        words = [sys.executable, str(LEVEL), folder, workers]
        # No plugin but the one that it takes: to import the others is most of what a tiny run costs.
        plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | plugins
        done = subprocess.run(
            words, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout.splitlines()


@pytest.fixture
def level(tmp_path: Path) -> Level:
    return Level(tmp_path)


def tried_again(said: list[str]) -> list[str]:
    return [line.removeprefix(ALONE) for line in said if line.startswith(ALONE)]


def test_all_pass(level: Level) -> None:
    level.write(test_a=PASSES, test_b=PASSES)
    status, said = level.run()
    assert (status, tried_again(said)) == (0, [])
    assert NAMED not in said
    assert said[-1].startswith("2 passed")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_fails_among_others_and_passes_alone_is_named(level: Level, workers: str) -> None:
    level.write(test_a=PASSES + FIRST, test_b=PASSES)
    status, said = level.run(workers)
    assert (status, tried_again(said)) == (0, ["tests/test_a.py::test_at_first"])
    assert said[-3].startswith("1 passed"), "nothing else is tried again"
    assert said[-2:] == [NAMED, "  tests/test_a.py::test_at_first"]


def test_what_fails_twice_has_failed(level: Level) -> None:
    level.write(test_a=PASSES + FAILS + FIRST)
    status, said = level.run()
    assert (status, tried_again(said)) == (1, ["tests/test_a.py::test_at_first tests/test_a.py::test_fails"])
    assert NAMED not in said
    assert said[-1].startswith("1 failed, 1 passed")
    assert not (level.directory / ".pytest_cache").exists()


def test_a_class_is_tried_as_a_whole(level: Level) -> None:
    level.write(test_a=PASSES + CLASS)
    status, said = level.run()
    assert (status, tried_again(said)) == (0, ["tests/test_a.py::TestClass"])
    assert said[-3].startswith("2 passed")
    assert said[-2:] == [NAMED, "  tests/test_a.py::TestClass::test_end"]


def test_an_error_of_a_fixture_is_a_failure_like_any(level: Level) -> None:
    level.write(
        test_a=FIRST.replace("def test_at_first", "@pytest.fixture\ndef broken") + "def test_it(broken): pass\n"
    )
    status, said = level.run()
    assert (status, tried_again(said)) == (0, ["tests/test_a.py::test_it"])


@pytest.mark.parametrize(("count", "expected"), [(5, 0), (6, 1)])
def test_more_than_a_few_are_not_tried_again(level: Level, count: int, expected: int) -> None:
    level.write(test_a="".join(FIRST.replace("test_at_first", f"test_{number}") for number in range(count)))
    status, said = level.run()
    assert status == expected
    assert len(tried_again(said)) == (expected == 0)
    assert (NAMED in said) == (expected == 0)


def test_tests_of_one_class_count_as_one(level: Level) -> None:
    tests = "".join(f"    def test_{number}(self, request): fails_at_first(request)\n" for number in range(6))
    level.write(test_a="class TestClass:\n" + tests)
    status, said = level.run()
    assert (status, tried_again(said)) == (0, ["tests/test_a.py::TestClass"])
    assert len(said[said.index(NAMED) :]) == 7


@pytest.mark.parametrize(
    ("folder", "files", "expected"),
    [
        ("nowhere", {"test_a": PASSES}, pytest.ExitCode.USAGE_ERROR),
        ("tests", {}, pytest.ExitCode.NO_TESTS_COLLECTED),
        ("tests", {"test_a": "import nowhere\n" + PASSES}, pytest.ExitCode.INTERRUPTED),
    ],
    ids=["no such folder", "no tests", "a file that cannot be read"],
)
def test_what_is_wrong_with_the_run_itself_keeps_its_status(
    level: Level, folder: str, files: dict[str, str], expected: int
) -> None:
    level.write(**files)
    status, said = level.run(folder=folder)
    assert (status, tried_again(said)) == (expected, [])
    assert NAMED not in said
