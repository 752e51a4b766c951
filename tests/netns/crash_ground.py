"""The ground of the deaths one by one: a node, sandboxes, and a datastore that each trial finds as new."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent_node import NETWORK, POOL4, POOL6, RED, pod, pool

import traces
from crashes import NEVER, Answer, Container, Died, Life, until
from tortie.agent.config import AgentConfig
from tortie.calc.admission import bootstrap
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata, changed
from tortie.model.workload import interface_name
from tortie.store import open_store

THOROUGH = bool(os.environ.get("TORTIE_CRASH_EXAMPLES"))
FEWEST, MOST = 20, 2000
"""Bounds on the gates of a call."""
SETTLES = 20.0
"""Seconds within which what follows a call has come about: routes, policy."""
FIXED4, FIXED6, FLOATING = "10.65.7.7", "fd00:65::7:7", "192.0.2.77"
HALF_CLAIMED = (" is pending", " is pendingDeletion", "which has no affinity to it")
PODS = ("a", "b", "c", "d", "e")
_serial = itertools.count(1)


@dataclass(frozen=True)
class Flavour:
    """What kind of pod, and of how many of its gates one is tried. Without `pod` it is a container of no Kubernetes."""

    ipv6: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)
    pod: bool = True
    stride: int = 1
    """Of so many gates one is tried; which, differs between what is done afterwards."""
    more: Mapping[str, Any] = field(default_factory=dict)
    pool4: str = POOL4
    block4: int | None = None

    @property
    def conf(self) -> dict[str, Any]:
        ipam = {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true" if self.ipv6 else "false"}
        plugin = {"type": "calico", "ipam": ipam, "policy": {"type": "k8s"} if self.pod else {}}
        return {"name": NETWORK, "cniVersion": "1.1.0", **plugin, **self.more}


FLAVOURS = {
    "ipv4": Flavour(stride=7),
    "dual": Flavour(ipv6=True, stride=16),
    "fixed": Flavour(
        ipv6=True,
        annotations={
            "cni.projectcalico.org/ipAddrs": json.dumps([FIXED4, FIXED6]),
            "cni.projectcalico.org/floatingIPs": json.dumps([FLOATING]),
        },
        more={"feature_control": {"floating_ips": True}},
        stride=16,
    ),
    "scarce": Flavour(pool4="10.65.0.0/30", block4=30, stride=7),
    "plain": Flavour(pod=False, stride=9),
}


class Ground:
    """A namespace for the node and one for each pod."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.datastore = directory / "store.db"
        self.run_dir = directory / "run"
        self.log = directory / "agent.log"
        self.config = AgentConfig(
            "node1",
            str(self.datastore),
            run_dir=self.run_dir,
            ipv4="192.0.2.1/24",
            ipv6="fd00:2::1/64",
            bgp=False,
            health_port=0,
            metrics_port=0,
            defaults=False,
        )
        self._templates: dict[str, Path] = {}
        self._lives: list[Life] = []
        self._containers = itertools.count(1)
        self.host = ""
        self.sandboxes: list[str] = []
        self.place = ""
        """Where the agent died last."""
        self.build()

    def build(self) -> None:
        number = next(_serial)
        self.host, *self.sandboxes = (f"tt-{os.getpid()}-crash{number}-{what}" for what in ("node", *PODS))
        for name in (self.host, *self.sandboxes):
            subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=30)

    def demolish(self) -> None:
        self.end_lives()
        for name in (self.host, *self.sandboxes):
            subprocess.run(["ip", "netns", "delete", name], check=False, timeout=30)

    def rebuild(self) -> None:
        """Whatever a trial that failed has left is gone."""
        self.demolish()
        self.build()

    def fresh(self, flavour: Flavour) -> None:
        """A cluster in which nothing has happened yet, and an empty run directory."""
        self.end_lives()
        for file in self.directory.glob("store.db*"):
            file.unlink()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        shutil.copy(self._template(flavour), self.datastore)

    def _template(self, flavour: Flavour) -> Path:
        name = f"template-{len(flavour.annotations)}-{flavour.block4}.db"
        if name not in self._templates:
            red = Namespace(metadata=Metadata(name=RED, labels={"kubernetes.io/metadata.name": RED}))
            pods = [changed(pod(name), annotations=dict(flavour.annotations)) for name in PODS]
            pools = pool("pool4", flavour.pool4, flavour.block4), pool("pool6", POOL6)

            async def write() -> None:
                store = open_store(self.directory / name)
                for one in (*bootstrap("0" * 32), *pools, red, *pods):
                    await store.create(one)
                await store.close()

            asyncio.run(write())
            self._templates[name] = self.directory / name
        return self._templates[name]

    def life(self, fatal: int = NEVER, *, reads: bool = True) -> Life:
        """An agent. There is one at a time."""
        self.end_lives()
        life = Life(self.config, f"/run/netns/{self.host}", self.log, fatal, reads=reads)
        self._lives.append(life)
        return life

    def end_lives(self) -> None:
        while self._lives:
            self._lives.pop().kill()

    def container(self, flavour: Flavour, pod: str = "a") -> Container:
        """A new container of a pod, in the same sandbox as the others before."""
        conf = flavour.conf | {"endpoint_status_dir": str(self.run_dir / "status")}
        made = Container(f"c{next(self._containers):06d}", self._sandbox(pod), conf=conf)
        if not flavour.pod:
            return made
        return replace(made, pod=pod, namespace=RED, uid=traces.stored(self.datastore).uid(pod))

    def _sandbox(self, pod: str) -> str:
        return f"/run/netns/{self.sandboxes[PODS.index(pod)]}"

    # --- what must be so ---

    def whole(self, container: Container, answer: Answer, life: Life) -> None:
        """The pod is as the runtime was told."""
        wanted = set(answer.ips)
        assert traces.addresses(Path(container.netns).name) == wanted
        settled(lambda: self.lacking(container, wanted))
        life.surely("CHECK", container, prevResult=answer.json)

    def lacking(self, container: Container, ips: set[str]) -> list[str]:
        host = host_end(container)
        at = traces.stored(self.datastore)
        held = {each.ip for each in at.allocations if container.id in each.handle}
        endpoints = [each["spec"] for each in at.endpoints]
        wanted = dict.fromkeys(ips, host)
        routes = {ip: dev for ip, dev in traces.host_routes(self.host, v6=True).items() if ip in ips}
        lacks = []
        if not ips <= held:
            lacks.append(f"of {ips} IPAM has {held} for the container")
        endpoints = [each for each in endpoints if each.get("pod", "") == container.pod]
        if [each.get("containerID") for each in endpoints] != [container.id]:
            lacks.append(f"the endpoints are of {[each.get('containerID') for each in endpoints]}")
        elif {net.partition("/")[0] for net in endpoints[0]["ipNetworks"]} != ips:
            lacks.append(f"the endpoint has {endpoints[0]['ipNetworks']}")
        routed = traces.claimed(at)
        lacks += [f"nobody claims the block of {ip}" for ip in ips if routed(ip) == "nobody"]
        if routes != wanted:
            lacks.append(f"routes lead {routes}")
        if f'"{host}"' not in traces.policy(self.host):
            lacks.append("no policy knows its interface")
        return lacks

    def nothing_left(self, *containers: Container, claims: bool = True) -> None:
        """`claims`: nor is a block half claimed, as it may be until the node needs one again."""
        settled(lambda: [each for each in self.left(containers) if claims or not each.endswith(HALF_CLAIMED)])

    def left(self, containers: tuple[Container, ...]) -> list[str]:
        """What is there of these containers, and what in the datastore does not fit together."""
        hosts, ids = {host_end(each) for each in containers}, [each.id for each in containers]
        at = traces.stored(self.datastore)
        found = [f"link {name} on the node" for name in traces.links(self.host)]
        found += [f"link {name} in the pod" for name in traces.links(self.sandboxes[0])]
        routes = traces.host_routes(self.host, v6=True).items()
        found += [f"route to {ip} by {dev}" for ip, dev in routes if dev != "blackhole"]
        table = traces.policy(self.host)
        found += [f"{name} in the table" for name in (*hosts, FIXED4, FIXED6, FLOATING) if name in table]
        found += [f"WorkloadEndpoint {each['metadata']['name']}" for each in at.endpoints]
        for each in at.allocations:
            if "pod" in each.attrs or any(id in each.handle for id in ids):
                found.append(f"{each.ip} is held by {each.handle}")
        names = [handle["metadata"]["name"] for handle in at.handles]
        found += [f"handle {name}" for name in names if any(id in name for id in ids)]
        found += traces.unsound(at)
        return found + [f"file {name}" for name in self.files() if any(id in name for id in ids)]

    def files(self) -> list[str]:
        return [str(file.relative_to(self.run_dir)) for file in self.run_dir.rglob("*") if file.is_file()]


