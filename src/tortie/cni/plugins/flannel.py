"""flannel: has another plugin connect the pod, with addresses of the subnet that flanneld has got for this node.

    configuration ─┐
    subnet.env ────┴─document─► bridge (or what `delegate.type` says) ─► host-local
                          └─kept─► <dataDir>/<container>-<interface> ─► CHECK, DEL, GC: as it was at ADD

Fields: `subnetFile`, `dataDir`, `delegate`, `ipam`, `runtimeConfig`; what else is in `delegate` goes to the delegate as
it is. A pod goes as it came, whatever the node's subnet is by then. Flannel's own plugin keeps a file for each
container, `<dataDir>/<container>`; attachments that it has made are checked and taken away here, too.

Source: flannel's CNI plugin.
"""

from __future__ import annotations

import errno
import os
import sys

from tortie.cni import delegate
from tortie.cni.attachments import KEYS, all_of, valid_attachments
from tortie.cni.ipam import reason
from tortie.cni.plugin import Plugin
from tortie.cni.result import Result
from tortie.cni.span import cidr
from tortie.cni.spec import Call, CniError, Code, compact_json, failed, lookup, member, read_json
from tortie.cni.subnet_env import DEFAULT_FILE, SubnetEnv, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

DATA_DIR = "/var/lib/cni/flannel"
BRIDGE = "bridge"
BY_SUBNET = ("ranges", "routes")
"""Of the delegate's `ipam`: what follows from subnet.env."""


# --- what the delegate is told ------------------------------------------------------------------------------------


def subnet_env(call: Call) -> SubnetEnv:
    """Raises CniError."""
    path = member(call.conf, "subnetFile", str, "") or DEFAULT_FILE
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return load(file.read(), path)
    except OSError as error:
        why = f"open {path}: {reason(error)}"
    except ValueError as error:
        why = str(error)
    raise failed(f"failed to load flannel 'subnet.env' file: {why}. Check the flannel pod log for this node.")


