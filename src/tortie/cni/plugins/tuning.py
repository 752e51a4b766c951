"""tuning: sysctls of the pod, and MAC, MTU, promiscuity and queue of an interface that another plugin has made.

Fields: `sysctl`, `mac`, `mtu`, `promisc`, `allmulti`, `txQLen`, `dataDir`. The MAC is that of `args.cni.mac`, else of
`runtimeConfig.mac`, of CNI_ARGS, of the field; `args.cni` may have the other fields, too.

    ADD   all is looked at ─► sysctls written ─► <dataDir>/<container>_<interface>.json, what the link was ─► link set
    DEL   the link as the file says, and the file away; sysctls go with the pod

Source: plugins/meta/tuning of the CNI reference plugins.
"""

from __future__ import annotations

import os
import sys

from tortie.base.errors import KernelError
from tortie.cni import span
from tortie.cni.attachments import valid_attachments
from tortie.cni.interface import Pod, failed, find_link, open_pod, pod_if_there
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Interface, Result, prev_result
from tortie.cni.spec import (
    Call,
    CniError,
    Code,
    compact_json,
    load_args,
    lookup,
    member,
    quote,
    read_json,
    wrong_type,
)
from tortie.kernel import links, sysctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

DATA_DIR = "/run/cni/tuning"
ALLOWED = "/etc/cni/tuning/allowlist.conf"
"""A regular expression in each line; where there is the file, a key that none of them finds is refused."""

NO_RESULT = "Required prevResult missing"
TYPES = {"promisc": bool, "mtu": int, "allmulti": bool, "txQLen": int}
UNSET = {"mac": "", "promisc": False, "mtu": 0}
"""Fields that change nothing at these values, as with the Go plugin. Of the others only their absence means nothing."""


class Wishes:
    """What a configuration wants: `sysctls` by path under /proc/sys, and `link`, the attributes to set, by field."""

    __slots__ = ("data_dir", "link", "sysctls")

    def __init__(self, data_dir: str, sysctls: dict[str, str], link: dict[str, Any]) -> None:
        self.data_dir = data_dir
        self.sysctls = sysctls
        self.link = link


def add(call: Call) -> Result:
    wishes = _wishes(call)
    previous = _previous(call)
    with open_pod(call) as pod, Undo() as undo:
        link = _link(pod, call.ifname)
        for path, value in wishes.sysctls.items():
            _set_sysctl(undo, pod, path, value)
        if wishes.link:
            was = {name: _current(link, name) for name in wishes.link}
            older = _remembered(_file(call, wishes.data_dir))  # by another tuning of the same interface: it stays
            undo.then(_remember, call, wishes.data_dir, older)
            _remember(call, wishes.data_dir, {**was, **older})
            undo.then(_apply, pod, call.ifname, was)
            _apply(pod, call.ifname, wishes.link)
    return _told(call, previous, wishes.link)


def delete(call: Call) -> None:
    """Always succeeds: what cannot be put back is the link's that goes next."""
    file = _file(call, member(call.conf, "dataDir", str, "") or DATA_DIR)
    was = _remembered(file)
    try:
        pod = pod_if_there(call) if was else None
    except CniError as error:
        pod = None
        sys.stderr.write(f"{call.ifname} is not put back: {error}\n")
    if pod is not None:
        with pod:
            for name, value in was.items():
                try:
                    _apply(pod, call.ifname, {name: value})
                except Exception as error:
                    sys.stderr.write(f"{name} of {call.ifname} is not put back: {error}\n")
    _forget(file)


def check(call: Call) -> None:
    wishes = _wishes(call)
    _previous(call)
    with open_pod(call) as pod:
        for path, value in wishes.sysctls.items():
            found = sysctl.read(path, netns=pod.fd)
            if found.split() != value.split():
                raise _differs(f"sysctl {path}", value, found)
        link = _link(pod, call.ifname)
    for name, wanted in {"promisc": False, **wishes.link}.items():
        found = _current(link, name)
        if found != wanted:
            raise _differs(f"{name} of {call.ifname}", wanted, found)


