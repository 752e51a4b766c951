"""A directory of texts as a compressed archive that its owner alone may read. No secret enters: see `redact`."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

from tortie.base.errors import ConfigError
from tortie.cli.redact import redacted

MOST = 32 << 20
"""Bytes of a text that are kept: its end."""
MOST_OF_A_FILE = 4 << 20
"""The same of a file; taking secrets out takes a second for each two megabytes."""


class Tarball:
    """Texts come in by `add` and are in the file at once; `directory` is what all of them are in. As a context it
    leaves no file where the block raises."""

    def __init__(self, path: Path, directory: str) -> None:
        """Raises ConfigError when the file cannot be written."""
        self.path, self._directory = path, directory
        self._now = time.time()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", str(path)) from None
        self._file = os.fdopen(opened, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w:gz")  # noqa: SIM115

    def __enter__(self) -> Tarball:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        if kind is not None:
            self.path.unlink(missing_ok=True)

    def add(self, name: str, text: str | bytes) -> None:
        whole = text if isinstance(text, bytes) else text.encode()
        data = redacted(_end(whole, MOST).decode(errors="replace")).encode()
        entry = tarfile.TarInfo(f"{self._directory}/{name}")
        entry.size, entry.mtime, entry.mode = len(data), int(self._now), 0o600
        self._tar.addfile(entry, io.BytesIO(data))

    def add_files(self, under: str, files: Iterable[Path]) -> None:
        """Files as they are now; one that cannot be read leaves a line that says why."""
        for file in files:
            try:
                with file.open("rb") as opened:
                    opened.seek(max(0, opened.seek(0, os.SEEK_END) - MOST_OF_A_FILE - 1))
                    self.add(f"{under}/{file.name}", _end(opened.read(), MOST_OF_A_FILE))
            except OSError as error:
                self.add(f"{under}/{file.name}", f"cannot be read: {error.strerror}\n")

    def close(self) -> None:
        self._tar.close()
        self._file.close()


def _end(text: bytes, most: int) -> bytes:
    """The last lines, in all not more than `most` bytes. Half a line is left out: it may be half a secret."""
    return text if len(text) <= most else text[-most:].partition(b"\n")[2]
