"""Services of other labs: beside flannel, on plugins alone, at addresses of load balancers."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from cni_labs import up
from labs import Lab, until
from service_calls import answered_by, ask
from tortie.lab.processes import read_pid

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

EXAMPLES = Path(__file__).parents[2] / "examples" / "services"
ADDRESS = "10.96.0.80"
WEB = {"shop/web-1", "shop/web-2", "shop/web-3"}


def public(lab: Lab, manifest: str) -> str:
    """The address that the service of a manifest gets, beside the shop."""
    lab.tortie("apply", "-f", f"{EXAMPLES}/1-shop.yaml", "-f", f"{EXAMPLES}/{manifest}")
    found: list[str] = []

    def given() -> bool:
        words = lab.tortie("get", "service", "web-public", "-n", "shop").splitlines()[-1].split()
        found[:] = re.findall(r"[0-9.]{7,}", words[-2])
        return bool(found)

    until(given, 30)
    return found[0]


def test_on_the_link_one_node_answers_for_an_address() -> None:
    with up("sl", "--nodes", "3") as (lab, _):
        address = public(lab, "6-load-balancer.yaml")
        assert address.startswith("172.30.0.")
        for where in ("outside", "shop/client"):
            answered_by(lab, where, f"http://{address}/", WEB)


def test_routers_hear_of_an_address_by_bgp() -> None:
    with up("sb", "--topology", "two-racks") as (lab, _):
        address = public(lab, "7-load-balancer-bgp.yaml")
        assert address.startswith("203.0.113.")
        answered_by(lab, "outside", f"http://{address}/", WEB)


def test_beside_flannel_a_proxy_of_each_node_serves() -> None:
    with up("sf", "--cni", "flannel", "--nodes", "2") as (lab, said):
        assert "✓ proxies of 2 nodes" in said
        assert lab.tortie("lab", "status").count(", ready") == 5
        pods = {"default/pod1", "default/pod2"}
        for name in ("pod1", "pod2"):
            lab.tortie("label", "pod", name, "app=web")
        lab.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {
                    "type": "NodePort",
                    "clusterIP": ADDRESS,
                    "selector": {"app": "web"},
                    "ports": [{"port": 80, "nodePort": 30080}],
                },
            }
        )
        for where in ("default/pod1", "node:node1"):
            answered_by(lab, where, f"http://{ADDRESS}/", pods)
        answered_by(lab, "outside", "http://172.30.0.12:30080/", pods)
        assert int(lab.tortie("get", "service", "web", "-o", "wide").splitlines()[1].split()[-1]) > 0, "hits"
        proxy = read_pid(lab.directory.proxy_pid("node1"))
        assert proxy is not None
        proxy.signal(signal.SIGKILL)
        assert ask(lab, "default/pod1", f"http://{ADDRESS}/").who == pods, "its rules stay"
        until(lambda: read_pid(lab.directory.proxy_pid("node1")) not in (None, proxy), 30)
        assert "services" in lab.tortie("lab", "logs", "proxy:node1")


def test_on_plugins_alone_nobody_serves() -> None:
    with up("sp", "--cni", "bridge", "--nodes", "1") as (lab, said):
        assert "controllers" not in said
        assert "controllers" not in lab.tortie("lab", "status")
        assert lab.tortie("get", "services") == "No resources found in default namespace\n"
        assert "has no controllers" in lab.tortie("lab", "logs", "controllers", status=2)
