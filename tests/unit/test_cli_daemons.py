"""Options that daemons refuse before they do anything. None of these starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tortie.base.logs import LEVELS, to_stderr
from tortie.cli.main import main

PORTS = {
    "agent": ("--health-port", "--metrics-port", "--proxy-health-port"),
    "proxy": ("--healthz-port", "--metrics-port"),
    "dns": ("--health-port", "--ready-port", "--metrics-port"),
    "fanout": ("--health-port", "--metrics-port"),
}
EVERY = [(daemon, option) for daemon, options in PORTS.items() for option in options]


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """As it was: a daemon takes all of it for itself."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
@pytest.mark.parametrize(("daemon", "option"), EVERY)
def test_what_is_no_port(daemon: str, option: str, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([daemon, option, port, "--datastore", "memory:"]) == 2
    said = capsys.readouterr().err
    assert option in said
    assert said.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: some ask who they are first")
@pytest.mark.parametrize("words", [["agent", "--node", "n"], ["proxy"], ["dns"], ["fanout"], ["controllers", "--once"]])
def test_what_is_no_log_level(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*words, "--log-level", "loud", "--datastore", str(tmp_path / "store.db")]) == 2
    assert capsys.readouterr().err == f'tortie: --log-level: "loud" is not one of {", ".join(LEVELS)}\n'
    assert list(tmp_path.iterdir()) == []


def test_a_log_level_in_calicos_words() -> None:
    for word, level in (("warn", logging.WARNING), ("Debug", logging.DEBUG), ("PANIC", logging.ERROR)):
        to_stderr(word)
        assert logging.getLogger().level == level
