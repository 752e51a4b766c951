"""Addresses that leave their pods, and those that a pod has again, decided on values."""

from __future__ import annotations

from dataclasses import replace

from situations import base

from tortie.base.addr import IP, parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.departed import departed, reused
from tortie.calc.state import DesiredState, LocalEndpoint

X, Y, Z = map(parse_ip, ("10.65.0.1", "10.65.0.2", "fd00:65::3"))


def state(**pods: tuple[IP, ...]) -> DesiredState:
    """Of these pods with these addresses; `b_other` is a pod other than `b` with its interface."""
    cluster = Cluster("n1")
    for resource in base():
        cluster.put(resource)
    seen = cluster.state()
    one = next(iter(seen.endpoints.values()))

    def pod(name: str, ips: tuple[IP, ...]) -> LocalEndpoint:
        return replace(one, key=("red", name), interface=f"cali{name[0]}", ips=ips)

    return replace(seen, endpoints={f"cali{name[0]}": pod(name, ips) for name, ips in pods.items()})


def test_nothing_has_gone_before_the_first_state() -> None:
    assert departed(None, state(a=(X,))) == frozenset()


def test_a_pod_that_goes_and_one_that_stays() -> None:
    assert departed(state(a=(X, Z), b=(Y,)), state(b=(Y,))) == {X, Z}


def test_a_pod_that_is_another_with_the_same_interface() -> None:
    assert departed(state(b=(X,)), state(b_other=(X,))) == {X}


def test_the_same_pod_with_another_address() -> None:
    assert departed(state(a=(X, Z)), state(a=(Y, Z))) == {X}


def test_an_address_that_another_pod_had_and_still_has_is_not_free() -> None:
    """As when a virtual machine moves from one pod to the next."""
    assert departed(state(a=(X,), b=(X, Y)), state(b=(X, Y))) == frozenset()


def test_an_address_that_goes_from_one_pod_to_the_next() -> None:
    old, new = state(a=(X, Y)), state(b=(X,))
    assert departed(old, new) == {X, Y}
    assert reused({X: 1, Y: 1}, new) == {X}
    assert reused({}, new) == frozenset()
