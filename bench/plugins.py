"""The stand-alone plugins against the Go plugins of the same names, bridge, ptp, macvlan and ipvlan, with host-local.

Every ADD goes into a network namespace of its own that is new; DEL follows. What is measured is the time from spawning
the executable to its end. Ours are started in three ways: as the script that they are without a C compiler, as launch.c
with nobody to serve it, and as launch.c with a server. The sides take turns in one run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import Report, against, median, percentile
from bench.node import namespace
from bench.plugin import Network, PluginFailed, Pods, call, scratch
from bench.progress import Advance, alone
from tortie.base.errors import KernelError
from tortie.cni import resident
from tortie.cni.install import base_python, install_plugins
from tortie.kernel import links
from tortie.kernel.netlink import Netlink

NAME = "plugins"
TITLE = "Stand-alone plugins: ADD and DEL, each with host-local, against the Go plugins"
GO = Path("/usr/lib/cni")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "80"))
WARM_UP = 4
TARGETS = {"script": 2.0, "launcher": 2.0, "served": 1.0}
"""Of the median of an ADD with bridge, by how the plugin is started."""
START_TARGET, STARTS = 1.6, 40
MS = 1000
UPLINK = "up0"
IPAM = {"ranges": [[{"subnet": "10.77.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
CONFS: Mapping[str, Mapping[str, Any]] = {
    "bridge": {"bridge": "cni0", "isGateway": True},
    "ptp": {},
    "macvlan": {"master": UPLINK, "mode": "bridge"},
    "ipvlan": {"master": UPLINK, "mode": "l2"},
}
STEPS = len(CONFS) * ROUNDS + 1


@dataclass(frozen=True, slots=True)
class Side:
    """A directory of plugins, and the environment that they get."""

    name: str
    directory: Path
    environment: Mapping[str, str]

    def network(self, kind: str, node: str, state: Path) -> Network:
        ipam = {"type": "host-local", "dataDir": str(state / self.name), **IPAM}
        conf = {"cniVersion": "1.0.0", "name": f"bench-{kind}", "type": kind, **CONFS[kind], "ipam": ipam}
        return Network(self.directory / kind, conf, node, self.environment)


@contextlib.contextmanager
def sides(directory: Path) -> Iterator[list[Side]]:
    """The Go plugins first. Meanwhile a server runs."""
    socket = directory / "plugins.sock"
    install_plugins(directory / "script", compiler="")
    install_plugins(directory / "launcher")
    nobody, somebody = ({"TORTIE_PLUGINS_SOCKET": str(one)} for one in (directory / "nobody", socket))
    with serving(socket):
        yield [
            Side("Go", GO, {}),
            Side("script", directory / "script", {}),
            Side("launcher", directory / "launcher", nobody),
            Side("served", directory / "launcher", somebody),
        ]


@contextlib.contextmanager
def serving(socket: Path) -> Iterator[None]:
    program = [base_python(), "-I", "-S", resident.__file__, str(socket)]
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise PluginFailed("the server does not listen")
            time.sleep(0.01)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def one_kind(kind: str, every: list[Side], directory: Path, report: Report, advance: Advance) -> None:
    """ADD and DEL in turns of all sides, each in a namespace that stands for its node."""
    samples: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        prefix = f"tb-{directory.name[-8:]}-{kind[:2]}"
        networks: dict[str, Network] = {}
        pods: dict[str, Pods] = {}
        for side in every:
            node = stack.enter_context(namespace(f"{prefix}-{side.name[:2]}"))
            with_uplink(node)
            networks[side.name] = side.network(kind, node, directory)
            pods[side.name] = stack.enter_context(contextlib.closing(Pods(f"{prefix}-{side.name[:2]}-p")))
        for number in range(-WARM_UP, ROUNDS):
            turn = number % len(every)
            for side in (*every[turn:], *every[:turn]):
                pod = pods[side.name].fresh()
                for command in ("ADD", "DEL"):
                    seconds, _ = call(networks[side.name], command, pod)
                    if number >= 0:
                        samples.setdefault((side.name, command), []).append(seconds * MS)
                pods[side.name].delete(pod)
            if number >= 0:
                advance(f"{NAME}: {kind}")
    report.samples |= {f"{kind} {' '.join(key)} ms": values for key, values in samples.items()}
    peer = f"Go {kind} + host-local"
    for side in every[1:]:
        for command in ("ADD", "DEL"):
            mine, theirs = samples[side.name, command], samples["Go", command]
            target = TARGETS[side.name] if (kind, command) == ("bridge", "ADD") else None
            words = f"{command} {kind}, {side.name}"
            report.figures += [
                against(f"{words}, p50", median(mine), "ms", peer, median(theirs), at_most=target),
                against(f"{words}, p99", percentile(mine, 99), "ms", peer, percentile(theirs, 99)),
            ]


def with_uplink(node: str) -> None:
    """A link for macvlan and ipvlan to be made on: one end of a pair."""
    with Netlink(node) as nl:
        links.create_veth(nl, UPLINK, "up1")
        for name in (UPLINK, "up1"):
            links.set_up(nl, name)


def starting(every: list[Side], report: Report, advance: Advance) -> None:
    """What a start alone takes: VERSION, against a Python that does nothing."""
    launcher = next(side for side in every if side.name == "launcher")
    programs: dict[str, tuple[list[str], dict[str, str]]] = {
        "python": ([base_python(), "-I", "-S", "-c", "pass"], {}),
        "bridge": ([str(launcher.directory / "bridge")], {"CNI_COMMAND": "VERSION", **launcher.environment}),
    }
    samples: dict[str, list[float]] = {name: [] for name in programs}
    with open(os.devnull, "r+b") as nothing:
        ends = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), fd) for fd in (0, 1)]
        for _ in range(STARTS):
            for name, (argv, environment) in programs.items():
                began = time.perf_counter()
                os.waitpid(os.posix_spawn(argv[0], argv, environment, file_actions=ends), 0)
                samples[name].append((time.perf_counter() - began) * MS)
    advance(f"{NAME}: start")
    report.samples |= {f"start {name} ms": values for name, values in samples.items()}
    words, peer = "VERSION bridge, launcher, p50", "python -I -S -c pass"
    mine, bare = median(samples["bridge"]), median(samples["python"])
    report.figures.append(against(words, mine, "ms", peer, bare, at_most=START_TARGET))


def makes(kind: str) -> bool:
    """Whether this kernel has links of the kind."""
    if kind not in ("ipvlan", "macvlan"):
        return True
    with namespace(f"tb-{os.getpid()}-try") as node:
        with_uplink(node)
        with Netlink(node) as nl:
            try:
                links.create_link(nl, "try0", kind, parent=links.link_index(nl, UPLINK))
            except KernelError:
                return False
    return True


def measure(advance: Advance) -> Report:
    """Raises PluginFailed."""
    report = Report(NAME, TITLE)
    with scratch("plugins") as place:
        directory = Path(place)
        with sides(directory) as every:
            starting(every, report, advance)
            for kind in CONFS:
                if makes(kind):
                    one_kind(kind, every, directory, report, advance)
                else:
                    report.missing[f"ADD {kind}"] = f"this kernel has no {kind}"
    return report


if __name__ == "__main__":
    sys.exit(alone(NAME))
