"""Runs chains of plugins as libcni does: what a container runtime does with a network configuration.

    ADD      p1 ──result──► p2 ──result──► p3 ──result──► cache, caller
    DEL      p3, p2, p1     each with the cached result; the cache's entry goes last, so a failed DEL can be repeated
    CHECK    p1, p2, p3     each with the cached result
    GC       DEL of every cached attachment that is not valid any more, then GC of every plugin
    STATUS   p1, p2, p3     the first error is the answer

A failed or cancelled ADD is not undone here: the caller says DEL, as with every CNI runtime. A plugin runs in a process
group of its own; while it runs, cancelling its call or exhausting its time kills it with all that it started.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from tortie.cni.cache import DEFAULT_DIRECTORY, Attachment, Cache, Entry
from tortie.cni.conflist import ConfList
from tortie.cni.delegate import find
from tortie.cni.result import Result, family_of
from tortie.cni.spec import (
    DEFAULT_VERSION,
    REQUIRED_BY,
    SPEC_VERSION,
    CniError,
    Code,
    check_container_id,
    check_ifname,
    check_network_name,
    child_error,
    compact_json,
    lookup,
    member,
    quote,
    read_json,
)

# A plugin that was written a moment ago may still be open for writing in a process that forked meanwhile.
BUSY_RETRIES = 5
BUSY_PAUSE = 1.0  # seconds
_EXEC_FAILED = 126  # how nsenter, env and shells say that they found the program and could not run it

_OWN_VARIABLES = ("CNI_COMMAND", "CNI_ARGS", *REQUIRED_BY)


class Runtime:
    """Plugins found in `path`, results cached under `cache_dir`.

    `exec_prefix` is put before the plugin's path, as in ["nsenter", "--net=/run/netns/node1"]: a node of the lab. The
    environment is this process's own with `env_extra` on top. `timeout` is in seconds and for one plugin.
    """

    def __init__(
        self,
        path: Sequence[str],
        cache_dir: Path = DEFAULT_DIRECTORY,
        env_extra: Mapping[str, str] | None = None,
        exec_prefix: Sequence[str] = (),
        timeout: float = 240.0,
    ) -> None:
        self.path = tuple(path)
        self.cache = Cache(cache_dir)
        self.env_extra = dict(env_extra or {})
        self.exec_prefix = tuple(exec_prefix)
        self.timeout = timeout

    async def add(
        self,
        conflist: ConfList,
        container_id: str,
        netns: str,
        ifname: str = "eth0",
        args: Mapping[str, str] | None = None,
        capability_args: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Attach the container; the last plugin's result, in the network's version. Raises CniError."""
        attachment = _attachment(conflist, container_id, netns, ifname, args, capability_args)
        result: dict[str, Any] | None = None
        for plugin in conflist.plugins:
            document = _document(conflist, plugin, attachment, result)
            answer = await self.run("ADD", plugin["type"], document, attachment)
            result = _result(plugin["type"], answer, conflist.version)
        try:
            self.cache.put(Entry(attachment, conflist.source, result))
        except OSError as error:
            what = f'the result of network "{conflist.name}" was not cached'
            raise CniError(Code.IO_FAILURE, what, f"{self.cache.path(attachment)}: {error.strerror}") from None
        return result or {}

    async def delete(
        self,
        conflist: ConfList,
        container_id: str,
        netns: str,
        ifname: str = "eth0",
        args: Mapping[str, str] | None = None,
        capability_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Detach the container, last plugin first, up to the first error. What is gone already is no error."""
        await self._delete(conflist, _attachment(conflist, container_id, netns, ifname, args, capability_args))

    async def check(
        self,
        conflist: ConfList,
        container_id: str,
        netns: str,
        ifname: str = "eth0",
        args: Mapping[str, str] | None = None,
        capability_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises the first plugin's error about an attachment that is not as ADD left it."""
        attachment = _attachment(conflist, container_id, netns, ifname, args, capability_args)
        if not conflist.speaks("0.4.0"):
            text = f"configuration version {quote(conflist.version)} does not support the CHECK command"
            raise CniError(Code.INCOMPATIBLE_VERSION, text)
        if conflist.disable_check:
            return
        try:
            result = self._cached(conflist, attachment)
        except ValueError as error:
            what = f'the cached result of network "{conflist.name}" cannot be read'
            raise CniError(Code.DECODING_FAILURE, what, str(error)) from None
        for plugin in conflist.plugins:
            await self.run("CHECK", plugin["type"], _document(conflist, plugin, attachment, result), attachment)

    async def gc(self, conflist: ConfList, valid_attachments: Iterable[tuple[str, str]]) -> None:
        """Remove everything of this network but the valid (container id, interface name) pairs.

        Goes on after an error; one error is raised as it is, several as one with the code of the first.
        """
        if conflist.disable_gc:
            return
        check_network_name(conflist.name)
        valid = sorted(set(valid_attachments))
        failures: list[CniError] = []
        for entry in list(self.cache.of_network(conflist.name)):
            if entry.attachment.key not in valid:
                await _collect(failures, self._delete_stale(conflist, entry.attachment))
        if conflist.speaks("1.1.0"):
            listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in valid]
            # The second key is the one libcni sent before the specification chose the first.
            extra = {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}
            for plugin in conflist.plugins:
                document = _document(conflist, plugin, None, None) | extra
                await _collect(failures, self.run("GC", plugin["type"], document, None))
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise CniError(failures[0].code, "; ".join(map(str, failures)))

    async def status(self, conflist: ConfList) -> None:
        """Raises the first error of a plugin that could not serve an ADD now. Before 1.1.0 nobody can be asked."""
        check_network_name(conflist.name)
        if not conflist.speaks("1.1.0"):
            return
        for plugin in conflist.plugins:
            await self.run("STATUS", plugin["type"], _document(conflist, plugin, None, None), None)

    async def version(self, plugin: str) -> tuple[str, ...]:
        """The versions of the protocol that a plugin speaks."""
        try:
            answer = await self.run("VERSION", plugin, {"cniVersion": SPEC_VERSION}, None)
        except CniError as error:
            if error.msg == "unknown CNI_COMMAND: VERSION":
                return (DEFAULT_VERSION,)  # it is older than the verb
            raise
        doc = _decoded(plugin, answer)
        versions = member(doc, "supportedVersions", list, [])
        return tuple(str(one) for one in versions) or (member(doc, "cniVersion", str, DEFAULT_VERSION),)

    async def _delete(self, conflist: ConfList, attachment: Attachment) -> None:
        result: dict[str, Any] | None = None
        if conflist.speaks("0.4.0"):
            try:
                result = self._cached(conflist, attachment)
            except ValueError:
                result = None  # DEL has to work with what is left
        for plugin in reversed(conflist.plugins):
            await self.run("DEL", plugin["type"], _document(conflist, plugin, attachment, result), attachment)
        self.cache.drop(attachment)

    async def _delete_stale(self, conflist: ConfList, attachment: Attachment) -> None:
        """The attachment comes from a file, so its names are checked like those of a caller."""
        _check(attachment)
        await self._delete(conflist, attachment)

    def _cached(self, conflist: ConfList, attachment: Attachment) -> dict[str, Any] | None:
        """The cached result in the network's version, or None. Raises ValueError when it cannot be read."""
        entry = self.cache.get(attachment)
        if entry is None or entry.result is None:
            return None
        try:
            return _in_version(entry.result, conflist.version)
        except CniError as error:
            raise ValueError(str(error)) from None

    async def run(self, command: str, plugin: str, document: Mapping[str, Any], attachment: Attachment | None) -> bytes:
        """What the plugin printed. Raises CniError with the plugin's name."""
        argv = [*self.exec_prefix, find(plugin, self.path)]
        env = self._environment(command, attachment)
        stdin = compact_json(document).encode()
        for attempt in range(BUSY_RETRIES + 1):
            try:
                code, stdout, stderr = await self._execute(argv, env, stdin)
                if code != _EXEC_FAILED or os.strerror(errno.ETXTBSY).encode() not in stderr:
                    break
            except TimeoutError:
                text = f"{command} took longer than {self.timeout:g} s and was killed"
                raise CniError(Code.TRY_AGAIN_LATER, text, plugin=plugin) from None
            except OSError as error:
                if error.errno != errno.ETXTBSY or attempt == BUSY_RETRIES:
                    raise CniError(Code.INTERNAL, f"cannot run {argv[0]}: {error.strerror}", plugin=plugin) from None
            if attempt < BUSY_RETRIES:
                await asyncio.sleep(BUSY_PAUSE)
        if code != 0:
            why = f"exit status {code}" if code > 0 else f"signal: {signal.strsignal(-code) or -code}"
            raise child_error(plugin, stdout, stderr, why)
        return stdout

    async def _execute(self, argv: Sequence[str], env: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
        """Exit code (negative: a signal's number), stdout, stderr. Raises TimeoutError, and OSError from exec."""
        pipe = asyncio.subprocess.PIPE
        transport, running = await asyncio.get_running_loop().subprocess_exec(
            _Running, *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, process_group=0
        )
        try:
            running.say(transport, stdin)
            async with asyncio.timeout(self.timeout):
                await running.over.wait()
        except BaseException:
            if transport.get_returncode() is None:  # after that the number may be another's
                with suppress(ProcessLookupError):
                    os.killpg(transport.get_pid(), signal.SIGKILL)
            running.hang_up(transport)
            await running.over.wait()
            raise
        finally:
            transport.close()
        return transport.get_returncode() or 0, bytes(running.output[1]), bytes(running.output[2])

    def _environment(self, command: str, attachment: Attachment | None) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if key not in _OWN_VARIABLES}
        own = {"CNI_COMMAND": command, "CNI_PATH": os.pathsep.join(self.path)}
        if attachment:
            own |= {
                "CNI_CONTAINERID": attachment.container_id,
                "CNI_NETNS": attachment.netns,
                "CNI_IFNAME": attachment.ifname,
                "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args.items()),
            }
        return inherited | self.env_extra | own


