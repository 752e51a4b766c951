"""`get services -o wide`: what is behind services, and how often it was used. The doctor: who serves them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from typing import Any

import pytest
from msgspec.structs import replace

from tortie.calc.doctor import Finding, judge_services
from tortie.cli.doctor import _answer as doctors_answer
from tortie.cli.main import main
from tortie.cli.services_wide import Wide, answers_of, counted, hits_of, tree
from tortie.model.document import parse
from tortie.model.service import EndpointSlice, Service
from tortie.store import open_store

WEB = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: red}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  selector: {app: web}
  externalTrafficPolicy: Local
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: red, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.244.1.10], nodeName: n1, conditions: {ready: true}}
- {addresses: [10.244.2.10], nodeName: n2, conditions: {ready: false}}
- {addresses: [10.244.2.11], nodeName: n2, conditions: {ready: false, serving: true, terminating: true}}
ports: [{name: http, port: 8080, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: red, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
endpoints: [{addresses: ["fd00:244:1::10"], nodeName: n1}]
ports: [{name: http, port: 8080, protocol: TCP}]
"""


def objects(text: str = WEB) -> tuple[Service, list[EndpointSlice]]:
    found = list(parse(text))
    (service,) = [one for one in found if isinstance(one, Service)]
    return service, [one for one in found if isinstance(one, EndpointSlice)]


def entrance(frontend: str, *backends: tuple[str, int | None], local: Any = None, version: int = 4) -> dict[str, Any]:
    return {
        "frontend": frontend,
        "ipVersion": version,
        "backends": [{"address": address, "node": "n1", "connections": count} for address, count in backends],
        "local": local,
    }


def answer(node: str, *entrances: dict[str, Any], **more: Any) -> dict[str, Any]:
    service = {"namespace": "red", "name": "web", "entrances": list(entrances)}
    about = {"node": node, "on": True, "why": "", "kubeProxy": [], "problems": {}, "failures": []}
    return {**about, "services": [service], **more}


N1 = answer(
    "n1",
    entrance("10.96.0.10:80/tcp", ("10.244.1.10:8080", 4)),
    entrance("*:30080/tcp", ("10.244.1.10:8080", None), local=[{"address": "10.244.1.10:8080", "connections": 2}]),
)
N2 = answer("n2", entrance("10.96.0.10:80/tcp", ("10.244.1.10:8080", 3)))


def test_columns_of_slices_and_of_all_agents() -> None:
    service, slices = objects()
    assert counted(slices) == (1, 3)
    assert counted(slices[1:]) == (1, 1)
    assert counted(()) == (0, 0)
    assert hits_of({"n1": N1, "n2": N2})["red", "web"] == 9
    behind = {("red", "web"): slices}
    for answers, hits in (({"n1": N1, "n2": N2}, "9"), ({}, "-"), ({"n1": {**N1, "on": False}}, "-")):
        columns = Wide(behind, answers).columns()
        assert [cell(service) for cell in columns.values()] == ["1/3", hits]


def test_an_address_that_cannot_be_read_has_no_row() -> None:
    service, (four, six) = objects()
    ends = (replace(four.endpoints[0], addresses=("10.244.1",)), *four.endpoints[1:])
    lines = [*tree(service, [replace(four, endpoints=ends), six], {})]
    assert lines[1].split()[1] == "10.244.2.10:8080"
    assert not any("10.244.1" in line for line in lines)


def test_a_tree_of_one_service() -> None:
    service, slices = objects()
    assert [*tree(service, slices, {"n1": N1, "n2": N2})] == [
        "10.96.0.10:80/TCP  ClusterIP, http",
        "  ├─ 10.244.1.10:8080  n1  ready               n1 4, n2 3",
        "  ├─ 10.244.2.10:8080  n2  not ready           0",
        "  └─ 10.244.2.11:8080  n2  ends, still serves  0",
        "[fd00:96::10]:80/TCP  ClusterIP, http",
        "  └─ [fd00:244:1::10]:8080  n1  ready  0",
        "*:30080/TCP  NodePort, http, externalTrafficPolicy Local",
        "  ├─ 10.244.1.10:8080  n1  ready               n1 2",
        "  ├─ 10.244.2.10:8080  n2  not ready           0",
        "  └─ 10.244.2.11:8080  n2  ends, still serves  0",
        "*:30080/TCP (IPv6)  NodePort, http, externalTrafficPolicy Local",
        "  └─ [fd00:244:1::10]:8080  n1  ready  0",
    ]
    lines = [*tree(service, [], {})]
    assert lines[:2] == ["10.96.0.10:80/TCP  ClusterIP, http", "  └─ no endpoints"]


def test_a_tree_says_what_is_wrong() -> None:
    service, slices = objects()
    off = {**N1, "on": False, "why": "kube-proxy runs"}
    wrong = {**N2, "problems": {"Service red/web": "10.96.0.10 is another's"}}
    *_, first, second = tree(service, slices, {"n1": off, "n2": wrong})
    assert first == "· n1: Tortie serves no services: kube-proxy runs"
    assert second == "✘ n2: 10.96.0.10 is another's"
    headless, _ = objects(WEB.replace("clusterIP: 10.96.0.10", "clusterIP: None").replace("10.96.0.10,", "None,"))
    assert [*tree(headless, slices, {})] == ["no frontends: the service has no address that is translated"]


