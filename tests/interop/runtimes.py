"""A machine for container runtimes, and containerd and podman on it.

It has network, mount and process namespaces of its own. /run, /var/lib, /opt, /etc/cni, /etc/containers and /dev/shm
are directories of its own, so that programs find everything where they look by default, and nothing of the real
machine. Whatever runs in it ends with its first process.

    machine  eth0 192.0.2.1, 2001:db8::1 ─── eth0 192.0.2.2, 2001:db8::2  outside
      tortie agent     containerd ── shim ── container     podman ── conmon ── container
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest

T = TypeVar("T")

IMAGE = "docker.io/library/busybox:latest"
BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "httpd", "ip", "sleep")
PROGRAMS = {
    "containerd": ("containerd", "ctr", "runc", "busybox"),
    "podman": ("podman", "conmon", "runc", "busybox"),
}
PLACES = {"/run": "run", "/var/lib": "lib", "/opt": "opt", "/etc/cni": "cni", "/dev/shm": "shm"}
PLACES |= {"/etc/containers": "containers"}
GO_PLUGINS = Path("/usr/lib/cni")
NODE4, OUTSIDE4, NODE6, OUTSIDE6 = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"
PATIENCE = 20.0

serial = itertools.count(1)


def until(look: Callable[[], T], want: Callable[[T], bool] = bool, what: str = "", seconds: float = PATIENCE) -> T:
    """What `look` returns once it is as wanted."""
    deadline = time.monotonic() + seconds
    while not want(seen := look()):
        assert time.monotonic() < deadline, f"{what}: after {seconds:g} s still {seen}"
        time.sleep(0.05)
    return seen


# --- an image, of nothing but this machine's busybox --------------------------------------------------------------


def write_image(path: Path) -> None:
    """An OCI image in one file: the layer, its configuration, the manifest, the index."""
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    links = {f"bin/{name}": "busybox" for name in APPLETS}
    folders = ("bin", "etc", "proc", "sys", "dev", "tmp", "www")
    layer = packed({"bin/busybox": BUSYBOX.read_bytes(), "www/index.html": b"hello\n"}, folders, links)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": [blob("layer.v1.tar", layer)],
    }
    names = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": IMAGE}
    entry = blob("manifest.v1+json", json.dumps(manifest).encode()) | {"annotations": names}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    path.write_bytes(packed({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **blobs}))


def packed(files: dict[str, bytes], folders: Sequence[str] = (), links: dict[str, str] | None = None) -> bytes:
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w") as tar:
        for name in folders:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return room.getvalue()


# --- the machine --------------------------------------------------------------------------------------------------

# The first process adopts and buries what its children leave; /proc shows the machine's own processes.
_FIRST = """
mount -t proc proc /proc
cd "$0"
while [ $# -gt 0 ]; do mount --bind "$2" "$1" || exit 1; shift 2; done
echo ready
sleep infinity & wait
"""


class Machine:
    """Made by entering it, gone on leaving."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"tt-{os.getpid()}-machine{next(serial)}"
        self.outside = f"{self.name}-out"
        self._init = 0
        self._unshare: subprocess.Popen[str] | None = None
        self._logs: list[IO[bytes]] = []

    def __enter__(self) -> Machine:
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self) -> None:
        for place in PLACES.values():
            (self.directory / place).mkdir()
        (self.directory / "cni" / "net.d").mkdir()
        (self.directory / "opt" / "cni" / "bin").mkdir(parents=True)
        write_image(self.directory / "run" / "image.tar")
        for name in (self.name, self.outside):
            subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
            ip(name, "link", "set", "lo", "up")
        ip(self.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.outside)
        for name, v4, v6 in ((self.name, NODE4, NODE6), (self.outside, OUTSIDE4, OUTSIDE6)):
            ip(name, "addr", "add", f"{v4}/24", "dev", "eth0")
            ip(name, "addr", "add", f"{v6}/64", "dev", "eth0", "nodad")
            ip(name, "link", "set", "eth0", "up")
        ip(self.name, "route", "add", "default", "via", OUTSIDE4)
        ip(self.name, "route", "add", "default", "via", OUTSIDE6)
        ip(self.outside, "route", "add", "default", "via", NODE4)
        ip(self.outside, "route", "add", "default", "via", NODE6)
        binds = [word for target, place in PLACES.items() for word in (target, place)]
        unshare = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--propagation", "private"]
        argv = ["nsenter", f"--net=/run/netns/{self.name}", *unshare, "sh", "-c", _FIRST, str(self.directory), *binds]
        self._unshare = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self._init = int(children.read_text().split()[0])

    def close(self) -> None:
        """Nothing of it stays."""
        if self._unshare is not None:
            if self._init:
                os.kill(self._init, signal.SIGKILL)
            self._unshare.kill()
            self._unshare.wait(30)
            assert self._unshare.stdout is not None
            self._unshare.stdout.close()
        for log in self._logs:
            log.close()
        for name in (self.name, self.outside):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=30)
        left = until(self._remove_cgroups, lambda left: not left, "control groups of its containers are gone")
        assert not left
        for place in PLACES.values():
            if (self.directory / place).exists():
                shutil.rmtree(self.directory / place)

    def _remove_cgroups(self) -> list[str]:
        """Those that are left; they can go once the last process has."""
        for path in sorted(self._cgroups(), key=len, reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        return list(self._cgroups())

    def _cgroups(self) -> Iterator[str]:
        for top in (*Path("/sys/fs/cgroup").glob(self.name), *Path("/sys/fs/cgroup").glob(f"*/{self.name}")):
            yield from (path for path, _, _ in os.walk(top))

    # --- programs on it ---

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": "/run", "LANG": "C.UTF-8", "CONTAINERD_SNAPSHOTTER": "native"}

    def words(self, *argv: str) -> list[str]:
        return ["nsenter", f"--target={self._init}", "--net", "--mount", "--pid", "--root", "--wd", "--", *argv]

    def attempt(self, *argv: str, timeout: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end, whatever that is."""
        return subprocess.run(
            self.words(*argv),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.environment | more.pop("env", {}),
            **more,
        )

    def run(self, *argv: str, **more: Any) -> str:
        """Its standard output; it must succeed."""
        done = self.attempt(*argv, **more)
        if done.returncode:
            pytest.fail(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """In the background, until the machine ends; what it says goes to a file of its name."""
        log = (self.directory / f"{Path(argv[0]).name}.log").open("ab")
        self._logs.append(log)
        return subprocess.Popen(
            self.words(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
        )

    def log(self, program: str) -> str:
        return (self.directory / f"{program}.log").read_text()

    def pids(self, program: str) -> list[str]:
        return self.attempt("pidof", program).stdout.split()

    def kill(self, program: str, number: int = signal.SIGKILL) -> None:
        """All processes of the machine that run this program."""
        pids = self.pids(program)
        assert pids, f"no {program} runs"
        self.run("kill", f"-{int(number)}", *pids)

    def json(self, *words: str) -> list[dict[str, Any]]:
        """`ip -j words...` on the machine."""
        return [item for item in json.loads(self.run("ip", "-j", *words) or "[]") if item]

    def links(self) -> set[str]:
        """But for those that it has from the beginning."""
        return {link["ifname"] for link in self.json("link", "show")} - {"lo", "eth0"}


def ip(netns: str, *words: str) -> None:
    subprocess.run(["ip", "-n", netns, *words], check=True, timeout=30)


@functools.cache
def missing(runtime: str) -> str:
    """Why a runtime cannot be tested here, found out by looking for its parts; "" if it can."""
    absent = [name for name in PROGRAMS[runtime] if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if absent:
        return f"not installed: {', '.join(absent)} (make test-packages)"
    if not Path("/etc/cni").is_dir() or not Path("/etc/containers").is_dir():
        return "no /etc/cni or /etc/containers to put a directory over (make test-packages)"
    if not GO_PLUGINS.joinpath("bridge").exists():
        return f"no Go plugins in {GO_PLUGINS} (containernetworking-plugins)"
    return runs_containers()


def runs_containers() -> str:
    """Why runc starts no container on this kernel, in its own words; "" if it does."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tt-runc-") as name:
        root = Path(name)
        (root / "rootfs" / "bin").mkdir(parents=True)
        shutil.copy(BUSYBOX, root / "rootfs" / "bin" / "busybox")
        subprocess.run(["runc", "spec"], cwd=root, check=True, timeout=30)
        config = json.loads((root / "config.json").read_text())
        config["process"] |= {"terminal": False, "args": ["/bin/busybox", "true"]}
        config["linux"]["cgroupsPath"] = f"/{root.name}"
        (root / "config.json").write_text(json.dumps(config))
        argv = ["runc", "--root", str(root / "state"), "run", root.name]
        done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    return f"runc starts no container here: {done.stderr.strip()}" if done.returncode else ""


# --- containers ---------------------------------------------------------------------------------------------------


@dataclass
class Container:
    """One that runs. `pid` is its first process, as the machine counts."""

    runtime: Containerd | Podman
    name: str
    pid: int
    waiting: subprocess.Popen[bytes] | None = None
    """The command that waits for its end."""
    addresses: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        [link] = json.loads(self.run("ip", "-j", "addr", "show", "dev", "eth0"))
        self.addresses = [one["local"] for one in link["addr_info"] if one["scope"] == "global"]

    @property
    def ipv4(self) -> str:
        return next(one for one in self.addresses if "." in one)

    @property
    def ipv6(self) -> str:
        return next(one for one in self.addresses if ":" in one)

    def run(self, *argv: str, check: bool = True) -> str:
        """A program of the machine, in the container's network, whether its runtime lives or not."""
        words = ("nsenter", f"--net=/proc/{self.pid}/ns/net", *argv)
        return self.runtime.machine.run(*words) if check else self.runtime.machine.attempt(*words).stdout

    def fetch(self, ip: str, port: int = 80, seconds: int = 1) -> str:
        """What the web server there says; "" without one."""
        return self.run(*fetching(ip, port, seconds), check=False)

    def stop(self) -> None:
        self.runtime.stop(self)


def fetching(ip: str, port: int, seconds: int) -> tuple[str, ...]:
    """The command. With a time limit of its own, Debian's static busybox 1.35 ends in a segmentation fault."""
    host = f"[{ip}]" if ":" in ip else ip
    return "timeout", str(seconds), "busybox", "wget", "-qO-", f"http://{host}:{port}/"


CONTAINERD_CONF = f"""
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true  # where the test may not lower it: without CAP_SYS_RESOURCE
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""


class Containerd:
    """`containerd` and `ctr run --cni`. It is `ctr` that calls the plugins: a `ctr` that waits for its container's end
    says DEL afterwards; for a detached container nobody does."""

    program = "containerd"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def start(self) -> None:
        (self.machine.directory / "run" / "containerd.toml").write_text(CONTAINERD_CONF)
        self.machine.start("containerd", "--log-level", "warn", "--config", "/run/containerd.toml")
        until(lambda: self.machine.attempt("ctr", "version").returncode, lambda status: status == 0, "it answers")

    def load(self) -> None:
        for namespace in ("default", "k8s.io"):  # of people, and of the kubelet
            self.machine.run("ctr", "--namespace", namespace, "image", "import", "/run/image.tar")

    def run(self, name: str, *argv: str, network: str = "", ports: str = "", detach: bool = False) -> Container:
        assert not ports, "ctr has no option for ports"
        words = ["--cni", "--cgroup", f"/{self.machine.name}/{name}", IMAGE, name, *argv]
        if detach:
            self.machine.run("ctr", "run", "--detach", *words)
            return Container(self, name, self.pid(name))
        waiting = self.machine.start("ctr", "run", "--rm", *words)

        def pid() -> int:
            assert waiting.poll() is None, self.machine.log("ctr")
            return self.pid(name)

        return Container(self, name, until(pid, what=f"{name} runs"), waiting)

    def pid(self, name: str) -> int:
        """0 while it does not run."""
        listed = self.machine.run("ctr", "task", "ls").splitlines()[1:]
        return next((int(line.split()[1]) for line in listed if line.split()[0::2] == [name, "RUNNING"]), 0)

    def stop(self, container: Container) -> None:
        if container.waiting is None:
            self.remove(container.name)
        elif container.waiting.poll() is None:
            self.machine.run("ctr", "task", "kill", "--signal", "KILL", container.name)
            container.waiting.wait(30)

    def remove(self, name: str) -> None:
        """One that nobody waits for. No plugin is called."""
        self.machine.attempt("ctr", "task", "rm", "--force", name)
        self.machine.run("ctr", "container", "rm", name)

    def forget(self, name: str) -> None:
        """What a start that failed has left of a container."""
        for words in (("task", "rm", "--force"), ("container", "rm"), ("snapshot", "rm")):
            self.machine.attempt("ctr", *words, name)

    def container_id(self, name: str) -> str:
        """As CNI is told."""
        return f"default-{name}"


CONTAINERS_CONF = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
ON_CNI = '[network]\nnetwork_backend = "cni"\n'
STORAGE_CONF = """
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""


class Podman:
    """`podman run --network`, on CNI."""

    program = "podman"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def start(self) -> None:
        folder = self.machine.directory / "containers"
        (folder / "containers.conf").write_text(CONTAINERS_CONF)
        (folder / "containers.conf.d").mkdir(exist_ok=True)
        (folder / "containers.conf.d" / "cni.conf").write_text(ON_CNI)
        (folder / "storage.conf").write_text(STORAGE_CONF)
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (folder / "registries.conf").write_text("")

    def load(self) -> None:
        self.machine.run("podman", "load", "--quiet", "--input", "/run/image.tar")

    def run(self, name: str, *argv: str, network: str = "", ports: str = "") -> Container:
        options = ["--name", name, "--network", network, "--cgroup-parent", f"/{self.machine.name}"]
        options += ["--publish", ports] if ports else []
        self.machine.run("podman", "run", "--detach", *options, IMAGE, *argv)
        return Container(self, name, int(self.machine.run("podman", "inspect", "-f", "{{.State.Pid}}", name)))

    def stop(self, container: Container) -> None:
        self.machine.run("podman", "rm", "--force", "--time", "0", container.name)

    def forget(self, name: str) -> None:
        self.machine.attempt("podman", "rm", "--force", name)

    def container_id(self, name: str) -> str:
        return self.machine.run("podman", "inspect", "-f", "{{.Id}}", name).strip()


RUNTIMES: dict[str, type[Containerd] | type[Podman]] = {"containerd": Containerd, "podman": Podman}