class _Running(asyncio.SubprocessProtocol):
    """A plugin that is running, and what it printed, by file descriptor.

    `over` is set when the process has ended and its pipes are closed. A daemon that left the process group may keep
    them open, which is why `hang_up` closes our ends.
    """

    def __init__(self) -> None:
        self.output = {1: bytearray(), 2: bytearray()}
        self.over = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.output[fd] += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()

    @staticmethod
    def say(transport: asyncio.SubprocessTransport, stdin: bytes) -> None:
        pipe = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
        pipe.write(stdin)
        pipe.close()  # once all of it is written

    @staticmethod
    def hang_up(transport: asyncio.SubprocessTransport) -> None:
        stdin = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
        if stdin.get_write_buffer_size():  # with nothing left to write it is closing already
            stdin.abort()
        for fd in (1, 2):
            cast(asyncio.ReadTransport, transport.get_pipe_transport(fd)).close()


def _attachment(
    conflist: ConfList,
    container_id: str,
    netns: str,
    ifname: str,
    args: Mapping[str, str] | None,
    capability_args: Mapping[str, Any] | None,
) -> Attachment:
    attachment = Attachment(conflist.name, container_id, ifname, netns, dict(args or {}), dict(capability_args or {}))
    _check(attachment)
    return attachment


