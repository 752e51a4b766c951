"""The network namespace of a pod: made, attached by the real CNI plugin, detached, deleted; and its record on disk.

    pod.json (attached: no) ─► namespace ─► CNI ADD in the node's namespace ─► pod.json (attached: yes, addresses)
    kill processes ─► CNI DEL ─► namespace goes ─► pod.json goes

The record is written before anything exists, so that whoever comes after a kill -9 knows what may be there. Every step
can be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from tortie.cni.result import Result
from tortie.cni.spec import DEFAULT_VERSION, CniError
from tortie.kernel import netns
from tortie.lab import network, processes
from tortie.lab.node_cni import node_cni
from tortie.lab.podspec import PodKey, cni_args, container_id
from tortie.lab.state import LabDirectory, write_whole
from tortie.lab.topology import Topology
from tortie.model.k8s import Pod

POD_VARIABLE = "TORTIE_PROCESS_OF_POD"
"""Every process of a pod has the container id of its sandbox in this environment variable."""

PARALLEL_CALLS = 8
_POLITE_SECONDS = 1.0  # between SIGTERM and SIGKILL
_RECORD = "pod.json"

log = logging.getLogger(__name__)


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a pod's place on a node. `netns` is a name; with `host_network` it is the node's own."""

    namespace: str
    name: str
    uid: str
    node: str
    container_id: str
    netns: str
    host_network: bool = False
    attached: bool = False
    ips: tuple[str, ...] = ()

    @property
    def key(self) -> PodKey:
        return self.namespace, self.name

    @property
    def netns_path(self) -> str:
        return netns.path(self.netns)

    def belongs_to(self, pod: Pod | None) -> bool:
        """Whether this is the place of that very pod, and the pod still wants one."""
        return (
            pod is not None
            and not pod.finished
            and pod.metadata.deletion_timestamp is None
            and (pod.metadata.uid, pod.spec.node_name) == (self.uid, self.node)
        )


class Sandboxes:
    """Those of one lab, by what their records say."""

    def __init__(self, directory: LabDirectory, lab: Topology) -> None:
        self.directory = directory
        self.lab = lab
        self._nodes = {node.name: node_cni(directory, lab, node) for node in lab.nodes}
        self._calls = asyncio.Semaphore(PARALLEL_CALLS)

    def load(self, key: PodKey) -> Sandbox | None:
        """What is recorded of a pod. A record that cannot be read is none."""
        path = self.directory.pod(*key) / _RECORD
        try:
            return msgspec.json.decode(path.read_bytes(), type=Sandbox)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            log.error("%s: %s", path, error)
            return None

    def known(self) -> Iterator[Sandbox]:
        """Every sandbox with a record."""
        for path in self.directory.pods.glob(f"*/{_RECORD}"):
            with suppress(msgspec.MsgspecError, FileNotFoundError):
                yield msgspec.json.decode(path.read_bytes(), type=Sandbox)

    async def attach(self, pod: Pod) -> Sandbox:
        """A namespace for the pod, connected. Raises CniError, KernelError; `attach` may be called again then."""
        node = self.lab.node(pod.spec.node_name)
        host_network = pod.spec.host_network
        sandbox = Sandbox(
            namespace=pod.namespace,
            name=pod.name,
            uid=pod.metadata.uid,
            node=node.name,
            container_id=container_id(self.lab.name, pod),
            netns=node.netns if host_network else self.lab.pod_netns(pod.namespace, pod.name),
            host_network=host_network,
        )
        if host_network:
            sandbox = msgspec.structs.replace(sandbox, attached=True, ips=(str(node.ipv4.ip), str(node.ipv6.ip)))
            self._save(sandbox)
            return sandbox
        self._save(sandbox)
        async with self._calls:
            await asyncio.to_thread(network.make_pod_namespace, sandbox.netns)
            try:
                result = await self._add_call(sandbox)
            except (CniError, OSError):
                with suppress(CniError):  # the next ADD, or the pod's end, says DEL again
                    await self._delete_call(sandbox)
                raise
        ips = tuple(address.address.partition("/")[0] for address in result.ips)
        sandbox = msgspec.structs.replace(sandbox, attached=True, ips=ips)
        self._save(sandbox)
        return sandbox

    async def detach(self, sandbox: Sandbox) -> None:
        """All of it goes, processes first; the log stays. Raises CniError while the plugin cannot do its part."""
        await asyncio.to_thread(self._end_processes, sandbox)
        if not sandbox.host_network:
            async with self._calls:
                await self._delete_call(sandbox)
            await asyncio.to_thread(netns.delete, sandbox.netns)
        (self.directory.pod(*sandbox.key) / _RECORD).unlink(missing_ok=True)

    @staticmethod
    def is_there(sandbox: Sandbox) -> bool:
        """Whether the namespace of an attached sandbox still exists."""
        return not sandbox.attached or sandbox.netns in netns.list_names()

    def forget(self, key: PodKey) -> None:
        """The pod's directory goes, with the log."""
        shutil.rmtree(self.directory.pod(*key), ignore_errors=True)

    def stray_namespaces(self) -> list[str]:
        """Pods' namespaces of which there is no record."""
        recorded = {sandbox.netns for sandbox in self.known()}
        own = set(self.lab.namespaces)
        return [name for name in network.namespaces(self.lab.name) if name not in recorded | own]

    async def _add_call(self, sandbox: Sandbox) -> Result:
        cni = self._nodes[sandbox.node]
        document = await cni.runtime.add(cni.conflist, sandbox.container_id, sandbox.netns_path, args=_args(sandbox))
        result = Result.load(document, cni.conflist.version or DEFAULT_VERSION)
        await asyncio.to_thread(cni.finish, sandbox.netns_path, result)
        return result

    async def _delete_call(self, sandbox: Sandbox) -> None:
        # Of a namespace that is gone the plugin is told nothing, as the specification wants.
        path = sandbox.netns_path if sandbox.netns in netns.list_names() else ""
        cni = self._nodes[sandbox.node]
        await cni.runtime.delete(cni.conflist, sandbox.container_id, path, args=_args(sandbox))

    def _end_processes(self, sandbox: Sandbox) -> None:
        processes.end(lambda: processes.marked(POD_VARIABLE, sandbox.container_id), _POLITE_SECONDS)
        if not sandbox.host_network:
            processes.kill_all(lambda: processes.inside([sandbox.netns]))
        for file in self.directory.pod(*sandbox.key).glob("*.pid"):
            file.unlink(missing_ok=True)

    def _save(self, sandbox: Sandbox) -> None:
        write_whole(self.directory.pod(*sandbox.key) / _RECORD, msgspec.json.encode(sandbox).decode() + "\n")


def _args(sandbox: Sandbox) -> dict[str, str]:
    return cni_args(sandbox.namespace, sandbox.name, sandbox.uid, sandbox.container_id)
