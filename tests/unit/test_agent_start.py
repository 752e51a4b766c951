"""How an agent starts: what is loaded for it, and the two command lines that say the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer.main

from tortie.agent.__main__ import options
from tortie.cli.agent import agent

FOR_PEOPLE = {"typer", "click", "rich", "pygments", "yaml", "pydantic"}
LOADED = "import sys, tortie.agent.main; print(*sys.modules, sep='\\n')"


def test_daemon_loads_nothing_that_is_for_people() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()
    assert "tortie.agent.main" in modules
    assert not FOR_PEOPLE & {name.partition(".")[0] for name in modules}
    assert not [name for name in modules if name.startswith(("tortie.cli", "tortie.lab"))]


def test_module_has_the_options_of_the_command() -> None:
    app = typer.Typer()
    app.command()(agent)
    command = typer.main.get_command(app)
    wanted = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    found = {name for action in options()._actions for name in action.option_strings}
    assert found - {"-h", "--help"} == wanted - {"-h", "--help", "--install-completion", "--show-completion"}


def test_defaults_are_the_commands() -> None:
    told = vars(options().parse_args([]))
    app = typer.Typer()
    app.command()(agent)
    for parameter in typer.main.get_command(app).params:
        if parameter.name in told and not parameter.required:
            assert str(told[parameter.name]) == str(parameter.default), parameter.name


def test_nonsense_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["--node", "a", "--datastore", "b", "--no-bgp", "--run-dir", str(tmp_path / "file")]
    command = [sys.executable, "-m", "tortie.agent", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("tortie: ")
    assert done.stderr.count("\n") == 1
