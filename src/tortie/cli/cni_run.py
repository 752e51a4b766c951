"""`tortie cni add|del|check|gc|status`: runs a network's plugins by hand, as a container runtime does.

The same as cnitool of the CNI project, with its environment variables: NETCONFPATH, CNI_PATH, CNI_IFNAME, CNI_ARGS and
CAP_ARGS; the id of the container is made of the namespace's path as cnitool makes it, so either can delete what the
other added. Beyond it: NETWORK may be a file, NETNS a name of `ip netns`, and nothing needs to be installed.

    plugins are looked for in       CNI_PATH or --path        and nowhere else
                                    neither of them given     /opt/cni/bin, then the plugins of this program itself
                                    --bundled                 the plugins of this program itself, then the above

The plugins of this program are put into a temporary directory for as long as the command runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tortie.base.errors import ConfigError
from tortie.cli.stopping import stopped_as_by_interrupt

if TYPE_CHECKING:
    from tortie.cni.conflist import ConfList
    from tortie.cni.runtime import Runtime

NET_DIR = "/etc/cni/net.d"
BIN_DIR = "/opt/cni/bin"
CACHE_DIR = "/var/lib/cni"
FILES = (".conflist", ".conf", ".json")

T = TypeVar("T")

Network = Annotated[str, typer.Argument(metavar="NETWORK", help="A network's name, or a file.")]
Netns = Annotated[str, typer.Argument(metavar="NETNS", help="The namespace: a path, or a name of `ip netns`.")]
NetDir = Annotated[
    str,
    typer.Option("--net-dir", metavar="DIR", envvar="NETCONFPATH", help="Where networks are looked for by name."),
]
Path_ = Annotated[
    str, typer.Option("--path", metavar="DIRS", envvar="CNI_PATH", help="Directories of plugins, with : between.")
]
Bundled = Annotated[bool, typer.Option("--bundled", help="Use the plugins of this program before all others.")]
Ifname = Annotated[str, typer.Option("--ifname", metavar="NAME", envvar="CNI_IFNAME", help="The interface inside.")]
Args = Annotated[str, typer.Option("--args", metavar="K=V;K=V", envvar="CNI_ARGS", help="Arguments of the plugins.")]
CapArgs = Annotated[
    str, typer.Option("--cap-args", metavar="JSON", envvar="CAP_ARGS", help="Values for capabilities, by capability.")
]
ContainerId = Annotated[
    str, typer.Option("--container-id", metavar="ID", help="The container's; else made of the namespace's path.")
]
CacheDir = Annotated[str, typer.Option("--cache-dir", metavar="DIR", help="Where results are remembered.")]


def add(
    network: Network,
    netns: Netns,
    ifname: Ifname = "eth0",
    args: Args = "",
    cap_args: CapArgs = "",
    container_id: ContainerId = "",
    net_dir: NetDir = NET_DIR,
    path: Path_ = "",
    bundled: Bundled = False,
    cache_dir: CacheDir = CACHE_DIR,
) -> None:
    """Attach a namespace to a network; the result."""
    from tortie.cni.spec import format_json

    attachment = _attachment(netns, ifname, args, cap_args, container_id)
    conflist = _network(network, net_dir)
    with _runtime(path, bundled, cache_dir) as runtime:
        typer.echo(format_json(_run(runtime.add(conflist, *attachment))))


def delete(
    network: Network,
    netns: Netns,
    ifname: Ifname = "eth0",
    args: Args = "",
    cap_args: CapArgs = "",
    container_id: ContainerId = "",
    net_dir: NetDir = NET_DIR,
    path: Path_ = "",
    bundled: Bundled = False,
    cache_dir: CacheDir = CACHE_DIR,
) -> None:
    """Detach a namespace from a network. What is gone already is no error."""
    attachment = _attachment(netns, ifname, args, cap_args, container_id)
    conflist = _network(network, net_dir)
    with _runtime(path, bundled, cache_dir) as runtime:
        _run(runtime.delete(conflist, *attachment))


def check(
    network: Network,
    netns: Netns,
    ifname: Ifname = "eth0",
    args: Args = "",
    cap_args: CapArgs = "",
    container_id: ContainerId = "",
    net_dir: NetDir = NET_DIR,
    path: Path_ = "",
    bundled: Bundled = False,
    cache_dir: CacheDir = CACHE_DIR,
) -> None:
    """Whether an attachment still is as it was made."""
    attachment = _attachment(netns, ifname, args, cap_args, container_id)
    conflist = _network(network, net_dir)
    with _runtime(path, bundled, cache_dir) as runtime:
        _run(runtime.check(conflist, *attachment))


def gc(
    network: Network,
    none_valid: Annotated[
        bool, typer.Option("--none-valid", help="Remove every attachment of the network, as cnitool does.")
    ] = False,
    net_dir: NetDir = NET_DIR,
    path: Path_ = "",
    bundled: Bundled = False,
    cache_dir: CacheDir = CACHE_DIR,
) -> None:
    """Remove what attachments have left whose namespaces are gone."""
    conflist = _network(network, net_dir)
    with _runtime(path, bundled, cache_dir) as runtime:
        entries = () if none_valid else runtime.cache.of_network(conflist.name)
        valid = [entry.attachment.key for entry in entries if is_namespace(entry.attachment.netns)]
        _run(runtime.gc(conflist, valid))


def status(
    network: Network,
    net_dir: NetDir = NET_DIR,
    path: Path_ = "",
    bundled: Bundled = False,
    cache_dir: CacheDir = CACHE_DIR,
) -> None:
    """Whether a network could take an attachment now: nothing is said when it could."""
    conflist = _network(network, net_dir)
    with _runtime(path, bundled, cache_dir) as runtime:
        _run(runtime.status(conflist))


def container_of(netns: str) -> str:
    """The container's id, as cnitool makes it of the namespace's path.

    >>> container_of("/run/netns/pod")
    'cnitool-9539caf00070aeae0bd6'
    """
    from hashlib import sha512

    return f"cnitool-{sha512(netns.encode()).hexdigest()[:20]}"


def is_namespace(path: str) -> bool:
    """Whether a namespace is there. A name whose namespace went in a restart may be left as an empty file."""
    try:
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False


def _attachment(
    netns: str, ifname: str, args: str, cap_args: str, container_id: str
) -> tuple[str, str, str, dict[str, str], dict[str, Any]]:
    """Container, namespace, interface, arguments and values for capabilities, as `Runtime` takes them."""
    there = _namespace(netns)
    return container_id or container_of(there), there, ifname, _pairs(args), _capabilities(cap_args)


def _network(network: str, net_dir: str) -> ConfList:
    from tortie.cni.conflist import load_conflist, network_named

    if "/" in network or network.endswith(FILES):
        return load_conflist(Path(network))
    return network_named(network, Path(net_dir))


def _namespace(netns: str) -> str:
    """The path. A name without a slash is one of `ip netns`, unless there is a file of that name here."""
    if "/" in netns or os.path.exists(netns):
        return os.path.abspath(netns)
    return f"/run/netns/{netns}"


def _pairs(args: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in args.split(";") if pair]
    for key, equals, value in pairs:
        if not key or not equals or not value:
            raise ConfigError(f'"{key}{equals}{value}" is not KEY=VALUE', "CNI_ARGS")
    return {key: value for key, _, value in pairs}


def _capabilities(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", "CAP_ARGS") from None
    if not isinstance(values, dict):
        raise ConfigError('must be an object, as {"portMappings": [...]}', "CAP_ARGS")
    return values


@contextmanager
def _runtime(path: str, bundled: bool, cache_dir: str) -> Iterator[Runtime]:
    """What runs the plugins; the bundled ones are there as long as it is, and go when the command is told to end."""
    from tempfile import TemporaryDirectory

    from tortie.cni.install import install_plugins
    from tortie.cni.runtime import Runtime

    given = [one for one in (path or BIN_DIR).split(":") if one]
    with stopped_as_by_interrupt(), TemporaryDirectory(prefix="tortie-plugins-") as own:
        if bundled or not path:
            install_plugins(Path(own), compiler="", packed=False)  # a script is made at once, a program is compiled
        yield Runtime([own, *given] if bundled else given if path else [*given, own], Path(cache_dir))


def _run(work: Coroutine[Any, Any, T]) -> T:
    import asyncio

    return asyncio.run(work)
