"""The messages of an external dataplane: bytes as published, and the reference implementation as oracle for others."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.cni import cnidataplane
from tortie.cni.cnidataplane import (
    ADD_REPLY,
    ADD_REQUEST,
    DEL_REPLY,
    DEL_REQUEST,
    AddReply,
    AddRequest,
    ContainerSettings,
    DelReply,
    DelRequest,
    IPConfig,
    Port,
    WorkloadIDs,
)
from tortie.cni.proto3 import Message, read_fields

MESSAGES = {message.of.__name__: message for message in vars(cnidataplane).values() if isinstance(message, Message)}

INTERFACE = """
message AddRequest {
    string interface_name = 1;
    string netns = 2;
    string desired_host_interface_name = 3;
    ContainerSettings settings = 4;
    repeated IPConfig container_ips = 5;
    repeated string container_routes = 6;
    WorkloadIDs workload = 7;
    map<string, string> dataplane_options = 8;
}
message ContainerSettings { bool allow_ip_forwarding = 1; int32 mtu = 2; }
message IPConfig { string address = 1; string gateway = 2; }
message WorkloadIDs {
    string name = 1;
    string namespace = 2;
    map<string, string> labels = 3;
    map<string, string> annotations = 4;
    string endpoint = 5;
    string node = 6;
    string orchestrator = 7;
    string pod = 8;
    repeated Port ports = 9;
}
message Port { string name = 1; string protocol = 2; uint32 port = 3; uint32 host_port = 4; string host_ip = 5; }
message AddReply {
    bool successful = 1;
    string error_message = 2;
    string host_interface_name = 3;
    string container_mac = 4;
}
message DelRequest { string interface_name = 1; string netns = 2; map<string, string> dataplane_options = 3; }
message DelReply { bool successful = 1; string error_message = 2; }
"""


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """The reference implementation's class of each message, made of the published interface."""
    pool_module = pytest.importorskip("google.protobuf.descriptor_pool", reason="needs protobuf")
    from google.protobuf import descriptor_pb2, message_factory

    proto = descriptor_pb2.FileDescriptorProto(name="cni.proto", package="cni", syntax="proto3")
    field_proto = descriptor_pb2.FieldDescriptorProto
    for name, body in re.findall(r"message (\w+) \{(.*?)\}", INTERFACE, re.DOTALL):
        message = proto.message_type.add(name=name)
        for repeated, kind, field, number in re.findall(r"(repeated )?(\w[\w<>, ]*) (\w+) = (\d+);", body):
            added = message.field.add(name=field, number=int(number))
            added.label = field_proto.LABEL_REPEATED if repeated or "<" in kind else field_proto.LABEL_OPTIONAL
            if kind.startswith("map<"):
                entry = message.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                for key, at in (("key", 1), ("value", 2)):
                    entry.field.add(name=key, number=at, type=field_proto.TYPE_STRING, label=1)
                added.type, added.type_name = field_proto.TYPE_MESSAGE, f".cni.{name}.{entry.name}"
            elif kind[0].isupper():
                added.type, added.type_name = field_proto.TYPE_MESSAGE, f".cni.{kind}"
            else:
                added.type = getattr(field_proto, f"TYPE_{kind.upper()}")
    pool = pool_module.DescriptorPool()
    pool.Add(proto)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"cni.{name}")) for name in MESSAGES}


# --- bytes --------------------------------------------------------------------------------------------------------

