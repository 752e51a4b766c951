"""What a lab says of its controllers, by what they have written last; and which labs have them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from tortie.base.errors import ConfigError
from tortie.controllers.health import STALE, uptime
from tortie.lab import flannel, networks
from tortie.lab.controllers import ControllersState, state_of
from tortie.lab.objects import initial_objects
from tortie.lab.state import LabDirectory
from tortie.lab.tables import _controllers
from tortie.lab.topology import laid_out, topology
from tortie.model.service import Service


@pytest.fixture
def directory(tmp_path: Path) -> LabDirectory:
    found = LabDirectory("x", tmp_path)
    found.path.mkdir()
    return found


def runs(directory: LabDirectory) -> None:
    """As if this very process were the controllers."""
    directory.controllers_pid.write_text(Path("/proc/self/stat").read_text())
    os.utime(directory.controllers_pid, (1000, 1000))


def written(directory: LabDirectory, ago: float = 0.0, at: float = 2000.0, why: str = "") -> None:
    directory.controllers_status.write_text(json.dumps({"written": uptime() - ago, "notReady": why}))
    os.utime(directory.controllers_status, (at, at))


def test_a_lab_without_its_file_is_there_all_the_same(directory: LabDirectory) -> None:
    with pytest.raises(
        ConfigError, match=r'lab "x" is not whole: .*"tortie lab down --name x" takes away what is left'
    ):
        directory.read()
    with pytest.raises(ConfigError, match='no lab "y" here; there is x'):
        LabDirectory("y", directory.root).read()


def test_none_run(directory: LabDirectory) -> None:
    written(directory)
    assert state_of(directory) == ControllersState(0, "not running")


def test_they_have_said_nothing_yet(directory: LabDirectory) -> None:
    runs(directory)
    assert state_of(directory) == ControllersState(os.getpid(), "they are starting")
    written(directory, at=999)
    assert state_of(directory) == ControllersState(os.getpid(), "they are starting"), "others' words"


def test_they_are_ready(directory: LabDirectory) -> None:
    runs(directory)
    written(directory)
    assert state_of(directory) == ControllersState(os.getpid())
    assert state_of(directory).ready


def test_they_say_what_is_wrong(directory: LabDirectory) -> None:
    runs(directory)
    written(directory, why="the datastore is locked")
    assert state_of(directory).why == "the datastore is locked"
    written(directory, ago=STALE + 60)
    assert "was last written" in state_of(directory).why
    directory.controllers_status.write_text("{")
    assert not state_of(directory).ready


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (ControllersState(why="not running"), "controllers: not running"),
        (ControllersState(7), "controllers: pid 7, ready"),
        (ControllersState(7, "locked"), "controllers: pid 7, not ready: locked"),
    ],
)
def test_status_says_it_in_one_line(state: ControllersState, line: str) -> None:
    console = Console(width=80)
    with console.capture() as said:
        console.print(_controllers(state))
    assert said.get() == f"{line}\n"


def test_which_labs_have_services() -> None:
    plain = topology("x", 1)
    alone = laid_out("x", networks.blueprint_of("macvlan", 1, [], "", True))
    beside = laid_out("x", flannel.blueprint_of("", 1))
    canal = laid_out("x", flannel.blueprint_of("", 1, policy=True))
    assert [lab.has_services for lab in (plain, alone, beside, canal)] == [True, False, True, True]
    assert [lab.has_proxies for lab in (plain, alone, beside, canal)] == [False, False, True, False]
    services = [
        [one.title for one in initial_objects(lab, "0" * 32) if isinstance(one, Service)] for lab in (plain, alone)
    ]
    assert services == [["Service default/kubernetes", "Service kube-system/kube-dns"], []]
