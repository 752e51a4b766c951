"""The agent as a program: wire datastore, picture, kernel and servers together, and run until told to stop.

SIGTERM and SIGINT end it and leave the dataplane, BIRD included, forwarding as it is. So does SIGKILL: the next start
finds the kernel's state and BIRD, and changes only what differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tortie.agent.cni import CniServer
from tortie.agent.config import AgentConfig
from tortie.agent.endpoints import follow_pods
from tortie.agent.holdings import Holdings
from tortie.agent.ipam import IpamServer
from tortie.agent.logs import Seldom, to_stderr
from tortie.agent.metrics import Metrics
from tortie.agent.registration import RETRY, ready, register, registered
from tortie.agent.server import application, health_application, metrics_application, serving
from tortie.agent.view import Progress, View
from tortie.base.errors import ConfigError, KernelError, TortieError, Unavailable
from tortie.bgp.birdc import parse_protocols, parse_routes, parse_status
from tortie.calc.cluster import INPUTS
from tortie.calc.state import DesiredState
from tortie.cni.spec import Call, CniError, Code
from tortie.dataplane.converge import Failure
from tortie.dataplane.stages.bird import BirdDaemon
from tortie.dataplane.stages.nft import Nft
from tortie.dataplane.stages.routes import Routes
from tortie.dataplane.worker import Worker
from tortie.ipam.assign import Ipam
from tortie.kernel import events, nft, sysctl
from tortie.kernel.bird import Bird
from tortie.kernel.bird import available as bird_available
from tortie.model.store import Store
from tortie.policy.selector import parse
from tortie.render.ruleset import TABLE
from tortie.store import open_store

log = logging.getLogger("tortie.agent")

BIRD_CHECK = 2.0
"""Seconds between two looks at whether BIRD still answers."""
STUCK = 90.0
"""Seconds in one pass after which the dataplane counts as dead: Calico's dataplaneWatchdogTimeout."""