def gc(call: Call) -> None:
    """What is remembered of this network's attachments that are not valid any more."""
    valid = valid_attachments(call)
    directory = member(call.conf, "dataDir", str, "") or DATA_DIR
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        said = _read(f"{directory}/{name}") if name.endswith(".json") else {}
        owner = (said.get("containerID", ""), said.get("ifName", ""))
        if said.get("network") == call.network and owner not in valid:
            _forget(f"{directory}/{name}")


def status(call: Call) -> None:
    """Whether the allow list can be read and there is a place for what is remembered."""
    try:
        _wishes(call)
        directory = member(call.conf, "dataDir", str, "") or DATA_DIR
        while not os.path.isdir(directory) and directory != os.path.dirname(directory):
            directory = os.path.dirname(directory)
        if not os.access(directory, os.W_OK):
            raise failed(f"{directory} cannot be written")
    except CniError as error:
        raise CniError(Code.NOT_AVAILABLE, error.msg, error.details) from None


# --- what is wanted -----------------------------------------------------------------------------------------------


def _wishes(call: Call) -> Wishes:
    """Raises CniError for what cannot be, before anything is done."""
    asked = member(member(call.conf, "args", dict, {}), "cni", dict, {})
    runtime = member(call.conf, "runtimeConfig", dict, {})
    mac = member(call.conf, "mac", str, "")
    mac = load_args(call.args_text, ("MAC",)).get("MAC", "") or mac
    mac = member(asked, "mac", str, "") or member(runtime, "mac", str, "") or mac
    link: dict[str, Any] = {"mac": _mac(mac)} if mac else {}
    for name, kind in TYPES.items():
        value = member(call.conf, name, kind, None)
        value = member(asked, name, kind, value)
        if value is not None and (name not in UNSET or value != UNSET[name]):
            link[name] = value
    keys = _texts(call.conf, "sysctl") | _texts(asked, "sysctl")
    _refuse_twins(call.stdin, keys)
    _allow(keys)
    return Wishes(member(call.conf, "dataDir", str, "") or DATA_DIR, _paths(keys, call.ifname), link)


def _texts(conf: Mapping[str, Any], key: str) -> dict[str, str]:
    values: dict[str, Any] = member(conf, key, dict, {})
    for name, value in values.items():
        if not isinstance(value, str):
            raise failed(f"failed to load netconf: {wrong_type(value, f'{key}.{name}', str)}")
    return values


def _paths(keys: Mapping[str, str], ifname: str) -> dict[str, str]:
    """The same by path: `net.ipv4.conf.IFNAME.arp_filter` is `net/ipv4/conf/eth0/arp_filter`."""
    paths: dict[str, str] = {}
    for key, value in keys.items():
        path = "/".join(part.replace("IFNAME", ifname) for part in _parts(key) if part)
        if not path.startswith("net/") or any(part in (".", "..") for part in path.split("/")):
            raise failed(f"invalid net sysctl key: {quote(key)}")
        if path in paths:
            raise failed("duplicated sysctl keys are not allowed")
        paths[path] = value
    return paths


def _parts(key: str) -> list[str]:
    """The first of `.` and `/` is what stands between the parts, as with sysctl(8): the other is theirs."""
    dot, slash = key.find("."), key.find("/")
    if dot < 0 or 0 <= slash < dot:
        return key.split("/")
    return [part.replace("/", ".") for part in key.split(".")]


def _refuse_twins(stdin: bytes, keys: Mapping[str, str]) -> None:
    """Raises CniError for a key that is given twice, of which decoded objects know nothing."""
    if all(stdin.count(f'"{key}"'.encode()) < 2 for key in keys):
        return
    import json

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, value in pairs:
            if name.lower() == "sysctl" and isinstance(value, list) and len(dict(value)) < len(value):
                raise failed("duplicated sysctl keys are not allowed")
        names = {name for name, _ in pairs}
        return pairs if names <= keys.keys() else dict(pairs)  # type: ignore[return-value]

    json.loads(stdin, object_pairs_hook=look)


