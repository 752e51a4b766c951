"""Is there a kube-proxy on this machine, in which mode, and does it run? And do we do its work, then?

    look ──► Seen ──► judge ──► KubeProxy, one for each mode that something is there of
                                   └──► decide(what was asked for, these, how it stood before) ──► Standing

    mode       by
    nftables   tables ip kube-proxy, ip6 kube-proxy
    iptables   chains KUBE-SVC-*, KUBE-NODEPORTS and so on, seen by nft or by iptables-legacy-save
    ipvs       the device kube-ipvs0; chains KUBE-NODE-PORT, KUBE-LOAD-BALANCER
    unknown    a process, and no rules: it has just begun, or has just been stopped

A process is kube-proxy by its name, in our network namespace. Where it has another name (k3s has it inside of its own
program), or is in another process namespace, who listens at its port for metrics tells that its rules are alive. That
alone, without rules, says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tortie.base.errors import ConfigError, NotSupported
from tortie.kernel import nft
from tortie.kernel.netns import OWN, entered
from tortie.proxy import kube_rules

Mode = Literal["nftables", "iptables", "ipvs", "unknown"]
Asked = Literal["auto", "on", "off"]
MODES: tuple[Mode, ...] = ("nftables", "iptables", "ipvs")
ASKED: tuple[Asked, ...] = ("auto", "on", "off")

NAME = "kube-proxy"
"""Of the program, and of its nftables tables."""
DEVICE = "kube-ipvs0"
METRICS_PORT = 10249  # kube-proxy's metricsBindAddress
POD = "pod"
"""In place of the unit of a process that a kubelet has started."""
OURS = ("tortie", "tortie.cli.main")
"""How our programs are called, on their command line."""
GONE = f"no process {NAME} runs"
"""The evidence that rules are all that is left."""
LOOKS = 2
"""Without anything of kube-proxy, one after the other, until `auto` is on again: one that starts makes all anew."""
COMMAND = "tortie services takeover"


@dataclass(frozen=True, slots=True)
class Program:
    """A process that is, or has inside, a kube-proxy. `mode` as its command line says it, "" if it does not. `unit` is
    systemd's that it runs in, or POD."""

    pid: int
    name: str = NAME
    mode: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is on a machine. `chains`: names by the title of their table. `unseen`: where rules may be that cannot
    be looked at, in lines. `listener`: at the port of metrics; a pid of 0: of a process that cannot be seen. It is only
    looked for where there are rules and no program: the kernel walks through its whole table of connections to tell."""

    tables: tuple[str, ...] = ()
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    device: bool = False
    ipvs_services: int = 0
    ipvs_connections: int = 0
    programs: tuple[Program, ...] = ()
    listener: Program | None = None
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KubeProxy:
    """A kube-proxy, or what one has left: then there is no `program`. One with pid 0 runs where we cannot see
    its process. `connections`: through IPVS, which would end with it."""

    mode: Mode
    evidence: tuple[str, ...]
    program: Program | None = None
    connections: int = 0

    @property
    def pid(self) -> int:
        return self.program.pid if self.program is not None else 0

    @property
    def runs(self) -> bool:
        return self.program is not None

    @property
    def has_rules(self) -> bool:
        return self.mode != "unknown"

    def __str__(self) -> str:
        if self.pid:
            return f"{NAME} ({self.mode}), process {self.pid}"
        if self.runs:
            return f"{NAME} ({self.mode}), its process not to be seen from here"
        return f"rules of a {NAME} ({self.mode}) that is gone"


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether we serve, and why, in a line. `absent`: looks one after the other that found nothing of kube-proxy."""

    on: bool
    why: str
    absent: int = 0


# --- deciding -----------------------------------------------------------------------------------------------------


