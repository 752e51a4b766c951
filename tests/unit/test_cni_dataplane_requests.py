"""What a CNI call asks of an external dataplane, and which dataplane its configuration asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tortie
from tortie.base.addr import parse_ip
from tortie.base.errors import NotSupported
from tortie.calc.workloads import endpoint_of_pod
from tortie.cni.cnidataplane import (
    ADD_REQUEST,
    NO_GATEWAY,
    AddReply,
    AddRequest,
    ContainerSettings,
    DelRequest,
    IPConfig,
    Port,
    WorkloadIDs,
    add_request,
    del_request,
)
from tortie.cni.external import DEADLINE, ExternalDataplane, external_dataplane
from tortie.cni.result import Address
from tortie.cni.spec import Call, CniError, Code, as_cni_error
from tortie.model.k8s import Pod

CALL = Call("ADD", "ctr1", "/run/netns/pod", "eth0")
OPTIONS = {"type": "grpc", "socket": "unix:///run/s.sock", "extra": "1"}
POD = msgspec.convert(
    {
        "metadata": {"name": "web-1", "namespace": "red", "labels": {"app": "web"}, "annotations": {"note": "x"}},
        "spec": {
            "serviceAccountName": "sa",
            "containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": 80, "hostPort": 8080, "hostIP": "10.1.1.1"}]}
            ],
        },
    },
    Pod,
)


def test_add_request_says_what_the_endpoint_is_to_be() -> None:
    ips = (parse_ip("10.0.0.5"), parse_ip("fd00::5"))
    endpoint = endpoint_of_pod(POD, node="node-1", container_id="ctr1", interface="cali0123", mac="", ips=ips)
    request = add_request(
        CALL,
        endpoint,
        (Address("10.0.0.5/26"), Address("fd00::5/122", gateway="fd00::1")),
        OPTIONS,
        annotations=POD.metadata.annotations,
        settings=ContainerSettings(True, 1400),
    )
    assert request == AddRequest(
        interface_name="eth0",
        netns="/run/netns/pod",
        desired_host_interface_name="cali0123",
        settings=ContainerSettings(True, 1400),
        container_ips=(IPConfig("10.0.0.5/26", NO_GATEWAY), IPConfig("fd00::5/122", "fd00::1")),
        container_routes=("0.0.0.0/0", "::/0"),
        workload=WorkloadIDs(
            name="node--1-k8s-web--1-eth0",
            namespace="red",
            labels={
                "app": "web",
                "projectcalico.org/namespace": "red",
                "projectcalico.org/orchestrator": "k8s",
                "projectcalico.org/serviceaccount": "sa",
            },
            annotations={"note": "x"},
            endpoint="eth0",
            node="node-1",
            orchestrator="k8s",
            pod="web-1",
            ports=(Port("http", "TCP", 80, 8080, "10.1.1.1"),),
        ),
        dataplane_options=OPTIONS,
    )
    assert ADD_REQUEST.unpack(ADD_REQUEST.pack(request)) == request


def test_configured_routes_take_the_place_of_the_default_ones() -> None:
    endpoint = endpoint_of_pod(POD, node="n", container_id="c", interface="cali0", mac="", ips=())
    request = add_request(
        CALL, endpoint, (), {}, annotations={}, settings=ContainerSettings(), routes=["10.123.0.0/16"]
    )
    assert request.container_routes == ("10.123.0.0/16",)


def test_del_request() -> None:
    assert del_request(CALL, OPTIONS) == DelRequest("eth0", "/run/netns/pod", OPTIONS)


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ("02:00:00:00:00:0A", "02:00:00:00:00:0a"),
        ("02-00-00-00-00-01", "02:00:00:00:00:01"),
        ("0200.0000.0001", "02:00:00:00:00:01"),
        ("02:00:00:00:00:00:00:01", "02:00:00:00:00:00:00:01"),
    ],
)
def test_mac(text: str, mac: str) -> None:
    assert AddReply(True, container_mac=text).mac == mac


@pytest.mark.parametrize("text", ["", "zz", "02:00:00:00:00", "2:0:0:0:0:1", "02:00:00:00:00:0g", "020000000001"])
def test_what_is_no_mac(text: str) -> None:
    with pytest.raises(CniError) as caught:
        _ = AddReply(True, container_mac=text).mac
    assert (caught.value.code, caught.value.msg) == (Code.INTERNAL, f"address {text}: invalid MAC address")


# --- which dataplane a configuration asks for ---------------------------------------------------------------------


@pytest.mark.parametrize("conf", [{}, {"dataplane_options": {}}, {"dataplane_options": None}])
def test_none_is_the_kernels(conf: dict[str, Any]) -> None:
    assert external_dataplane(conf) is None


def test_options_that_are_strings_go_along() -> None:
    pytest.importorskip("grpc", reason="needs grpcio")
    conf = {"Dataplane_Options": {**OPTIONS, "number": 1, "flag": True, "list": ["x"], "none": None}}
    assert external_dataplane(conf) == ExternalDataplane("unix:///run/s.sock", OPTIONS, 5.0)
    assert DEADLINE == 5.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "grpc"}, "GRPC dataplane socket not configured"),
        ({"type": "grpc", "socket": 7}, "GRPC dataplane socket not configured"),
        ({"type": "grpc", "socket": ""}, "GRPC dataplane socket not configured"),
        ({"type": "invalid-dataplane-type"}, 'invalid dataplane type "invalid-dataplane-type"'),
        ({"type": 3}, 'invalid dataplane type "3"'),
        ([], "failed to load netconf"),
    ],
)
def test_options_that_name_no_dataplane(options: Any, text: str) -> None:
    with pytest.raises(CniError) as caught:
        external_dataplane({"dataplane_options": options})
    assert caught.value.code == Code.INTERNAL
    assert caught.value.msg.startswith(text)
    assert "\n" not in caught.value.msg


def run_python(script: str, *flags: str) -> str:
    source = Path(tortie.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, *flags, "-c", f"import sys; sys.path.insert(0, {str(source)!r}); {script}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip()


ASK = "from tortie.cni.external import external_dataplane as ask; "


def test_grpcio_is_not_imported_before_the_first_call() -> None:
    pytest.importorskip("grpc", reason="needs grpcio")
    script = f"{ASK} print(ask({{'dataplane_options': {OPTIONS!r}}}).target, 'grpc' in sys.modules)"
    assert run_python(script) == "unix:///run/s.sock False"


def test_without_grpcio_the_message_says_how_to_get_it() -> None:
    script = (
        f"{ASK} from tortie.base.errors import NotSupported\n"
        f"try: ask({{'dataplane_options': {OPTIONS!r}}})\n"
        "except NotSupported as error: print(error)"
    )
    assert run_python(script, "-I", "-S") == "dataplane_options.type grpc needs grpcio: pip install grpcio"
    assert as_cni_error(NotSupported("x")).code == Code.INTERNAL
