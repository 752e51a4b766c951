"""What runs in the pods: the programs that manifests name, restarted as they say, and responders for the others.

Programs are processes of their own and outlive the kubelet, which takes them over by their pid files; responders live
in the kubelet and are begun again with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tortie.lab import dns, processes
from tortie.lab.podspec import PodKey, Program, answered_ports, programs
from tortie.lab.probing import Inside
from tortie.lab.responder import Responder
from tortie.lab.sandbox import POD_VARIABLE, Sandbox
from tortie.lab.state import LabDirectory, write_whole
from tortie.model.k8s import Pod

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds before a program is started again, doubled each time it ends young
_YOUNG = 10.0  # seconds
UNKNOWN_EXIT = -1  # it ended while no kubelet was there to see how

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Run:
    """A program as far as this kubelet knows it."""

    watch: asyncio.Task[None] | None = None
    pid: int = 0
    code: int | None = None
    began: float = 0.0
    pause: float = FIRST_PAUSE / 2
    again_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Condition:
    """How a pod's containers are. `look_again` is in how many seconds there will be something to do, or None; `running`
    are the containers that run, and where each is found."""

    phase: str
    message: str = ""
    look_again: float | None = None
    running: Mapping[str, Inside] = field(default_factory=dict)


@dataclass(slots=True)
class _Pod:
    container_id: str
    responder: Responder | None = None
    complaints: list[str] = field(default_factory=list)
    runs: dict[str, _Run] = field(default_factory=dict)


class Workloads:
    """The pods' contents. `changed` is called with a pod's key when one of its programs ended."""

    def __init__(self, directory: LabDirectory, changed: Callable[[PodKey], None], *, named: bool = False) -> None:
        """`named`: the cluster has a name server, and pods ask it."""
        self._named = named
        self._directory = directory
        self._changed = changed
        self._pods: dict[PodKey, _Pod] = {}

    async def ensure(self, pod: Pod, sandbox: Sandbox) -> Condition:
        """Everything that should run in the sandbox runs, or is waited for, or is over."""
        known = self._pods.get(sandbox.key)
        if known is None or known.container_id != sandbox.container_id:
            await self.stop(sandbox.key)
            known = self._pods[sandbox.key] = _Pod(sandbox.container_id)
            if self._named:
                self._resolve(pod, sandbox)
        ports = answered_ports(pod)
        if ports and known.responder is None:
            known.responder = Responder(
                f"{pod.namespace}/{pod.name}", sandbox.node, self._directory.pod_log(*sandbox.key)
            )
            known.complaints = await known.responder.start(sandbox.netns_path, ports)
        codes: list[int | None] = []
        waits: list[float] = []
        for program in programs(pod):
            run = known.runs.setdefault(program.container, _Run())
            code, wait = await self._ensure_program(pod, sandbox, program, run)
            codes.append(code)
            waits += [wait] if wait is not None else []
        found = _condition(codes, known, min(waits, default=None))
        return replace(found, running=dict(self._running(pod, sandbox, known)))

    def _resolve(self, pod: Pod, sandbox: Sandbox) -> None:
        """Whom the pod's programs ask for names, in a file; none where it is the machine's own."""
        machine = dns.RESOLV_CONF.read_text(errors="replace") if dns.RESOLV_CONF.exists() else ""
        found, complaint = dns.resolving(pod, sandbox.ips, machine)
        if complaint:
            log.warning("pod %s/%s: %s", pod.namespace, pod.name, complaint)
        file = self._directory.pod_resolv_conf(*sandbox.key)
        if found is None:
            file.unlink(missing_ok=True)
        else:
            write_whole(file, str(found))

    def _running(self, pod: Pod, sandbox: Sandbox, known: _Pod) -> Iterator[tuple[str, Inside]]:
        """Containers that run: programs, and those in whose place the lab answers."""
        told = {program.container: program for program in programs(pod)}
        at = Inside(sandbox.netns_path, next(iter(sandbox.ips), ""), env={POD_VARIABLE: sandbox.container_id})
        for container in pod.spec.containers:
            program, run = told.get(container.name), known.runs.get(container.name)
            if program is None:
                if known.responder is not None:
                    yield container.name, at
            elif run is not None and run.watch is not None:
                yield container.name, replace(at, pid=run.pid, cwd=program.cwd, env={**program.env, **at.env})

    async def stop(self, key: PodKey) -> None:
        """Nothing is answered or restarted any more. Programs that run are left to whoever ends the sandbox."""
        known = self._pods.pop(key, None)
        if known is None:
            return
        for run in known.runs.values():
            if run.watch:
                run.watch.cancel()
        if known.responder:
            await known.responder.close()

    async def _ensure_program(
        self, pod: Pod, sandbox: Sandbox, program: Program, run: _Run
    ) -> tuple[int | None, float | None]:
        """The exit code of a program that is over, else None; and after how many seconds it is to be started again."""
        if run.watch is not None and not run.watch.done():
            return None, None
        file = self._directory.pod_pid(*sandbox.key, program.container)
        running = processes.read_pid(file)
        if running:  # started by a kubelet before this one
            run.pid = running.pid
            run.watch = asyncio.create_task(
                self._watch_adopted(sandbox.key, run, running), name=f"watch {file.parent.name}"
            )
            return None, None
        if run.code is None and file.exists():
            run.code = UNKNOWN_EXIT
        if run.code is not None:
            if pod.spec.restart_policy == "Never" or (pod.spec.restart_policy == "OnFailure" and run.code == 0):
                return run.code, None
            wait = self._pause(run)
            if wait > 0:
                return None, wait
        await self._start(sandbox, program, run)
        return None, None

    @staticmethod
    def _pause(run: _Run) -> float:
        """How much longer an ended program has to wait."""
        now = time.monotonic()
        if not run.again_at:
            young = now - run.began < _YOUNG
            run.pause = min(run.pause * 2, LONGEST_PAUSE) if young else FIRST_PAUSE
            run.again_at = now + run.pause
        return run.again_at - now

    async def _start(self, sandbox: Sandbox, program: Program, run: _Run) -> None:
        run.code, run.again_at, run.began = None, 0.0, time.monotonic()
        file = self._directory.pod_resolv_conf(*sandbox.key)
        child = await asyncio.to_thread(
            processes.spawn,
            program.argv,
            self._directory.pod_pid(*sandbox.key, program.container),
            self._directory.pod_log(*sandbox.key),
            netns_path=sandbox.netns_path,
            hostname="" if sandbox.host_network else sandbox.name,
            resolv_conf=str(file) if file.exists() else "",
            cwd=program.cwd,
            env={**program.env, POD_VARIABLE: sandbox.container_id},
        )

        run.pid = child.pid

        async def watch() -> None:
            running = processes.process(child.pid)
            if running:
                await running.ended()
            self._ended(sandbox.key, run, await asyncio.to_thread(child.wait))

        run.watch = asyncio.create_task(watch(), name=f"watch {sandbox.namespace}/{sandbox.name} {program.container}")

    async def _watch_adopted(self, key: PodKey, run: _Run, running: processes.Process) -> None:
        await running.ended()
        self._ended(key, run, UNKNOWN_EXIT)

    def _ended(self, key: PodKey, run: _Run, code: int) -> None:
        log.info("a program of %s/%s ended with %d", *key, code)
        run.code = code
        run.watch = None
        self._changed(key)


def _condition(codes: list[int | None], known: _Pod, look_again: float | None) -> Condition:
    """The pod's phase, as Kubernetes derives it from its containers."""
    message = "; ".join(known.complaints)
    ended = [code for code in codes if code is not None]
    if known.responder or len(ended) < len(codes) or not codes:
        return Condition("Running", message, look_again)
    failed = [code for code in ended if code != 0]
    if not failed:
        return Condition("Succeeded", message)
    how = "how is not known" if failed[0] == UNKNOWN_EXIT else f"exit code {failed[0]}"
    return Condition("Failed", message or f"a program ended: {how}")
