"""An external dataplane as the agent meets it: real client, real server on a Unix socket, real pods."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tortie.base.errors import Unavailable
from tortie.cni.cnidataplane import (
    SERVICE,
    AddRequest,
    ContainerSettings,
    DelRequest,
    IPConfig,
    Port,
    WorkloadIDs,
)
from tortie.cni.external import ExternalDataplane, external_dataplane
from tortie.cni.spec import CniError, Code

grpc = pytest.importorskip("grpc", reason="needs grpcio")

from tortie.testing.grpc_dataplane import GrpcDataplane  # noqa: E402  (imports grpc)

pytestmark = pytest.mark.root

IPS = ("10.65.0.5", "fd00:65::5")
HOST_MAC = "ee:ee:ee:ee:ee:ee"


@pytest.fixture
def node(make_ns: Callable[..., Any]) -> Any:
    return make_ns("node")


@pytest.fixture
def pod(make_ns: Callable[..., Any]) -> Any:
    return make_ns("pod")


@pytest.fixture
def server(tmp_path: Path, node: Any) -> Iterator[GrpcDataplane]:
    with GrpcDataplane(tmp_path / "cni.sock", node.path) as server:
        yield server


@pytest.fixture
def client(server: GrpcDataplane) -> ExternalDataplane:
    options = {"type": "grpc", "socket": server.target, "extra": "1", "number": 2}
    found = external_dataplane({"dataplane_options": options})
    assert found is not None
    return found


def add_to(pod: Any, options: dict[str, str] | None = None, ips: tuple[str, ...] = IPS) -> AddRequest:
    return AddRequest(
        "eth0",
        pod.path,
        "cali0123456789a",
        ContainerSettings(),
        tuple(IPConfig(f"{ip}/{122 if ':' in ip else 26}", "<nil>") for ip in ips),
        ("0.0.0.0/0", "::/0"),
        WorkloadIDs("n-k8s-p-eth0", "red", {"a": "b"}, {"c": "d"}, "eth0", "n", "k8s", "p", (Port("x", "TCP", 80),)),
        options or {},
    )


def run_python(script: str, env: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=30).stdout


def refused(call: Callable[..., Any], *arguments: Any) -> str:
    """What the runtime would be told."""
    with pytest.raises(CniError) as caught:
        call(*arguments)
    assert caught.value.code == Code.INTERNAL
    assert "\n" not in caught.value.msg
    return caught.value.msg


def addresses(ns: Any, ifname: str) -> list[str]:
    (link,) = ns.json("address", "show", "dev", ifname)
    return [f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] == "global"]


def links(ns: Any) -> list[str]:
    return [link["ifname"] for link in ns.json("link")]


def routes(ns: Any) -> set[tuple[str, str]]:
    every = [*ns.json("-4", "route"), *ns.json("-6", "route")]
    return {(route["dst"], route["gateway"]) for route in every if "gateway" in route}


# --- pods ---------------------------------------------------------------------------------------------------------


def test_a_pod_comes_and_goes(node: Any, pod: Any, server: GrpcDataplane, client: ExternalDataplane) -> None:
    request = add_to(pod, dict(client.options))
    reply = client.add(request)
    assert server.requests == [request]
    assert server.adds[0].dataplane_options == {"type": "grpc", "socket": server.target, "extra": "1"}
    assert (reply.successful, reply.host_interface_name) == (True, "cali0123456789a")
    (link,) = pod.json("link", "show", "dev", "eth0")
    assert reply.mac == link["address"]
    assert addresses(pod, "eth0") == ["10.65.0.5/32", "fd00:65::5/128"]
    assert routes(pod) == {("default", "169.254.1.1"), ("default", "fe80::ecee:eeff:feee:eeee")}
    node.ip("address", "add", "10.65.9.9/32", "dev", "lo")
    node.ip("address", "add", "fd00:65::9/128", "dev", "lo")
    for ip in ("10.65.9.9", "fd00:65::9"):
        pod.run("busybox", "ping", "-c1", "-W2", ip)
    for ip in IPS:
        node.run("busybox", "ping", "-c1", "-W2", ip)

    client.delete(DelRequest("eth0", pod.path, client.options))
    assert server.dels == [DelRequest("eth0", pod.path, client.options)]
    assert (links(node), links(pod)) == (["lo"], ["lo"])
    client.delete(DelRequest("eth0", pod.path, client.options))  # nothing left: success


def test_settings_and_routes_are_honoured(pod: Any, server: GrpcDataplane, client: ExternalDataplane) -> None:
    request = replace(
        add_to(pod),
        settings=ContainerSettings(True, 1400),
        container_routes=("10.123.0.0/16", "fd00:123::/64", "::/0"),
    )
    client.add(request)
    (link,) = pod.json("link", "show", "dev", "eth0")
    assert link["mtu"] == 1400
    assert pod.run("cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding") == "1\n1\n"
    via6 = "fe80::ecee:eeff:feee:eeee"
    assert routes(pod) == {("10.123.0.0/16", "169.254.1.1"), ("fd00:123::/64", via6), ("default", via6)}


def test_name_and_mac_are_the_dataplanes_to_choose(
    node: Any, pod: Any, server: GrpcDataplane, client: ExternalDataplane
) -> None:
    server.host_interface_name, server.container_mac = "tap7", "garbage"
    reply = client.add(add_to(pod))
    assert (reply.host_interface_name, reply.container_mac) == ("tap7", "garbage")
    assert sorted(links(node)) == ["lo", "tap7"]
    with pytest.raises(CniError, match="address garbage: invalid MAC address"):
        _ = reply.mac


def test_a_pod_whose_namespace_is_gone_is_deleted(
    node: Any, pod: Any, server: GrpcDataplane, client: ExternalDataplane
) -> None:
    client.add(add_to(pod))
    subprocess.run(["ip", "netns", "delete", pod.name], check=True)
    client.delete(DelRequest("eth0", pod.path))
    assert links(node) == ["lo"]


def test_many_pods_at_once(
    make_ns: Callable[..., Any], node: Any, server: GrpcDataplane, client: ExternalDataplane
) -> None:
    pods = [make_ns() for _ in range(8)]
    requests = [
        replace(add_to(pod, ips=(f"10.65.0.{i + 1}",)), desired_host_interface_name=f"cali{i}")
        for i, pod in enumerate(pods)
    ]
    with ThreadPoolExecutor(len(pods)) as pool:
        replies = list(pool.map(client.add, requests))
    assert [reply.host_interface_name for reply in replies] == [f"cali{i}" for i in range(8)]
    assert [addresses(pod, "eth0") for pod in pods] == [[f"10.65.0.{i + 1}/32"] for i in range(8)]


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_refusal_says_why_and_changes_nothing(
    node: Any, pod: Any, server: GrpcDataplane, client: ExternalDataplane
) -> None:
    server.refuse = "out of interfaces"
    assert refused(client.add, add_to(pod)) == "grpc dataplane error: out of interfaces"
    assert refused(client.delete, DelRequest("eth0", pod.path)) == "grpc dataplane error: out of interfaces"
    assert [type(request) for request in server.requests] == [AddRequest, DelRequest]
    assert (links(node), links(pod)) == (["lo"], ["lo"])
    server.refuse = None
    client.add(add_to(pod))


def test_what_the_kernel_refuses_is_taken_back(
    node: Any, pod: Any, server: GrpcDataplane, client: ExternalDataplane
) -> None:
    node.ip("link", "add", "v0", "type", "veth", "peer", "name", "eth0", "netns", pod.name)
    assert "grpc dataplane error: ip link add eth0" in refused(client.add, add_to(pod))
    assert sorted(links(node)) == ["lo", "v0"]
    assert refused(client.add, replace(add_to(pod), container_ips=(IPConfig("nonsense"),))).startswith(
        "grpc dataplane error: 'nonsense'"
    )
    gone = replace(add_to(pod), netns="/run/netns/there-is-none")
    assert "does not exist" in refused(client.add, gone)


# --- a dataplane that cannot be reached ---------------------------------------------------------------------------


def test_a_dead_socket(tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    for target in (f"unix://{path}", f"unix:{path}", str(path)):
        text = refused(ExternalDataplane(target).add, AddRequest())
        assert text == f"grpc dataplane {target}: Add: cannot be reached: No such file or directory"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        text = refused(ExternalDataplane(f"unix://{path}").delete, DelRequest())
        assert text == f"grpc dataplane unix://{path}: Del: cannot be reached: Connection refused"


def test_a_target_that_is_none() -> None:
    assert refused(ExternalDataplane("unix://relative/path").add, AddRequest()).startswith(
        "grpc dataplane unix://relative/path: Add: unknown: "
    )


def test_a_proxy_of_the_environment_is_not_for_the_dataplane(tmp_path: Path) -> None:
    """Over TCP, where the library would ask it: the refusal is of the address given, not of the proxy's."""
    script = (
        "from tortie.cni.external import ExternalDataplane\n"
        "from tortie.cni.cnidataplane import DelRequest\n"
        "try: ExternalDataplane('127.0.0.1:1').delete(DelRequest())\n"
        "except Exception as error: print(error)"
    )
    env = {**os.environ, "http_proxy": "http://127.0.0.1:2", "grpc_proxy": "http://127.0.0.1:2"}
    assert "127.0.0.1:1: Failed to connect" in run_python(script, env)