ADD = AddRequest(
    interface_name="eth0",
    netns="/n",
    desired_host_interface_name="cali1",
    settings=ContainerSettings(True, 1440),
    container_ips=(IPConfig("10.0.0.5/26", "<nil>"), IPConfig("fd00::5/122", "fd00::1")),
    container_routes=("0.0.0.0/0", "::/0"),
    workload=WorkloadIDs(
        "n-k8s-p-eth0",
        "red",
        {"b": "2", "a": ""},
        {"x": "y"},
        "eth0",
        "n",
        "k8s",
        "p",
        (Port("dns", "UDP", 53, 30053, "10.1.1.1"),),
    ),
    dataplane_options={"type": "grpc", "socket": "s"},
)
ADD_FIELDS = [
    "0a 04" + b"eth0".hex(),
    "12 02" + b"/n".hex(),
    "1a 05" + b"cali1".hex(),
    "22 05 0801 10a00b",
    "2a 14 0a0b" + b"10.0.0.5/26".hex() + "1205" + b"<nil>".hex(),
    "2a 16 0a0b" + b"fd00::5/122".hex() + "1207" + b"fd00::1".hex(),
    "32 09" + b"0.0.0.0/0".hex(),
    "32 04" + b"::/0".hex(),
    "3a 57"
    "0a0c" + b"n-k8s-p-eth0".hex() + "1203" + b"red".hex() + "1a05 0a0161 1200 1a06 0a0162 120132"
    "2206 0a0178 120179 2a04" + b"eth0".hex() + "32016e 3a036b3873 420170"
    "4a1a 0a03" + b"dns".hex() + "1203" + b"UDP".hex() + "1835 20e5ea01 2a08" + b"10.1.1.1".hex(),
    "42 0b 0a06" + b"socket".hex() + "120173",
    "42 0c 0a04" + b"type".hex() + "1204" + b"grpc".hex(),
]
GOLDEN = [
    pytest.param(ADD_REQUEST, ADD, ADD_FIELDS, id="add"),
    pytest.param(ADD_REQUEST, AddRequest(), ["2200", "3a00"], id="empty-add"),
    pytest.param(
        ADD_REPLY,
        AddReply(True, "", "tap0", "02:00:00:00:00:01"),
        ["0801", "1a04" + b"tap0".hex(), "2211" + b"02:00:00:00:00:01".hex()],
        id="reply",
    ),
    pytest.param(ADD_REPLY, AddReply(), [], id="empty-reply"),
    pytest.param(
        DEL_REQUEST,
        DelRequest("eth0", "/n", {"extra": "1"}),
        ["0a04" + b"eth0".hex(), "1202" + b"/n".hex(), "1a0a 0a05" + b"extra".hex() + "120131"],
        id="del",
    ),
    pytest.param(DEL_REPLY, DelReply(error_message="no"), ["1202" + b"no".hex()], id="del-reply"),
]


@pytest.mark.parametrize(("message", "value", "fields"), GOLDEN)
def test_bytes(message: Message[Any], value: Any, fields: list[str]) -> None:
    data = bytes.fromhex("".join(fields))
    assert message.pack(value).hex(" ") == data.hex(" ")
    assert message.unpack(data) == value


@pytest.mark.parametrize(("message", "value", "fields"), GOLDEN)
def test_truncated_inside_a_field_is_a_value_error(message: Message[Any], value: Any, fields: list[str]) -> None:
    whole = 0
    for field in fields:
        data = bytes.fromhex("".join(fields))
        length = len(bytes.fromhex(field))
        for end in range(whole + 1, whole + length):
            with pytest.raises(ValueError, match="truncated"):
                message.unpack(data[:end])
        whole += length


UNKNOWN = [
    pytest.param("7801", id="varint"),
    pytest.param("79 0102030405060708", id="fixed64"),
    pytest.param("7a 03 010203", id="bytes"),
    pytest.param("7d 01020304", id="fixed32"),
    pytest.param("7b 0801 83 01 0a0178 84 01 7c", id="group in group"),
    pytest.param("f8ffffff0f 01", id="highest number"),
    pytest.param("0d 01020304", id="known number of another type"),
]


@pytest.mark.parametrize("extra", UNKNOWN)
def test_unknown_fields_are_passed_over(extra: str) -> None:
    reply = DelReply(True, "why")
    known = ["0801", "1203" + b"why".hex()]
    for at in range(3):
        data = bytes.fromhex("".join([*known[:at], extra, *known[at:]]))
        assert DEL_REPLY.unpack(data) == reply


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("00 01", id="number nought"),
        pytest.param("0c", id="end of no group"),
        pytest.param("7b 0801", id="group without end"),
        pytest.param("7b 84 01", id="end of another group"),
        pytest.param("7b" * 200 + "7c" * 200, id="groups without measure"),
        pytest.param("0e 01", id="wire type 6"),
        pytest.param("08 ffffffffffffffffffff01", id="number without end"),
        pytest.param("12 01 ff", id="not utf-8"),
        pytest.param("12 01 ff 12 01 61", id="not utf-8, though it does not count"),
        pytest.param("12 ffffffffffffffff7f", id="length beyond everything"),
    ],
)
def test_no_message(data: str) -> None:
    with pytest.raises(ValueError):
        DEL_REPLY.unpack(bytes.fromhex(data))


def test_the_last_of_a_scalar_counts_and_messages_are_merged() -> None:
    data = bytes.fromhex("0a0161 0a0162 2202 0801 2203 10dc0b 2a00 4206 0a0161 120131 4206 0a0161 120132 4200")
    assert ADD_REQUEST.unpack(data) == AddRequest(
        "b", settings=ContainerSettings(True, 1500), container_ips=(IPConfig(),), dataplane_options={"a": "2", "": ""}
    )