def document(call: Call, env: SubnetEnv) -> dict[str, Any]:
    """The delegate's configuration. Raises CniError."""
    conf = call.conf
    made = dict(member(conf, "delegate", dict, {}))
    if not isinstance(lookup(made, "type", BRIDGE), str):
        raise failed("'delegate' dictionary, if present, must have (string) 'type' field")
    for key in ("name", "ipam"):
        if lookup(made, key) is not None:
            raise failed(f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel")
    defaults = {"type": BRIDGE, "ipMasq": not env.masq, "mtu": env.mtu}
    if lookup(made, "type", BRIDGE) == BRIDGE:
        defaults["isGateway"] = True
    made |= {key: value for key, value in defaults.items() if lookup(made, key) is None}
    if lookup(made, "type") == PLUGIN.name:
        raise failed(f"'delegate' dictionary: its type cannot be {PLUGIN.name} itself")
    made |= {"name": call.network, "ipam": _ipam(member(conf, "ipam", dict, {}), env)}
    for key in ("cniVersion", "runtimeConfig"):
        value = lookup(conf, key)
        if value:
            made[key] = value
    return made


def _ipam(given: Mapping[str, Any], env: SubnetEnv) -> dict[str, Any]:
    """The node's subnets to choose from, and the networks as routes."""
    routes = member(given, "routes", list, [])
    made = {key: value for key, value in given.items() if key.casefold() not in BY_SUBNET}
    if lookup(made, "type") is None:
        made["type"] = "host-local"
    made["ranges"] = [[{"subnet": _network(each)}] for each in (env.subnet, env.subnet6) if each]
    made["routes"] = [*routes, *({"dst": _network(each)} for each in (*env.networks, *env.networks6))]
    return made


def _network(text: str) -> str:
    found = cidr(text)
    return f"{found.network}/{found.length}"


def _sorted(value: Any) -> Any:
    """With the keys of objects in their order, as Go writes them."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def _run(command: str, call: Call, made: Mapping[str, Any]) -> Result:
    return delegate.run(lookup(made, "type"), command, call, compact_json(_sorted(dict(made))).encode())


# --- what is kept of an attachment --------------------------------------------------------------------------------


class Kept:
    """A file in `dataDir`, and the document in it."""

    __slots__ = ("document", "path")

    def __init__(self, path: str, document: Mapping[str, Any]) -> None:
        self.path = path
        self.document = document


def _directory(call: Call) -> str:
    return member(call.conf, "dataDir", str, "") or DATA_DIR


def _file(container: str, ifname: str) -> str:
    return f"{container}-{ifname}"


def keep(call: Call, made: Mapping[str, Any]) -> None:
    """All of it is on the disk when this returns. Raises CniError."""
    directory, name = _directory(call), _file(call.container_id, call.ifname)
    new = f"{directory}/.{name}.{os.getpid()}"
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(compact_json(_sorted(dict(made))).encode())
                file.flush()
                os.fsync(fd)
            os.rename(new, f"{directory}/{name}")
        except BaseException:
            os.unlink(new)
            raise
    except OSError as error:
        raise failed(f"failed to write {directory}/{name}: {reason(error)}") from None


def kept(call: Call) -> Kept | None:
    """What ADD has kept of this attachment, this plugin's or flannel's own; None for nothing that can be read."""
    directory = _directory(call)
    for name in (_file(call.container_id, call.ifname), call.container_id):
        found = _read(f"{directory}/{name}")
        # A container's file may be of another of its networks.
        if found is not None and (name != call.container_id or _is_of(found, call.network)):
            return found
    return None


def _read(path: str) -> Kept | None:
    """Raises CniError for a file that is there and cannot be read; what is no document is as if it were not there."""
    try:
        with open(path, "rb") as file:
            found = read_json(file.read())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise failed(f"failed to read {path}: {reason(error)}") from None
    except ValueError as error:
        sys.stderr.write(f"{path}: not the configuration of a plugin: {error}\n")
        return None
    if not isinstance(found, dict) or not isinstance(lookup(found, "type"), str):
        sys.stderr.write(f"{path}: not the configuration of a plugin\n")
        return None
    return Kept(path, found)


def _is_of(found: Kept, network: str) -> bool:
    return bool(lookup(found.document, "name") == network)


def _every(call: Call) -> Iterator[Kept]:
    """What is kept of this network."""
    directory = _directory(call)
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise failed(f"failed to read {directory}: {reason(error)}") from None
    for name in names:
        path = f"{directory}/{name}"
        if not name.startswith(".") and os.path.isfile(path):
            found = _read(path)
            if found is not None and _is_of(found, call.network):
                yield found


def _forget(found: Kept) -> None:
    try:
        os.unlink(found.path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise failed(f"failed to remove {found.path}: {reason(error)}") from None


# --- verbs --------------------------------------------------------------------------------------------------------


def add(call: Call) -> Result:
    """What is kept stays when the delegate fails: the runtime calls DEL then. What the delegate says itself is said in
    its words, and with its code: it may mean that the runtime should try again."""
    made = document(call, subnet_env(call))
    keep(call, made)
    try:
        return _run("ADD", call, made)
    except CniError as error:
        raise error if error.plugin else failed(f"failed to delegate add: {error.msg}") from None


def delete(call: Call) -> None:
    """What is kept goes once the delegate is through, so that a DEL that failed can be made again."""
    found = kept(call)
    if found is not None:
        _run("DEL", call, found.document)
        _forget(found)


def check(call: Call) -> None:
    found = kept(call)
    if found is None:
        path = f"{_directory(call)}/{_file(call.container_id, call.ifname)}"
        raise failed(f"nothing is known of this attachment: there is no {path}")
    now = {"cniVersion": call.cni_version, "prevResult": lookup(call.conf, "prevResult")}
    _run("CHECK", call, {**found.document, **{key: value for key, value in now.items() if value is not None}})


def gc(call: Call) -> None:
    """Each delegate that this network has, or had, collects; then what is kept of attachments that are gone goes."""
    valid = valid_attachments(call)
    names = {_file(*each) for each in valid} | {container for container, _ in valid}
    said = {key: value for key, value in call.conf.items() if key.casefold() in KEYS}
    try:
        env = subnet_env(call)
    except CniError:
        env = SubnetEnv()  # whose subnet it was makes no difference to who is gone
    delegates: dict[str, tuple[dict[str, Any], list[Kept]]] = {}
    for found in (None, *_every(call)):
        made = document(call, env) if found is None else dict(found.document)
        stale = found is not None and os.path.basename(found.path) not in names
        _, gone = delegates.setdefault(_kind(made), (made, []))
        gone += [found] if found is not None and stale else []

    def collect(made: dict[str, Any], gone: list[Kept]) -> None:
        _run("GC", call, {**made, "cniVersion": call.cni_version, **said})
        for each in gone:
            _forget(each)

    all_of(*(lambda made=made, gone=gone: collect(made, gone) for made, gone in delegates.values()))


def _kind(made: Mapping[str, Any]) -> str:
    """The same for two documents that differ by the subnet alone."""
    ipam = {key: value for key, value in member(made, "ipam", dict, {}).items() if key not in BY_SUBNET}
    changing = ("ipam", "mtu", "ipMasq", "cniVersion", "runtimeConfig")
    return compact_json(_sorted({key: value for key, value in made.items() if key not in changing} | {"ipam": ipam}))


def status(call: Call) -> None:
    """Without subnet.env no pod can come: flanneld does not run yet, or has got no subnet."""
    try:
        env = subnet_env(call)
    except CniError as error:
        raise CniError(Code.NOT_AVAILABLE, error.msg) from None
    _run("STATUS", call, document(call, env))


PLUGIN = Plugin("flannel", add, delete, check, gc, status)
