"""Which containers of a lab's pods are ready, and what that makes of the pod: readiness probes and conditions.

    container runs ─► initialDelaySeconds ─► a probe every periodSeconds ─► Tally ─► conditions of the pod

Without a probe a container that runs is ready. With one it is not, until the probe has passed often enough; who is
killed and started again begins anew. A kubelet that takes over a pod believes what its status says until its own probes
say otherwise: a restart takes no pod out of its services.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from msgspec import UNSET

from tortie.lab.podspec import PodKey
from tortie.lab.probing import PASSED, Check, Connect, Get, Inside, Run, passes
from tortie.model.k8s import Container, Pod, PodCondition, Probe

READY, CONTAINERS_READY = "Ready", "ContainersReady"
COMPLETED, NOT_READY = "PodCompleted", "ContainersNotReady"
"""Reasons, as Kubernetes' kubelet gives them."""


# --- deciding -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tally:
    """What probes have come to. `against` counts those in a row that say otherwise; `why` is from the last failure."""

    ready: bool = False
    against: int = 0
    why: str = ""


def counted(tally: Tally, failure: str, probe: Probe) -> Tally:
    """After one more probe; `failure` is PASSED or says why not."""
    passed = failure == PASSED
    why = tally.why if passed else failure
    if passed == tally.ready:
        return Tally(passed, 0, why)
    needed = probe.success_threshold if passed else probe.failure_threshold
    against = tally.against + 1
    return Tally(passed, 0, why) if against >= needed else Tally(tally.ready, against, why)


def check_of(container: Container) -> Check | str:
    """What a container's readiness probe does, or why a lab cannot do it."""
    probe = container.readiness_probe
    assert isinstance(probe, Probe)
    if probe.exec is not None:
        return Run(probe.exec.command) if probe.exec.command else "exec without a command"
    get = probe.http_get
    asked = get or probe.tcp_socket
    if asked is None:
        return "a lab asks by httpGet, tcpSocket and exec only"
    port = port_number(container, asked.port)
    if port is None:
        return f'no port of the container is named "{asked.port}"'
    if get is None:
        return Connect(port, asked.host)
    headers = tuple((one.name, one.value) for one in get.http_headers)
    return Get(port, get.path or "/", get.host, (get.scheme or "HTTP").lower(), headers)


def port_number(container: Container, port: int | str) -> int | None:
    """Of a port that is named by number, by digits, or as the container names it."""
    if isinstance(port, int) or port.isdecimal():
        return int(port)
    return next((one.container_port for one in container.ports if one.name == port), None)


def conditions(pod: Pod, phase: str, late: Mapping[str, str], now: datetime) -> tuple[PodCondition, ...]:
    """The conditions of the pod's status, others' kept. `late` are the containers that are not ready, and why; `now` in
    UTC."""
    ready = phase == "Running" and not late
    reason = "" if ready else COMPLETED if phase == "Succeeded" else NOT_READY
    who = ", ".join(sorted(late))
    why = "; ".join(f"{name}: {text}" for name, text in sorted(late.items()) if text)
    message = f"containers with unready status: [{who}]{why and '; '}{why}" if phase == "Running" and who else ""
    have = {one.type: one for one in pod.status.conditions}
    for kind in (CONTAINERS_READY, READY):
        status = "True" if ready else "False"
        old = have.get(kind)
        since = old.last_transition_time if old is not None and old.status == status else f"{now:%Y-%m-%dT%H:%M:%SZ}"
        have[kind] = PodCondition(type=kind, status=status, reason=reason, message=message, last_transition_time=since)
    return tuple(have.values())


# --- doing --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Prober:
    """The probes of one container, for as long as it runs."""

    probe: Probe
    tally: Tally
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Probed:
    container_id: str
    probers: dict[str, _Prober] = field(default_factory=dict)


class Readiness:
    """Of one lab's pods. `changed` is called with a pod's key when one of its containers has become ready, or is no
    longer."""

    def __init__(self, changed: Callable[[PodKey], None]) -> None:
        self._changed = changed
        self._pods: dict[PodKey, _Probed] = {}
        self._met: set[PodKey] = set()

    def late(self, pod: Pod, container_id: str, running: Mapping[str, Inside]) -> dict[str, str]:
        """The containers that are not ready, and why. Those that run are probed from now on, others no longer."""
        key = (pod.namespace, pod.name)
        believed = key not in self._met and pod.ready
        self._met.add(key)
        known = self._pods.get(key)
        if known is None or known.container_id != container_id:
            self.stop(key)
            known = self._pods[key] = _Probed(container_id)
        for name in known.probers.keys() - {one.name for one in _probed(pod, running)}:
            _end(known.probers.pop(name))
        for container in _probed(pod, running):
            self._probe(key, known, container, running[container.name], believed)
        late = {one.name: "not running" for one in pod.spec.containers if one.name not in running}
        return late | {name: one.tally.why for name, one in known.probers.items() if not one.tally.ready}

    def stop(self, key: PodKey) -> None:
        """Nothing of the pod is probed any more; what it has been is no evidence for what comes after it."""
        self._met.add(key)
        known = self._pods.pop(key, None)
        for prober in known.probers.values() if known else ():
            _end(prober)

    def forget(self, key: PodKey) -> None:
        """The pod is gone."""
        self.stop(key)
        self._met.discard(key)

    def _probe(self, key: PodKey, known: _Probed, container: Container, inside: Inside, believed: bool) -> None:
        probe = container.readiness_probe
        assert isinstance(probe, Probe)
        old = known.probers.get(container.name)
        if old is not None and old.probe == probe:
            return
        if old is not None:
            _end(old)
        check = check_of(container)
        if isinstance(check, str):
            known.probers[container.name] = _Prober(probe, Tally(why=check))
            return
        prober = known.probers[container.name] = _Prober(probe, Tally(ready=believed))
        work = self._keep_probing(key, prober, check, inside)
        prober.task = asyncio.create_task(work, name=f"probe {key[0]}/{key[1]} {container.name}")

    async def _keep_probing(self, key: PodKey, prober: _Prober, check: Check, inside: Inside) -> None:
        """Until cancelled."""
        probe = prober.probe
        await asyncio.sleep(probe.initial_delay_seconds)
        while True:
            began = asyncio.get_running_loop().time()
            before = prober.tally
            prober.tally = counted(before, await passes(check, inside, probe.timeout_seconds), probe)
            if (prober.tally.ready, prober.tally.why) != (before.ready, before.why):
                self._changed(key)
            await asyncio.sleep(probe.period_seconds + began - asyncio.get_running_loop().time())


def _probed(pod: Pod, running: Iterable[str]) -> Iterator[Container]:
    """The containers that run and have a probe."""
    names = set(running)
    return (one for one in pod.spec.containers if one.name in names and one.readiness_probe is not UNSET)


def _end(prober: _Prober) -> None:
    if prober.task is not None:
        prober.task.cancel()
