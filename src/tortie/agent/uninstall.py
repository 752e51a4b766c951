"""Takes everything away from this machine that agent, BIRD, flanneld and CNI plugins have put there.

    look ──► Removal ─┬─ str: a shell transcript ──► --plan
                      ├─ carry_out ────────────────► --apply
                      └─ what it would do ─────────► --verify: nothing, or it is not gone

It may be killed and begun again: the directory by which we know that we have been here goes last. What is not ours is
not touched; what is ours and stays is named, with the reason.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tortie.agent.client import ask
from tortie.agent.config import CNI_CONF_DIR, LIB_DIR, RUN_DIR
from tortie.base.errors import KernelError, NotFound, TortieError, Unavailable
from tortie.cni import subnet_env
from tortie.cni.hostfiles import BIN_DIRS, CONF_NAME
from tortie.cni.install import NAMES, PACK, PLUGINS, is_ours, is_plugin_of_ours
from tortie.dataplane import removal
from tortie.kernel.bird import Bird

DATA = Path("/var/lib/tortie")
"""Of the embedded datastore."""
LOCK = "agent.lock"
"""The file in the run directory that says that an agent has been here."""
LAB = "lab"
"""In the run directory: labs are taken down by `tortie lab down`."""
FLANNEL_DIR = Path("/run/flannel")
"""Of flanneld: what it tells plugins, its keys, the socket at which it answers."""
FLANNEL_CONF = "10-flannel.conflist"
FLANNEL_NOTE = "uninstall"
"""The file in flanneld's directory that says that all of it is to go: it is there until it has gone."""
SERVICES = "services"
"""Of `tortie proxy`, too, which may be alone on a machine of somebody else's agent."""
IN_LIB = ("mtu", "nodename", "shutdownTS", SERVICES)
"""The files of a node, among others' in the same directory."""
PROXY = "proxy.sock"
"""At which `tortie proxy` answers, in the run directory."""

STAYS = (
    "net.ipv4.ip_forward and net.ipv6.conf.all.forwarding stay on: others may need them by now",
    "portmap, loopback, host-local, bandwidth and tuning in the plugins' directory stay: other networks use them",
    "logs in /var/log/calico stay, and what host-local and the container runtime keep in /var/lib/cni",
)
"""What the plan says at its end."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are on this machine. `data`: the embedded datastore, if it goes, too. `netns`: another's kernel."""

    run_dir: Path = RUN_DIR
    lib_dir: Path = LIB_DIR
    bin_dirs: tuple[Path, ...] = tuple(Path(one) for one in BIN_DIRS)
    net_dir: Path = CNI_CONF_DIR
    conf_name: str = CONF_NAME
    data: Path | None = None
    flannel_dir: Path = FLANNEL_DIR
    netns: str | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """What is to be done, in this order: nothing new begins, the kernel is cleaned, files go."""

    conflists: tuple[Path, ...] = ()
    executables: tuple[Path, ...] = ()
    bird: int = 0
    """The process that has our BIRD's control socket; 0: none."""
    kernel: removal.Steps = field(default_factory=removal.Steps)
    files: tuple[Path, ...] = ()
    been_here: bool = False

    def __bool__(self) -> bool:
        return bool(self.conflists or self.executables or self.bird or self.kernel or self.files)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """As a person would type it."""
        yield from (f"rm {path}" for path in (*self.conflists, *self.executables))
        if self.bird:
            yield f"kill {self.bird}  # BIRD"
        yield from map(str, self.kernel)
        yield from (f"rm {'-r ' if path.is_dir() else ''}{path}" for path in self.files)

    @property
    def pods(self) -> tuple[str, ...]:
        """Interfaces of containers that are still connected."""
        return tuple(op.key[1] for op in self.kernel if op.key[0] == "pod")


def look(places: Places) -> Removal:
    """What there is of ours on this machine. Raises KernelError, NotSupported."""
    executables = tuple(_executables(places.bin_dirs))
    ours = any(path.name in NAMES for path in executables)
    been_here = ours or (places.run_dir / LOCK).exists()
    flannel = (places.flannel_dir / FLANNEL_NOTE).exists() or any(places.flannel_dir.glob("*.sock"))
    found = removal.observe(
        been_here=been_here,
        bird=(places.run_dir / "bird.conf").exists(),
        flannel=flannel,
        gateways=tuple(_gateways(places.flannel_dir)),
        netns=places.netns,
    )
    been_here, flannel = been_here or found.table, flannel or found.flannel
    names = [*([places.conf_name] if ours else []), *([FLANNEL_CONF] if flannel else [])]
    files = [places.flannel_dir] if flannel and places.flannel_dir.is_dir() else []
    return Removal(
        conflists=tuple(path for name in names if (path := places.net_dir / name).exists()),
        executables=executables,
        bird=_bird_pid(places),
        kernel=removal.plan(found),
        files=(*files, *_files(places, IN_LIB if been_here else (SERVICES,) if found.services else ())),
        been_here=been_here or flannel,
    )


