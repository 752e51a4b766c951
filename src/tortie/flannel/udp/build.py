"""The proxy as a program: the one that was compiled before from today's sources, or compiled now."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tortie.base.errors import KernelError, NotSupported
from tortie.cni.c_program import compiled, has_mark, mark

NAME = "udp-proxy"
HERE = Path(__file__).parent
SOURCES = tuple(sorted(HERE.glob("*.c")))
FLAGS = ("-std=gnu11", "-O2", "-pthread", "-s")
PREBUILT = Path("/usr/lib/tortie/flannel")
"""Where a container's image has it: there is no compiler in it."""
CACHE = Path("/var/cache/tortie")
"""Where it is kept when programs may not be started from the directory of the daemon, as /run is in many systems."""


def program(directory: Path, compiler: str = "cc", *, prebuilt: Path = PREBUILT, cache: Path = CACHE) -> Path:
    """Its path, in one of the three. Raises NotSupported, KernelError."""
    wanted = _mark()
    places = (prebuilt, directory, cache)
    for place in places:
        if has_mark(place / NAME, wanted) and os.access(place / NAME, os.X_OK):
            return place / NAME
    if shutil.which(compiler) is None:
        raise NotSupported(
            f"the udp backend's proxy is not in {prebuilt}, and there is no {compiler} to compile it: install gcc and "
            "libc6-dev, or choose another backend"
        )
    for place in (directory, cache):
        made = build(place, compiler)
        if os.access(made, os.X_OK):
            return made
        made.unlink()
    raise NotSupported(f"programs can be started neither from {directory} nor from {cache}: both are mounted noexec")


def build(directory: Path, compiler: str = "cc", flags: Sequence[str] = FLAGS) -> Path:
    """Compiles it into a directory; its path. Raises NotSupported when it cannot be compiled, KernelError."""
    made = directory / NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=f".{NAME}-") as workshop:
            fresh = Path(workshop) / NAME
            complaint = compiled(compiler, flags, SOURCES, {"PROXY_MARK": _mark()}, fresh)
            if complaint:
                raise NotSupported(f"{compiler} cannot compile {HERE}: {complaint.splitlines()[0]}")
            os.replace(fresh, made)
    except OSError as error:
        raise KernelError(error.errno or 0, f"compile {NAME} in {directory}") from error
    return made


def _mark() -> str:
    return mark("udp", (*SOURCES, *sorted(HERE.glob("*.h"))), *FLAGS)
