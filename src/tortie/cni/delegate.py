"""Running one plugin from another: the address plugin of an interface plugin, mostly.

The child gets our environment with another command, and all of our stdin. One of our own is not started but called: it
is found when the program under that name is the very file that we were started as (all our names are one program).
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time

from tortie.cni import programs
from tortie.cni.plugin import Plugin, answer
from tortie.cni.result import Result
from tortie.cni.spec import Call, CniError, Code, child_error, member, quote, read_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BUSY_TRIES = 6
BUSY_PAUSE = 1.0
"""Seconds between tries to start a program that is being written (ETXTBSY), as libcni."""


def ipam_type(call: Call) -> str:
    """`ipam.type` of the configuration, "" for none."""
    return member(member(call.conf, "ipam", dict, {}), "type", str, "")


def ipam_add(call: Call) -> Result:
    """The addresses for this attachment. Raises CniError in the child's words."""
    return run(ipam_type(call), "ADD", call)


def ipam_delete(call: Call) -> None:
    run(ipam_type(call), "DEL", call)


def ipam_check(call: Call) -> None:
    run(ipam_type(call), "CHECK", call)


def ipam_gc(call: Call) -> None:
    """Does nothing without `ipam.type`."""
    if ipam_type(call):
        run(ipam_type(call), "GC", call)


def ipam_status(call: Call) -> None:
    """Does nothing without `ipam.type`."""
    if ipam_type(call):
        run(ipam_type(call), "STATUS", call)


def run(type: str, command: str, call: Call, stdin: bytes | None = None) -> Result:
    """Runs a plugin by its type; what it answers to ADD, else an empty result.

    `stdin` is another configuration than the call's own. Raises CniError.
    """
    path = find(type, call.path)
    env = {**os.environ, "CNI_COMMAND": command}
    conf = call.stdin if stdin is None else stdin
    code, stdout, stderr, why = _within(type, env, conf) if _is_ours(path) else _execute(path, env, conf)
    if code:
        raise child_error(type, stdout, stderr, why)
    if command != "ADD" or not stdout.strip():
        return Result()
    try:
        return Result.load(read_json(stdout), call.cni_version)
    except ValueError as error:
        raise CniError(Code.INTERNAL, f"the answer of plugin {quote(type)} is not JSON: {error}") from None


def find(type: str, path: Sequence[str]) -> str:
    """The file of a plugin: the first regular one of that name in the directories. Raises CniError."""
    if not type:
        raise CniError(Code.INTERNAL, "no plugin name provided")
    if "/" in type or "\0" in type:
        raise CniError(Code.INTERNAL, f"invalid plugin name: {type}")
    for directory in path:
        file = os.path.join(directory, type)
        try:
            if stat.S_ISREG(os.stat(file).st_mode):
                return file
        except OSError:
            continue
    raise CniError(Code.INTERNAL, f"failed to find plugin {quote(type)} in path [{' '.join(path)}]")


def _is_ours(path: str) -> bool:
    """Whether the file is the program that this process was started as."""
    from tortie.cni import plugins

    try:
        return (
            bool(plugins.program)
            and os.path.basename(path) in plugins.NAMES
            and os.path.samefile(path, plugins.program)
        )
    except OSError:
        return False


def _within(type: str, env: Mapping[str, str], conf: bytes) -> tuple[int, bytes, bytes, str]:
    from tortie.cni.plugins import load

    plugin: Plugin = load(type)
    said = answer(plugin, env, conf)
    sys.stderr.write(said.stderr)
    return said.code, said.stdout.encode(), said.stderr.encode(), f"exit status {said.code}"


def _execute(path: str, env: Mapping[str, str], conf: bytes) -> tuple[int, bytes, bytes, str]:
    """A process of its own."""
    for tried in range(BUSY_TRIES):
        if tried:
            time.sleep(BUSY_PAUSE)
        try:
            code, stdout, stderr = programs.run(path, [path], env, conf)
        except OSError as error:
            why = f"fork/exec {path}: {os.strerror(error.errno or 0).lower()}"
            if error.errno != errno.ETXTBSY:
                break
        else:
            return code, stdout, stderr, f"exit status {code}" if code >= 0 else f"signal: {-code}"
    raise CniError(Code.INTERNAL, f"netplugin failed with no error message: {why}")
