"""The file with a node's private key of WireGuard: base64, mode 0400, made when there is none."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path as File

from tortie.base.errors import ConfigError
from tortie.kernel.wireguard import clamped, new_private_key

log = logging.getLogger(__name__)


def private_key(file: File) -> str:
    """What is in it. Raises ConfigError naming the file."""
    try:
        return _read(file)
    except FileNotFoundError:
        pass
    except OSError as why:
        raise ConfigError(f"cannot be read: {why.strerror}", str(file)) from None
    try:
        _make(file)
        log.info("%s: made, this node's key from now on", file)
        return _read(file)  # which another daemon of this node may have made at the same time
    except OSError as why:
        raise ConfigError(f"cannot be made: {why.strerror}", str(file)) from None


def _read(file: File) -> str:
    with file.open(errors="replace") as opened:
        if os.fstat(opened.fileno()).st_mode & 0o077:
            log.warning("%s: others than its owner may use it: chmod 0400", file)
        text = opened.read(1024).strip()
    try:
        return clamped(text)
    except ValueError:
        raise ConfigError(
            "is not a private key, 32 bytes in base64 (wg genkey): mend it, or remove it", str(file)
        ) from None


def _make(file: File) -> None:
    """Whole, or not at all; one that is there by now stays."""
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with open(fd, "w") as opened:
            opened.write(new_private_key())
        with suppress(FileExistsError):
            os.link(new, file)
    finally:
        new.unlink(missing_ok=True)