def decide(
    asked: Asked, found: Sequence[KubeProxy], before: Standing | None = None, *, looked: bool = True
) -> Standing:
    """`before` is how it stood after the last look, None at the first. `looked`: `found` is of a new look."""
    absent = 0 if found else LOOKS if before is None else min(before.absent + int(looked), LOOKS)
    here = ", ".join(map(str, found))
    if asked == "off":
        return Standing(False, "asked for: off", absent)
    if asked == "on":
        return Standing(True, f"asked for: on{f'; here is also: {here}' if found else ''}", absent)
    if found:
        gone = not any(one.runs for one in found)
        remedy = f"`{COMMAND}` {'removes them' if gone else 'takes its place'}"
        return Standing(False, f"{here}: {remedy}", absent)
    if absent < LOOKS and before is not None and not before.on:
        return Standing(False, f"{NAME} is gone since the last look; on at the next, if it stays away", absent)
    return Standing(True, f"there is no {NAME} here", absent)


def asked_for(text: str, where: str) -> Asked:
    """Raises ConfigError. `where` names the option or variable."""
    for one in ASKED:
        if text == one:
            return one
    raise ConfigError(f'"{text}" is not one of {", ".join(ASKED)}', where)


def judge(seen: Seen) -> tuple[KubeProxy, ...]:
    """One for each mode, in the order of MODES."""
    evidence = {mode: lines for mode in MODES if (lines := tuple(_evidence(mode, seen)))}
    if not evidence:
        rules = seen.unseen or ("it has no rules",)
        return tuple(KubeProxy("unknown", (_running(one), *rules), one) for one in seen.programs)
    running = seen.programs or ((seen.listener,) if seen.listener is not None else ())
    owners = {mode: _owner(mode, running, only=len(evidence) == 1) for mode in evidence}
    if running and not any(owners.values()):  # it says nowhere which are its own: then all are
        owners = dict.fromkeys(evidence, running[0])
    return tuple(
        KubeProxy(mode, (*lines, _running(owners[mode])), owners[mode], seen.ipvs_connections if mode == "ipvs" else 0)
        for mode, lines in evidence.items()
    )


def _evidence(mode: Mode, seen: Seen) -> Iterator[str]:
    if mode == "nftables":
        yield from (f"nft table {family} {NAME}" for family in seen.tables)
        return
    if mode == "ipvs" and seen.device:
        yield f"device {DEVICE}"
        if seen.ipvs_services:
            yield f"IPVS has {seen.ipvs_services} services, {seen.ipvs_connections} connections"
    for title, chains in seen.chains.items():
        signs = [chain for chain in chains if _is_sign_of(mode, chain, seen)]
        if signs:
            others = f" and {len(signs) - 1} more chains" if len(signs) > 1 else ""
            yield f"{title}: {signs[0]}{others}"


def _is_sign_of(mode: Mode, chain: str, seen: Seen) -> bool:
    """Chains of both modes are a sign of ipvs where there is something else of it."""
    of = kube_rules.sign(chain)
    return of == mode or (of == "both" and (mode == "ipvs") is _has_ipvs(seen))


def _has_ipvs(seen: Seen) -> bool:
    return seen.device or any(kube_rules.sign(chain) == "ipvs" for each in seen.chains.values() for chain in each)


def _owner(mode: Mode, running: Iterable[Program], *, only: bool) -> Program | None:
    """Whose the rules of a mode are. The only rules that there are are those of whoever runs."""
    programs = tuple(running)
    return next((one for one in programs if one.mode == mode), programs[0] if only and programs else None)


def _running(program: Program | None) -> str:
    if program is None:
        return GONE
    if program.pid == 0:
        return f"port {METRICS_PORT} of {NAME} is listened at, by a process that cannot be seen from here"
    if program.name == NAME:
        return f"process {program.pid} runs"
    return f"port {METRICS_PORT} of {NAME} is listened at by process {program.pid}, {program.name}"


# --- looking ------------------------------------------------------------------------------------------------------


def found(netns: str | None = None) -> tuple[KubeProxy, ...]:
    """Of this machine, or of another network namespace of it. Raises KernelError, NotSupported."""
    return judge(look(netns))


def look(netns: str | None = None) -> Seen:
    """Blocks, with ten thousand services of kube-proxy some tenths of a second. Raises KernelError, NotSupported."""
    listed = nft.list_json(["list", "chains"], netns) if _has_nft() else []
    chains = kube_rules.signs(listed, netns)
    own = {item["chain"]["family"] for item in listed if "chain" in item and item["chain"]["table"] == NAME}
    with entered(netns):
        services, connections = _ipvs()
        programs = tuple(_programs())
        seen = Seen(
            tuple(family for family in kube_rules.FAMILIES if family in own),
            chains,
            has_device(),
            services,
            connections,
            programs,
            None,
            kube_rules.unseen() if programs else (),
        )
        alone = not programs and any(True for mode in MODES for _ in _evidence(mode, seen))
        return replace(seen, listener=_listener()) if alone else seen