def _allow(keys: Mapping[str, str]) -> None:
    """Raises CniError for a key that the administrator's list does not have."""
    try:
        with open(ALLOWED, encoding="utf-8") as file:
            allowed = [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        return
    except OSError as error:
        raise failed(f"cannot read {ALLOWED}: {error.strerror}") from None
    import re

    for key in keys:
        try:
            if any(re.search(line, key) for line in allowed):
                continue
        except re.error as error:
            raise failed(f"{ALLOWED}: not a regular expression: {error}") from None
        only = f"Only the following sysctls are allowed: [{' '.join(allowed)}]"
        raise failed(f"Sysctl {key} is not allowed. {only}")


def _mac(text: str) -> str:
    """In the kernel's spelling. Raises CniError for what is no address of Ethernet."""
    try:
        return span.mac(text)
    except ValueError as error:
        raise failed(f"invalid args {text} for MAC addr: {error}") from None


# --- the link -----------------------------------------------------------------------------------------------------


def _previous(call: Call) -> Result:
    previous = prev_result(call)
    if previous is None:
        raise failed(NO_RESULT)
    return previous


def _link(pod: Pod, ifname: str) -> links.Link:
    link = find_link(pod.nl, ifname)
    if link is None:
        raise failed(f"failed to get {quote(ifname)}: Link not found")
    return link


def _current(link: links.Link, name: str) -> Any:
    return getattr(link, {"txQLen": "txqlen"}.get(name, name))


def _apply(pod: Pod, ifname: str, wanted: Mapping[str, Any]) -> None:
    steps = {
        "mac": links.set_mac,
        "promisc": links.set_promisc,
        "mtu": links.set_mtu,
        "allmulti": links.set_allmulti,
        "txQLen": links.set_txqlen,
    }
    for name, step in steps.items():
        if name in wanted:
            step(pod.nl, ifname, wanted[name])  # type: ignore[operator]


def _set_sysctl(undo: Undo, pod: Pod, path: str, value: str) -> None:
    try:
        was = sysctl.read(path, netns=pod.fd)
    except KernelError:
        was = None  # some, as route/flush, can only be written
    pod.sysctl(path, value)
    if was is not None:
        undo.then(pod.sysctl, path, was)


def _told(call: Call, previous: Result, link: Mapping[str, Any]) -> Result:
    """The result of the plugin before, with what has changed of the interface."""

    def changed(one: Interface) -> Interface:
        if one.name != call.ifname or not one.sandbox:
            return one
        mtu = link.get("mtu", one.mtu) if one.mtu else 0
        mac = link.get("mac", one.mac)
        return Interface(one.name, mac, mtu, one.sandbox, one.socket_path, one.pci_id, one.extra)

    interfaces = tuple(map(changed, previous.interfaces))
    return Result(interfaces, previous.ips, previous.routes, previous.dns, previous.extra)


def _differs(what: str, wanted: object, found: object) -> CniError:
    def words(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return failed(f"Error: {what} is {words(found)}, and was set to {words(wanted)}")


# --- what is remembered -------------------------------------------------------------------------------------------


def _file(call: Call, directory: str) -> str:
    return f"{directory}/{call.container_id}_{call.ifname}.json"


def _remember(call: Call, directory: str, was: Mapping[str, Any]) -> None:
    """What the link was, in one step; no file where there is nothing to remember."""
    file = _file(call, directory)
    if not was:
        return _forget(file)
    whose = {"network": call.network, "containerID": call.container_id, "ifName": call.ifname}
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        fd = os.open(f"{file}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as out:
            out.write(compact_json({**was, **whose}))
        os.replace(f"{file}.new", file)
    except OSError as error:
        raise failed(f"cannot write {file}: {error.strerror}") from None


def _remembered(file: str) -> dict[str, Any]:
    """The attributes in a file, of ours or of the Go plugin's; none for one that is not there or is broken."""
    said = _read(file)
    found: dict[str, Any] = {}
    for name, kind in {"mac": str, **TYPES}.items():
        value = lookup(said, name)
        if type(value) is kind and not (name == "mtu" and value == 0) and value != "":
            found[name] = value
    return found


def _read(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as lines:
            said = read_json(lines.read())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _forget(file: str) -> None:
    try:
        os.unlink(file)
    except OSError:
        pass


PLUGIN = Plugin("tuning", add, delete, check, gc, status)
