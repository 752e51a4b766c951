"""Services of a lab as its user has them: asked from pods, nodes and outside; readiness; and who keeps it all running
is killed."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labs import Lab, until
from service_calls import answered_by, ask
from tortie.lab import network
from tortie.lab.processes import read_pid

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

EXAMPLES = Path(__file__).parents[2] / "examples" / "services"
ADDRESS = "10.96.0.80"
WEB = {"shop/web-1", "shop/web-2", "shop/web-3"}


def condition(lab: Lab, pod: str) -> dict[str, Any]:
    document = json.loads(lab.tortie("get", "pod", pod, "-n", "shop", "-o", "json"))
    (ready,) = (one for one in document["status"]["conditions"] if one["type"] == "Ready")
    return dict(ready)


def ready(lab: Lab, *pods: str) -> None:
    until(lambda: all(condition(lab, pod)["status"] == "True" for pod in pods), 30)


@pytest.fixture(scope="module")
def shop() -> Iterator[Lab]:
    """Three nodes with a backend on each."""
    lab = Lab(f"s{os.getpid()}")
    try:
        lab.up(3)
        lab.tortie("apply", *(word for name in ("1-shop", "2-node-port") for word in ("-f", f"{EXAMPLES}/{name}.yaml")))
        until(lambda: lab.tortie("get", "pods", "-n", "shop").count(" Running ") == 4, 30)
        ready(lab, "web-1", "web-2", "web-3")
        yield lab
    finally:
        network.destroy(lab.directory)
        assert network.leftovers(lab.directory) == []


# --- asking -------------------------------------------------------------------------------------------------------


def test_a_lab_begins_with_controllers_and_the_first_service(shop: Lab) -> None:
    pid = read_pid(shop.directory.controllers_pid)
    assert pid is not None
    assert f"controllers: pid {pid.pid}, ready" in shop.tortie("lab", "status")
    assert re.search(r"kubernetes +ClusterIP +10\.96\.0\.1 ", shop.tortie("get", "services"))


def test_a_pod_reaches_every_backend_with_its_own_address(shop: Lab) -> None:
    found = answered_by(shop, "shop/client", f"http://{ADDRESS}/", WEB)
    assert min(found.by.values()) >= 2, "each gets its share"
    (own,) = found.saw
    assert own.startswith("10.244."), "pods are not masqueraded"


def test_a_process_of_a_node_reaches_them(shop: Lab) -> None:
    answered_by(shop, "node:node2", f"http://{ADDRESS}/", WEB)


def test_a_backend_reaches_itself(shop: Lab) -> None:
    answered_by(shop, "shop/web-1", f"http://{ADDRESS}/", WEB)


def test_from_outside_every_node_answers_at_its_port(shop: Lab) -> None:
    for node in ("172.30.0.11", "172.30.0.13"):
        found = answered_by(shop, "outside", f"http://{node}:30080/", WEB)
        assert "198.51.100.9" not in found.saw
    answered_by(shop, "outside", "http://[fd00:172:30::12]:30080/", WEB)


def test_a_local_backend_sees_who_asks_from_outside(shop: Lab) -> None:
    found = answered_by(shop, "outside", "http://172.30.0.12:30081/", {"shop/web-2"})
    assert found.saw == {"198.51.100.9"}


def test_who_is_remembered_gets_the_same_backend(shop: Lab) -> None:
    shop.tortie("apply", "-f", f"{EXAMPLES}/3-affinity.yaml")
    until(lambda: ask(shop, "shop/client", "http://10.96.0.81/", 1).who <= WEB, 30)
    assert len(ask(shop, "shop/client", "http://10.96.0.81/").who) == 1


def test_a_service_of_nobody_refuses_at_once(shop: Lab) -> None:
    for where in ("shop/client", "node:node1"):
        script = "timeout 20 busybox wget -qO- http://10.96.0.1:443/ 2>&1; true"
        assert "refused" in shop.tortie("lab", "exec", where, "--", "sh", "-c", script)


# --- who is ready -------------------------------------------------------------------------------------------------


def test_a_pod_is_asked_only_while_it_is_ready(shop: Lab, tmp_path: Path) -> None:
    file = tmp_path / "ready"
    manifest = (EXAMPLES / "4-readiness.yaml").read_text()
    shop.tortie("apply", "-f", "-", stdin=re.sub(r"/tmp/[\w-]+", str(file), manifest))
    until(lambda: "web-4" in shop.tortie("lab", "status") and "not ready" in shop.tortie("lab", "status"), 30)
    late = condition(shop, "web-4")
    assert (late["status"], late["reason"]) == ("False", "ContainersNotReady")
    answered_by(shop, "shop/client", f"http://{ADDRESS}/", WEB)
    file.touch()
    answered_by(shop, "shop/client", f"http://{ADDRESS}/", WEB | {"shop/web-4"})
    since = condition(shop, "web-4")["lastTransitionTime"]
    _kill_the_kubelet(shop)
    answered_by(shop, "shop/client", f"http://{ADDRESS}/", WEB | {"shop/web-4"})
    assert condition(shop, "web-4")["lastTransitionTime"] == since, "the next kubelet believes what it finds"
    file.unlink()
    answered_by(shop, "shop/client", f"http://{ADDRESS}/", WEB)
    shop.tortie("delete", "pod", "web-4", "-n", "shop")


def _kill_the_kubelet(lab: Lab) -> None:
    kubelet = read_pid(lab.directory.kubelet_pid)
    assert kubelet is not None
    kubelet.signal(signal.SIGKILL)
    until(lambda: not kubelet.alive())
    lab.tortie("lab", "up", "--name", lab.name)


def test_a_program_that_ends_takes_its_pod_out(shop: Lab) -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "brief", "namespace": "shop"},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "command": ["sleep", "2"]}]},
    }
    shop.apply(document)
    until(lambda: condition(shop, "brief")["status"] == "True", 30)
    until(lambda: condition(shop, "brief").get("reason") == "PodCompleted", 30)
    shop.tortie("delete", "pod", "brief", "-n", "shop")


def test_controllers_that_are_killed_come_back(shop: Lab) -> None:
    first = read_pid(shop.directory.controllers_pid)
    assert first is not None
    first.signal(signal.SIGKILL)
    until(lambda: not first.alive())
    shop.tortie("delete", "pod", "web-3", "-n", "shop")
    answered_by(shop, "shop/client", f"http://{ADDRESS}/", WEB - {"shop/web-3"})
    until(lambda: "controllers: pid" in shop.tortie("lab", "status"), 30)
    assert read_pid(shop.directory.controllers_pid) not in (None, first)
    assert "the process of the controllers ended" in shop.tortie("lab", "logs", "kubelet")
