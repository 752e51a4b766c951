"""tools/stockvm: what the guest sees of this machine, what comes out, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nobody import as_nobody
from vm.guest import ROOT, STOCKVM, obstacle


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    if why := obstacle():
        pytest.skip(why)


class Run:
    """A guest, booting beside those of the other tests."""

    def __init__(self, *words: str | Path, prefix: tuple[str, ...] = (), **environment: str) -> None:
        self._process = subprocess.Popen(
            [*prefix, str(STOCKVM), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        self.pid = self._process.pid

    def ended(self) -> tuple[int, str, str]:
        """Exit status, output and what it said about itself."""
        out, err = self._process.communicate(timeout=120)
        return self._process.returncode, out, err

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.communicate(timeout=30)

    def children(self) -> list[int]:
        """It and all that it has started."""
        found, left = [], [self.pid]
        while left:
            pid = left.pop()
            found.append(pid)
            try:
                left += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            except FileNotFoundError:
                pass
        return found


LOOK = """
uname -r; id -u; echo "$STOCKVM"; pwd; echo "$0 $1 $TORTIE_WORD"
touch here.stockvm "$2/kept" && ls here.stockvm
test -e "$3" || echo a /tmp of its own; ip -o link | grep -c .
ip link add tunl7 type ipip local 192.0.2.1 && tc qdisc add dev tunl7 root netem loss 10% && tc qdisc show dev tunl7
echo told >&2
exit 7
"""


CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
WATCH = f"for i in $(seq 300); do [ $(cat {CLOCK}) = tsc ] || break; sleep 0.2; done; cat {CLOCK}"
"""Until the processor's own counter is not what tells the time."""
TOO_SLOW = "tsc_early_khz=500000"
"""What a kernel believes that measured its processor at an unlucky moment: less than any has had for 20 years."""


@pytest.fixture(scope="module")
def runs(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """All at once: that they can is a part of what is tested. One has no network, and none needs it."""
    out, other = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("other")
    words = ("sh", "-c", LOOK, "a b*", "two  words", out, other)
    alone = ("unshare", "--net")
    once = out / "apt.conf"
    once.write_text('Acquire::Retries "0";')
    nothing_yet = {"STOCKVM_CACHE": str(other / "cache"), "APT_CONFIG": str(once)}
    began = {
        "looks": Run("-o", out, "--", *words, prefix=alone, TORTIE_WORD="it's"),
        "sleeps": Run("-t", "4", "--", "sleep", "60"),
        "panics": Run("-m", "512", "sh", "-c", "echo before; sleep 2; echo c >/proc/sysrq-trigger"),
        "has a wrong clock": Run("sh", "-c", WATCH, STOCKVM_KERNEL=TOO_SLOW),
        "is ended": Run("sleep", "60"),
        "has no kernel": Run("true", prefix=alone, **nothing_yet),
    }
    yield began
    for run in began.values():
        run.close()


def test_the_guest_is_this_machine_with_another_kernel(runs: dict[str, Run]) -> None:
    code, out, err = runs["looks"].ended()
    lines = out.splitlines()
    release = lines[0]
    assert release != os.uname().release
    assert release.endswith("-amd64")
    assert lines[1:6] == ["0", release, str(ROOT), "a b* two  words it's", "here.stockvm"]
    assert lines[6:8] == ["a /tmp of its own", "1"]
    assert "netem" in lines[8]
    assert lines[9:] == ["told"]
    assert (code, err) == (7, "")
    assert not (ROOT / "here.stockvm").exists()


def test_one_that_takes_too_long_is_ended(runs: dict[str, Run]) -> None:
    assert runs["sleeps"].ended() == (124, "", "stockvm: not done after 4 s\n")


def test_one_that_dies_says_its_last_words(runs: dict[str, Run]) -> None:
    code, out, err = runs["panics"].ended()
    assert (code, out) == (125, "before\n")
    assert err.startswith("stockvm: the guest died, and the command with it: Kernel panic")


def test_a_clock_that_was_measured_wrong_is_noticed(runs: dict[str, Run]) -> None:
    """Else time runs some times too fast in a guest that booted while this machine had much to do."""
    code, out, err = runs["has a wrong clock"].ended()
    assert (code, err) == (0, "")
    assert out.strip() in ("hpet", "acpi_pm")


def test_nothing_is_left_of_one_that_is_ended(runs: dict[str, Run]) -> None:
    run = runs["is ended"]
    deadline = time.monotonic() + 30
    while len(every := run.children()) < 3:  # itself, timeout, qemu
        assert time.monotonic() < deadline, every
        time.sleep(0.1)
    os.kill(run.pid, signal.SIGTERM)
    assert run.ended()[0] == 125
    assert not [pid for pid in every if Path(f"/proc/{pid}").exists()]


# --- when it cannot -------------------------------------------------------------------------------------------------


def said(*words: str, prefix: tuple[str, ...] = (), **environment: str) -> str:
    """What one says that does not start a guest."""
    code, out, err = Run(*words, prefix=prefix, **environment).ended()
    assert (code, out) == (125, "")
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "stockvm: no command; stockvm -h tells more"),
        (("-x", "true"), "stockvm: no such option: -x; stockvm -h tells more"),
        (("-t",), "stockvm: -t wants a value; stockvm -h tells more"),
        (("-m", "2G", "true"), "stockvm: -m 2G is not a number of megabytes"),
    ],
)
def test_words_that_are_wrong(words: tuple[str, ...], line: str) -> None:
    assert said(*words) == line


def test_a_program_that_is_missing_is_named_with_its_package() -> None:
    script = 'mount --bind /dev/null "$(command -v qemu-system-x86_64)" && exec "$@"'
    assert (
        said("true", prefix=("unshare", "--mount", "sh", "-c", script, "-"))
        == "stockvm: qemu-system-x86_64 not found: apt-get install qemu-system-x86"
    )


def test_without_a_kernel_and_without_a_network(runs: dict[str, Run]) -> None:
    code, out, err = runs["has no kernel"].ended()
    assert (code, out) == (125, "")
    (line,) = err.splitlines()
    assert line.startswith("stockvm: cannot download linux-image-amd64, which the first run needs: ")


def test_users_are_told_that_it_takes_root() -> None:
    assert said("true", prefix=tuple(as_nobody())) == "stockvm: needs root, to show the guest all files"
