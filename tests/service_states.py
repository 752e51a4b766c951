"""States of services for tests: one of each kind, and random ones."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from tortie.calc.proxy.state import Backend, Entrance, Frontend, ProxyState, Served

POD = ip_address("10.244.0.0")


def backend(number: int, port: int = 8080, node: str = "") -> Backend:
    return Backend(POD + number, port, node)


def small_state() -> ProxyState:
    """One of each kind."""
    one, two, three = (backend(n) for n in (1, 2, 3))
    web = Served(
        ("shop", "web"),
        (
            Entrance("ClusterIP", Frontend(4, ip_address("10.96.0.1"), 6, 80), "http", (one, two)),
            Entrance("NodePort", Frontend(4, None, 6, 30080), "http", (one, two), local=(two,)),
            Entrance(
                "LoadBalancer",
                Frontend(4, ip_address("203.0.113.5"), 6, 80),
                "http",
                (one, two),
                local=(),
                sources=(ip_network("198.51.100.0/25"), ip_network("198.51.100.128/25"), ip_network("192.0.2.7/32")),
                unserved="drop",
            ),
        ),
        (ip_address("10.96.0.1"),),
    )
    dns = Served(
        ("kube-system", "dns"),
        (
            Entrance("ClusterIP", Frontend(4, ip_address("10.96.0.10"), 17, 53), "dns", (three,), affinity=600),
            Entrance(
                "ClusterIP",
                Frontend(6, ip_address("fd00:10:96::a"), 17, 53),
                "dns",
                (Backend(ip_address("fd00:244::3"), 53), Backend(ip_address("fd00:244::4"), 53)),
                affinity=600,
            ),
        ),
        (ip_address("10.96.0.10"), ip_address("fd00:10:96::a")),
    )
    empty = Served(
        ("shop", "empty"),
        (Entrance("ClusterIP", Frontend(4, ip_address("10.96.0.2"), 132, 9), "", ()),),
        (ip_address("10.96.0.2"),),
    )
    return ProxyState(
        1,
        "node1",
        {one.key: one for one in (web, dns, empty)},
        (ip_network("10.244.0.0/16"), ip_network("fd00:244::/48")),
        frozenset((one.ip,)),
        (ip_network("192.0.2.0/24"),),
    )


BACKENDS = st.lists(st.integers(1, 6), unique=True, max_size=6).map(
    lambda numbers: tuple(backend(number) for number in sorted(numbers))
)
FRONTENDS = [Frontend(4, ip, 6, port) for ip in (ip_address("10.96.0.1"), None) for port in (80, 81, 82)]
FRONTENDS += [Frontend(6, ip, 17, port) for ip in (ip_address("fd00:10:96::1"), None) for port in (80, 81)]


@st.composite
def entrances(draw: st.DrawFn, frontend: Frontend) -> Entrance:
    every = draw(BACKENDS)
    if frontend.version == 6:
        every = tuple(replace(one, ip=ip_address(f"fd00:244::{int(one.ip) - int(POD)}")) for one in every)
    local = draw(st.sampled_from((None, every[:1], every[1:], ())))
    nets = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/64"))
    return Entrance(
        "NodePort" if frontend.ip is None else "ClusterIP",
        frontend,
        "",
        every,
        local,
        draw(st.sampled_from((None, None, (), nets))),
        draw(st.sampled_from((0, 0, 60))),
        draw(st.sampled_from(("reject", "drop"))),
    )


@st.composite
def states(draw: st.DrawFn) -> ProxyState:
    """A few services that share a few frontends: what one loses another may get."""
    services: dict[tuple[str, str], list[Entrance]] = {}
    for frontend in draw(st.lists(st.sampled_from(FRONTENDS), unique=True)):
        owner = ("ns", draw(st.sampled_from("abc")))
        services.setdefault(owner, []).append(draw(entrances(frontend)))
    made = {
        key: Served(key, tuple(some), tuple({one.frontend.ip for one in some if one.frontend.ip is not None}))
        for key, some in services.items()
    }
    pods = draw(st.sampled_from(((), (ip_network("10.244.0.0/16"),), (ip_network("10.244.0.0/17"),))))
    here = draw(st.frozensets(st.sampled_from([POD + 1, POD + 2, ip_address("fd00::1")])))
    nodes = draw(st.sampled_from((None, (), (ip_network("192.0.2.0/24"),))))
    return ProxyState(0, "n", made, pods, here, nodes, draw(st.booleans()))


def kept(new: ProxyState, old: ProxyState) -> ProxyState:
    """What is equal is the very same object, as it is in states that follow one another."""
    same = {key: old.services[key] if old.services.get(key) == one else one for key, one in new.services.items()}
    return replace(new, services=same)
