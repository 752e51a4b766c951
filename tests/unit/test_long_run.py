"""What an agent, a proxy and a name server keep of a cluster is what there is, not what has been."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from functools import _lru_cache_wrapper

from proxy_world import endpoint, service, slice_

from tortie.agent.view import TOMBSTONES, View
from tortie.calc.proxy.state import ProxyState
from tortie.dns.names import Names
from tortie.model.document import convert
from tortie.model.k8s import K8sNetworkPolicy, Namespace, Pod
from tortie.model.meta import Resource, changed
from tortie.model.policy import NetworkPolicy, NetworkSet
from tortie.model.store import Event, EventType
from tortie.model.workload import WorkloadEndpoint
from tortie.proxy.inputs import Heard
from tortie.render.nft import NftRenderer
from tortie.render.proxy.table import NOTHING, changes, tabled
from tortie.render.ruleset import transaction
from tortie.store.memory import MemoryStore

HERE, THERE = "n1", "n2"
ROUNDS = 160
OBJECTS = 10
"""Of a round."""


def world(number: int) -> Iterator[Resource]:
    """All names, labels and addresses are of this round alone."""
    namespace, ip = f"ns{number}", f"10.{number >> 8}.{number & 255}"
    labels = {"app": f"a{number}", "pod-template-hash": f"h{number}"}
    yield convert(Namespace, {"metadata": {"name": namespace, "labels": {"team": f"t{number}"}}})
    for last, node in enumerate((HERE, THERE), 1):
        metadata = {"name": f"{node}-k8s-p{number}-eth0", "namespace": namespace, "labels": labels}
        spec = {
            "node": node, "orchestrator": "k8s", "pod": f"p{number}", "endpoint": "eth0",
            "interfaceName": f"cali{number:x}", "ipNetworks": [f"{ip}.{last}/32", f"fd00::{number:x}:{last}/128"],
            "profiles": [f"kns.{namespace}", f"ksa.{namespace}.s{number}"],
        }  # fmt: skip
        yield convert(WorkloadEndpoint, {"metadata": metadata, "spec": spec})
    named = {"name": f"x{number}", "namespace": namespace}
    source = {"selector": f"app == 'a{number}'", "namespaceSelector": f"team == 't{number}'"}
    rules = [{"action": "Allow", "protocol": "TCP", "source": source, "destination": {"ports": [number + 1]}}]
    spec = {"selector": f"has(pod-template-hash) && app != 'b{number}'", "ingress": rules, "egress": [
        {"action": "Allow", "destination": {"services": {"name": f"s{number}", "namespace": namespace}}},
        {"action": "Deny", "destination": {"selector": f"feed == 'f{number}'"}},
    ]}  # fmt: skip
    yield convert(NetworkPolicy, {"metadata": named, "spec": {**spec, "types": ["Ingress", "Egress"]}})
    yield convert(K8sNetworkPolicy, {"metadata": named, "spec": {"podSelector": {"matchLabels": labels}}})
    feed = {**named, "labels": {"feed": f"f{number}"}}
    yield convert(NetworkSet, {"metadata": feed, "spec": {"nets": [f"172.16.{number & 255}.0/24"]}})
    metadata = {"name": f"p{number}", "namespace": namespace, "labels": labels}
    spec = {"nodeName": HERE, "containers": [{"name": "c", "image": "i"}]}
    yield convert(Pod, {"metadata": metadata, "spec": spec, "status": {"phase": "Running", "podIP": f"{ip}.1"}})
    cluster_ip, node_port = f"10.96.{number >> 8}.{number & 255}", 20000 + number
    yield service(f"s{number}", cluster_ip, namespace, protocol="UDP", node_port=node_port, type="NodePort")
    yield slice_(endpoint(f"{ip}.1", HERE), endpoint(f"{ip}.2", THERE), "0.0.0.0", of=f"s{number}", namespace=namespace)
    yield service(f"h{number}", "None", namespace)


class Programs:
    """Told of everything, as their watches would tell them; what a kernel would be told is worked out each time."""

    def __init__(self) -> None:
        self.view = View(HERE, MemoryStore(), lambda state: None)
        self.names = Names("cluster.local", "verified")
        self.proxy = Heard(HERE, self._serve)
        self.proxy.complete = True
        self._revision = 0
        self._renderer = NftRenderer()
        self._rules = self._renderer.render(self.view.cluster.state())
        self._table = NOTHING
        self.lines = 0

    def round(self, number: int) -> None:
        every = list(world(number))
        assert len(every) == OBJECTS
        for one in every:
            self._tell(one, EventType.ADDED)
        self._settle()
        assert self.names.at((f"s{number}", f"ns{number}", "svc"))
        for one in every[::-1]:
            self._tell(one, EventType.DELETED)
        self._settle()

    def _tell(self, one: Resource, type_: EventType) -> None:
        self._revision += 1
        self.view.hear(Event(type_, changed(one, resource_version=str(self._revision))))
        if type_ is EventType.DELETED:
            self.names.drop(type(one), one.namespace, one.name)
            self.proxy.drop(type(one), one.namespace, one.name)
        else:
            self.names.put(one)
            self.proxy.put(one)
        self.proxy.heard()

    def _settle(self) -> None:
        rules = self._renderer.render(self.view.cluster.state())
        self.lines += transaction(rules, self._rules).count("\n")
        self._rules = rules

    def _serve(self, state: ProxyState) -> None:
        table = tabled(state, self._table)
        self.lines += sum(text.count("\n") for text in changes(table, self._table))
        self._table = table


def kept() -> int:
    """Pieces of memory, without what is remembered of what is asked for again and again, each within bounds."""
    for one in gc.get_objects():
        if isinstance(one, _lru_cache_wrapper):
            one.cache_clear()
    gc.collect()
    return sys.getallocatedblocks()


def test_what_came_and_went_is_forgotten() -> None:
    programs = Programs()
    for number in range(ROUNDS):
        programs.round(number)
    assert ROUNDS * OBJECTS > TOMBSTONES
    assert programs.lines > 20 * ROUNDS, "there was something to tell the kernel each time"
    before = kept()
    for number in range(ROUNDS, 3 * ROUNDS):
        programs.round(number)
    assert kept() - before < ROUNDS / 4, "one in eight rounds leaves something behind"
