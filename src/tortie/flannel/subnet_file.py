"""subnet.env of this node, where flannel's plugin and Docker's set-up look for it.

    Place ──of──► SubnetEnv ──write──► /run/flannel/subnet.env ──previous──► the subnets that the next daemon asks for

Written beside the file and renamed: who reads it finds all of it, old or new.
"""

from __future__ import annotations

import logging
import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from tortie.base.addr import Net, net_around
from tortie.base.errors import ConfigError, KernelError
from tortie.cni.subnet_env import SubnetEnv, dump, load
from tortie.flannel.manager import Previous
from tortie.flannel.state import Place

log = logging.getLogger(__name__)

DIRECTORY_MODE, FILE_MODE = 0o755, 0o644


def of(place: Place, mtu: int, masq: bool) -> SubnetEnv:
    """`mtu` is that of pods; `masq`: flanneld hides pods behind the node, so that the plugin need not."""
    config, lease = place.site.config, place.lease
    four, six = config.v4 if lease.subnet else None, config.v6 if lease.subnet6 else None
    return SubnetEnv(
        networks=(str(four.network),) if four else (),
        subnet=_first(lease.subnet) if four and lease.subnet else "",
        networks6=(str(six.network),) if six else (),
        subnet6=_first(lease.subnet6) if six and lease.subnet6 else "",
        mtu=mtu,
        masq=masq,
    )


def write(path: Path, place: Place, mtu: int, masq: bool) -> None:
    """Readable for everybody, as is its directory where that has to be made. Raises KernelError."""
    text = dump(of(place, mtu, masq))
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(DIRECTORY_MODE)
        try:
            with new.open("w", encoding="ascii") as file:
                os.fchmod(file.fileno(), FILE_MODE)
                file.write(text)
            new.rename(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(error.errno or 0, f"write {path}") from None


def previous(path: Path) -> Previous:
    """What the daemon before this one had, as far as it can be read."""
    try:
        env = load(path.read_text(encoding="utf-8", errors="replace"), str(path))
        four, six = (net_around(text) if text else None for text in (env.subnet, env.subnet6))
    except FileNotFoundError:
        return Previous()
    except (OSError, ValueError, ConfigError) as error:
        log.warning("%s: says nothing of the subnet before: %s", path, error)
        return Previous()
    return Previous(
        four if isinstance(four, IPv4Network) else None,
        six if isinstance(six, IPv6Network) else None,
    )


def _first(subnet: Net) -> str:
    """The address after the network's own, with the prefix length."""
    return f"{subnet.network_address + 1}/{subnet.prefixlen}"
