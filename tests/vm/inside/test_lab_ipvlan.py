"""A lab on ipvlan, which many development kernels lack, with the files of the case `ipvlan-l2` as they are."""

from __future__ import annotations

import pytest

from vm_lab import GuestLab, mode

pytestmark = pytest.mark.root


def test_only_a_node_and_its_own_pods_do_not_reach_each_other() -> None:
    with GuestLab("l2", "ipvlan-l2") as lab:
        assert "36 of 42 pass" in lab.said
        assert "packets and configuration agree on all 42 pairs compared" in lab.said
        assert "children of ipvlan exchange no packets with their parent's own stack" in " ".join(lab.said.split())
        for number, first in ((1, 129), (2, 140), (3, 119)):
            (inside,) = lab.ip(f"pod-default.pod{number}", "address", "show", "eth0")
            (node,) = lab.ip(f"node{number}", "link", "show", "eth0")
            assert mode(inside) == ("ipvlan", "l2")
            assert inside["address"] == node["address"]
            assert f"10.211.55.{first}" in {one["local"] for one in inside["addr_info"]}
