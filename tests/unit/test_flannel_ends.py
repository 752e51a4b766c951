"""How flanneld ends: an error that was foreseen in one line, however deep in groups of tasks; a bug with all of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tortie.base.errors import TortieError, one_of
from tortie.flannel.config import parse
from tortie.flannel.manager import LeaseLost

LOST = LeaseLost("gone")
BUG = KeyError("a bug")


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (ExceptionGroup("life", [LOST]), LOST),
        (ExceptionGroup("life", [ExceptionGroup("keep", [ExceptionGroup("beat", [LOST])])]), LOST),
        (ExceptionGroup("life", [ExceptionGroup("keep", [LOST]), TortieError("another")]), LOST),
    ],
)
def test_of_what_was_foreseen_the_first_is_raised(group: ExceptionGroup[Exception], expected: Exception) -> None:
    assert one_of(group) is expected


@pytest.mark.parametrize("errors", [[BUG], [LOST, BUG], [LOST, ExceptionGroup("inner", [BUG])]])
def test_a_bug_is_never_hidden(errors: list[Exception]) -> None:
    group = ExceptionGroup("life", errors)
    assert one_of(group) is group


def test_no_secret_where_a_configuration_is_shown() -> None:
    config = parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard", "PSK": "s3cret"}}', "net-conf.json")
    assert config.options["PSK"] == "s3cret"
    assert "s3cret" not in repr(config)


def test_flags_that_are_wrong_end_with_another_status_than_all_else() -> None:
    for words, status in ((["-no-such-flag"], 2), (["-subnet-lease-renew-margin", "0"], 1)):
        done = subprocess.run(
            [sys.executable, "-m", "tortie.flannel", *words], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == 1