class Agent:
    """Everything of one node. `run` is the whole life."""

    def __init__(self, config: AgentConfig, store: Store) -> None:
        self.config = config
        self.store = store
        self.metrics = Metrics()
        self.progress = Progress()
        self.view = View(config.node, store, self._publish)
        self.ipam = Ipam(store, config.node, lambda: datetime.now(UTC), lambda s, labels: parse(s).matches(labels))
        holdings = Holdings(config.node, store, self.ipam)
        self.cni_server = CniServer(config.node, store, self.view, self.progress, holdings)
        self.ipam_server = IpamServer(holdings)
        run_dir = config.run_dir
        self.bird = Bird(run_dir / "bird.conf", run_dir / "bird.ctl", log=run_dir / "bird.log") if config.bgp else None
        stages = (Nft(), Routes(blackholes=not config.bgp))
        self.dataplane = Worker("dataplane", stages, self._applied, self._worker_broke)
        self.routing: Worker | None = None
        if self.bird is not None:
            daemon = BirdDaemon(self.bird, config.connect_delay)
            self.routing = Worker("routing", (daemon,), self._routing_applied, self._worker_broke, BIRD_CHECK)
        self._routing_failures: tuple[str, ...] = ("not looked at yet",)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bug: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Until cancelled. Raises ConfigError, NotSupported, KernelError or Unavailable when it cannot go on."""
        self._loop = asyncio.get_running_loop()
        self._bug = self._loop.create_future()
        self._loop.set_exception_handler(self._loop_broke)
        registered(None, self.config.node, self.config.ipv4, self.config.ipv6)  # says at once what cannot be right
        prepare_host()
        self.dataplane.start()
        if self.routing is not None:
            self.routing.start()
        try:
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(serving(application(self), self.config.socket))
                if self.config.health_port:
                    where = ("localhost", self.config.health_port)
                    await stack.enter_async_context(serving(health_application(self), where))
                if self.config.metrics_port:
                    app = metrics_application(self.metrics.registry)
                    await stack.enter_async_context(serving(app, ("", self.config.metrics_port)))
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._watch_links(), name="watch links")
                    tasks.create_task(self._watch_workers(), name="watch workers")
                    await self._follow(tasks)
        finally:
            await asyncio.to_thread(self._stop_workers)

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Start to follow the datastore, once there is one."""
        config = self.config
        await ready(self.store)
        await register(self.store, config.node, config.ipv4, config.ipv6)
        self.metrics.resync.set(2)
        for kind in INPUTS:
            tasks.create_task(self.view.follow(kind), name=f"follow {kind.KIND.key}")
        tasks.create_task(follow_pods(config.node, self.store, self.view), name="follow pods")

    async def _watch_workers(self) -> None:
        """A worker that has met a bug is no use any more, nor are we without it."""
        assert self._bug is not None
        await self._bug

    def _worker_broke(self, bug: BaseException) -> None:
        """In the worker's thread."""
        assert self._loop is not None
        assert self._bug is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are stopping
            self._loop.call_soon_threadsafe(_fail, self._bug, bug)

    def _loop_broke(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback that raises, such as the one that publishes a state, has nobody else whom it could tell."""
        loop.default_exception_handler(context)
        if "handle" in context and self._bug is not None:
            _fail(self._bug, context["exception"])

    def _stop_workers(self) -> None:
        self.dataplane.close()
        if self.routing is not None:
            self.routing.close()

    # ------------------------------------------------------------------------------------------------ state

    def _publish(self, state: DesiredState) -> None:
        self.metrics.resync.set(3)
        self.dataplane.submit(state)
        if self.routing is not None:
            self.routing.submit(state)

    def _applied(self, state: DesiredState, failures: Sequence[Failure], seconds: float) -> None:
        """In the worker's thread."""
        assert self._loop is not None
        texts = tuple(map(str, failures))
        enforced = not any(failure.guard for failure in failures)
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are stopping
            self._loop.call_soon_threadsafe(self.progress.reached, state.generation, texts, enforced)
            self._loop.call_soon_threadsafe(self.metrics.observe, state, bool(failures), seconds)

    def _routing_applied(self, state: DesiredState, failures: Sequence[Failure], seconds: float) -> None:
        self._routing_failures = tuple(map(str, failures))

    async def _watch_links(self) -> None:
        """An endpoint's interface that comes or goes is a reason to plan the routes again. That of a pod which is being
        attached is not, yet: its endpoint will be."""
        loop = asyncio.get_running_loop()
        with events.Monitor(groups=(events.Group.LINK,)) as monitor:
            readable = asyncio.Event()
            loop.add_reader(monitor.fileno(), readable.set)
            try:
                while True:
                    await readable.wait()
                    readable.clear()
                    for event in monitor.read():
                        lost = isinstance(event, events.Overrun)
                        if lost or event.link.name in self.view.interfaces:  # type: ignore[union-attr]
                            self.dataplane.again()
                            break
            finally:
                loop.remove_reader(monitor.fileno())

    # ------------------------------------------------------------------------------------------------ answers

    async def cni(self, plugin: str, call: Call) -> str:
        outcome = "error"
        try:
            answer = await self._plugin(plugin).answer(call)
            outcome = "success"
            return answer
        finally:
            self.metrics.cni_calls.labels(call.command, outcome).inc()

    def _plugin(self, name: str) -> CniServer | IpamServer:
        if name == "calico":
            return self.cni_server
        if name == "calico-ipam":
            return self.ipam_server
        text = f'this agent serves the plugins calico and calico-ipam, not "{name}"'
        raise CniError(Code.INVALID_ENVIRONMENT, text)

    async def node(self) -> Mapping[str, Any]:
        answer: dict[str, Any] = {"node": self.config.node, "bird": {"state": "none"}, "peers": [], "routes": []}
        if self.bird is None:
            return answer
        try:
            status = parse_status(await self.bird.query("show status"))
            protocols = parse_protocols(await self.bird.query("show protocols all"))
            routes = parse_routes(await self.bird.query("show route all"))
        except TortieError as error:
            return answer | {"bird": {"state": "not ready", "reason": str(error)}}
        answer["bird"] = {
            "state": "recovering" if status.recovering else "ready",
            "version": status.version,
            "routerID": status.router_id,
            "since": status.last_reboot.isoformat(),
            "reconfigured": status.last_reconfiguration.isoformat(),
        }
        answer["peers"] = [
            {
                "name": protocol.name,
                "ip": str(protocol.session.neighbor or ""),
                "as": protocol.session.neighbor_as,
                "state": protocol.session.state,
                "since": protocol.since,
                "error": protocol.session.error,
                "imported": sum(channel.imported for channel in protocol.channels),
                "exported": sum(channel.exported for channel in protocol.channels),
            }
            for protocol in protocols
            if protocol.session is not None
        ]
        answer["routes"] = [
            {
                "prefix": str(route.prefix),
                "kind": route.kind,
                "protocol": route.protocol,
                "best": route.best,
                "via": [{"via": str(hop.via or ""), "dev": hop.dev} for hop in route.hops],
            }
            for route in routes
        ]
        return answer

    async def counters(self) -> Mapping[str, Any]:
        found = await asyncio.to_thread(nft.counters, TABLE)
        return {name: {"packets": packets, "bytes": octets} for name, (packets, octets) in found.items()}

    def reports(self) -> Mapping[str, Mapping[str, Any]]:
        synced, programmed = self.view.in_sync.is_set(), self.progress.generation > 0
        stuck = self.dataplane.busy_for > STUCK
        reports: dict[str, Mapping[str, Any]] = {
            "CalculationGraph": {"live": True, "ready": synced, "reason": "" if synced else "not in sync"},
            "InternalDataplaneMainLoop": {
                "live": not stuck,
                "ready": programmed and not self.progress.failures,
                "reason": "; ".join(self.progress.failures)
                or ("" if programmed else "nothing programmed yet")
                or (f"one pass has taken {STUCK:g} s so far" if stuck else ""),
            },
        }
        if self.routing is not None:
            failed = "; ".join(self._routing_failures)
            reports["BIRD"] = {"live": True, "ready": not failed, "reason": failed}
        return reports


def prepare_host() -> None:
    """Programs and sysctls that every node needs. Raises NotSupported naming the package that is missing."""
    nft.available()
    sysctl.write("net/ipv4/ip_forward", 1)
    with contextlib.suppress(KernelError):  # a kernel without IPv6
        sysctl.write("net/ipv6/conf/all/forwarding", 1)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


@contextlib.contextmanager
def occupied(run_dir: Path) -> Iterator[None]:
    """The run directory is ours: two agents would undo each other's work. Ends with the process, however it ends.

    Raises Unavailable naming the other agent, ConfigError for what cannot be a directory.
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (run_dir / "agent.lock").open("a+", encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{run_dir}: {error.strerror}", "--run-dir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            other = lock.read().strip() or "unknown"
            raise Unavailable(f"an agent runs already in {run_dir}, pid {other}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


async def opened(datastore: str) -> Store:
    """The datastore, as soon as it can be opened. Raises ConfigError, NotSupported."""
    complain = Seldom(log)
    while True:
        try:
            return open_store(datastore)
        except Unavailable as error:
            complain.warning(f"waiting for the datastore: {error}")
            await asyncio.sleep(RETRY)


async def serve(config: AgentConfig) -> None:
    """Run an agent until SIGTERM or SIGINT. Raises TortieError when it cannot start or go on."""
    running = asyncio.create_task(_serve(config), name="agent")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        log.info("stopping; the dataplane stays as it is")
    except BaseExceptionGroup as group:
        raise first_error(group) from None


async def _serve(config: AgentConfig) -> None:
    with occupied(config.run_dir):
        store = await opened(config.datastore)
        try:
            await Agent(config, store).run()
        finally:
            await store.close()


def first_error(group: BaseExceptionGroup[Any]) -> TortieError:
    """What a person wants to know of a group: the first thing that went wrong."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TortieError):
        return error
    raise group  # a bug


def main(config: AgentConfig, level: str = "info") -> None:
    """Blocks until told to stop. Raises TortieError when the agent cannot start."""
    to_stderr(level)
    if config.bgp:
        bird_available()
    asyncio.run(serve(config))
