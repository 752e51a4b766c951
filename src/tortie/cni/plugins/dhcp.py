"""dhcp: addresses from a DHCP server on the network that the pod is attached to. A daemon keeps the leases.

    runtime ── bridge, macvlan ── dhcp ── /run/cni/dhcp.sock ── dhcp daemon ── packet socket on the pod's interface

Fields of `ipam`: `daemonSocketPath`, `provide` (options to send: `option`, and `value` or `fromArg`, a key of
CNI_ARGS), `request` (options to ask for: `option`, `skipDefault`), `priority` (the metric of the routes).
IPv4 only. This file is what is started for each call; `dhcp daemon` is in tortie.cni.dhcp.

Source: plugins/ipam/dhcp of the CNI reference plugins.
"""

from __future__ import annotations

import os
import sys

from tortie.cni.dhcp.rpc import SOCKET, NoDaemon, ask
from tortie.cni.ipam import section
from tortie.cni.plugin import Plugin
from tortie.cni.result import Result
from tortie.cni.spec import Call, CniError, Code, member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def socket_path(ipam: Mapping[str, Any]) -> str:
    return member(ipam, "daemonSocketPath", str, "") or SOCKET


def _ask(method: str, call: Call) -> Any:
    """What the daemon answers. The command is the call's: for who called us it may be another plugin's."""
    return ask(socket_path(section(call)), method, _environment(call), call.stdin)


def _environment(call: Call) -> dict[str, str]:
    return {
        "CNI_COMMAND": call.command,
        "CNI_CONTAINERID": call.container_id,
        "CNI_NETNS": call.netns,
        "CNI_IFNAME": call.ifname,
        "CNI_ARGS": call.args_text,
        "CNI_PATH": ":".join(call.path),
    }


def add(call: Call) -> Result:
    return Result.load(_ask("DHCP.Allocate", call), "1.1.0")


def delete(call: Call) -> None:
    """A lease is known to the daemon alone: without one there is nothing to give back."""
    try:
        _ask("DHCP.Release", call)
    except NoDaemon as why:
        sys.stderr.write(f"{why}: if there was a lease, the server will take it back when it ends\n")


def check(call: Call) -> None:
    _ask("DHCP.Check", call)


def gc(call: Call) -> None:
    """Gives back the leases of this network whose attachments are not listed."""
    try:
        _ask("DHCP.Collect", call)
    except NoDaemon:
        pass


def status(call: Call) -> None:
    try:
        _ask("DHCP.Ping", call)
    except CniError as why:
        raise CniError(Code.NOT_AVAILABLE, why.msg, why.details) from None


def program(words: Sequence[str]) -> int:
    """`dhcp daemon ...`; its exit status."""
    if words[0] != "daemon":
        sys.stderr.write(f"{os.path.basename(sys.argv[0])}: {words[0]}: there is only `daemon`\n")
        return 2
    from tortie.cni.dhcp.command import main

    status: int = main(words[1:])
    return status


PLUGIN = Plugin("dhcp", add, delete, check, gc, status)
