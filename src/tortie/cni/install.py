"""Puts the executables `calico` and `calico-ipam` into a directory of plugins.

They are compiled from stub.c where there is a compiler, and are main.py with a first line for the kernel where there is
none. A mark inside says from which source they were made, so that doing it again costs a look.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tortie
from tortie.base.errors import ConfigError, KernelError

NAMES = ("calico", "calico-ipam")
C_SOURCE = Path(__file__).with_name("stub.c")
PYTHON_SOURCE = Path(__file__).with_name("main.py")

# Static where the C library allows it: the directory may be another system's, mounted here by the installing container.
C_FLAGS = ("-std=gnu11", "-Os", "-s")
LINKINGS = (("-static",), ())
COMPILE_SECONDS = 60

FIRST_LINE_BYTES = 127  # BINPRM_BUF_SIZE of linux/binfmts.h was 128 before Linux 5.1

log = logging.getLogger(__name__)


def build_stub(dest: Path, compiler: str = "cc", python: str = sys.executable) -> Path:
    """Make `calico` and `calico-ipam` in `dest` and return the path of the first.

    With no `compiler` ("" or not on PATH), or one that cannot compile, they are Python scripts run by `python`. Each
    file is replaced in one step, and is left alone when it is made from today's source. Raises ConfigError for a Python
    that no first line can name, KernelError when the directory cannot be written.
    """
    found = shutil.which(compiler) if compiler else None
    c_mark = _mark(C_SOURCE, *C_FLAGS)
    script_mark = _mark(PYTHON_SOURCE, python)
    good = {c_mark} if found else {c_mark, script_mark} if compiler else {script_mark}
    try:
        if not _is_installed(dest, good):
            dest.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=dest, prefix=".stub-") as workshop:
                made = Path(workshop) / NAMES[0]
                if not (found and _compile(found, c_mark, made)):
                    made.write_text(_script(python, script_mark), encoding="utf-8")
                made.chmod(0o755)
                _move_in(made, dest)
    except OSError as error:
        raise KernelError(error.errno or 0, f"install {NAMES[0]} {dest}") from error
    return dest / NAMES[0]


def is_ours(path: Path) -> bool:
    """Whether a file is a stub that some version of this software made."""
    return b"tortie-stub:" in path.read_bytes()


def _mark(source: Path, *how: str) -> str:
    """What a stub made from this source, in this version, in this way carries inside."""
    digest = hashlib.sha256(source.read_bytes())
    digest.update("\0".join((tortie.__version__, *how)).encode())
    return f"tortie-stub:{digest.hexdigest()[:32]}"


def _is_installed(dest: Path, marks: set[str]) -> bool:
    for name in NAMES:
        path = dest / name
        if not path.is_file() or not os.access(path, os.X_OK):
            return False
        content = path.read_bytes()
        if not any(mark.encode() in content for mark in marks):
            return False
    return True


def _compile(compiler: str, mark: str, made: Path) -> bool:
    """Whether the compiler made it. One without the C library's headers is as good as none, but worth a line."""
    values = {"TORTIE_VERSION": tortie.__version__, "STUB_MARK": mark}
    defines = [f'-D{name}="{value}"' for name, value in values.items()]
    complaint = ""
    for linking in LINKINGS:
        argv = [compiler, *C_FLAGS, *linking, *defines, "-o", str(made), str(C_SOURCE)]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            complaint = str(error)
            continue
        if done.returncode == 0:
            return True
        complaint = done.stderr.strip()
    log.warning("%s cannot compile %s; installing the slower Python stub: %s", compiler, C_SOURCE.name, complaint)
    return False


def _script(python: str, mark: str) -> str:
    first = f"#!{python} -IS"
    if any(char.isspace() for char in python) or len(os.fsencode(first)) > FIRST_LINE_BYTES:
        raise ConfigError(f'"{python}" cannot stand in the first line of a script; install a C compiler')
    body = PYTHON_SOURCE.read_text(encoding="utf-8")
    body = body.replace('VERSION = "unknown"', f'VERSION = "{tortie.__version__}"', 1)
    return f"{first}\n# {mark}\n{body}"


def _move_in(made: Path, dest: Path) -> None:
    """The second name is a hard link to the same file where the file system has them."""
    second = made.with_name(NAMES[1])
    try:
        os.link(made, second)
    except OSError:
        shutil.copy2(made, second)
    for path in (second, made):
        os.replace(path, dest / path.name)
