"""A lab's directory: where each file is, and how files are written.

/run/tortie/lab/<lab>/
    lab.json                          what was asked for: the lab's name and its topology
    store.db                          the cluster's datastore
    net.d/10-tortie.conflist          the CNI network of the pods
    bin/{calico,calico-ipam}          the plugin executables
    plugins/{macvlan,host-local,...}  those that need no agent, of labs whose nodes have networks of their own
    nodes/<node>/{net.d,var-lib-cni}  a node's own network, and what its plugins remember, as /var/lib/cni
    net-conf.json                     flannel's network, of labs that have it
    nodes/<node>/{subnet.env,subnet.sock,flanneld.pid,flanneld.log}     of the node's flanneld
    nodes/<node>/{proxy/,proxy.pid,proxy.log}                  of the node's proxy, where no agent does its work
    made                              directories of the machine that were made for the lab
    kubelet.{pid,log}
    controllers.{pid,log,json}        the cluster's controllers, and what they say of themselves
    nodes/<node>/{agent.sock,agent.pid,agent.log,cni/,...}     run directory of the node's agent
    pods/<namespace>_<pod>/{pod.json,log,resolv.conf,<container>.pid}
    routers/<router>/{bird.conf,bird.ctl,log,...}              a router that speaks BGP
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
from tortie.lab.blueprint import document, shape
from tortie.lab.topology import Topology, check_name, lab_of_namespace, laid_out, names

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
    def plugins(self) -> Path:
        return self.path / "plugins"

    @property
    def made(self) -> Path:
        return self.path / "made"

    @property
    def kubelet_pid(self) -> Path:
        return self.path / "kubelet.pid"

    @property
    def kubelet_log(self) -> Path:
        return self.path / "kubelet.log"

    @property
    def controllers_pid(self) -> Path:
        return self.path / "controllers.pid"

    @property
    def controllers_log(self) -> Path:
        return self.path / "controllers.log"

    @property
    def controllers_status(self) -> Path:
        """What the controllers write for probes."""
        return self.path / "controllers.json"

    @property
    def pods(self) -> Path:
        return self.path / "pods"

    @property
    def outside_log(self) -> Path:
        return self.path / "outside" / "log"

    def node(self, name: str) -> Path:
        """The run directory of a node's agent."""
        return self.path / "nodes" / name

    def net_d(self, node: str) -> Path:
        """The CNI networks of a node that has its own."""
        return self.node(node) / "net.d"

    def node_log(self, node: str) -> Path:
        """Whom a node saw that answers."""
        return self.node(node) / "log"

    def agent_socket(self, node: str) -> Path:
        return self.node(node) / "agent.sock"

    def agent_pid(self, node: str) -> Path:
        return self.node(node) / "agent.pid"

    def agent_log(self, node: str) -> Path:
        return self.node(node) / "agent.log"

    @property
    def net_conf(self) -> Path:
        """flannel's network, of all nodes."""
        return self.path / "net-conf.json"

    def subnet_file(self, node: str) -> Path:
        """What a node's flanneld tells plugins: in its directory is what is in /run/flannel elsewhere."""
        return self.node(node) / "subnet.env"

    def flanneld_socket(self, node: str) -> Path:
        return self.node(node) / "subnet.sock"

    def flanneld_pid(self, node: str) -> Path:
        return self.node(node) / "flanneld.pid"

    def flanneld_log(self, node: str) -> Path:
        return self.node(node) / "flanneld.log"

    def proxy(self, node: str) -> Path:
        """The run directory of a node's proxy."""
        return self.node(node) / "proxy"

    def proxy_socket(self, node: str) -> Path:
        return self.proxy(node) / "proxy.sock"

    def proxy_pid(self, node: str) -> Path:
        return self.node(node) / "proxy.pid"

    def proxy_log(self, node: str) -> Path:
        return self.node(node) / "proxy.log"

    def router(self, name: str) -> Path:
        """The files of a router's daemon."""
        return self.path / "routers" / name

    def router_pid(self, name: str) -> Path:
        return self.router(name) / "daemon.pid"

    def router_log(self, name: str) -> Path:
        return self.router(name) / "log"

    def pod(self, namespace: str, name: str) -> Path:
        return self.pods / f"{namespace}_{name}"

    def pod_log(self, namespace: str, name: str) -> Path:
        return self.pod(namespace, name) / "log"

    def pod_resolv_conf(self, namespace: str, name: str) -> Path:
        """What the programs of a pod find as /etc/resolv.conf. Not there: the machine's own."""
        return self.pod(namespace, name) / "resolv.conf"

    def pod_pid(self, namespace: str, name: str, container: str) -> Path:
        return self.pod(namespace, name) / f"{container}.pid"

    def write(self, lab: Topology) -> None:
        """Keeps what was asked for."""
        fields = {"name": lab.name, "topology": document(lab.blueprint)}
        write_whole(self.config, json.dumps(fields, indent=2) + "\n", 0o600)  # a topology's manifests may be secrets

    def read(self) -> Topology:
        """The lab as it was asked for. Raises ConfigError when there is none."""
        try:
            fields = json.loads(self.config.read_text())
            return laid_out(fields["name"], shape(fields["topology"]))
        except FileNotFoundError:
            labs = find_labs(self.root)
            if self.name in labs:
                left = f'"tortie lab down --name {self.name}" takes away what is left'
                raise ConfigError(f'lab "{self.name}" is not whole: its lab.json is gone; {left}') from None
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
        """Everything goes, then the directories above that are empty by now, and those that were made for the lab."""
        made = self.made.read_text().splitlines() if self.made.exists() else []
        for name in made:
            with suppress(OSError):  # somebody else has put something there, or another lab has it mounted upon
                os.rmdir(name)
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


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """A reader sees the file as it was or as it will be, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "w") as file:
        file.write(text)
    new.replace(path)