def _has_nft() -> bool:
    try:
        nft.available()
    except NotSupported:
        return False
    return True


def has_device() -> bool:
    text = _read("/proc/thread-self/net/dev")
    return any(line.strip().startswith(f"{DEVICE}:") for line in text.splitlines())


def _ipvs() -> tuple[int, int]:
    """Services and connections."""
    return ipvs_services(_read("/proc/thread-self/net/ip_vs")), ipvs_connections(
        _read("/proc/thread-self/net/ip_vs_conn")
    )


def ipvs_services(text: str) -> int:
    """How many /proc/net/ip_vs names."""
    return sum(line.startswith(("TCP ", "UDP ", "SCTP ", "FWM ")) for line in text.splitlines())


def ipvs_connections(text: str) -> int:
    """How many /proc/net/ip_vs_conn names."""
    return sum(line.startswith(("TCP ", "UDP ", "SCTP ")) for line in text.splitlines())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _programs() -> Iterator[Program]:
    """Processes named kube-proxy in the network namespace of the calling thread."""
    here = os.stat(OWN)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _read(f"/proc/{entry}/comm").rstrip("\n") == NAME:
            with suppress(OSError):  # gone meanwhile
                if os.path.samestat(os.stat(f"/proc/{entry}/ns/net"), here):
                    yield _program(entry)


def _program(entry: str) -> Program:
    name = _read(f"/proc/{entry}/comm").rstrip("\n")
    words = _read(f"/proc/{entry}/cmdline").split("\0")
    return Program(int(entry), name, mode_of(words), unit_of(_read(f"/proc/{entry}/cgroup")))


def unit_of(text: str) -> str:
    """What started a process, of what /proc/PID/cgroup says.

    >>> unit_of("0::/system.slice/kube-proxy.service\\n"), unit_of("0::/kubepods.slice/kubepods-pod1.slice/x.scope\\n")
    ('kube-proxy.service', 'pod')
    """
    if "/kubepods" in text:
        return POD
    names = (part for line in text.splitlines() for part in reversed(line.split("/")))
    return next((name for name in names if name.endswith(".service")), "")


def mode_of(words: Sequence[str]) -> str:
    """What a command line says with --proxy-mode.

    >>> mode_of(["kube-proxy", "--proxy-mode=ipvs"]), mode_of(["kube-proxy", "--config", "x"])
    ('ipvs', '')
    """
    for i, word in enumerate(words):
        if word == "--proxy-mode":
            return words[i + 1] if i + 1 < len(words) else ""
        if word.startswith("--proxy-mode="):
            return word.partition("=")[2]
    return ""


def _listener() -> Program | None:
    """Who listens at the port of kube-proxy's metrics, unless we do ourselves."""
    texts = (_read("/proc/thread-self/net/tcp"), _read("/proc/thread-self/net/tcp6"))
    sockets = {inode for text in texts for inode in listening(text, METRICS_PORT)}
    if not sockets:
        return None
    names = {f"socket:[{inode}]" for inode in sockets}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if _has_open(entry, names):
            return None if _is_ours(entry) else _program(entry)
    return Program(0, "")


def _is_ours(entry: str) -> bool:
    """Whether it is this process, or `tortie proxy`, whose metrics are at the same port."""
    words = _read(f"/proc/{entry}/cmdline").split("\0")
    return int(entry) == os.getpid() or any(os.path.basename(word) in OURS for word in words[:3])


def _has_open(entry: str, names: set[str]) -> bool:
    with suppress(OSError):
        for number in os.listdir(f"/proc/{entry}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{entry}/fd/{number}") in names:
                    return True
    return False


def listening(text: str, port: int) -> Iterator[str]:
    """The inodes of sockets that listen at a port, of what /proc/net/tcp says."""
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == "0A" and words[1].rpartition(":")[2] == f"{port:04X}":
            yield words[9]
