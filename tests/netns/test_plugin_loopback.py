"""The plugin `loopback` on the real kernel (situations 74 and 75 of the specification)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cni_plugins import Caller, put
from tortie.kernel import netns
from traces import ip

pytestmark = pytest.mark.root

POD = f"lo-pod-{os.getpid()}"


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Caller:
    return Caller(put(tmp_path_factory.mktemp("bin")))


@pytest.fixture
def pod() -> Iterator[str]:
    netns.create(POD)
    yield POD
    netns.delete(POD)


def conf(version: str) -> dict[str, str]:
    return {"cniVersion": version, "name": "net1", "type": "loopback"}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_life(call: Caller, pod: str, version: str) -> None:
    result = call.add(conf(version), netns=pod)
    assert result["interfaces"] == [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": f"/run/netns/{pod}"}]
    families = {"version": "4"} if version < "1" else {}
    assert {**families, "interface": 0, "address": "127.0.0.1/8"} in result["ips"]
    assert "UP" in ip("-n", pod, "link", "show", "lo")[0]["flags"]
    with_result = {**conf(version), "prevResult": result}
    assert call("CHECK", with_result, netns=pod).code == (0 if version >= "0.4" else 1)
    assert call("DEL", with_result, netns=pod).code == 0
    assert "UP" not in ip("-n", pod, "link", "show", "lo")[0]["flags"]
    if version >= "0.4":
        assert call("CHECK", with_result, netns=pod).error == (999, "loopback interface is down")


def test_address_that_is_no_loopback(call: Caller, pod: str) -> None:
    os.system(f"ip -n {pod} addr add 10.0.0.1/32 dev lo")
    said = call("ADD", conf("1.0.0"), netns=pod)
    assert said.error == (999, 'loopback interface found with non-loopback address "10.0.0.1"')


def test_pod_that_is_gone(call: Caller) -> None:
    assert call("DEL", conf("1.0.0"), netns="nobody-is-here").code == 0
    why = 'failed to open netns "/run/netns/nobody-is-here": failed to Statfs "/run/netns/nobody-is-here": '
    assert call("ADD", conf("1.0.0"), netns="nobody-is-here").error == (999, why + "no such file or directory")


def test_own_namespace_is_refused(call: Caller) -> None:
    assert call("ADD", conf("1.0.0"), netns="/proc/self/ns/net").error[0] == 8