def test_a_slow_answer_ends_at_the_deadline(pod: Any, server: GrpcDataplane, client: ExternalDataplane) -> None:
    server.delay = 30
    start = time.monotonic()
    text = refused(replace(client, deadline=0.3).add, add_to(pod))
    assert text == f"grpc dataplane {server.target}: Add: no answer within 0.3 s"
    assert 0.3 <= time.monotonic() - start < 3


def test_somebody_who_accepts_and_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        text = refused(ExternalDataplane(f"unix://{path}", deadline=0.3).add, AddRequest())
    assert text == f"grpc dataplane unix://{path}: Add: no answer within 0.3 s"


def test_a_server_that_ends_in_the_middle_and_comes_back(node: Any, pod: Any, tmp_path: Path) -> None:
    server = GrpcDataplane(tmp_path / "cni.sock", node.path)
    client = ExternalDataplane(server.target)
    server.delay = 30
    with ThreadPoolExecutor(1) as pool:
        with server:
            call = pool.submit(refused, client.add, add_to(pod))
            wait_until(lambda: server.adds)
        assert call.result(5).startswith(f"grpc dataplane {server.target}: Add: ")
    assert "No such file" in refused(client.delete, DelRequest())
    server.delay = 0
    with server:
        assert client.add(add_to(pod)).successful  # at once, without the library's back-off


