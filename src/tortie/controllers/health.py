"""Whether the controllers are well: a file that they write every ten seconds, and what a probe makes of it.

    controllers ─► Health ─► status file ─► judge ─► `tortie controllers --live`, `--ready`: silent, or one line why not

Live: the file is written. Ready: and the datastore answers. Who waits for another to lead is ready, too. The age of the
file is counted on the clock that starts with the machine: what the wall says does not matter.

Source: the status file and the probes of Calico's kube-controllers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tortie.base.errors import NotFound, TortieError
from tortie.model.node import ClusterInformation
from tortie.model.store import Store

log = logging.getLogger(__name__)

STATUS_FILE = Path("/run/tortie/controllers.json")
EVERY = 10.0
"""Seconds between two writings."""
PATIENCE = 8.0
"""Seconds in which the datastore must answer."""
STALE = 45.0
"""Seconds after which a file says that nobody writes it any more."""


def uptime() -> float:
    """Seconds since the machine started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def judge(status: Mapping[str, Any], now: float, *, ready: bool) -> str:
    """Why the controllers that wrote this are not live or not ready; "" if they are. `now` as `uptime`."""
    written = status.get("written")
    if not isinstance(written, int | float) or isinstance(written, bool):
        return "the status file does not say when it was written"
    if not 0 <= now - written <= STALE:
        return f"the status file was last written {abs(now - written):.0f} s {'ago' if now > written else 'ahead'}"
    why = status.get("notReady")
    return str(why) if ready and why else ""


def probe(path: Path, *, ready: bool) -> str:
    """The same of a file; also why it cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        return f"{path}: {os.strerror(error.errno or 0)}: the controllers do not run, or write another file"
    except ValueError:
        return f"{path}: not a status file"
    return judge(found if isinstance(found, dict) else {}, uptime(), ready=ready)


class Health:
    """Writes the file; takes it away at the end. `leader`: who leads, for people."""

    def __init__(self, store: Store, path: Path, leader: Callable[[], str], me: str) -> None:
        self._store = store
        self._path = path
        self._leader = leader
        self._me = me
        self._complained = False
        self.wanted = True
        """Whether the configuration asks for it (`healthChecks`)."""

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if self.wanted:
                    self._write(await self._not_ready())
                await asyncio.sleep(EVERY)
        finally:
            with contextlib.suppress(OSError):
                self._path.unlink()

    async def _not_ready(self) -> str:
        """Why; "" if ready. Anything that the datastore answers will do."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._store.get(ClusterInformation, "default")
        except NotFound:
            return ""
        except TimeoutError:
            return f"the datastore has not answered for {PATIENCE:.0f} s"
        except TortieError as error:
            return str(error)
        return ""

    def _write(self, not_ready: str) -> None:
        status = {"written": uptime(), "notReady": not_ready, "leader": self._leader(), "identity": self._me}
        new = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(status) + "\n")
            new.replace(self._path)
        except OSError as error:
            if not self._complained:
                log.warning("%s: %s: probes will fail", self._path, os.strerror(error.errno or 0))
            self._complained = True
