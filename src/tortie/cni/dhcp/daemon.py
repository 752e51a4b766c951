"""`dhcp daemon`: gets leases for pods, keeps them while the pods live, and gives them back.

    plugin ── a line of JSON ──► Daemon.answer ──► Attachment: lease (decides) ◄──► port (the pod's interface)
                                                   sleeps until the lease is due, or over

An attachment's socket is open only while an answer is waited for, and no namespace is kept alive: each time it is
entered by its path, and one that is gone, or another one by now, ends the lease.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from tortie.base.errors import ConfigError, KernelError, NotFound, TortieError
from tortie.cni.attachments import valid_attachments
from tortie.cni.dhcp import book, options, port
from tortie.cni.dhcp.lease import HELD, OVER, Identity, Lease, Send, State, Timing
from tortie.cni.dhcp.port import Port
from tortie.cni.dhcp.rpc import LONGEST, error_line, result_line
from tortie.cni.dhcp.wire import Message
from tortie.cni.ipam import failed
from tortie.cni.result import prev_result
from tortie.cni.spec import Call, CniError, Code, as_cni_error, compact_json, quote, read_call, read_json

log = logging.getLogger("tortie.dhcp")

LONGEST_SLEEP = 60.0
"""Seconds: a suspended machine's clock goes on, its timers do not."""
PAUSE_AFTER_FAILURE = 1.0
TELLING = 4
"""Messages that no server answers, until it is told: those of the first 7 s."""


def now() -> float:
    """Seconds since the boot, those in which the machine slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Attachment:
    """An interface of a pod with its lease. `changed` is called when there is something new to remember."""

    def __init__(self, call: Call, path: str, changed: Callable[[], None]) -> None:
        self.network, self.container, self.ifname = call.network, call.container_id, call.ifname
        self.path = path
        self.inode = 0
        self.lease: Lease | None = None
        self.task: asyncio.Task[None] | None = None
        self._changed = changed
        self._servers: dict[str, bytes] = {}

    @property
    def key(self) -> str:
        return options.client_id(self.container, self.network, self.ifname)

    async def acquire(self, who: Callable[[bytes], Identity], timing: Timing) -> Lease:
        """Gets a lease; `who` makes the identity of a MAC address. Raises TortieError."""
        with self._port() as opened:
            self.inode = opened.inode
            self.lease = Lease(who(opened.mac), now(), random.random, timing)
            await self._converse(opened, self.lease)
        if self.lease.state is not State.BOUND or self.lease.terms is None:
            raise failed(self.lease.why)
        log.info("%s: lease of %s from %s", self.key, self.lease.terms.address, self.lease.terms.server)
        return self.lease

    async def keep(self) -> None:
        """Renews the lease as long as that goes; sets the interface down when it is lost."""
        lease = self.lease
        assert lease is not None
        while lease.state not in OVER:
            if now() < lease.due:
                await asyncio.sleep(min(lease.due - now(), LONGEST_SLEEP))
                continue
            try:
                with self._port() as opened:
                    await self._converse(opened, lease)
            except NotFound as why:
                log.info("%s: %s: nothing to renew", self.key, why)
                self.lease = None
                break
            except (KernelError, ConfigError) as why:
                log.warning("%s: %s", self.key, why)
                lease.wake(now())  # that what cannot be renewed ends in time
                await asyncio.sleep(PAUSE_AFTER_FAILURE)
            self._changed()
        if lease.state is State.EXPIRED:
            self._lost(lease)
        self._changed()

    def _lost(self, lease: Lease) -> None:
        log.warning("%s: %s: %s is set down", self.key, lease.why, self.ifname)
        try:
            port.set_down(self.path, self.ifname, self.inode)
        except KernelError as why:
            log.warning("%s: %s", self.key, why)

    def _port(self) -> Port:
        opened = Port(self.path, self.ifname, self.inode)
        opened.knows(self._servers)
        return opened

    async def _converse(self, through: Port, lease: Lease) -> None:
        """Sends and hears until nothing is waited for."""
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(through.fileno(), arrived.set)
        try:
            while lease.state is not State.BOUND or now() >= lease.due:
                due = lease.wake(now())
                self._say(through, due)
                if lease.state in OVER:
                    return
                if due and lease.unanswered >= TELLING:
                    mac = lease.who.mac.hex(":")
                    log.warning("%s: no server answers: %d messages from %s", self.key, lease.unanswered, mac)
                try:
                    async with asyncio.timeout(max(0.0, min(lease.due - now(), LONGEST_SLEEP))):
                        await arrived.wait()
                except TimeoutError:
                    continue
                arrived.clear()
                message: Message | None = through.receive()
                if message is not None:
                    self._say(through, lease.hear(message, now()))
        finally:
            loop.remove_reader(through.fileno())

    def _say(self, through: Port, messages: list[Send]) -> None:
        for each in messages:
            try:
                through.send(each)
            except KernelError as why:
                log.warning("%s: %s", self.key, why)

    async def end(self, *, release: bool) -> None:
        """Stops keeping the lease, and gives it back if that is still possible."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        message = self.lease.release(now()) if self.lease is not None and release else None
        if message is None:
            return
        try:
            with self._port() as opened:
                opened.send(message)
        except TortieError:
            # The plugin `bridge` takes the link away before it asks us. What a server goes by is in the message, and
            # the node may well have a way to it.
            try:
                port.send_from_here(message)
            except KernelError as why:
                log.info("%s: %s: the server will take the lease back when it ends", self.key, why)
                return
        log.info("%s: released", self.key)

    def entry(self) -> book.Entry | None:
        """What is to be remembered of it."""
        lease = self.lease
        if lease is None or lease.terms is None or lease.state not in HELD:
            return None
        names = self.network, self.container, self.ifname, self.path
        return book.Entry(*names, self.inode, lease.who, lease.terms, lease.bound)