@contextmanager
def answering(path: Path, methods: dict[str, Any]) -> Iterator[ExternalDataplane]:
    """Some other gRPC server: what it returns are the bytes of its answer."""
    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield ExternalDataplane(f"unix://{path}")
    finally:
        server.stop(grace=None).wait()


def test_servers_that_are_no_dataplane(tmp_path: Path) -> None:
    def refuse(request: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "first line\nsecond: error: line")
        raise AssertionError

    with answering(tmp_path / "s.sock", {"Add": lambda *_: b"\x08\x01\x12\x05x", "Del": refuse}) as client:
        text = refused(client.add, AddRequest())
        assert text == (
            f"grpc dataplane {client.target}: Add: the answer cannot be read: "
            "byte 4: truncated, 5 bytes announced and 1 there"
        )
        text = refused(client.delete, DelRequest())
        assert text == f"grpc dataplane {client.target}: Del: resource exhausted: first line second: error: line"
    with answering(tmp_path / "t.sock", {}) as client:
        assert ": Add: unimplemented: " in refused(client.add, AddRequest())
    with answering(tmp_path / "u.sock", {"Add": lambda *_: b""}) as client:
        assert refused(client.add, AddRequest()) == "grpc dataplane error: "


def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot listen on"), GrpcDataplane(tmp_path / "no" / "such" / "x.sock"):
        pass


# --- what it costs ------------------------------------------------------------------------------------------------


def wait_until(true: Callable[[], object], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.01)


def test_nothing_stays_open_between_calls(tmp_path: Path) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    with answering(tmp_path / "s.sock", {"Add": lambda *_: b"\x08\x01"}) as client:
        client.add(AddRequest())
        wait_until(lambda: threading.active_count() < 20)
        before = files()
        for _ in range(30):
            client.add(AddRequest())
        wait_until(lambda: files() <= before)


def test_the_agent_starts_without_grpcio() -> None:
    script = "import sys, tortie.agent.main; print('grpc' in sys.modules)"
    assert run_python(script) == "False\n"
