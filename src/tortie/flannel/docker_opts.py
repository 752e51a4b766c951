"""Docker's options for this node's subnet, of the subnet file: what flannel's mk-docker-opts.sh makes.

FLANNEL_SUBNET=10.5.52.1/24   DOCKER_OPT_BIP="--bip=10.5.52.1/24"
FLANNEL_IPMASQ=true           DOCKER_OPT_IPMASQ="--ip-masq=false"       flannel masquerades: Docker must not
FLANNEL_MTU=1450              DOCKER_OPT_MTU="--mtu=1450"
                              DOCKER_OPTS=" --bip=10.5.52.1/24 --ip-masq=false --mtu=1450"
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import IPv4Interface
from pathlib import Path

from tortie.base.addr import IP
from tortie.base.errors import ConfigError, KernelError, NotFound, TortieError
from tortie.cni.subnet_env import MASQ, load
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, RT_TABLE_MAIN
from tortie.kernel.routes import Route, list_routes

_INVERSE = {"true": "false", "false": "true"}


def made(path: Path, key: str, *, single: bool, combined: bool, masq: bool) -> str:
    """Of the subnet file, and of this node's routes. Raises NotFound, ConfigError, and TortieError where another node
    has the subnet, or the file says neither that flannel masquerades nor that it does not."""
    try:
        said = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise NotFound(f"{path}: {os.strerror(error.errno or 0)}: has flanneld written it?") from None
    with Netlink() as nl:
        routes = list_routes(nl, AF_INET, RT_TABLE_MAIN)
    return text(said, str(path), routes, key, single=single, combined=combined, masq=masq)


def text(said: str, where: str, routes: Iterable[Route], key: str, *, single: bool, combined: bool, masq: bool) -> str:
    """Each option in a variable (`single`), all in the one that `key` names (`combined`), or both. `masq`: with that
    of masquerading."""
    try:
        env = load(said, where)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not env.subnet:
        raise ConfigError("Docker's bridge needs an IPv4 subnet, and there is none", where)
    _check(env.subnet, routes)
    options = {"BIP": f"--bip={env.subnet}", "IPMASQ": _masq(said, where), "MTU": f"--mtu={env.mtu}"}
    if not masq:
        del options["IPMASQ"]
    lines = [f'DOCKER_OPT_{name}="{option}"' for name, option in options.items()] if single else []
    lines += [f'{key}="{"".join(f" {option}" for option in options.values())}"'] if combined else []
    return "".join(f"{line}\n" for line in lines)


def _masq(said: str, where: str) -> str:
    """The file is read as a shell reads it: the last line counts."""
    value = [line.partition("=")[2] for line in said.splitlines() if line.startswith(f"{MASQ}=")][-1]
    if value not in _INVERSE:
        raise TortieError(f"{where}: Invalid value of {MASQ}: {value}: it is true or false")
    return f"--ip-masq={_INVERSE[value]}"


def _check(subnet: str, routes: Iterable[Route]) -> None:
    """Raises TortieError where packets to our own subnet would go to another machine."""
    own = IPv4Interface(subnet).network
    for route in routes:
        if route.dst == own and (via := _gateway(route)) is not None:
            raise TortieError(f"{own} is routed to {via}: another node has it; Docker must not use it here")


def _gateway(route: Route) -> IP | None:
    return route.via or next((hop.via for hop in route.nexthops if hop.via is not None), None)


def write(path: Path, found: str) -> None:
    """Beside it and renamed. Raises KernelError."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.write_text(found)
            new.rename(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(error.errno or 0, f"write {path}") from None
