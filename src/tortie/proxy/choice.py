"""Whether this node is asked to serve services: what is configured, and what a person chose on the node.

    --services, TORTIE_SERVICES   the file `services`   is asked for
    on, off                       whatever              what is configured: who reads a manifest can rely on it
    auto, nothing                 on, off               what was chosen by `tortie services takeover` or `release`
    auto, nothing                 not there             auto

A command that would say the contrary of what is configured is refused: it would be undone by the next start. The file
outlives the agent and the machine's restart, since what was taken from kube-proxy is not given back by either.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from tortie.base.errors import ConfigError, Unavailable
from tortie.proxy.kube_proxy import ASKED, Asked, asked_for

log = logging.getLogger(__name__)

FILE = "services"
"""In the agent's directory for files of the node."""
WHERE = "--services or TORTIE_SERVICES"


class Choice:
    """`configured`: "" for nothing. Raises ConfigError."""

    def __init__(self, directory: Path, configured: str = "") -> None:
        self._file = directory / FILE
        self._configured = asked_for(configured, WHERE) if configured else "auto"
        self._noted = self._read()

    @property
    def asked(self) -> Asked:
        return self._noted if self._configured == "auto" else self._configured

    def check(self, wanted: Asked) -> None:
        """Raises ConfigError if it would be the contrary of what is configured."""
        if self._configured not in ("auto", wanted):
            raise ConfigError(
                f'is "{self._configured}", so that "{wanted}" would last until the next start only: '
                f"set it to auto or {wanted}",
                WHERE,
            )

    def note(self, wanted: Asked) -> None:
        """From now on, also after a restart. Raises ConfigError, Unavailable."""
        self.check(wanted)
        new = self._file.with_name(f"{FILE}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with new.open("w", encoding="ascii") as opened:
                opened.write(f"{wanted}\n")
                opened.flush()
                os.fsync(opened.fileno())
            new.replace(self._file)
        except OSError as error:
            raise Unavailable(f"{self._file} cannot be written: {os.strerror(error.errno or 0)}") from None
        self._noted = wanted

    def _read(self) -> Asked:
        try:
            text = self._file.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return "auto"
        except OSError as error:
            log.warning("%s is ignored: %s", self._file, os.strerror(error.errno or 0))
            return "auto"
        for one in ASKED:
            if text == one:
                return one
        log.warning('%s is ignored: "%s" is not one of %s', self._file, text[:40], ", ".join(ASKED))
        return "auto"