class Daemon:
    """All attachments, by their client ids."""

    def __init__(self, tasks: asyncio.TaskGroup, prefix: str, timing: Timing, broadcast: bool, memory: str) -> None:
        self._tasks = tasks
        self._prefix = prefix
        self._timing = timing
        self._broadcast = broadcast
        self._memory = memory
        self._held: dict[str, Attachment] = {}

    def resume(self) -> None:
        """Goes on with what a daemon before this held."""
        for each in book.load(self._memory):
            call = Call("ADD", each.container, ifname=each.ifname, network=each.network)
            found = Attachment(call, each.path, self._remember)
            found.inode = each.inode
            found.lease = Lease.resumed(each.who, each.terms, each.bound, random.random, self._timing)
            self._keep(found)
            log.info("%s: goes on with the lease of %s", found.key, each.terms.address)

    def _keep(self, what: Attachment) -> None:
        self._held[what.key] = what
        what.task = self._tasks.create_task(what.keep(), name=f"keep {what.key}")

    def _remember(self) -> None:
        entries = [entry for each in self._held.values() if (entry := each.entry())]
        try:
            book.save(self._memory, entries)
        except OSError as why:
            log.warning("cannot remember leases in %s: %s", self._memory, why.strerror)

    # --- requests -----------------------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line.startswith((b"CONNECT ", b"GET ", b"POST ")):
                writer.write(b"HTTP/1.0 501 this DHCP daemon is not the Go plugins'\r\n\r\n")
            else:
                writer.write(await _unless_hung_up(reader, self.answer(line)))
            await writer.drain()
        except (OSError, ValueError):  # gone, or a line without an end
            pass
        finally:
            writer.close()

    async def answer(self, line: bytes) -> bytes:
        """The line that answers a request."""
        try:
            return result_line(await self._act(line))
        except (TortieError, OSError) as error:
            return error_line(as_cni_error(error))
        except Exception as error:
            log.exception("a request that this daemon cannot answer")
            return error_line(as_cni_error(error))

    async def _act(self, line: bytes) -> dict[str, Any]:
        try:
            asked = read_json(line)
            method, env, config = asked["method"], asked["env"], compact_json(asked["config"]).encode()
        except (ValueError, KeyError, TypeError):
            raise CniError(Code.DECODING_FAILURE, "not a request of the plugin dhcp") from None
        methods = {
            "DHCP.Allocate": self._allocate,
            "DHCP.Check": self._check,
            "DHCP.Release": self._release,
            "DHCP.Collect": self._collect,
            "DHCP.Ping": self._ping,
        }
        if method not in methods:
            raise failed(f"the DHCP daemon knows no method {method}")
        return await methods[method](read_call(env, config))

    async def _allocate(self, call: Call) -> dict[str, Any]:
        wishes = options.wishes(call)
        found = Attachment(call, self._prefix + call.netns, self._remember)
        former = self._held.pop(found.key, None)
        if former is not None:  # this attachment's, of an ADD that failed later on: the server gives it again
            await former.end(release=False)

        def who(mac: bytes) -> Identity:
            named = b"\0" + found.key.encode()
            return Identity(mac, named, wishes.provide, wishes.request, self._broadcast)

        try:
            lease = await found.acquire(who, self._timing)
        except NotFound as why:
            raise failed(str(why)) from None
        self._keep(found)
        self._remember()
        assert lease.terms is not None
        return options.result(lease.terms, wishes.priority).dump("1.1.0")

    async def _check(self, call: Call) -> dict[str, Any]:
        found = self._held.get(_key(call))
        if found is None or found.lease is None:
            raise failed(f"there is no lease for {_key(call)}")
        lease = found.lease
        if lease.state not in HELD or lease.terms is None:
            raise failed(f"there is no lease for {_key(call)} any more: {lease.why}")
        previous = prev_result(call)
        held = f"{lease.terms.address}/{lease.terms.length}"
        if previous is not None and held not in {each.address for each in previous.ips}:
            raise failed(f"the lease for {_key(call)} is of {held}, which prevResult does not have")
        return {}

    async def _release(self, call: Call) -> dict[str, Any]:
        await self._give_back(_key(call))
        return {}

    async def _collect(self, call: Call) -> dict[str, Any]:
        valid = valid_attachments(call)
        for key, each in list(self._held.items()):
            if each.network == call.network and (each.container, each.ifname) not in valid:
                await self._give_back(key)
        return {}

    async def _ping(self, call: Call) -> dict[str, Any]:
        options.wishes(call)
        return {}

    async def _give_back(self, key: str) -> None:
        found = self._held.pop(key, None)
        if found is not None:
            await found.end(release=True)
            self._remember()


def _key(call: Call) -> str:
    return options.client_id(call.container_id, call.network, call.ifname)


async def _unless_hung_up(reader: asyncio.StreamReader, work: Coroutine[Any, Any, bytes]) -> bytes:
    """What the work gives; nothing when who asked for it hangs up before: then the work is broken off."""
    working = asyncio.create_task(work, name="request")
    hung_up = asyncio.create_task(reader.read(), name="hung up")
    try:
        await asyncio.wait([working, hung_up], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else b""
    finally:
        for task in (working, hung_up):
            task.cancel()
        await asyncio.wait([working, hung_up])


async def serve(listening: Any, prefix: str, timing: Timing, broadcast: bool, memory: str) -> None:
    """Until it is cancelled. Leases outlive it: they are in `memory` for the next daemon."""
    async with asyncio.TaskGroup() as tasks:
        daemon = Daemon(tasks, prefix, timing, broadcast, memory)
        daemon.resume()
        server = await asyncio.start_unix_server(daemon.serve, sock=listening, limit=LONGEST)
        async with server:
            log.info("listening on %s", quote(str(listening.getsockname())))
            await server.serve_forever()
