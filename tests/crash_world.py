"""The cluster of the histories: hosts that can die, pods, and what must be true of them at any time."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec

import traces
from crashes import NEVER, PATIENCE, Answer, Container, Died, Life
from tortie.agent.config import AgentConfig
from tortie.base.errors import NotFound
from tortie.calc.admission import bootstrap
from tortie.calc.defaults import defaulted
from tortie.cni.spec import Code
from tortie.controllers.ipam_gc import IpamGc
from tortie.controllers.node import NodeCleanup
from tortie.model.ipam import (
    IPAMConfig,
    IPAMConfigSpec,
    IPPool,
    IPPoolSpec,
    IPReservation,
    IPReservationSpec,
)
from tortie.model.k8s import Container as PodContainer
from tortie.model.k8s import Namespace, Pod, PodSpec
from tortie.model.meta import Metadata
from tortie.model.node import Node
from tortie.model.store import Store
from tortie.model.workload import interface_name
from tortie.policy.selector import parse
from tortie.store import open_store

NETWORK, RED = "k8s-pod-network", "red"
POOLS = {4: ("10.66.0.0/28", 30), 6: ("fd00:66::/124", 126)}
"""By IP version, with the prefix length of a block: four blocks of four addresses."""
MOST_PODS = 12
GRACE = timedelta(minutes=1)
SETTLES = 5.0
_serial = itertools.count(1)


@dataclass
class Host:
    """A node. `life` is its agent; without one it is lost for ever."""

    name: str
    ns: str
    config: AgentConfig
    life: Life | None = None


@dataclass
class Run:
    """A container of a pod and what its runtime knows: `told` is the answer to an ADD that succeeded. `over`: DEL has
    succeeded."""

    container: Container
    host: Host
    ns: str
    told: Answer | None = None
    over: bool = False
    replaced: bool = False
    """The pod has another container by now."""


@dataclass
class PodOf:
    """A pod, on a host; `there`: the datastore has it."""

    name: str
    host: Host
    there: bool = True
    runs: list[Run] = field(default_factory=list)


class World:
    """Rules pick what they are about by number among what there is; where there is nothing they do nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.datastore = directory / "store.db"
        self.hosts: list[Host] = []
        self.pods: list[PodOf] = []
        self.history: list[str] = []
        self.deaths = 0
        self.outcomes: Counter[str] = Counter()
        self.dual = self.strict = self.disabled = self.rushing = False
        self.reserved: set[str] = set()
        self.sound = False
        """What had to be so was so after the last thing that happened."""
        self._spaces: list[str] = []
        self._free: list[str] = []
        self._numbers = itertools.count(1)

    # --- beginning and end ---

    def begin(self, hosts: int, *, strict: bool, dual: bool) -> None:
        self._clear()
        self.dual, self.strict, self.disabled, self.reserved = dual, strict, False, set()
        self.history = [f"{hosts} hosts, strict affinity {strict}, dual stack {dual}"]
        config = IPAMConfig(metadata=Metadata(name="default"), spec=IPAMConfigSpec(strict_affinity=strict))
        red = Namespace(metadata=Metadata(name=RED))
        pools = [self._pool(version, disabled=False) for version in (4, 6)]
        self._write(*bootstrap("0" * 32), config, red, *pools)
        for number in range(1, hosts + 1):
            self.hosts.append(self._host(number))
        for host in self.hosts:
            assert host.life is not None
            host.life.ready()

    def _clear(self) -> None:
        for host in self.hosts:
            if host.life is not None:
                host.life.kill()
        self.hosts, self.pods = [], []
        while self._spaces:
            subprocess.run(["ip", "netns", "delete", self._spaces.pop()], check=False, timeout=30)
        self._free = []
        for file in self.directory.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    def demolish(self) -> None:
        self._clear()

    def _space(self, label: str) -> str:
        name = f"tt-{os.getpid()}-w{next(_serial)}-{label}"
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=30)
        self._spaces.append(name)
        return name

    def _host(self, number: int) -> Host:
        name = f"node{number}"
        config = AgentConfig(
            name,
            str(self.datastore),
            run_dir=self.directory / name,
            ipv4=f"192.0.2.{number}/24",
            ipv6=f"fd00:2::{number}/64",
            bgp=False,
            health_port=0,
            metrics_port=0,
            defaults=False,
        )
        host = Host(name, self._space(name), config)
        host.life = self._life(host)
        return host

    def _life(self, host: Host, fatal: int = NEVER) -> Life:
        return Life(host.config, f"/run/netns/{host.ns}", self.directory / f"{host.name}.log", fatal, reads=False)

    def _pool(self, version: int, *, disabled: bool) -> IPPool:
        cidr, block = POOLS[version]
        spec = IPPoolSpec(cidr=cidr, block_size=block, ipip_mode="Never", vxlan_mode="Never", disabled=disabled)
        return defaulted(IPPool(metadata=Metadata(name=f"pool{version}"), spec=spec), None)

    # --- the datastore ---

    def _with_store(self, work: Callable[[Store], Awaitable[object]]) -> None:
        """No connection stays open: agents are forked from this process."""

        async def run() -> None:
            store = open_store(self.datastore)
            try:
                await work(store)
            finally:
                await store.close()

        asyncio.run(run())

    def _write(self, *resources: Any) -> None:
        async def write(store: Store) -> None:
            for one in resources:
                await store.create(one)

        self._with_store(write)

    # --- choosing ---

    @property
    def alive(self) -> list[Host]:
        return [host for host in self.hosts if host.life is not None]

    @property
    def runs(self) -> list[Run]:
        """Containers for which DEL has not succeeded, on hosts that are there."""
        return [run for pod in self.pods for run in pod.runs if not run.over and run.host.life is not None]

    def _say(self, text: str) -> None:
        self.history.append(text)
        self.sound = False

    # --- what happens ---

    def run_pod(self, number: int, fatal: int) -> None:
        """A pod is made and attached."""
        pod = self._pod_on(self.alive[number % len(self.alive)])
        if pod is not None:
            self._add(self._container_of(pod), fatal)

    def _pod_on(self, host: Host) -> PodOf | None:
        """A new one, unless there are too many."""
        if sum(pod.there for pod in self.pods) >= MOST_PODS:
            return None
        pod = PodOf(f"p{next(self._numbers)}", host)
        spec = PodSpec(node_name=host.name, containers=(PodContainer(name="main"),))
        self._write(Pod(metadata=Metadata(name=pod.name, namespace=RED), spec=spec))
        self.pods.append(pod)
        self._say(f"create pod {pod.name} on {host.name}")
        return pod

    def attach(self, number: int, fatal: int) -> None:
        """A new container of a pod; an old one that it has is not deleted yet."""
        pods = [pod for pod in self.pods if pod.there and pod.host.life is not None]
        if pods:
            self._add(self._container_of(pods[number % len(pods)]), fatal)

    def _container_of(self, pod: PodOf) -> Run:
        ns = self._free.pop() if self._free else self._space("pod")
        uid = traces.stored(self.datastore).uid(pod.name)
        made = Container(f"c{next(self._numbers):06d}", f"/run/netns/{ns}", pod.name, RED, conf=self._conf(), uid=uid)
        for each in pod.runs:
            each.replaced = True
        run = Run(made, pod.host, ns)
        pod.runs.append(run)
        return run

    def _conf(self) -> dict[str, Any]:
        ipam = {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true" if self.dual else "false"}
        policy = {"type": "k8s"}
        return {"name": NETWORK, "cniVersion": "1.1.0", "type": "calico", "ipam": ipam, "policy": policy}

    def add_again(self, number: int, fatal: int) -> None:
        """The same call for a container whose ADD came to nothing."""
        runs = [run for run in self.runs if run.told is None and not run.replaced and self._there(run)]
        if runs:
            self._add(runs[number % len(runs)], fatal)

    def _there(self, run: Run) -> bool:
        return any(pod.there for pod in self.pods if run in pod.runs)

    def _add(self, run: Run, fatal: int) -> None:
        self._added(run, self._call("ADD", run, fatal))

    def _added(self, run: Run, answer: Answer | None) -> None:
        if answer is None:
            return
        if answer.good:
            run.told = answer
            assert len(answer.ips) == 1 + self.dual, answer.text
            return
        assert answer.exhausted or (self.disabled and answer.json["code"] == Code.INVALID_CONFIG), answer.text
        available = [self._available(version) for version in (4, 6)[: 1 + self.dual]]
        assert not all(available) or self.strict or self.rushing, f"{answer.text}; available are {available}"

    def _available(self, version: int) -> int:
        """How many addresses nobody holds, neither a container nor a node for one to come."""
        if version == 4 and self.disabled:
            return 0
        net = ip_network(POOLS[version][0])
        held = {each.ip for each in traces.stored(self.datastore).allocations}
        return sum(str(ip) not in held and str(ip) not in self.reserved for ip in net)

    def rush(self, number: int, fatal: int) -> None:
        """Pods come on all hosts at once, and on one of them the agent dies."""
        doomed = self.alive[number % len(self.alive)]
        runs = []
        for host, _ in itertools.product(self.alive, range(2)):
            pod = self._pod_on(host)
            if pod is not None:
                runs.append(self._container_of(pod))
        self._say(f"rush: {len(runs)} pods")
        assert doomed.life is not None
        doomed.life.arm(fatal)
        with ThreadPoolExecutor(len(runs) or 1) as threads:
            answers = list(threads.map(lambda run: self._asked("ADD", run.host, run.container), runs))
        self._end(doomed, fatal)
        self.rushing = True
        for run, answer in zip(runs, answers, strict=True):
            self._note("ADD", run, answer)
            self._added(run, answer if isinstance(answer, Answer) else None)
        self.rushing = False

    def take_away(self, number: int, fatal: int, *, sandbox: bool) -> None:
        """DEL of a pod's newest container; its namespace may be gone by then."""
        runs = [run for run in self.runs if not run.replaced]
        if runs:
            self._delete(runs[number % len(runs)], fatal, sandbox=sandbox)

    def late_delete(self, number: int, fatal: int) -> None:
        """DEL of a container whose pod has a newer one."""
        runs = [run for run in self.runs if run.replaced]
        if runs:
            self._delete(runs[number % len(runs)], fatal, sandbox=False)

    def _delete(self, run: Run, fatal: int = NEVER, *, sandbox: bool = True) -> None:
        run.told = None
        answer = self._call("DEL", run, fatal, sandbox=sandbox)
        if answer is None:
            return
        assert answer.good, answer.text
        run.over = True
        if sandbox and not run.replaced:
            assert traces.links(run.ns) == set()
            self._free.append(run.ns)
        else:
            subprocess.run(["ip", "netns", "delete", run.ns], check=True, timeout=30)
            self._spaces.remove(run.ns)

    def delete_pod(self, number: int) -> None:
        pods = [pod for pod in self.pods if pod.there]
        if not pods:
            return
        pod = pods[number % len(pods)]
        pod.there = False
        self._say(f"delete pod {pod.name}")
        self._with_store(lambda store: store.delete(Pod, pod.name, RED))

    def collect(self, number: int, fatal: int) -> None:
        """GC. The runtime knows of the containers whose ADD has succeeded, and no more of others."""
        host = self.alive[number % len(self.alive)]
        mine = [run for run in self.runs if run.host is host]
        valid = [{"containerID": run.container.id, "ifname": "eth0"} for run in mine if run.told is not None]
        self._say(f"valid on {host.name}: {[each['containerID'] for each in valid]}")
        any_run = Run(Container("gc", "", conf=self._conf()), host, "")
        answer = self._call("GC", any_run, fatal, **{"cni.dev/valid-attachments": valid})
        assert answer is None or answer.good, answer.text

    def housekeeping(self) -> None:
        """The controllers, until the time of grace is over. The kubelets have taken away by then what has no pod."""
        for pod in self.pods:
            for run in pod.runs:
                if not pod.there and run in self.runs:
                    self._delete(run)
        self._say("housekeeping")
        self._with_store(_housekeeping)

    def restart(self, number: int, fatal: int) -> None:
        host = self.alive[number % len(self.alive)]
        assert host.life is not None
        self._say(f"restart {host.name}")
        host.life.kill()
        self._revive(host, fatal)

    def _revive(self, host: Host, fatal: int = NEVER) -> None:
        host.life = self._life(host, fatal)
        try:
            host.life.ready()
        except Died as death:
            self.deaths += 1
            self._say(f"  {host.name} died: {death}")
            host.life = self._life(host).ready()

    def lose_host(self, number: int) -> None:
        """The machine is gone, and so are its node and its pods, as far as the cluster is concerned."""
        if len(self.alive) < 2:
            return
        host = self.alive[number % len(self.alive)]
        assert host.life is not None
        self._say(f"lose {host.name}")
        host.life.kill()
        mine = [pod for pod in self.pods if pod.host is host]
        for run in [run for run in self.runs if run.host is host]:
            subprocess.run(["ip", "netns", "delete", run.ns], check=True, timeout=30)
            self._spaces.remove(run.ns)
        host.life = None
        subprocess.run(["ip", "netns", "delete", host.ns], check=True, timeout=30)
        self._spaces.remove(host.ns)

        async def forget(store: Store) -> None:
            await store.delete(Node, host.name)
            for pod in mine:
                if pod.there:
                    await store.delete(Pod, pod.name, RED)

        self._with_store(forget)
        for pod in mine:
            pod.there = False

    def disable_pool(self, disabled: bool) -> None:
        self._say(f"IPv4 pool disabled: {disabled}")
        self.disabled = disabled

        async def write(store: Store) -> None:
            pool = await store.get(IPPool, "pool4")
            await store.update(msgspec.structs.replace(pool, spec=replace_spec(pool, disabled)))

        self._with_store(write)

    def reserve(self, first: int | None) -> None:
        """Keep two addresses of the IPv4 pool from being assigned, or none any more."""
        self._say(f"reserve {first}")
        self.reserved = set() if first is None else {f"10.66.0.{first & ~1}", f"10.66.0.{first | 1}"}

        async def write(store: Store) -> None:
            try:
                await store.delete(IPReservation, "some")
            except NotFound:
                pass
            if first is not None:
                cidr = f"10.66.0.{first & ~1}/31"
                spec = IPReservationSpec(reserved_cidrs=(cidr,))
                await store.create(IPReservation(metadata=Metadata(name="some"), spec=spec))

        self._with_store(write)

    def _call(self, verb: str, run: Run, fatal: int, *, sandbox: bool = True, **more: Any) -> Answer | None:
        """The answer; None when the agent died before it came. Then there is a new one."""
        assert run.host.life is not None
        run.host.life.arm(fatal)
        container = run.container if sandbox else replace(run.container, netns="")
        answer = self._asked(verb, run.host, container, **more)
        self._note(verb, run, answer)
        self._end(run.host, fatal)
        return answer if isinstance(answer, Answer) else None

    def _asked(self, verb: str, host: Host, container: Container, **more: Any) -> Answer | Died:
        """As a runtime asks, until it is told what has become of it."""
        assert host.life is not None
        deadline = time.monotonic() + PATIENCE
        try:
            while (answer := host.life.call(verb, container, **more)).later and time.monotonic() < deadline:
                time.sleep(0.01)
        except Died as death:
            return death
        return answer

    def _note(self, verb: str, run: Run, answer: Answer | Died) -> None:
        died = isinstance(answer, Died)
        outcome = "died" if died else "done" if answer.good else "refused"
        self.outcomes[f"{verb} {outcome}"] += 1
        told = f"died: {answer}" if died else answer.ips if verb == "ADD" and answer.good else answer.text or "done"
        container = run.container
        self._say(f"{verb} {container.id} of {container.pod or 'all'} on {run.host.name}: {told}")

    def _end(self, host: Host, fatal: int) -> None:
        """What the call began is done, or its agent has died and there is a new one."""
        assert host.life is not None
        try:
            if fatal:
                host.life.survive()
        except Died as death:
            self.deaths += 1
            self._say(f"  {host.name} died: {death}")
            self._revive(host)

    # --- what must be so ---

    def check(self) -> None:
        if self.hosts:
            _settled(self.wrong)
            self.sound = True

    def wrong(self) -> list[str]:
        """What is not as it must be at any time."""
        at = traces.stored(self.datastore)
        found = traces.unsound(at, resting=False)
        held: dict[str, set[str]] = {}
        for each in at.allocations:
            held.setdefault(each.handle, set()).add(each.ip)
        endpoints = {each["spec"].get("containerID"): each["spec"] for each in at.endpoints}
        owners: dict[str, list[str]] = {}
        routed = traces.claimed(at)
        for run in self.runs:
            there = traces.addresses(run.ns)
            for ip in there:
                owners.setdefault(ip, []).append(run.container.id)
            if run.told is not None and not run.replaced:
                told = set(run.told.ips)
                if there != told:
                    found.append(f"{run.container.id} has {there} in the kernel, not {told}")
                if not told <= held.get(f"{NETWORK}.{run.container.id}", set()):
                    found.append(f"{run.container.id} has {told}, of which IPAM knows nothing")
                found += [f"nobody routes {ip} of {run.container.id}" for ip in told if routed(ip) == "nobody"]
                spec = endpoints.get(run.container.id)
                if self._there(run) and (spec is None or {n.split("/")[0] for n in spec["ipNetworks"]} != told):
                    found.append(f"{run.container.id} has {told}, and the endpoint {spec and spec['ipNetworks']}")
        found += [f"{ip} is in {who}" for ip, who in owners.items() if len(who) > 1]
        return found

    def finish(self) -> None:
        """All goes; nothing is left."""
        if not self.hosts or not self.sound:
            return
        for run in self.runs:
            self._delete(run)
        for number, _ in enumerate(self.alive):
            self.collect(number, NEVER)
        for pod in self.pods:
            if pod.there:
                self.delete_pod(0)
        self._with_store(_housekeeping)
        _settled(self.left)

    def left(self) -> list[str]:
        at = traces.stored(self.datastore)
        names = {host.name for host in self.alive}
        found = [each for each in traces.unsound(at) if "pending" not in each]
        found += [
            f"{each.ip} is held by {each.handle}: {each.attrs}"
            for each in at.allocations
            if "pod" in each.attrs or each.attrs.get("node") not in names
        ]
        found += [f"WorkloadEndpoint {each['metadata']['name']}" for each in at.endpoints]
        ids = [run.container.id for pod in self.pods for run in pod.runs]
        handles = [handle["metadata"]["name"] for handle in at.handles]
        found += [f"handle {name}" for name in handles if any(id in name for id in ids)]
        for host in self.alive:
            found += [f"link {name} on {host.name}" for name in traces.links(host.ns)]
            routes = traces.host_routes(host.ns, v6=True).items()
            found += [f"route to {ip} by {dev} on {host.name}" for ip, dev in routes if dev != "blackhole"]
            table = traces.policy(host.ns)
            ends = (interface_name(RED, pod.name) for pod in self.pods)
            found += [f"{end} in the table of {host.name}" for end in ends if end in table]
        return found

    def summary(self) -> str:
        return f"{self.deaths} deaths; {dict(sorted(self.outcomes.items()))}"


def replace_spec(pool: IPPool, disabled: bool) -> IPPoolSpec:
    return msgspec.structs.replace(pool.spec, disabled=disabled)


def _matches(selector: str, labels: Any) -> bool:
    return parse(selector).matches(labels)


async def _housekeeping(store: Store) -> None:
    """Passes of the controllers, further and further in the future."""
    now = datetime.now(UTC)
    gc, nodes = IpamGc(store, lambda: now, _matches, GRACE), NodeCleanup(store)
    for _ in range(3):
        await nodes.run_once()
        await gc.run_once()
        now += 2 * GRACE


def _settled(look: Callable[[], Iterable[str]]) -> None:
    """What is wrong stops being so, soon."""
    deadline = time.monotonic() + SETTLES
    while wrong := list(look()):
        assert time.monotonic() < deadline, "; ".join(wrong)
        time.sleep(0.01)