def host_end(container: Container) -> str:
    return interface_name(container.namespace, container.pod) if container.pod else f"cali{container.id[:11]}"


def settled(look: Callable[[], list[str]]) -> None:
    """What is wrong stops being so, soon."""
    deadline = time.monotonic() + SETTLES
    while wrong := look():
        assert time.monotonic() < deadline, "; ".join(wrong)
        time.sleep(0.01)


Trial = Callable[[int], bool]
"""Dies at the gate with this number, and sees to it that all is put right. False when there was no such gate."""


def everywhere(ground: Ground, flavour: Flavour, trial: Trial, first: int = 1) -> None:
    """Die at every gate, or at each of a stride. All that goes wrong is told together."""
    failures: list[str] = []
    stride = 1 if THOROUGH else flavour.stride
    for fatal in range(1 if THOROUGH else first, MOST, stride):
        ground.fresh(flavour)
        try:
            if not trial(fatal):
                break
        except AssertionError as error:
            failures.append(f"gate {fatal}, {ground.place}: {str(error)[:2000]}")
            print(failures[-1])
            ground.rebuild()
    deaths = (fatal - first) // stride
    print(f"{deaths} deaths at {fatal - 1} gates")
    assert not failures, f"{len(failures)} of {deaths} deaths:\n" + "\n".join(failures)
    assert fatal > FEWEST