# --- from agents ----------------------------------------------------------------------------------------------------


@contextmanager
def agent(path: Path, answers: dict[str, Any]) -> Iterator[list[str]]:
    """A socket that answers questions by their path; what it was asked."""
    asked: list[str] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            question = self.rfile.readline().decode().split()[1]
            while self.rfile.readline().strip():
                pass
            asked.append(question)
            known = question.partition("?")[0] in answers
            body = json.dumps(answers.get(question.partition("?")[0], {"error": "not known"})).encode()
            status = "200 OK" if known else "404 Not Found"
            self.wfile.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    with ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


def test_agents_of_another_datastore_and_silent_ones_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    here = {"": path}
    assert answers_of(here, "/store.db") == {}
    with agent(path, {"/services": {**N1, "datastore": "sqlite:/store.db"}}) as asked:
        assert answers_of(here, "/store.db", "red", "web").keys() == {"n1"}
        assert asked == ["/services?namespace=red&name=web"]
        assert answers_of(here, "/other.db") == {}
    path.unlink()
    with agent(path, {}):
        assert answers_of(here, "/store.db") == {}


def test_the_command_without_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datastore = str(tmp_path / "store.db")

    async def fill() -> None:
        store = open_store(datastore)
        try:
            for one in parse(WEB):
                await store.create(one)
        finally:
            await store.close()

    asyncio.run(fill())

    def get(*words: str) -> str:
        assert main(["get", "services", "-n", "red", "-o", "wide", "--datastore", datastore, *words]) == 0
        return capsys.readouterr().out

    heading, row = get().splitlines()
    assert heading.split() == [
        "NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "SELECTOR", "ENDPOINTS", "HITS",
    ]  # fmt: skip
    assert row.split()[-3:] == ["app=web", "1/3", "-"]
    assert "└─ [fd00:244:1::10]:8080  n1  ready  -" in get("web")


# --- the doctor -----------------------------------------------------------------------------------------------------

RUNS = {"mode": "iptables", "evidence": ["chain KUBE-SERVICES"], "pid": 7, "runs": True}
UNSEEN = {**RUNS, "pid": 0}
LEFT = {**UNSEEN, "runs": False}


@pytest.mark.parametrize(
    ("on", "found", "level", "what"),
    [
        (True, [], "ok", "served by Tortie"),
        (False, [RUNS], "ok", "served by kube-proxy (iptables, process 7)"),
        (False, [UNSEEN], "ok", "served by kube-proxy (iptables)"),
        (True, [RUNS], "bad", "both kube-proxy (iptables, process 7) and Tortie serve them"),
        (True, [LEFT], "warn", "a kube-proxy that is gone has left rules: chain KUBE-SERVICES"),
        (False, [LEFT], "bad", "only rules that a kube-proxy has left serve them, and follow no change"),
    ],
)
def test_who_serves(on: bool, found: list[dict[str, Any]], level: str, what: str) -> None:
    first, *rest = judge_services(answer("n1", on=on, kubeProxy=found))
    assert (first.level, first.check) == (level, "services")
    assert first.what.startswith(what)
    assert bool(first.todo) == (level != "ok")
    assert [one.what for one in rest] == (["served by Tortie"] if level == "warn" else [])


@pytest.mark.parametrize(("left", "levels"), [([], ["ok"]), ([LEFT], ["warn", "ok"])])
def test_another_program_of_ours_serves(left: list[dict[str, Any]], levels: list[str]) -> None:
    found = judge_services(answer("n1", on=False, servedBy="process 7 (tortie proxy)", kubeProxy=left))
    assert [one.level for one in found] == levels
    assert found[-1].what == "served by process 7 (tortie proxy)"


def test_problems_and_failures_are_findings() -> None:
    found = judge_services(answer("n1", problems={"Service red/b": "twin"}, failures=["nft: no"]))
    assert [one.level for one in found] == ["bad", "warn", "ok"]
    assert found[1] == Finding("warn", "services", "twin", "Service red/b")
    many = judge_services(answer("n1", problems={f"Service red/{i:03}": "twin" for i in range(500)}))
    assert len(many) == 12
    assert [one.what for one in many if "more" in one.what] == ["490 more cannot be served"]


def test_the_doctor_asks_about_services(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    whole = {"node": "n1", "time": time.time(), "findings": []}
    with agent(path, {"/doctor": whole, "/services": answer("n1", kubeProxy=[RUNS])}) as asked:
        assert [one["level"] for one in doctors_answer("n1", path)["findings"]] == ["bad"]
        assert asked == ["/doctor", "/services?services=none"]
    path.unlink()
    with agent(path, {"/doctor": whole}):
        assert doctors_answer("n1", path)["findings"] == []
