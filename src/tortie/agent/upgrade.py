"""What an older Calico left undone in a node's claims, done once before the first address that is asked for by name."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from tortie.base.errors import TortieError
from tortie.ipam.assign import Ipam

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
"""Seconds before labelling is tried again, doubled each time."""
PATIENCE = 90.0
"""Seconds that a call may take, as in Calico."""


class AffinityLabels:
    """Labels this node's affinities; `marker` is a file that says that it has been done."""

    def __init__(self, ipam: Ipam, marker: Path, patience: float = PATIENCE) -> None:
        self._ipam = ipam
        self._marker = marker
        self._patience = patience

    async def ensure(self) -> None:
        """Nothing, once the marker is there. What cannot be done in time is left to the next call: nobody waits for
        labels here, only other programs find claims by them."""
        if self._marker.exists():
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._label()
            self._marker.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._marker.touch()
        except TimeoutError:
            log.warning("the affinities of this node could not be labelled in %g s", self._patience)
        except OSError as error:
            log.warning("%s: %s: the affinities of this node will be looked at again", self._marker, error.strerror)

    async def _label(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                if await self._ipam.label_affinities():
                    return
            except TortieError as error:
                log.warning("label the affinities of this node: %s", error)
            await asyncio.sleep(pause)
            pause *= 2
