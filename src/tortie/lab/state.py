"""A lab's directory: where each file is, and how files are written.

/run/tortie/lab/<lab>/
    lab.json                          what was asked for: name, nodes, pools
    store.db                          the cluster's datastore
    net.d/10-tortie.conflist          the CNI network of the pods
    bin/{calico,calico-ipam}          the plugin executables
    kubelet.{pid,log}
    nodes/<node>/{agent.sock,agent.pid,agent.log,cni/,...}     run directory of the node's agent
    pods/<namespace>_<pod>/{pod.json,log,<container>.pid}
    outside/log                       what the outside host saw
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tortie.base.errors import ConfigError, Unavailable
from tortie.kernel import netns
from tortie.lab.topology import Topology, check_name, lab_of_namespace, names, topology

ROOT = Path("/run/tortie/lab")


@dataclass(frozen=True, slots=True)
class LabDirectory:
    """The files of one lab."""

    name: str
    root: Path = ROOT

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def config(self) -> Path:
        return self.path / "lab.json"

    @property
    def store(self) -> Path:
        return self.path / "store.db"

    @property
    def conflist(self) -> Path:
        return self.path / "net.d" / "10-tortie.conflist"

    @property
    def bin(self) -> Path:
        return self.path / "bin"

    @property
    def kubelet_pid(self) -> Path:
        return self.path / "kubelet.pid"

    @property
    def kubelet_log(self) -> Path:
        return self.path / "kubelet.log"

    @property
    def pods(self) -> Path:
        return self.path / "pods"

    @property
    def outside_log(self) -> Path:
        return self.path / "outside" / "log"

    def node(self, name: str) -> Path:
        """The run directory of a node's agent."""
        return self.path / "nodes" / name

    def agent_socket(self, node: str) -> Path:
        return self.node(node) / "agent.sock"

    def agent_pid(self, node: str) -> Path:
        return self.node(node) / "agent.pid"

    def agent_log(self, node: str) -> Path:
        return self.node(node) / "agent.log"

    def pod(self, namespace: str, name: str) -> Path:
        return self.pods / f"{namespace}_{name}"

    def pod_log(self, namespace: str, name: str) -> Path:
        return self.pod(namespace, name) / "log"

    def pod_pid(self, namespace: str, name: str, container: str) -> Path:
        return self.pod(namespace, name) / f"{container}.pid"

    def write(self, lab: Topology) -> None:
        """Keeps what was asked for."""
        fields = {"name": lab.name, "nodes": len(lab.nodes), "pool": lab.pool, "pool6": lab.pool6}
        write_whole(self.config, json.dumps(fields, indent=2) + "\n")

    def read(self) -> Topology:
        """The lab as it was asked for. Raises ConfigError when there is none."""
        try:
            fields = json.loads(self.config.read_text())
            return topology(fields["name"], fields["nodes"], fields["pool"], fields["pool6"])
        except FileNotFoundError:
            labs = find_labs(self.root)
            hint = f'; there is {names(labs)}, see "--name"' if labs else '; "tortie lab up" makes one'
            raise ConfigError(f'no lab "{self.name}" here{hint}') from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f'{error}; "tortie lab down" clears it away', str(self.config)) from None

    @property
    def exists(self) -> bool:
        return self.config.exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One at a time brings a lab up or down. The directory itself is the lock, so no file stays behind for it.

        Raises Unavailable when another command has it.
        """
        fd = self._lock()
        try:
            yield
        finally:
            os.close(fd)

    def _lock(self) -> int:
        while True:
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(self.path).st_ino == os.fstat(fd).st_ino:
                    return fd
            except BlockingIOError:
                os.close(fd)
                text = f'another command is bringing lab "{self.name}" up or down; try again when it is done'
                raise Unavailable(text) from None
            except FileNotFoundError:
                pass
            os.close(fd)  # the directory was removed while we opened it: such a lock locks nothing

    def remove(self) -> None:
        """Everything goes, then the directories above that are empty by now."""
        shutil.rmtree(self.path, ignore_errors=True)
        for directory in (self.root, self.root.parent):
            with suppress(OSError):
                directory.rmdir()


def find_labs(root: Path = ROOT) -> list[str]:
    """The labs of which there is a directory or a namespace, sorted."""
    found = {lab for name in netns.list_names() if (lab := lab_of_namespace(name))}
    with suppress(FileNotFoundError):
        for entry in root.iterdir():
            with suppress(ConfigError):
                check_name(entry.name)
                found.add(entry.name)
    return sorted(found)


def write_whole(path: Path, text: str) -> None:
    """A reader sees the file as it was or as it will be, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)
