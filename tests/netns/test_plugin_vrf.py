"""The plugin `vrf` where the kernel has no VRF, and what it says without one; the rest of it is in tests/vm."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, put
from namespaces import Ns, make_ns  # noqa: F401

pytestmark = pytest.mark.root

NO_KERNEL = 'this kernel has no VRF: load the module "vrf" (modprobe vrf)'


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


def conf(version: str = "1.1.0", **fields: Any) -> dict[str, Any]:
    result = {"cniVersion": version, "interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": []}
    return {"cniVersion": version, "name": "net1", "type": "vrf", "prevResult": result, **fields}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "configuration is expected to have a valid vrf name"),
        (
            {"vrfname": "a-name-that-is-too-long"},
            'configuration is expected to have a valid vrf name: "a-name-that-is-too-long": interface name is too long',
        ),
        ({"vrfname": "blue", "table": -1}, "invalid table -1: must be between 1 and 4294967295"),
        ({"vrfname": "blue", "prevResult": None}, "missing prevResult from earlier plugin"),
    ],
)
def test_what_cannot_be(plugins: Path, ns: Ns, fields: dict[str, Any], error: str) -> None:
    assert Caller(plugins)("ADD", conf(**fields), netns=ns.name).error == (999, error)


def test_versions_before_it(plugins: Path, ns: Ns) -> None:
    said = Caller(plugins)("ADD", conf("0.3.0", vrfname="blue"), netns=ns.name)
    assert said.error == (1, "incompatible CNI versions")


def test_pod_or_vrf_that_is_gone(plugins: Path, ns: Ns) -> None:
    call = Caller(plugins)
    for netns in ("", "nobody-is-here", ns.name):
        assert call("DEL", conf(vrfname="blue"), netns=netns).code == 0
    said = call("CHECK", conf(vrfname="blue"), netns=ns.name)
    assert said.error == (999, "failed to find eth0 associated to vrf blue")


def test_name_of_another_link(plugins: Path, make_ns: Callable[..., Ns]) -> None:  # noqa: F811
    pod = make_ns("pod")
    pod.ip("link", "add", "blue", "type", "bridge")
    said = Caller(plugins)("ADD", conf(vrfname="blue"), netns=pod.name)
    assert said.error == (999, "cmdAdd failed: blue is not a VRF")


def test_kernel_without(plugins: Path, make_ns: Callable[..., Ns]) -> None:  # noqa: F811
    host, pod = make_ns("host"), make_ns("pod")
    made = subprocess.run(
        ["ip", "-n", host.name, "link", "add", "probe", "type", "vrf", "table", "1"], capture_output=True, check=False
    )
    if made.returncode == 0:
        pytest.skip("this kernel has VRF")
    host.ip("link", "add", "veth1", "type", "veth", "peer", "name", "eth0", "netns", pod.name)
    call = Caller(plugins, host.name)
    said = call("ADD", conf(vrfname="blue"), netns=pod.name)
    assert said.error == (999, f"cmdAdd failed: {NO_KERNEL}")
    assert {link["ifname"] for link in pod.json("link", "show")} == {"lo", "eth0"}
    assert call("STATUS", conf(vrfname="blue")).error == (50, NO_KERNEL)
