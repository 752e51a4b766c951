"""Commands with poor streams: a full disk, closed ones, an encoding without our signs; and a command's first moment.

The real program runs, for what Python does with its streams at its start and its end is part of it."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tortie.base.errors import KernelError
from tortie.cli import streams
from tortie.cli.main import of_a_file

TORTIE = f"{sys.executable} -m tortie.cli.main"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
DEMO = Path(__file__).parents[2] / "examples" / "demo"


def shell(line: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **(environment or {})}
    command = ["bash", "-c", line]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, timeout=60)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--version", "--help", "", "manifest", f"simulate -f {DEMO}"])
def test_a_full_disk_is_one_line(words: str, unbuffered: str) -> None:
    done = shell(f"{TORTIE} {words} >/dev/full", {"PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (1, "tortie: cannot write: No space left on device\n")


def test_help_that_nobody_reads() -> None:
    done = shell(f"set -o pipefail; {TORTIE} | true")
    assert (done.returncode in (0, 1), done.stderr) == (True, "")


@pytest.mark.parametrize("words", ["--version", f"simulate -f {DEMO} --connection 'red/web-1 -> red/web-2:80/tcp'"])
def test_output_that_is_closed_is_no_matter(words: str) -> None:
    done = shell(f"{TORTIE} {words} >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_input_that_is_closed_is_empty() -> None:
    done = shell(f"{TORTIE} validate -f - <&-")
    assert (done.returncode, done.stderr) == (2, "tortie: no resources specified in standard input\n")


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    """Else what is printed would go into the next file that is opened."""
    script = "from tortie.cli import streams; import os; streams.begin(); print(os.open('/etc/hostname', 0))"
    done = shell(f'{sys.executable} -c "{script}" 2>&- <&-')
    assert int(done.stdout) > 2


def test_an_encoding_without_our_signs() -> None:
    words = f"simulate -f {DEMO} --connection 'red/web-1 -> red/web-2:80/tcp'"
    signs, plain = shell(f"{TORTIE} {words}"), shell(f"{TORTIE} {words}", ASCII)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "✔" in signs.stdout
    assert plain.stdout == streams.plain(signs.stdout)


def test_every_sign_that_is_printed_has_a_plain_one() -> None:
    """Those of comments and docstrings, too: there are few."""
    for file in (Path(__file__).parents[2] / "src" / "tortie").rglob("*.py"):
        for sign in set(re.findall(r"[^\x00-\x7f]", file.read_text())):
            assert streams.plain(sign) != "?", f"{sign} in {file.name}"


def test_the_marks_of_a_matrix_stay_apart() -> None:
    assert len({streams.plain(mark) for mark in "✓✗∅·"}) == 4


def test_an_interrupt_while_the_command_line_is_imported() -> None:
    """The signal comes when the first of its modules is found."""
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'tortie.cli.main': os.kill(os.getpid(), signal.SIGINT)\n"
        "from tortie.cli.start import main\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


def test_what_a_file_has_against_a_command_is_a_line() -> None:
    assert str(of_a_file(FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"))) == (
        "/a: No such file or directory"
    )
    assert of_a_file(KernelError(errno.EINVAL, "ip link add")) is None
    assert of_a_file(ConnectionResetError(errno.ECONNRESET, "reset")) is None, "a bug: somebody should have caught it"
