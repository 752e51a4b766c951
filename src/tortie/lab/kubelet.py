"""The one background process of a lab: scheduler, kubelet of every node, and who starts daemons and routers again.

    python -m tortie.lab.kubelet LAB

    store ──watch Pods──► cluster as it should be ─┐
                                                   ├─► reconcile(pod) ─► nodeName, sandbox, programs, status
    pod.json, namespaces, pid files, programs ─────┘

Level-triggered: whatever happens, the pod's key is marked, and a task of that pod compares what should be with what is.
So this process may be killed at any instant; agents and programs go on without it and are taken over by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tortie.base.errors import Compacted, Conflict, NotFound, TortieError, Unavailable
from tortie.cni.spec import CniError, Code
from tortie.kernel import netns
from tortie.lab import agents, controllers, daemons, dns, flanneld, keeping, processes, proxies
from tortie.lab.podspec import PodKey, key_of, not_honoured, place
from tortie.lab.readiness import Readiness, conditions
from tortie.lab.responder import Responder
from tortie.lab.sandbox import Sandbox, Sandboxes
from tortie.lab.state import LabDirectory
from tortie.lab.topology import NODE_PORT, OUTSIDE, OUTSIDE_PORT
from tortie.lab.workload import Condition, Workloads
from tortie.model.k8s import Pod, PodIP, PodStatus
from tortie.model.node import Node
from tortie.model.store import EventType, Store
from tortie.store import open_store

FIRST_RETRY, LONGEST_RETRY = 0.1, 5.0  # seconds after which what failed is tried again, doubled each time

RESYNC = 10.0  # seconds after which every pod is looked at without a reason

log = logging.getLogger(__name__)


class Kubelet:
    """The pods of one lab, kept as the store wants them."""

    def __init__(self, directory: LabDirectory, store: Store) -> None:
        self.directory = directory
        self.lab = directory.read()
        self.store = store
        self.sandboxes = Sandboxes(directory, self.lab)
        self.workloads = Workloads(directory, self.mark, named=self.lab.has_services)
        self.readiness = Readiness(self.mark)
        self._pods: dict[PodKey, Pod] = {}
        self._placed: dict[PodKey, str] = {}
        self._marks: dict[PodKey, asyncio.Event] = {}
        self._group: asyncio.TaskGroup | None = None
        self._mentioned: set[str] = set()
        self._answering: list[Responder] = []

    async def run(self) -> None:
        """Until cancelled."""
        outside = Responder(OUTSIDE, OUTSIDE, self.directory.outside_log)
        await outside.start(netns.path(self.lab.outside.netns), (("TCP", OUTSIDE_PORT), ("UDP", OUTSIDE_PORT)))
        self._answering = await self._answer_on_nodes()
        for name in self.sandboxes.stray_namespaces():
            log.warning("network namespace %s belongs to no pod known here; deleting it", name)
            await asyncio.to_thread(netns.delete, name)
        async with asyncio.TaskGroup() as group:
            self._group = group
            for router in self.lab.routers:
                if router.daemon:
                    group.create_task(daemons.keep_running(self.directory, router), name=f"daemon of {router.name}")
            starts = asyncio.Semaphore(keeping.STARTS_PER_CORE * (os.cpu_count() or 1))
            for program in self._programs():
                group.create_task(keeping.keep_running(program, starts), name=program.name)
            group.create_task(self._follow_pods(), name="watch pods")
            group.create_task(self._look_again(), name="look again")

    def _programs(self) -> Iterator[keeping.Program]:
        """Of the nodes, and the cluster's."""
        if self.lab.has_services:
            yield controllers.program(self.directory, self.lab)
        for node in self.lab.nodes:
            if self.lab.blueprint.flannel is not None:
                yield flanneld.program(self.directory, self.lab, node)
            if self.lab.has_agents:
                yield agents.program(self.directory, self.lab, node)
            if self.lab.has_proxies:
                yield proxies.program(self.directory, self.lab, node)

    async def _answer_on_nodes(self) -> list[Responder]:
        """Where plugins alone connect pods, whether a node and its pods reach each other is a question of its own."""
        if not self.lab.blueprint.plugins_alone:
            return []
        answering = [Responder(node.name, node.name, self.directory.node_log(node.name)) for node in self.lab.nodes]
        for responder, node in zip(answering, self.lab.nodes, strict=True):
            for complaint in await responder.start(netns.path(node.netns), (("TCP", NODE_PORT), ("UDP", NODE_PORT))):
                log.warning("%s: %s", node.name, complaint)
        return answering

    # --- what should be ---------------------------------------------------------------------------------------------

    async def _follow_pods(self) -> None:
        while True:
            try:
                listing = await self.store.list(Pod)
                self._pods = {key_of(pod): pod for pod in listing.items}
                for key in {*self._pods, *(sandbox.key for sandbox in self.sandboxes.known())}:
                    self.mark(key)
                async for batch in self.store.watch(Pod, listing.revision):
                    for event in batch:
                        key = key_of(event.object)
                        if event.type is EventType.DELETED:
                            self._pods.pop(key, None)
                        else:
                            self._pods[key] = event.object
                        self.mark(key)
            except Compacted:
                continue
            except Unavailable as error:
                log.warning("the datastore is away: %s", error)
                await asyncio.sleep(1)

    async def _look_again(self) -> None:
        """Nobody tells of a namespace that was deleted by hand."""
        while True:
            await asyncio.sleep(RESYNC)
            for key in self._pods:
                self.mark(key)

    def mark(self, key: PodKey) -> None:
        """There may be something to do about this pod."""
        event = self._marks.get(key)
        if event is None:
            event = self._marks[key] = asyncio.Event()
            assert self._group is not None
            self._group.create_task(self._tend(key, event), name=f"pod {key[0]}/{key[1]}")
        event.set()

    async def _tend(self, key: PodKey, marked: asyncio.Event) -> None:
        """One pod's task: at work when marked or when it is time to try again, until the pod is gone."""
        pause = FIRST_RETRY
        wait: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(marked.wait(), wait)
            marked.clear()
            try:
                wait = await self._reconcile(key)
                pause = FIRST_RETRY
            except (TortieError, OSError) as error:
                log.warning("pod %s/%s: %s; trying again in %.1f s", *key, error, pause)
                wait, pause = pause, min(2 * pause, LONGEST_RETRY)
            if key not in self._pods and self.sandboxes.load(key) is None and not marked.is_set():
                del self._marks[key]
                return

    # --- making it so -----------------------------------------------------------------------------------------------

    async def _reconcile(self, key: PodKey) -> float | None:
        """One comparison of what should be and what is; in how many seconds to look again, if ever."""
        pod, sandbox = self._pods.get(key), self.sandboxes.load(key)
        if sandbox and not (sandbox.belongs_to(pod) and self.sandboxes.is_there(sandbox)):
            self.readiness.stop(key)
            await self.workloads.stop(key)
            await self.sandboxes.detach(sandbox)
            sandbox = None
        if pod is None:
            self._placed.pop(key, None)
            self.sandboxes.forget(key)
            self.readiness.forget(key)
            return None
        if pod.finished:
            return None
        if pod.metadata.deletion_timestamp is not None:
            await self._report(pod, None, Condition(pod.status.phase, "it is to be deleted: nothing of it runs"))
            return None
        if not pod.spec.node_name:
            return await self._schedule(pod)
        if pod.spec.node_name not in {node.name for node in self.lab.nodes}:
            await self._report(pod, None, Condition("Pending", f'this lab has no node "{pod.spec.node_name}"'))
            return None
        self._mention(pod)
        if sandbox is None or not sandbox.attached:
            sandbox = await self._attach(pod)
        condition = await self.workloads.ensure(pod, sandbox)
        await self._report(pod, sandbox, condition)
        return condition.look_again

    async def _schedule(self, pod: Pod) -> float | None:
        nodes: dict[str, dict[str, str]] = {node.name: {} for node in self.lab.nodes}
        nodes |= {node.name: node.labels for node in (await self.store.list(Node)).items if node.name in nodes}
        node = self._choose(pod, nodes)
        if node is None:
            await self._report(pod, None, Condition("Pending", "no node has the labels that nodeSelector wants"))
            return LONGEST_RETRY
        with contextlib.suppress(NotFound):
            latest = await self.store.get(Pod, pod.name, pod.namespace)
            if latest.metadata.uid == pod.metadata.uid and not latest.spec.node_name:
                spec = msgspec.structs.replace(latest.spec, node_name=node)
                await self.store.update(msgspec.structs.replace(latest, spec=spec))
        return None

    @property
    def _node_names(self) -> set[str]:
        return {node.name for node in self.lab.nodes}

    def _choose(self, pod: Pod, nodes: dict[str, dict[str, str]]) -> str | None:
        """Without a pause between counting and choosing: pods that come together see each other. The cluster's own
        have their places, and hardly any work."""
        theirs = {key: other for key, other in self._pods.items() if key[0] != dns.NAMESPACE}
        where = {key: self._placed.get(key, "") or other.spec.node_name for key, other in theirs.items()}
        node = place(pod, nodes, Counter(name for key, name in where.items() if name and key != key_of(pod)))
        if node:
            self._placed[key_of(pod)] = node
        return node

    async def _attach(self, pod: Pod) -> Sandbox:
        try:
            sandbox = await self.sandboxes.attach(pod)
        except CniError as error:
            if error.code != Code.TRY_AGAIN_LATER:
                await self._report(pod, None, Condition("Pending", str(error)))
            raise
        log.info("pod %s/%s is on %s with %s", *sandbox.key, sandbox.node, " and ".join(sandbox.ips))
        return sandbox

    async def _report(self, pod: Pod, sandbox: Sandbox | None, condition: Condition) -> None:
        """Writes the pod's status if it says something new."""
        with contextlib.suppress(NotFound):
            while True:
                latest = await self.store.get(Pod, pod.name, pod.namespace)
                if latest.metadata.uid != pod.metadata.uid:
                    return
                status = self._status(latest, sandbox, condition)
                if status == latest.status:
                    return
                with contextlib.suppress(Conflict):
                    await self.store.update(msgspec.structs.replace(latest, status=status))
                    return

    def _status(self, pod: Pod, sandbox: Sandbox | None, condition: Condition) -> PodStatus:
        late = {one.name: "not running" for one in pod.spec.containers}
        if sandbox is not None:
            late = self.readiness.late(pod, sandbox.container_id, condition.running)
        ips = sandbox.ips if sandbox else ()
        known = pod.spec.node_name in self._node_names
        return msgspec.structs.replace(
            pod.status,
            phase=condition.phase,
            message=condition.message,
            pod_ip=ips[0] if ips else "",
            pod_ips=tuple(PodIP(ip=ip) for ip in ips),
            host_ip=str(self.lab.node(pod.spec.node_name).ipv4.ip) if known else "",
            conditions=conditions(pod, condition.phase, late, datetime.now(UTC)),
        )

    def _mention(self, pod: Pod) -> None:
        """What a lab does not honour is said once."""
        for field in not_honoured(pod):
            if field not in self._mentioned:
                self._mentioned.add(field)
                log.info("a lab does not honour %s, as in pod %s/%s", field, pod.namespace, pod.name)


async def serve(directory: LabDirectory) -> None:
    """Until SIGTERM or SIGINT, which leave agents and pods running."""
    store = open_store(str(directory.store))
    work = asyncio.create_task(Kubelet(directory, store).run(), name="kubelet")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await work
    finally:
        await store.close()


def start(directory: LabDirectory) -> None:
    """Starts the lab's kubelet in the background unless it runs."""
    if processes.read_pid(directory.kubelet_pid) is None:
        argv = [sys.executable, "-m", "tortie.lab.kubelet", directory.name]
        if directory != LabDirectory(directory.name):
            argv.append(str(directory.root))
        env = {processes.LAB_VARIABLE: directory.name}
        processes.spawn(argv, directory.kubelet_pid, directory.kubelet_log, env=env, detached=True)


def main(argv: list[str]) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    directory = LabDirectory(argv[1], *map(Path, argv[2:]))
    other = processes.read_pid(directory.kubelet_pid)
    if other and other.pid != os.getpid():
        log.error("lab %s has a kubelet already, pid %d", directory.name, other.pid)
        return 1
    asyncio.run(serve(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
