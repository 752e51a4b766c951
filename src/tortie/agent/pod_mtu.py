"""The MTU of pods to come: worked out whenever links, pools or settings change, and noted in a file.

Our own plugin takes the value itself; the file is for Calico's plugin, and for people. Pods that are there keep what
they were made with: what is too large for the way is then told to them by the kernel, as path MTU discovery has it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tortie.agent.netconf import NetConf
from tortie.base.logs import Seldom
from tortie.calc.mtu import Mtu, mtu
from tortie.calc.node_addresses import Link
from tortie.calc.state import DesiredState, Pool, Settings
from tortie.cni.spec import CniError, Code

log = logging.getLogger(__name__)


class PodMtu:
    """Of one node. `now` is None until both the links and the cluster are known."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.now: Mtu | None = None
        self._links: Sequence[Link] = ()
        self._pools: tuple[Pool, ...] = ()
        self._settings: Settings | None = None
        self._complain = Seldom(log)

    def see_links(self, links: Sequence[Link]) -> None:
        self._links = links
        self._work_out()

    def see(self, state: DesiredState) -> None:
        """Costs nothing unless pools or settings have changed."""
        if (state.pools, state.settings) != (self._pools, self._settings):
            self._pools, self._settings = state.pools, state.settings
            self._work_out()

    def _work_out(self) -> None:
        if self._settings is None or not self._links:
            return
        new = mtu(self._links, self._settings, self._pools)
        if new.warning:
            self._complain.warning(f"MTU: {new.warning}")
        if self.now is None or new.pod != self.now.pod:
            log.info("new pods have an MTU of %d: %s", new.pod, new.text)
        self.now = new
        self._note(f"{new.pod}\n")

    def _note(self, text: str) -> None:
        try:
            if self.file.exists() and self.file.read_text() == text:
                return
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(text)
        except OSError as error:
            self._complain.warning(f"{self.file}: {error.strerror}: plugins that read it do not learn the MTU")

    def of(self, conf: NetConf) -> int:
        """The MTU of a pod's interface: what its network says, else the node's; 0 leaves it to the kernel. Raises
        CniError."""
        noted = self._noted() if conf.require_mtu_file else None
        if conf.mtu:
            return conf.mtu
        if self.now is not None:
            return self.now.pod
        return noted if noted is not None else self._noted(missing=0)

    def _noted(self, missing: int | None = None) -> int:
        try:
            return int(self.file.read_text().strip())
        except FileNotFoundError:
            if missing is None:
                raise CniError(Code.INTERNAL, f"require_mtu_file: {self.file} is missing") from None
            return missing
        except (OSError, ValueError):
            raise CniError(Code.INTERNAL, f"{self.file} does not hold a number") from None

    def answer(self, pods: Mapping[str, int]) -> Mapping[str, Any]:
        """The sums, and which pods (`pods`, with the MTU of each) have another than one made now would."""
        if self.now is None:
            return {"pod": 0, "text": "not worked out yet", "file": str(self.file), "paths": [], "others": {}}
        paths = [asdict(path) for path in self.now.paths]
        others = {name: own for name, own in sorted(pods.items()) if own != self.now.pod}
        return {
            "pod": self.now.pod,
            "text": self.now.text,
            "warning": self.now.warning,
            "file": str(self.file),
            "paths": paths,
            "others": others,
            "pods": len(pods),
        }
