"""Which tests belong together: parts of a level that are shared out as a whole."""

from __future__ import annotations

INSIDE = "vm/inside/"
SHARED = (
    ("test_plugin_ipvlan",),
    ("test_plugin_bridge_vlan", "test_plugin_vlan_dummy", "test_plugin_vrf_stock"),
    ("test_plugin_pages", "test_plugin_rows_stock"),
    ("test_ipvlan_",),
    ("test_flannel_wireguard",),
    ("test_lab_",),
)
"""How the names of files begin that share a guest: together they take about as long as the others."""


def vm_group(name: str) -> str:
    """What shares a guest, of tests that run in one, by file. Any other name is its own group."""
    folder, inside, file = name.partition(INSIDE)
    if not inside:
        return name
    group = next((names[0] for names in SHARED if file.startswith(names)), file.partition(".py")[0])
    return folder + inside + group