def _check(attachment: Attachment) -> None:
    """The three names make a file's name, so they are looked at before anything else."""
    check_container_id(attachment.container_id)
    check_network_name(attachment.network)
    check_ifname(attachment.ifname)


def _document(
    conflist: ConfList, plugin: Mapping[str, Any], attachment: Attachment | None, result: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What one plugin reads from stdin. `capabilities` stays in, as with libcni: plugins that delegate look at it."""
    own: dict[str, Any] = {"cniVersion": conflist.version, "name": conflist.name}
    if result is not None:
        own["prevResult"] = result
    if attachment:
        wanted = lookup(plugin, "capabilities", {})
        offered = {key: value for key, value in attachment.capability_args.items() if wanted.get(key)}
        if offered:
            own["runtimeConfig"] = offered
    taken = {key.casefold() for key in own}
    return {key: value for key, value in plugin.items() if key.casefold() not in taken} | own


def _result(plugin: str, answer: bytes, version: str) -> dict[str, Any]:
    try:
        return _in_version(_decoded(plugin, answer), version)
    except CniError as error:
        raise CniError(error.code, error.msg, error.details, plugin) from None


def _decoded(plugin: str, answer: bytes) -> dict[str, Any]:
    try:
        doc = read_json(answer)
    except ValueError as error:
        raise CniError(Code.DECODING_FAILURE, f"cannot decode result: {error}", plugin=plugin) from None
    if doc is None:
        return {}
    if not isinstance(doc, dict):
        raise CniError(Code.DECODING_FAILURE, "cannot decode result: it is not an object", plugin=plugin)
    return doc


def _in_version(doc: Mapping[str, Any], version: str) -> dict[str, Any]:
    """A plugin that answers in another version than it was asked in is converted; a right answer stays as it is."""
    version = version or DEFAULT_VERSION
    result = Result.load(doc, version)
    said = lookup(doc, "cniVersion", "") or version
    if family_of(said) == family_of(version):
        return {"cniVersion": version} | {key: value for key, value in doc.items() if key.casefold() != "cniversion"}
    return result.dump(version)


async def _collect(failures: list[CniError], step: Awaitable[object]) -> None:
    try:
        await step
    except CniError as error:
        failures.append(error)
