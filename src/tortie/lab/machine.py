"""Whether this machine can have a lab."""

from __future__ import annotations

import os
import shutil

from tortie.base.errors import NotSupported

PROGRAMS = {"bird": "bird2", "birdc": "bird2", "nft": "nftables", "nsenter": "util-linux", "unshare": "util-linux"}
"""What a lab runs, and the Debian package that has it."""


def check_root() -> None:
    """Raises NotSupported."""
    if os.geteuid() != 0:
        raise NotSupported("a lab is network namespaces, which only root may make and enter: try again with sudo")


OF_AGENTS = ("bird", "birdc", "nft")
"""Those of them that agents need."""


def check_machine(agents: bool = True) -> None:
    """Raises NotSupported, in one line, where no lab can be, or none with agents."""
    check_root()
    # Not every PATH has the places where Debian keeps these.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    wanted = {name: package for name, package in PROGRAMS.items() if agents or name not in OF_AGENTS}
    missing = {name: package for name, package in wanted.items() if shutil.which(name, path=path) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise NotSupported(f"a lab needs {', '.join(missing)}: apt-get install {packages}")
