"""What the stand-alone plugins are made of: a file each, with functions of a call; this runs them.

    environment + stdin ──read_call──► Call ──PLUGIN.add(call)──► Result ──dump(version)──► stdout, exit 0
                                                     └── any error ──► CniError ──► stdout, exit 1

A plugin is one module with a `PLUGIN` in it. Its functions raise what they like: the errors of the house and CniError
are answered in their words, and anything else is a bug that is answered too, with its traceback on stderr. What `add`
has made when it fails is taken back by an `Undo`, last first.

Plugins are started once per pod and wait for nothing as long as for their own imports, so this module and all that they
use import only what is in the interpreter or as cheap (tests/unit/test_plugin_imports.py has the list).
"""

from __future__ import annotations

import os
import sys

from tortie.cni.result import Result
from tortie.cni.spec import (
    SUPPORTED_VERSIONS,
    Call,
    CniError,
    Code,
    about,
    as_cni_error,
    format_json,
    own_netns_error,
    read_call,
    version_reply,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    Add = Callable[[Call], Result]
    Act = Callable[[Call], None]


SINCE = {"bandwidth": "0.3.0", "firewall": "0.4.0", "vrf": "0.3.1"}
"""The first version of the protocol that a plugin serves, if it does not serve all."""


class Plugin:
    """The verbs of a plugin. Verbs that it has no function for succeed and do nothing, as with the Go framework."""

    __slots__ = ("add", "check", "delete", "gc", "name", "status", "versions")

    def __init__(
        self,
        name: str,
        add: Add,
        delete: Act,
        check: Act | None = None,
        gc: Act | None = None,
        status: Act | None = None,
        versions: Sequence[str] = SUPPORTED_VERSIONS,
    ) -> None:
        self.name = name
        self.add = add
        self.delete = delete
        self.check = check
        self.gc = gc
        self.status = status
        self.versions = versions

    def act(self, call: Call) -> Result | None:
        """Does what the call asks for; the result of ADD. Refuses to work on the namespace that it runs in itself."""
        if call.command in ("ADD", "DEL") and call.netns and not call.netns_override and _is_own(call.netns):
            raise own_netns_error()
        if call.command == "ADD":
            return self.add(call)
        act = {"DEL": self.delete, "CHECK": self.check, "GC": self.gc, "STATUS": self.status}[call.command]
        if act is not None:
            act(call)
        return None


class Later(Plugin):
    """The plugin of a name, imported when there is something to do: not to say its versions, nor for no proper call."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.index(SINCE.get(name, SUPPORTED_VERSIONS[0])) :]

    def act(self, call: Call) -> Result | None:
        from tortie.cni.plugins import load

        return load(self.name).act(call)


class Answer:
    """What the process says and how it ends."""

    __slots__ = ("code", "stderr", "stdout")

    def __init__(self, code: int, stdout: str = "", stderr: str = "") -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr


class Undo:
    """What is to be taken back if the block ends in an error: last first, each tried, the block's own error told.

    with Undo() as undo:
        links.create_link(nl, name, "dummy")
        undo.then(links.delete_link, nl, name)
    """

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def then(self, step: Callable[..., object], *arguments: object) -> None:
        self._steps.append((step, arguments))

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while kind is not None and self._steps:
            step, arguments = self._steps.pop()
            try:
                step(*arguments)
            except Exception as why:
                sys.stderr.write(f"while taking back what was done: {why}\n")


def answer(plugin: Plugin, env: Mapping[str, str], stdin: bytes, version: str = "unknown") -> Answer:
    """Serves one call. For VERSION and for no command at all `stdin` may be empty."""
    command = env.get("CNI_COMMAND", "")
    if not command:
        return Answer(0, stderr=about(plugin.name, version, plugin.versions))
    try:
        call = read_call(env, stdin, plugin.versions)
        if call.command == "VERSION":
            return Answer(0, version_reply(plugin.versions))
        result = plugin.act(call)
        return Answer(0, "" if result is None else format_json(result.dump(call.cni_version)))
    except Exception as error:
        return Answer(1, as_cni_error(error).json(), _trace(error))


def hear(plugin: Plugin, version: str = "unknown") -> Answer:
    """Serves the call that is in this process's environment and on its stdin."""
    env = dict(os.environ)
    try:
        stdin = b"" if env.get("CNI_COMMAND", "") in ("", "VERSION") else _read_stdin()
    except OSError as error:
        return Answer(1, CniError(Code.IO_FAILURE, f"error reading from stdin: {error.strerror}").json())
    return answer(plugin, env, stdin, version)


def _read_stdin() -> bytes:
    parts: list[bytes] = []
    while part := os.read(0, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def main(plugin: Plugin, version: str = "unknown") -> int:
    """Serves the call that this process is; its exit code."""
    said = hear(plugin, version)
    sys.stderr.write(said.stderr)
    try:
        sys.stdout.write(said.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)  # nobody reads what we say, and the interpreter would complain of it at its end
    return said.code


def _is_own(netns: str) -> bool:
    """Whether the path is this process's own network namespace. What cannot be opened is for the plugin to say."""
    try:
        theirs, ours = os.stat(netns), os.stat("/proc/self/ns/net")
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _trace(error: Exception) -> str:
    """Where a bug is; nothing for the errors that plugins mean to raise."""
    from tortie.base.errors import TortieError

    if isinstance(error, TortieError):
        return ""
    import traceback

    return "".join(traceback.format_exception(error))
