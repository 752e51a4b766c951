"""Puts executables into a directory of plugins: `calico` and `calico-ipam`, and the stand-alone plugins.

    calico, calico-ipam        stub.c compiled where there is a compiler, else main.py with a first line for the kernel
    bridge, host-local, ...    launch.c and a script likewise; they start this Python with the package that is here, and
                               beside them is a file with what they import, compiled (pack.py). From a container's
                               image: one that starts nothing and asks the server of the node (resident.py)

The names of either are hard links to one file. A mark inside says from which source it was made, so that doing it again
costs a look, and so that what others have put there is told apart: it is not replaced unless that is asked for.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import tortie
from tortie.base.errors import ConfigError, Exists, KernelError, NotSupported
from tortie.cni import pack, plugins
from tortie.cni.c_program import COMPILE_SECONDS, compiled, has_mark, mark

NAMES = ("calico", "calico-ipam")
PLUGINS = tuple(plugins.NAMES)
C_SOURCE = Path(__file__).with_name("stub.c")
PYTHON_SOURCE = Path(__file__).with_name("main.py")
LAUNCH_C_SOURCE = Path(__file__).with_name("launch.c")
LAUNCH_SOURCE = Path(__file__).with_name("launch.py")
PACK_SOURCE = Path(__file__).with_name("pack.py")
PACK = ".tortie-plugins"
"""The name of the file, beside the plugins, with all that they import."""
PLUGIN_MARK = b"tortie-plugin:"

C_FLAGS = ("-std=gnu11", "-Os", "-s")

FIRST_LINE_BYTES = 127  # BINPRM_BUF_SIZE of linux/binfmts.h was 128 before Linux 5.1

PREBUILT = Path("/usr/lib/tortie/cni")
"""Where a container's image has the stub compiled: it has no compiler, and its Python is not the host's."""
SERVED = "plugin"
"""The name there of what stand-alone plugins are on such a host."""

log = logging.getLogger(__name__)


def build_stub(dest: Path, compiler: str = "cc", python: str = sys.executable, *, prebuilt: Path = PREBUILT) -> Path:
    """Make `calico` and `calico-ipam` in `dest` and return the path of the first.

    What was compiled before from today's source, and lies in `prebuilt`, is taken as it is.

    With no `compiler` ("" or not on PATH), or one that cannot compile, they are Python scripts run by `python`. Each
    file is replaced in one step, and is left alone when it is made from today's source. Raises ConfigError for a Python
    that no first line can name, KernelError when the directory cannot be written.
    """
    found = shutil.which(compiler) if compiler else None
    c_mark = _mark(C_SOURCE, *C_FLAGS)
    script_mark = _mark(PYTHON_SOURCE, python)
    good = {c_mark} if found else {c_mark, script_mark} if compiler else {script_mark}
    try:
        if not _is_installed(dest, NAMES, good):
            dest.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=dest, prefix=".stub-") as workshop:
                made = Path(workshop) / NAMES[0]
                values = {"TORTIE_VERSION": tortie.__version__, "STUB_MARK": c_mark}
                if not _copied(prebuilt / NAMES[0], c_mark, made) and not (
                    found and _compile(found, C_SOURCE, values, made)
                ):
                    made.write_text(_script(python, script_mark), encoding="utf-8")
                made.chmod(0o755)
                _move_in(made, dest, NAMES)
    except OSError as error:
        raise KernelError(error.errno or 0, f"install {NAMES[0]} {dest}") from error
    return dest / NAMES[0]


def install_plugins(
    dest: Path,
    names: Collection[str] = PLUGINS,
    *,
    compiler: str = "cc",
    python: str = "",
    force: bool = False,
    packed: bool = True,
    prebuilt: Path = PREBUILT,
) -> list[Path]:
    """Makes stand-alone plugins in `dest`; those that were written, none when all are there already.

    Those of ours that are there become links to the same file, by which plugins know one another and need no process to
    call one another. `python` is the interpreter, the one that runs this if not given; a virtual environment's stands
    for the one that it was made of. Nothing is written when one of the names is a foreign program's, unless `force`.
    With `packed` there is a pack beside them, made anew each time: plugins start quicker with it, and do without it.
    What was compiled before from today's source, and lies in `prebuilt`, is taken in place of all that.
    Raises ConfigError for an unknown name, Exists for a foreign program, KernelError when it cannot be written.
    """
    unknown = sorted(set(names) - set(PLUGINS))
    if unknown:
        raise ConfigError(f'no plugin has the name "{unknown[0]}"; there are {", ".join(PLUGINS)}')
    foreign = [name for name in names if os.path.lexists(dest / name) and not is_plugin_of_ours(dest / name)]
    if foreign and not force:
        raise Exists(f"{dest / foreign[0]} is another program's; --force puts ours in its place")
    wanted = tuple(name for name in PLUGINS if name in names or is_plugin_of_ours(dest / name))
    python = os.path.realpath(python) if python else base_python()
    found = shutil.which(compiler) if compiler else None
    start = pack.starter(str(LAUNCH_SOURCE.parents[2]), str(dest.absolute() / PACK))
    values = {"PYTHON": python, "START": start}
    c_mark = _mark(LAUNCH_C_SOURCE, *C_FLAGS, *values.values(), kind="plugin")
    script_mark = _mark(LAUNCH_SOURCE, *values.values(), kind="plugin")
    good = {c_mark} if found else {c_mark, script_mark} if compiler else {script_mark}
    served = prebuilt / SERVED
    if has_mark(served, _served_mark()):
        good, packed = {_served_mark()}, False
    try:
        if wanted and packed:
            dest.mkdir(parents=True, exist_ok=True)
            _write_pack(python, dest)
        if not wanted or (_is_installed(dest, wanted, good) and _is_one_file(dest, wanted)):
            return []
        dest.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=dest, prefix=".plugins-") as workshop:
            made = Path(workshop) / wanted[0]
            if not _copied(served, _served_mark(), made) and not (
                found and _compile(found, LAUNCH_C_SOURCE, {**values, "LAUNCH_MARK": c_mark}, made)
            ):
                made.write_text(f"{_first_line(python)}\n# {script_mark}\n{start}", encoding="utf-8")
            made.chmod(0o755)
            _move_in(made, dest, wanted)
    except OSError as error:
        raise KernelError(error.errno or 0, f"install plugins in {dest}") from error
    return [dest / name for name in wanted]


def build_served(dest: Path, compiler: str = "cc") -> Path:
    """Makes in `dest` what stand-alone plugins are on hosts without Python; its path. Raises NotSupported."""
    dest.mkdir(parents=True, exist_ok=True)
    made = dest / SERVED
    values = {"LAUNCH_MARK": _served_mark(), "SERVED_ONLY": "1"}
    if not _compile(compiler, LAUNCH_C_SOURCE, values, made):
        raise NotSupported(f"{compiler} cannot compile {LAUNCH_C_SOURCE.name}")
    return made


def _served_mark() -> str:
    return _mark(LAUNCH_C_SOURCE, *C_FLAGS, "SERVED_ONLY", kind="plugin")


def base_python() -> str:
    """The interpreter that this one is, or that its virtual environment was made of."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def remove_plugins(dest: Path, names: Collection[str] = PLUGINS) -> list[Path]:
    """Takes away those of the stand-alone plugins in `dest` that are ours; them. Raises KernelError."""
    ours = [dest / name for name in PLUGINS if name in names and is_plugin_of_ours(dest / name)]
    try:
        for path in ours:
            path.unlink()
        if not any(is_plugin_of_ours(dest / name) for name in PLUGINS):
            (dest / PACK).unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(error.errno or 0, f"remove plugins from {dest}") from None
    return ours