def dies_in(ground: Ground, verb: str, fatal: int, container: Container, life: Life, **more: Any) -> Answer | None:
    """The call's answer if it came. `ground.place` is where the agent died, "" if it did not."""
    answer = None
    ground.place = ""
    life.rest(0.02)
    life.arm(fatal)
    try:
        answer = life.call(verb, container, **more)
        assert answer.good, answer.text
        life.survive()
    except Died as death:
        ground.place = str(death)
    return answer


def attached(ground: Ground, flavour: Flavour) -> tuple[Container, Answer, Life]:
    """A pod, and the agent that has attached it."""
    life = ground.life().ready()
    container = ground.container(flavour)
    answer = life.surely("ADD", container)
    return container, answer, life


def starts(ground: Ground, fatal: int) -> bool:
    """Whether an agent that is to die at a gate of its start has started."""
    ground.place = ""
    try:
        ground.life(fatal).ready().survive()
    except Died as death:
        ground.place = f"{ground.place}{death}"
        return False
    return True


def stops(life: Life, fatal: int) -> str:
    """Where an agent that is told to end has died while it did so; "" if it ended well."""
    life.arm(fatal)
    os.kill(life.pid, signal.SIGTERM)
    until(life.ended, "an agent that is told to end has ended")
    return life.gates.place if not life.ended_well and life.died() else ""
