"""A lab on ipvlan's l3 with the files of the case `ipvlan-l3` as they are, and routes that an operator would type."""

from __future__ import annotations

import pytest

from vm_lab import GuestLab, mode

pytestmark = pytest.mark.root


def test_everybody_reaches_everybody() -> None:
    with GuestLab("l3", "ipvlan-l3") as lab:
        assert "42 of 42 pass" in lab.said
        assert "packets and configuration agree on all 42 pairs compared" in lab.said
        assert "by way of the router alone" in lab.said
        (inside,) = lab.ip("pod-default.pod2", "link", "show", "eth0")
        assert mode(inside) == ("ipvlan", "l3")
        assert "NOARP" in inside["flags"]
        routes = {route["dst"]: route.get("gateway") for route in lab.ip("node2", "route", "show", "dev", "eth0")}
        assert routes["10.211.56.0/24"] == "10.211.55.7"
        assert routes["10.211.59.0/24"] == "10.211.55.9"
        assert "10.211.57.0/24" not in routes