def is_plugin_of_ours(path: Path) -> bool:
    """Whether some version of this software put a stand-alone plugin there."""
    return path.is_file() and PLUGIN_MARK in path.read_bytes()


def is_ours(path: Path) -> bool:
    """Whether a file is a stub that some version of this software made."""
    return b"tortie-stub:" in path.read_bytes()


def _mark(source: Path, *how: str, kind: str = "stub") -> str:
    return mark(kind, (source,), *how)


def _is_one_file(dest: Path, names: Sequence[str]) -> bool:
    return all(os.path.samefile(dest / name, dest / names[0]) for name in names)


def _is_installed(dest: Path, names: Sequence[str], marks: set[str]) -> bool:
    for name in names:
        path = dest / name
        if not path.is_file() or not os.access(path, os.X_OK):
            return False
        content = path.read_bytes()
        if not any(mark.encode() in content for mark in marks):
            return False
    return True


def _compile(compiler: str, source: Path, values: Mapping[str, str], made: Path) -> bool:
    """Whether the compiler made it. One without the C library's headers is as good as none, but worth a line."""
    complaint = compiled(compiler, C_FLAGS, (source,), values, made)
    if complaint:
        log.warning("%s cannot compile %s; installing the slower Python stub: %s", compiler, source.name, complaint)
    return not complaint


def _copied(ready: Path, mark: str, made: Path) -> bool:
    """Whether there is one that was compiled before, from this source."""
    if not has_mark(ready, mark):
        return False
    shutil.copyfile(ready, made)
    return True


def _write_pack(python: str, dest: Path) -> None:
    """By the interpreter that is to read it. Plugins do without one that cannot be made: that is worth a line."""
    with tempfile.TemporaryDirectory(dir=dest, prefix=".pack-") as workshop:
        made = Path(workshop) / PACK
        argv = [python, "-I", "-S", str(PACK_SOURCE), str(made)]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
            )
            complaint = done.stderr.strip() if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            complaint = str(error)
        if complaint:
            log.warning("plugins will start slowly, for %s could not be made: %s", PACK, complaint)
            (dest / PACK).unlink(missing_ok=True)
        else:
            os.replace(made, dest / PACK)


def _first_line(python: str) -> str:
    first = f"#!{python} -IS"
    if any(char.isspace() for char in python) or len(os.fsencode(first)) > FIRST_LINE_BYTES:
        raise ConfigError(f'"{python}" cannot stand in the first line of a script; install a C compiler')
    return first


def _script(python: str, mark: str) -> str:
    first = _first_line(python)
    body = PYTHON_SOURCE.read_text(encoding="utf-8")
    body = body.replace('VERSION = "unknown"', f'VERSION = "{tortie.__version__}"', 1)
    return f"{first}\n# {mark}\n{body}"


def _move_in(made: Path, dest: Path, names: Sequence[str]) -> None:
    """The other names are hard links to the same file where the file system has them. The first comes last."""
    others = [made.with_name(name) for name in names if name != made.name]
    for other in others:
        try:
            os.link(made, other)
        except OSError:
            shutil.copy2(made, other)
    for path in (*others, made):
        os.replace(path, dest / path.name)
