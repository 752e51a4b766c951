"""`tortie cni validate`: what is wrong in network configurations, before a pod meets it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.base.errors import ConfigError
from tortie.cli.choice import check_choice

if TYPE_CHECKING:
    from tortie.cni.validate import Finding, Machine

BIN_DIR = "/opt/cni/bin"
SIOCGIFMTU = 0x8921  # linux/sockios.h
WRONG = 2


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Configurations: .conflist, .conf, .json.")],
    host: Annotated[bool, typer.Option("--host", help="Look at this machine's links and plugins, too.")] = False,
    path: Annotated[
        str,
        typer.Option("--path", metavar="DIRS", envvar="CNI_PATH", help="Look for plugins in these directories."),
    ] = "",
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """Find what is wrong in configurations of networks. Exit 0: no errors, 2: errors."""
    from tortie.cni.validate import ERROR, validate

    check_choice(output, ("text", "json"), "--output")
    found = validate([(str(file), _read(file)) for file in files], _machine(host, path))
    if output == "json":
        typer.echo(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
    else:
        _show(found, len(files))
    if any(one.severity == ERROR for one in found):
        raise typer.Exit(WRONG)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError("is not text in UTF-8", str(file)) from None
    except OSError as error:
        raise ConfigError(error.strerror or str(error), str(file)) from None


def _show(found: Sequence[Finding], files: int) -> None:
    for one in found:
        typer.echo(str(one))
    counts = [(sum(one.severity == word for one in found), word) for word in ("error", "warning")]
    words = [f"{count} {word}{'s' * (count != 1)}" for count, word in counts if count]
    typer.echo(f"{files} file{'s' * (files != 1)}: {', '.join(words) or 'nothing found'}")


def _machine(host: bool, path: str) -> Machine:
    from tortie.cni.validate import Machine

    directories = tuple(one for one in (path or BIN_DIR).split(":") if one)
    return Machine(
        directories,
        _executables(directories) if host or path else None,
        _links() if host else None,
    )


def _executables(directories: Sequence[str]) -> frozenset[str]:
    names: set[str] = set()
    for directory in directories:
        try:
            names.update(name for name in os.listdir(directory) if os.path.isfile(f"{directory}/{name}"))
        except OSError:
            continue  # none there
    return frozenset(names)


def _links() -> dict[str, int]:
    """The links of this network namespace with their MTU."""
    import fcntl
    import socket
    import struct

    found: dict[str, int] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("16si20x", name.encode(), 0)  # struct ifreq (linux/if.h)
            try:
                found[name] = struct.unpack("16si20x", fcntl.ioctl(asking, SIOCGIFMTU, request))[1]
            except OSError:
                continue  # gone meanwhile
    return found
