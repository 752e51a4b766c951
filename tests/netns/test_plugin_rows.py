"""Situations of the plugins that no test of a plugin's own has, by their numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attachments import Ground, addresses
from cni_plugins import Caller, put
from namespaces import Ns

pytestmark = pytest.mark.root

SUBNET = "10.1.2.0/24"


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def ground(plugins: Path, make_ns: Callable[..., Ns], tmp_path: Path) -> Ground:
    host = make_ns("host")
    found = Ground(Caller(plugins, host.name), host, tmp_path / "ipam", {}, make_ns)
    found.conf.update({"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "ipam": found.ipam(SUBNET)})
    return found


def test_45_no_daemon_where_it_is_looked_for(plugins: Path, ns: Ns, tmp_path: Path) -> None:
    """On a machine, as it were, where nobody has put anything into /run."""
    script = tmp_path / "dhcp"
    empty = f"mount -t tmpfs none /run && exec {plugins}/dhcp"
    script.write_text(f"#!/bin/sh\nexec unshare --mount --propagation private sh -c '{empty}'\n")
    script.chmod(0o755)
    conf = {"cniVersion": "1.0.0", "name": "net1", "ipam": {"type": "dhcp"}}
    why = "dial unix /run/cni/dhcp.sock: connect: no such file or directory"
    call = Caller(tmp_path, ns.name)
    assert call("ADD", conf, netns="/run/netns/pod", type="dhcp").error == (999, f"error dialing DHCP daemon: {why}")
    assert call("DEL", conf, netns="/run/netns/pod", type="dhcp").code == 0


@pytest.mark.parametrize("other", ["10.1.2.99/24", "172.20.0.1/16"])
def test_62_bridge_with_another_address(ground: Ground, other: str) -> None:
    ground.host.ip("link", "add", "cni0", "type", "bridge")
    ground.host.ip("addr", "add", other, "dev", "cni0")
    text = 'failed to set bridge addr: "cni0" already has an IP address different from 10.1.2.1/24'
    assert ground("ADD", isGateway=True).error == (999, text)
    assert addresses(ground.host, "cni0") == [other]
    assert (ground.links("veth"), ground.held) == (set(), set())
    assert [each["ifname"] for each in ground.pod("a").json("link", "show")] == ["lo"]
    ground.add(isGateway=True, forceAddress=True)
    assert addresses(ground.host, "cni0") == ["10.1.2.1/24"]
    ground.done("DEL", isGateway=True)


def test_62_bridge_whose_ports_have_all_left(ground: Ground) -> None:
    """The kernel has then taken its MAC address away, unless somebody had set it."""
    ground.add()
    ground.done("DEL")
    (bridge,) = ground.host.json("link", "show", "dev", "cni0")
    assert bridge["address"] == "00:00:00:00:00:00"
    result = ground.add(isGateway=True)
    (bridge,) = ground.host.json("link", "show", "dev", "cni0")
    assert bridge["address"] == result["interfaces"][0]["mac"] != "00:00:00:00:00:00"
    ground.done("DEL", isGateway=True)
    (after,) = ground.host.json("link", "show", "dev", "cni0")
    assert after["address"] == bridge["address"]
