"""Which addresses are ready, on disk: for an agent that starts while the datastore is away.

An address is in the note only as long as nobody else can have it: it is taken out before it is given back, and before
the journal forgets to whom it was promised. One that is missing from the note is given back by whoever finds it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_interface
from pathlib import Path

import msgspec

from tortie.base.addr import IP
from tortie.base.errors import Unavailable
from tortie.ipam.fill import Interface

log = logging.getLogger(__name__)

Choice = tuple[int, tuple[str, ...]]
"""An IP version and the CIDRs of the pools that a pod may have an address of, in their order."""
Ready = Mapping[Choice, Sequence[Interface]]


class _Shelf(msgspec.Struct, frozen=True):
    version: int
    pools: tuple[str, ...]
    addresses: tuple[str, ...]


class ShelfNote:
    """A file, or None: then nothing is noted."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._noted: frozenset[IP] | None = None
        """None: it is not known what the file says."""

    def read(self) -> dict[Choice, list[Interface]]:
        """What was ready when it was written last; nothing where that cannot be read."""
        if self._file is None:
            return {}
        try:
            shelves = msgspec.json.decode(self._file.read_bytes(), type=list[_Shelf])
            found = {(one.version, one.pools): [ip_interface(text) for text in one.addresses] for one in shelves}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s is ignored: %s", self._file, error)
            return {}
        self._noted = _ips(found)
        return found

    def write(self, ready: Ready) -> None:
        """These are ready. A file that cannot be written says less than there is, which is safe."""
        try:
            self._write(ready)
        except OSError as error:
            log.debug("%s: %s", self._file, error)

    def forget(self, ips: Iterable[IP], ready: Ready) -> None:
        """These are not ready from now on; `ready` are those that still are. Raises Unavailable."""
        leaving = set(ips)
        if self._file is None or (self._noted is not None and self._noted.isdisjoint(leaving)):
            return
        try:
            self._write(ready)
        except OSError as error:
            try:
                self._file.unlink(missing_ok=True)
                self._noted = frozenset()
            except OSError:
                raise Unavailable(f"{self._file}: {os.strerror(error.errno or 0)}") from None

    def _write(self, ready: Ready) -> None:
        if self._file is None:
            return
        shelves = [_Shelf(version, pools, tuple(map(str, each))) for (version, pools), each in ready.items() if each]
        new = self._file.with_name(f"{self._file.name}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as opened:
            opened.write(msgspec.json.encode(shelves))
        new.replace(self._file)
        self._noted = _ips(ready)


def _ips(ready: Ready) -> frozenset[IP]:
    return frozenset(one.ip for each in ready.values() for one in each)