def test_negative_and_overlong_numbers() -> None:
    message = MESSAGES["ContainerSettings"]
    data = bytes.fromhex("10 ffffffffffffffffff01")
    assert message.pack(ContainerSettings(mtu=-1)) == data
    assert message.unpack(data) == ContainerSettings(mtu=-1)
    assert message.unpack(bytes.fromhex("10 ffffffffffffffffff7f")) == ContainerSettings(mtu=-1)
    assert message.unpack(bytes.fromhex("08 8001 10 8080808080 01")) == ContainerSettings(True, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ContainerSettings", ContainerSettings(mtu=1 << 31)),
        ("Port", Port(port=-1)),
        ("Port", Port(host_port=1 << 32)),
        ("Port", Port(name="\ud800")),
    ],
)
def test_what_does_not_fit_is_a_value_error(name: str, value: Any) -> None:
    with pytest.raises(ValueError):
        MESSAGES[name].pack(value)


# --- properties, and the reference implementation -----------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
maps = st.dictionaries(texts, texts, max_size=3)
ports = st.builds(Port, texts, texts, st.integers(0, 2**32 - 1), st.integers(0, 65535), texts)
workloads = st.builds(
    WorkloadIDs, texts, texts, maps, maps, texts, texts, texts, texts, st.lists(ports, max_size=3).map(tuple)
)
container_settings = st.builds(ContainerSettings, st.booleans(), st.integers(-(2**31), 2**31 - 1))
ip_configs = st.builds(IPConfig, texts, texts)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "AddRequest": st.builds(
        AddRequest,
        texts,
        texts,
        texts,
        container_settings,
        st.lists(ip_configs, max_size=3).map(tuple),
        st.lists(texts, max_size=3).map(tuple),
        workloads,
        maps,
    ),
    "ContainerSettings": container_settings,
    "IPConfig": ip_configs,
    "WorkloadIDs": workloads,
    "Port": ports,
    "AddReply": st.builds(AddReply, st.booleans(), texts, texts, texts),
    "DelRequest": st.builds(DelRequest, texts, texts, maps),
    "DelReply": st.builds(DelReply, st.booleans(), texts),
}


def of_reference(message: Message[Any], theirs: Any) -> Any:
    """Our value of the reference implementation's."""
    found = {}
    for name, shape in message.fields.values():
        value = getattr(theirs, name)
        inner = getattr(shape, "type", None)
        if hasattr(value, "items"):
            found[name] = dict(value)
        elif isinstance(inner, Message):
            many = not hasattr(value, "DESCRIPTOR")
            found[name] = tuple(of_reference(inner, one) for one in value) if many else of_reference(inner, value)
        else:
            found[name] = value if isinstance(value, str | int) else tuple(value)
    return message.of(**found)


def test_every_message_is_tested() -> None:
    assert set(VALUES) == set(MESSAGES) == set(re.findall(r"message (\w+)", INTERFACE))


@pytest.mark.parametrize("name", VALUES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_round_trip_through_the_reference(reference: dict[str, Any], name: str, data: st.DataObject) -> None:
    value = data.draw(VALUES[name])
    packed = MESSAGES[name].pack(value)
    theirs = reference[name].FromString(packed)
    assert of_reference(MESSAGES[name], theirs) == value
    again = theirs.SerializeToString()
    assert MESSAGES[name].unpack(again) == value
    assert sorted(again) == sorted(packed)  # the order of a map's entries is free


@pytest.mark.parametrize("name", VALUES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    value = data.draw(VALUES[name])
    assert MESSAGES[name].unpack(MESSAGES[name].pack(value)) == value


WITH_MAPS = {"AddRequest", "DelRequest", "WorkloadIDs"}
"""Of an entry with an unknown field inside implementations make different things: Go's takes it, this one does not."""


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_garbage_is_read_or_refused_as_the_reference_does(reference: dict[str, Any], data: st.DataObject) -> None:
    """Messages with some bytes changed, added or lost. ValueError is the only error there is."""
    name = data.draw(st.sampled_from(sorted(VALUES)))
    message = MESSAGES[name]
    packed = bytearray(message.pack(data.draw(VALUES[name])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(packed)))
        packed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        theirs = of_reference(message, reference[name].FromString(bytes(packed)))
    except Exception:  # DecodeError, of a package that may be absent
        with pytest.raises(ValueError):
            message.unpack(bytes(packed))
    else:
        ours = message.unpack(bytes(packed))
        if name not in WITH_MAPS:
            assert ours == theirs


@given(st.binary(max_size=60))
def test_garbage_is_a_value_error_and_nothing_else(data: bytes) -> None:
    for read in (ADD_REQUEST.unpack, lambda data: list(read_fields(data))):
        try:
            read(data)
        except ValueError:
            pass