def _gateways(flannel_dir: Path) -> Iterator[str]:
    """The addresses of this node's subnets that the bridge of their pods has."""
    for file in flannel_dir.glob("*.env"):
        with suppress(OSError, ValueError):
            env = subnet_env.load(file.read_text(encoding="utf-8"), str(file))
            yield from (one for one in (env.subnet, env.subnet6) if one)


def _executables(bin_dirs: Sequence[Path]) -> Iterator[Path]:
    for directory in bin_dirs:
        yield from (path for name in NAMES if (path := directory / name).is_file() and is_ours(path))
        plugins = [path for name in PLUGINS if is_plugin_of_ours(path := directory / name)]
        yield from plugins
        if (directory / PACK).is_file():
            yield directory / PACK


def _files(places: Places, in_lib: Sequence[str]) -> Iterator[Path]:
    """The run directory's come last: by them we know that we have been here."""
    yield from (path for name in in_lib if (path := places.lib_dir / name).is_file())
    if places.data is not None and places.data.exists():
        yield places.data
    if not places.run_dir.is_dir():
        return
    inside = sorted((path for path in places.run_dir.iterdir() if path.name != LAB), key=lambda path: path.name == LOCK)
    if (places.run_dir / LAB).exists():
        yield from inside
    else:
        yield places.run_dir


def _bird_pid(places: Places) -> int:
    """Of the process that listens at our control socket, as far as its pid file tells."""
    with suppress(OSError, ValueError):
        pid = int((places.run_dir / "bird.ctl.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if str(places.run_dir / "bird.ctl").encode() in words:
            return pid
    return 0


def agent_pid(run_dir: Path) -> str:
    """The process of an agent that runs; "" when none does."""
    try:
        with (run_dir / LOCK).open("r", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return ""
    except BlockingIOError:
        return (run_dir / LOCK).read_text().strip() or "unknown"
    except OSError:
        return ""


def flanneld_pid(flannel_dir: Path) -> str:
    """The process of a flanneld that runs; "" when none does."""
    for socket in flannel_dir.glob("*.sock"):
        with suppress(NotFound, Unavailable):
            return str(ask(socket, "/status", who="flanneld")["pid"])
    return ""


def proxy_runs(run_dir: Path) -> bool:
    with suppress(NotFound, Unavailable):
        ask(run_dir / PROXY, "/services?services=none", who="proxy")
        return True
    return False


def carry_out(places: Places, *, force: bool) -> list[TortieError]:
    """Does it; the steps that failed, of which the others are independent.

    Raises Unavailable while an agent, a proxy or a flanneld runs, or while containers are connected, unless `force`.
    """
    if pid := flanneld_pid(places.flannel_dir):
        raise Unavailable(f"flanneld runs, pid {pid}: stop it first (delete its DaemonSet, or kill it)")
    if pid := agent_pid(places.run_dir):
        raise Unavailable(
            f"an agent runs in {places.run_dir}, pid {pid}: stop it first (delete its DaemonSet, or kill it)"
        )
    if proxy_runs(places.run_dir):
        raise Unavailable(f"`tortie proxy` runs in {places.run_dir}, and would put its table back: stop it first")
    doing = look(places)
    if doing.pods and not force:
        some = ", ".join(doing.pods[:3]) + (", ..." if len(doing.pods) > 3 else "")
        raise Unavailable(f"containers are connected: {len(doing.pods)} ({some}); drain the node, or say --force")
    failures: list[TortieError] = []
    if places.flannel_dir in doing.files:
        with suppress(OSError):
            (places.flannel_dir / FLANNEL_NOTE).touch()
    for path in (*doing.conflists, *doing.executables):
        _remove(path, failures)
    if (places.run_dir / "bird.ctl").exists():
        run = places.run_dir
        with _noted(failures):
            Bird(run / "bird.conf", run / "bird.ctl", log=run / "bird.log").stop()
    for op in doing.kernel:
        with _noted(failures):
            removal.carry_out(op, places.netns)
    if not failures:  # else we would forget that we have been here
        for path in doing.files:
            _remove(path, failures)
    return failures


class _noted:
    """What goes wrong in the block is one more failure; the next step is done all the same."""

    def __init__(self, failures: list[TortieError]) -> None:
        self._failures = failures

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, TortieError):
            self._failures.append(error)
            return True
        return False


def _remove(path: Path, failures: list[TortieError]) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        failures.append(KernelError(error.errno or os.EX_IOERR, f"rm {path}"))
