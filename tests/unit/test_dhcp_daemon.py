"""Flags of the DHCP daemon, and what importing the plugin costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tortie
from tortie.cni.dhcp.command import flags, seconds
from tortie.cni.dhcp.rpc import SOCKET


@pytest.mark.parametrize(
    ("text", "value"),
    [("10s", 10), ("1m2s", 62), ("1.5s", 1.5), ("200ms", 0.2), ("1h", 3600), (".5s", 0.5)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "10", "s", "10 s", "-1s", "1d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(text)


def test_flags_as_go_takes_them() -> None:
    plain = flags([])
    assert (plain.socketpath, plain.pidfile, plain.hostprefix) == (SOCKET, "", "")
    assert (plain.timeout, plain.resendmax, plain.resendtimeout, plain.broadcast) == (10, 62, 208, False)
    some = flags(["-pidfile=/p", "--socketpath", "/s", "-timeout", "1m", "-broadcast", "-hostprefix=/host"])
    assert (some.pidfile, some.socketpath, some.timeout, some.hostprefix) == ("/p", "/s", 60, "/host")
    assert some.broadcast is True
    assert flags(["-broadcast=false"]).broadcast is False


def test_the_plugin_does_not_import_the_daemon() -> None:
    source = str(Path(tortie.__file__).parents[1])
    program = f"import sys; sys.path.insert(0, {source!r}); import tortie.cni.plugins.dhcp; print(*sys.modules)"
    argv = [sys.executable, "-IS", "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "socket", "logging", "argparse", "ctypes", "tortie.cni.dhcp.daemon"}
