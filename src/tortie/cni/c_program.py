"""Programs of ours that are written in C: compiled where there is a compiler, and told apart by a mark inside.

The mark says from which source, in which version and in which way a program was made, so that one that is there already
is known to be today's without being run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import tortie

# Static where the C library allows it: the directory may be another system's, mounted here by the installing container.
LINKINGS = (("-static",), ())
COMPILE_SECONDS = 60


def mark(kind: str, sources: Sequence[Path], *how: str) -> str:
    """What a program made from these sources, in this version, in this way carries inside."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    digest.update("\0".join((tortie.__version__, *how)).encode())
    return f"tortie-{kind}:{digest.hexdigest()[:32]}"


def has_mark(path: Path, mark: str) -> bool:
    try:
        return mark.encode() in path.read_bytes()
    except OSError:
        return False


def compiled(
    compiler: str, flags: Sequence[str], sources: Sequence[Path], values: Mapping[str, str], made: Path
) -> str:
    """Compiles with `values` as macros that are strings; "" when that worked, else what the compiler said."""
    defines = [f"-D{name}={c_string(value)}" for name, value in values.items()]
    complaint = ""
    for linking in LINKINGS:
        argv = [compiler, *flags, *linking, *defines, "-o", str(made), *(str(source) for source in sources)]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            complaint = str(error)
            continue
        if done.returncode == 0:
            return ""
        complaint = done.stderr.strip() or f"exit status {done.returncode}"
    return complaint


def c_string(text: str) -> str:
    """`text` as a literal of C, whatever it holds."""
    plain = text.isascii() and text.isprintable() and not any(char in '"\\?' for char in text)
    return f'"{text}"' if plain else '"' + "".join(f"\\{byte:03o}" for byte in os.fsencode(text)) + '"'
