"""Which tests belong together: parts of a level that are shared out as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

INSIDE = "vm/inside/"
SECONDS = {
    "test_flow_tables": 170,
    "test_ipvlan_services": 135,
    "test_idle": 120,
    "test_flannel_wireguard": 115,
    "test_pod_networks_stock": 75,
    "test_plugin_vlan_dummy": 75,
    "test_plugin_vrf_stock": 75,
    "test_ipvlan_sibling": 70,
    "test_plugin_ipvlan": 65,
    "test_plugin_pages": 55,
    "test_ipvlan_paths": 50,
    "test_kernel": 45,
    "test_lab_ipvlan": 45,
    "test_plugin_bridge_vlan": 40,
    "test_lossy": 40,
    "test_flannel_ipip": 35,
    "test_ipip": 35,
    "test_plugin_ipvlan_refusals": 30,
    "test_lab_ipvlan_l3": 30,
    "test_plugin_rows_stock": 15,
    "test_flannel_wireguard_peers": 1,
}
"""About how long each file takes in a guest: which files share one is decided by it, and nothing else."""
UNKNOWN = 30
"""Seconds of a file that is not among them."""


def guests(tests: Iterable[str], count: int) -> dict[str, str]:
    """By file, of tests by their ids: the part of the level that is the guest's in which it runs. There are at most
    `count` guests, with about as much to do each; whoever works it out comes to the same."""
    files = {test.partition("::")[0] for test in tests if INSIDE in test}
    found: dict[str, str] = {}
    filled = [0] * max(1, count)
    for file in sorted(files, key=lambda file: (-_seconds(file), file)):
        guest = filled.index(min(filled))
        filled[guest] += _seconds(file)
        found[file] = f"{file.partition(INSIDE)[0]}{INSIDE}guest{guest + 1}"
    return found


def _seconds(file: str) -> int:
    return SECONDS.get(PurePath(file).stem, UNKNOWN)
