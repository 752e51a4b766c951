"""The wireguard backend with flannel's own daemon on the other node: both IP versions, both ways, whoever is restarted.

FLANNELD names it, outside of the guest; what is in its place here, `vm.guest` says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from etcd_server import needs_etcd, running
from flannel_daemons import Daemon, Town, until
from flannel_nodes import NETWORK, NETWORK6, FlannelNode, Wire, network_config, subnet6_of, subnet_of
from namespaces import Ns
from vm.guest import FLANNELD

PREFIX, SERVER = "/coreos.com/network", "192.0.2.254"
PSK = "VMI1RNZHqOGEn3pkCzqxJ6HKX4bNOFJJVLVvvWdTqUE="
GUEST_PATIENCE = 180.0
"""Seconds for a daemon to start. It takes a tenth of that on a machine that has nothing else to do."""

pytestmark = [
    pytest.mark.root,
    needs_etcd,
    pytest.mark.skipif(not FLANNELD, reason="FLANNELD does not name flannel's own daemon"),
]


def theirs(node: FlannelNode, url: str, directory: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    """flannel's daemon on a node, until its device has peers."""
    words = (FLANNELD, "-etcd-endpoints", url, "-iface", "eth0", "-subnet-file", f"{directory}/theirs.env")
    environment = {**os.environ, "WIREGUARD_KEY_FILE": f"{directory}/theirs.key"}
    with (directory / "theirs.log").open("ab") as log:
        command = ["ip", "netns", "exec", node.ns.name, *words]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    stack.callback(process.wait, 20)
    stack.callback(process.send_signal, signal.SIGKILL)
    return process


@pytest.mark.parametrize("mode", ["separate", "ipv6"])
def test_both_ways_whoever_is_restarted(make_ns: Callable[..., Ns], tmp_path: Path, mode: str) -> None:
    """With one tunnel over IPv6 flannel's publishes a port that it does not listen at; ours finds it all the same."""
    wire = Wire(make_ns)
    wire.ns.ip("address", "add", f"{SERVER}/24", "dev", "wire")
    config = {"Network": str(NETWORK), "EnableIPv6": True, "IPv6Network": str(NETWORK6), "EnableNFTables": True}
    config |= {"Backend": {"Type": "wireguard", "Mode": mode, "PSK": PSK}}
    with ExitStack() as stack:
        within = ("ip", "netns", "exec", wire.ns.name)
        etcd = stack.enter_context(running(tmp_path / "etcd", host=SERVER, within=within))
        etcd.ctl("put", f"{PREFIX}/config", json.dumps(config))
        for number in (1, 2):
            key = f"{subnet_of(number).network_address}-24&{subnet6_of(number).network_address}-64"
            value = json.dumps({"PublicIP": f"192.0.2.{number}", "PublicIPv6": f"2001:db8::{number}"})
            etcd.ctl("put", f"{PREFIX}/subnets/{key}", value)
        one, two = (wire.node(number, network_config("wireguard", v6=True)) for number in (1, 2))
        ours = Daemon(Town(wire, tmp_path, flags=("-etcd-endpoints", etcd.url)), two)
        stack.callback(ours.kill)
        process = theirs(one, etcd.url, tmp_path, stack)
        ours.start()

        def reach() -> None:
            for version in (4, 6):
                until(f"IPv{version} there", lambda: one.reaches(two, version), GUEST_PATIENCE)  # noqa: B023
                until(f"IPv{version} back", lambda: two.reaches(one, version), GUEST_PATIENCE)  # noqa: B023

        until("ours is ready", ours.is_ready, GUEST_PATIENCE)
        reach()
        ours.kill()
        ours.start()
        until("ours is ready again", ours.is_ready, GUEST_PATIENCE)
        process.terminate()
        process.wait(20)
        theirs(one, etcd.url, tmp_path, stack)
        reach()
