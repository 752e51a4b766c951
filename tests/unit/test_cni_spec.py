"""The protocol on values: which call is refused with what, and how a result is written in each version."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tortie
from tortie.base.errors import ConfigError, NotFound, Unavailable
from tortie.cni.conflist import default_network, load_conflist, network_named
from tortie.cni.result import FAMILIES, Address, Dns, Interface, Result, Route, prev_result
from tortie.cni.spec import (
    SUPPORTED_VERSIONS,
    CniError,
    Code,
    about,
    as_cni_error,
    at_least,
    check_container_id,
    check_ifname,
    child_error,
    format_json,
    load_args,
    lookup,
    member,
    own_netns_error,
    read_call,
    read_json,
    version_reply,
)

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "ctr1",
    "CNI_NETNS": "/run/netns/a",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
}
CONF = {"cniVersion": "1.1.0", "name": "net1", "type": "static"}
ALL = " ".join(f'"{version}"' for version in SUPPORTED_VERSIONS)
UNMARSHALL = "error unmarshall network config: "


def call(conf=CONF, supported=SUPPORTED_VERSIONS, **env):
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    named = {f"CNI_{name.upper()}": value for name, value in env.items()}
    return read_call(ENV | named, stdin, supported)


def refusal(*args, **kwargs):
    with pytest.raises(CniError) as caught:
        call(*args, **kwargs)
    return caught.value.code, caught.value.msg, caught.value.details


# --- The call -------------------------------------------------------------------------------------------------------


def test_a_call_holds_everything_the_plugin_was_given():
    got = call(args="IgnoreUnknown=1;K8S_POD_NAME=a;odd;x=y=z", netns_override="TRUE")
    assert (got.command, got.container_id, got.netns, got.ifname) == ("ADD", "ctr1", "/run/netns/a", "eth0")
    assert got.args == {"IgnoreUnknown": "1", "K8S_POD_NAME": "a"}
    assert got.args_text == "IgnoreUnknown=1;K8S_POD_NAME=a;odd;x=y=z"
    assert got.path == ("/opt/cni/bin", "/usr/lib/cni")
    assert (got.network, got.cni_version, got.conf) == ("net1", "1.1.0", CONF)
    assert got.stdin == json.dumps(CONF).encode()
    assert got.netns_override
    assert not call(netns_override="0").netns_override


def test_keys_are_found_in_any_case_and_a_missing_version_is_the_first():
    got = call({"NAME": "net1", "IPAM": {"SUBNET": "10.0.0.0/8"}})
    assert (got.network, got.cni_version) == ("net1", "0.1.0")
    assert lookup(lookup(got.conf, "ipam"), "subnet") == "10.0.0.0/8"
    assert call({"CNIVERSION": "0.4.0", "name": "n"}).cni_version == "0.4.0"


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_verbs_without_an_attachment_do_not_look_at_one(command):
    got = call(command=command, containerid="a b", ifname="../e")
    assert (got.command, got.container_id, got.ifname, got.netns) == (command, "", "", "")


def test_version_needs_nothing():
    assert read_call({"CNI_COMMAND": "VERSION"}, b"").command == "VERSION"


def test_del_needs_no_netns():
    assert call(command="DEL", netns="").netns == ""


@pytest.mark.parametrize(
    ("env", "missing"),
    [
        ({"netns": "", "ifname": ""}, "CNI_NETNS,CNI_IFNAME"),
        ({"containerid": "", "path": ""}, "CNI_CONTAINERID,CNI_PATH"),
        ({"command": "DEL", "netns": "", "ifname": ""}, "CNI_IFNAME"),
        ({"command": "CHECK", "netns": ""}, "CNI_NETNS"),
        ({"command": "GC", "path": "", "containerid": ""}, "CNI_PATH"),
        ({"command": "STATUS", "path": ""}, "CNI_PATH"),
        ({"command": ""}, "CNI_COMMAND"),
    ],
)
def test_what_is_missing_is_reported_together(env, missing):
    assert refusal(**env) == (4, f"required env variables [{missing}] missing", "")


TOO_LONG = (4, "interface name is too long", "interface name should be less than 16 characters")
ODD_CHARACTERS = (4, "interface name contains / or : or whitespace characters", "")


@pytest.mark.parametrize(
    ("env", "error"),
    [
        *(({"containerid": bad}, (4, "invalid characters in containerID", bad)) for bad in ("a b", "_a", "-a", ".a")),
        *(({"containerid": bad}, (4, "invalid characters in containerID", bad)) for bad in ("a/b", "ctr1\n", "é")),
        ({"ifname": "this_is_too_long_"}, TOO_LONG),
        ({"ifname": "é" * 8}, TOO_LONG),
        ({"ifname": "."}, (4, "interface name is . or ..", "")),
        ({"ifname": ".."}, (4, "interface name is . or ..", "")),
        ({"ifname": "../e"}, ODD_CHARACTERS),
        ({"ifname": "a:b"}, ODD_CHARACTERS),
        ({"ifname": "a b"}, ODD_CHARACTERS),
        ({"ifname": "a\t"}, ODD_CHARACTERS),
        # What is there is looked at before what is missing is reported, and the id before the name.
        ({"containerid": "a b", "netns": "", "ifname": "../e"}, (4, "invalid characters in containerID", "a b")),
        ({"netns": "", "ifname": "../e"}, ODD_CHARACTERS),
        ({"command": "FOO", "containerid": "a b"}, (4, "unknown CNI_COMMAND: FOO", "")),
        ({"command": "add"}, (4, "unknown CNI_COMMAND: add", "")),
    ],
)
def test_a_bad_environment_is_refused(env, error):
    assert refusal(**env) == error


def test_names_of_fifteen_bytes_and_called_through_the_library():
    assert call(ifname="exactly_fifteen").ifname == "exactly_fifteen"
    with pytest.raises(CniError, match="missing containerID") as caught:
        check_container_id("")
    assert caught.value.code == 3
    with pytest.raises(CniError, match="interface name is empty") as caught:
        check_ifname("")
    assert caught.value.code == 4


@pytest.mark.parametrize(
    ("stdin", "error"),
    [
        (b"", (6, UNMARSHALL + "unexpected end of JSON input", "")),
        (b'{"name": "n"', (6, UNMARSHALL + "unexpected end of JSON input", "")),
        (b'{"name": "n', (6, UNMARSHALL + "unexpected end of JSON input", "")),
        (b"x", (6, UNMARSHALL + "invalid character 'x' looking for beginning of value at line 1 column 1", "")),
        (b"[NaN]", (6, UNMARSHALL + "invalid character 'N' looking for beginning of value", "")),
        (b"[" * 100_000, (6, UNMARSHALL + "exceeded max depth", "")),
        (b"[]", (6, UNMARSHALL + "json: cannot unmarshal array into field (whole configuration) of type object", "")),
        (b'{"name": 5}', (6, UNMARSHALL + "json: cannot unmarshal number into field name of type string", "")),
        (
            b'{"name": "n", "cniVersion": true}',
            (6, UNMARSHALL + "json: cannot unmarshal bool into field cniVersion of type string", ""),
        ),
        (b"null", (7, "missing network name", "")),
        (b"{}", (7, "missing network name", "")),
        (b'{"name": ""}', (7, "missing network name", "")),
        (b'{"name": "bad name"}', (7, "invalid characters found in network name", "bad name")),
        (b'{"name": "n", "Name": "b c"}', (7, "invalid characters found in network name", "b c")),
        (b'{"name": "n", "Name": "o", "name": "b c"}', (7, "invalid characters found in network name", "b c")),
    ],
)
def test_a_bad_configuration_is_refused(stdin, error):
    assert refusal(stdin) == error


def test_an_unknown_verb_is_told_of_bad_stdin_first():
    assert refusal(b"", command="FOO")[0] == Code.DECODING_FAILURE
    assert refusal(b"{}", command="FOO")[0] == Code.INVALID_CONFIG


@pytest.mark.parametrize(
    ("command", "version", "supported", "error"),
    [
        ("ADD", "9.9.9", None, (1, "incompatible CNI versions", f'config is "9.9.9", plugin supports [{ALL}]')),
        ("DEL", "x", None, (1, "incompatible CNI versions", f'config is "x", plugin supports [{ALL}]')),
        ("CHECK", "x", None, (6, 'invalid version "x": its parts must be numbers', "")),
        ("GC", "1.1.0.0", None, (6, 'invalid version "1.1.0.0": too many parts', "")),
        ("CHECK", "0.3.1", None, (1, "config version does not allow CHECK", "")),
        ("CHECK", "", None, (1, "config version does not allow CHECK", "")),
        ("GC", "1.0.0", None, (1, "config version does not allow GC", "")),
        ("STATUS", "1.0.0", None, (1, "config version does not allow STATUS", "")),
        ("CHECK", "9.9.9", None, (1, "plugin version does not allow CHECK", "")),
        ("GC", "1.1.0", SUPPORTED_VERSIONS[:-1], (1, "plugin version does not allow GC", "")),
        ("STATUS", "1.1.0", SUPPORTED_VERSIONS[:-1], (1, "plugin version does not allow STATUS", "")),
        ("CHECK", "0.4.1", None, (1, "incompatible CNI versions", f'config is "0.4.1", plugin supports [{ALL}]')),
        ("ADD", "", ("0.4.0",), (1, "incompatible CNI versions", 'config is "", plugin supports ["0.4.0"]')),
    ],
)
def test_a_version_is_refused(command, version, supported, error):
    assert refusal(CONF | {"cniVersion": version}, supported or SUPPORTED_VERSIONS, command=command) == error


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_every_version_is_served(version):
    assert call(CONF | {"cniVersion": version}).cni_version == version


def test_versions_compare_as_numbers():
    assert at_least("0.10.0", "0.4.0")
    assert at_least("1.0", "1.0.0")
    assert not at_least("", "0.2.0")


def test_version_and_about_texts():
    listed = '"0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"'
    assert version_reply() == f'{{"cniVersion":"1.1.0","supportedVersions":[{listed}]}}\n'
    assert version_reply(["0.4.0"]) == '{"cniVersion":"1.1.0","supportedVersions":["0.4.0"]}\n'
    assert about("static", "1", ["0.1.0", "0.2.0"]) == (
        "CNI static plugin version 1\nCNI protocol versions supported: 0.1.0, 0.2.0\n"
    )


# --- Errors and JSON ------------------------------------------------------------------------------------------------


def test_an_error_prints_as_go_prints_it():
    error = CniError(Code.TRY_AGAIN_LATER, 'a <b> & "c"\u2028', "é")
    assert error.json() == (
        '{\n    "code": 11,\n    "msg": "a \\u003cb\\u003e \\u0026 \\"c\\"\\u2028",\n    "details": "é"\n}'
    )
    assert CniError(7, "m").json() == '{\n    "code": 7,\n    "msg": "m"\n}'
    assert str(CniError(7, "m", "d", "bridge")) == 'plugin "bridge": m; d'
    assert own_netns_error().code == 8


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_what_is_printed_can_be_read_and_encoded(value):
    assert read_json(format_json(value).encode()) == value


def test_half_a_surrogate_becomes_a_character():
    assert format_json(read_json(b'"\\ud800<"')).encode() == '"\ufffd\\u003c"'.encode()


def test_errors_get_the_code_of_what_the_caller_can_do():
    original = CniError(50, "no")
    assert as_cni_error(original) is original
    seen = [as_cni_error(error) for error in (ConfigError("m", "f"), Unavailable("u"), OSError(2, "gone"), KeyError())]
    assert [(e.code, e.msg) for e in seen] == [(7, "f: m"), (11, "u"), (999, "[Errno 2] gone"), (999, "KeyError")]


def test_how_a_plugin_ended_becomes_its_error():
    said = child_error("p", b'{"Code": 7, "msg": "m", "details": "d"}', b"noise", "exit status 1")
    assert (said.code, said.msg, said.details, said.plugin) == (7, "m", "d", "p")
    silent = child_error("p", b"", b"", "signal: Killed")
    assert (silent.code, silent.msg) == (999, "netplugin failed with no error message: signal: Killed")
    noisy = child_error("p", b"\n", b"a\nb\n", "exit status 2")
    assert noisy.msg == 'netplugin failed: "a\\nb": exit status 2'
    for garbage in (b"oops", b"[]", b'{"code": "7"}'):
        text = child_error("p", garbage, b"", "exit status 1").msg
        assert text.startswith("netplugin failed but error parsing its diagnostic message ")


def test_members_have_types_and_null_is_unset():
    conf = read_json(b'{"MTU": 5, "mtu": null, "x": "y", "on": true, "rate": 2}')
    assert member(conf, "mtu", int, 0) == 5
    assert member(conf, "none", str, "default") == "default"
    assert member(conf, "rate", float, 0.0) == 2
    for key, kind, text in (
        ("x", int, "failed to load netconf: json: cannot unmarshal string into field x of type int"),
        ("on", int, "failed to load netconf: json: cannot unmarshal bool into field on of type int"),
        ("mtu", dict, "failed to load netconf: json: cannot unmarshal number into field mtu of type object"),
    ):
        with pytest.raises(CniError) as caught:
            member(conf, key, kind, None)
        assert (caught.value.code, caught.value.msg) == (999, text)


# --- CNI_ARGS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ("", {}),
        ("IP=10.0.0.1", {"IP": "10.0.0.1"}),
        ("IP=1;IP=2", {"IP": "2"}),
        ("IgnoreUnknown=1;FOO=BAR;IP=", {"IP": ""}),
        ("FOO=BAR;IgnoreUnknown=TRUE", {}),
    ],
)
def test_args_are_read(text, args):
    assert load_args(text, {"IP"}) == args


@pytest.mark.parametrize(
    ("text", "msg"),
    [
        ("FOO", 'ARGS: invalid pair "FOO"'),
        ("IP=1;", 'ARGS: invalid pair ""'),
        ("IP=a=b", 'ARGS: invalid pair "IP=a=b"'),
        ("FOO=BAR", 'ARGS: unknown args ["FOO=BAR"]'),
        ("ip=1;FOO=BAR;IgnoreUnknown=0", 'ARGS: unknown args ["ip=1" "FOO=BAR"]'),
        (
            "IgnoreUnknown=yes",
            'ARGS: error parsing value of pair "IgnoreUnknown=yes": boolean unmarshal error: invalid input yes',
        ),
    ],
)
def test_args_are_refused(text, msg):
    with pytest.raises(CniError) as caught:
        load_args(text, {"IP"})
    assert (caught.value.code, caught.value.msg) == (999, msg)


# --- Results --------------------------------------------------------------------------------------------------------

DUAL = Result(
    interfaces=(Interface("br0", mac="00:00:00:00:00:01"), Interface("eth0", sandbox="/run/netns/a", mtu=1400)),
    ips=(
        Address("10.1.2.2/24", "10.1.2.1", 1),
        Address("10.1.2.3/24", "", 0),
        Address("fd00::2/64", "", 1),
    ),
    routes=(Route("0.0.0.0/0"), Route("fd01::/64", "fd00::1", mtu=1300, table=0, scope=0)),
)


def test_the_oldest_versions_keep_one_address_of_each_family_with_its_routes():
    for version in ("0.1.0", "0.2.0"):
        assert DUAL.dump(version) == {
            "cniVersion": version,
            "ip4": {"ip": "10.1.2.2/24", "gateway": "10.1.2.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "fd01::/64", "gw": "fd00::1"}]},
            "dns": {},
        }
    assert DUAL.dump()["cniVersion"] == "0.1.0"


@pytest.mark.parametrize("version", FAMILIES[1])
def test_the_middle_versions_number_the_families(version):
    assert json.dumps(DUAL.dump(version)) == json.dumps(
        {
            "cniVersion": version,
            "interfaces": [
                {"name": "br0", "mac": "00:00:00:00:00:01"},
                {"name": "eth0", "mtu": 1400, "sandbox": "/run/netns/a"},
            ],
            "ips": [
                {"version": "4", "interface": 1, "address": "10.1.2.2/24", "gateway": "10.1.2.1"},
                {"version": "4", "interface": 0, "address": "10.1.2.3/24"},
                {"version": "6", "interface": 1, "address": "fd00::2/64"},
            ],
            "routes": [
                {"dst": "0.0.0.0/0"},
                {"dst": "fd01::/64", "gw": "fd00::1", "mtu": 1300, "table": 0, "scope": 0},
            ],
            "dns": {},
        }
    )


@pytest.mark.parametrize("version", FAMILIES[2])
def test_the_newest_versions_leave_out_what_is_empty(version):
    assert Result().dump(version) == {"cniVersion": version}
    assert Result(dns=Dns(search=("a", "b"))).dump(version) == {"cniVersion": version, "dns": {"search": ["a", "b"]}}
    assert DUAL.dump(version)["ips"][1] == {"interface": 0, "address": "10.1.2.3/24"}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", ""])
def test_a_result_without_addresses_cannot_be_said_in_the_oldest_versions(version):
    with pytest.raises(CniError) as caught:
        Result(interfaces=(Interface("eth0"),)).dump(version)
    assert (caught.value.code, caught.value.msg) == (999, "cannot convert: no valid IP addresses")


def test_going_up_from_the_oldest_gives_addresses_without_interfaces():
    old = {"ip4": {"IP": "10.1.2.2/24", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.9"}]}, "dns": {"domain": "d"}}
    assert Result.load(old, "0.2.0").dump("1.0.0") == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.1.2.2/24"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.9"}],
        "dns": {"domain": "d"},
    }


def test_no_result_is_an_empty_one_and_a_result_of_an_unknown_version_is_none():
    assert Result.load(None, "1.0.0") == Result()
    assert Result.load({}) == Result()
    for doc, version in (({"cniVersion": "2.0.0"}, "1.0.0"), ({}, "9.9.9")):
        with pytest.raises(CniError, match="unsupported CNI result version") as caught:
            Result.load(doc, version)
        assert caught.value.code == 1
    with pytest.raises(CniError, match="unsupported CNI result version"):
        Result().dump("2.0.0")


@pytest.mark.parametrize(
    ("doc", "why"),
    [
        ({"ips": [{"address": 5}]}, "json: cannot unmarshal number into field ips[0].address of type string"),
        ({"ips": [{}]}, "ips[0] has no address"),
        ({"ips": {}}, "json: cannot unmarshal object into field ips of type array"),
        ({"ips": ["10.0.0.1/8"]}, "json: cannot unmarshal string into field ips[0] of type object"),
        (
            {"ips": [{"address": "a", "interface": True}]},
            "json: cannot unmarshal bool into field ips[0].interface of type",
        ),
        ({"routes": [{"gw": "a"}]}, "routes[0] has no dst"),
        ({"dns": {"search": [1]}}, "json: cannot unmarshal number into field dns.search[0] of type string"),
        ({"cniVersion": 1}, "json: cannot unmarshal number into field cniVersion of type string"),
    ],
)
def test_what_is_no_result_is_refused_with_its_place(doc, why):
    with pytest.raises(CniError) as caught:
        Result.load(doc, "1.0.0")
    assert caught.value.code == 6
    assert why in caught.value.msg


def test_unknown_members_survive_where_they_were():
    doc = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "vendor": {"a": 1}}],
        "ips": [{"address": "10.0.0.1/8", "note": "x"}],
        "routes": [{"dst": "0.0.0.0/0", "weight": 3}],
        "dns": {"domain": "d", "more": []},
        "top": "t",
    }
    assert Result.load(doc).dump("1.0.0") == doc
    middle = Result.load(doc).dump("0.4.0")
    assert middle["ips"] == [{"version": "4", "address": "10.0.0.1/8", "note": "x"}]
    assert Result.load(middle).dump("1.0.0") == doc


names = st.text("abc", min_size=1, max_size=3)
texts = st.just("") | names
extras = st.dictionaries(st.sampled_from(["x-one", "x-two"]), st.none() | st.integers(), max_size=1)
addresses = st.builds(
    Address, st.sampled_from(["10.0.0.1/8", "fd00::1/64"]), texts, st.none() | st.integers(0, 3), extra=extras
)
results = st.builds(
    Result,
    st.lists(st.builds(Interface, names, texts, st.integers(0, 9), texts, texts, texts, extras), max_size=2).map(tuple),
    st.lists(addresses, max_size=3).map(tuple),
    st.lists(
        st.builds(
            Route,
            st.sampled_from(["0.0.0.0/0", "::/0"]),
            texts,
            st.integers(0, 9),
            table=st.none() | st.integers(0, 3),
            extra=extras,
        ),
        max_size=3,
    ).map(tuple),
    st.builds(Dns, st.lists(names).map(tuple), texts, extra=extras),
    extras,
)


@settings(max_examples=40, deadline=None)
@given(results, st.sampled_from(FAMILIES[1] + FAMILIES[2]))
def test_every_version_since_0_3_0_carries_a_result_there_and_back(result, version):
    doc = result.dump(version)
    assert doc["cniVersion"] == version
    assert Result.load(json.loads(json.dumps(doc))) == result


@settings(max_examples=40, deadline=None)
@given(results, st.sampled_from(FAMILIES[1] + FAMILIES[2]), st.sampled_from(SUPPORTED_VERSIONS))
def test_a_detour_through_a_newer_version_changes_nothing(result, newer, version):
    if version in FAMILIES[0] and not result.ips:
        return
    assert Result.load(result.dump(newer)).dump(version) == result.dump(version)


# --- prevResult -----------------------------------------------------------------------------------------------------


def previous(version, doc):
    return prev_result(call(CONF | {"cniVersion": version, "prevResult": doc}))


def test_a_previous_result_may_be_absent_or_leave_its_version_to_the_configuration():
    assert prev_result(call()) is None
    assert previous("1.0.0", None) is None
    assert previous("1.0.0", {"ips": [{"address": "10.0.0.1/8"}]}) == Result(ips=(Address("10.0.0.1/8"),))
    assert previous("0.2.0", {"ip4": {"ip": "10.0.0.1/8"}}) == Result(ips=(Address("10.0.0.1/8"),))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_previous_result_is_of_the_configurations_family(family):
    for version in SUPPORTED_VERSIONS:
        conf_version = family[-1]
        doc = {"cniVersion": version}
        if version in family:
            assert previous(conf_version, doc) == Result()
            continue
        with pytest.raises(CniError) as caught:
            previous(conf_version, doc)
        known = f"result type supports [{' '.join(family)}]"
        assert caught.value.code == 999
        assert caught.value.msg == (f'could not parse prevResult: {known} but unmarshalled CNIVersion is "{version}"')


@pytest.mark.parametrize("doc", ["x", [], {"ips": 5}, {"cniVersion": 5}])
def test_a_previous_result_that_is_none_is_refused(doc):
    with pytest.raises(CniError, match="could not parse prevResult: cannot decode result: json: ") as caught:
        previous("1.0.0", doc)
    assert caught.value.code == 999


# --- Network lists --------------------------------------------------------------------------------------------------


def put(directory, name, doc):
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(doc if isinstance(doc, str) else json.dumps(doc))
    return path


def test_a_list_is_read_with_the_plugins_beside_it(tmp_path):
    listed = {"name": "n", "cniVersion": "1.0.0", "disableCheck": "TRUE", "plugins": [{"type": "a"}]}
    path = put(tmp_path, "10-n.conflist", listed)
    put(tmp_path, "n/2.conf", {"type": "c"})
    put(tmp_path, "n/1.conf", {"Type": "b"})
    got = load_conflist(path)
    assert (got.name, got.version, got.disable_check, got.disable_gc) == ("n", "1.0.0", True, False)
    assert [lookup(plugin, "type") for plugin in got.plugins] == ["a", "b", "c"]
    assert got.source == path.read_bytes()
    alone = load_conflist(put(tmp_path, "10-n.conflist", listed | {"loadOnlyInlinedPlugins": True}))
    assert [plugin["type"] for plugin in alone.plugins] == ["a"]


def test_a_single_plugin_is_a_list_of_one(tmp_path):
    got = load_conflist(put(tmp_path, "x.conf", {"name": "n", "type": "ipvlan", "master": "eth0"}))
    assert (got.name, got.version, [dict(plugin) for plugin in got.plugins]) == (
        "n",
        "",
        [{"name": "n", "type": "ipvlan", "master": "eth0"}],
    )
    assert json.loads(got.source)["plugins"][0]["master"] == "eth0"


@pytest.mark.parametrize(
    ("more", "version"),
    [
        ({}, ""),
        ({"cniVersion": "0.4.0"}, "0.4.0"),
        ({"cniVersions": ["0.4.0", "1.1.0", "9.0.0"]}, "1.1.0"),
        ({"cniVersion": "1.0.0", "cniVersions": ["0.4.0"]}, "1.0.0"),
        ({"cniVersion": "0.10.0", "cniVersions": ["0.4.0"]}, "0.10.0"),
    ],
)
def test_the_newest_version_both_speak_is_taken(more, version):
    assert load_conflist({"name": "n", "plugins": [{"type": "a"}]} | more).version == version


GOOD = {"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "a"}]}


@pytest.mark.parametrize(
    ("doc", "error"),
    [
        ('{"name": "n"', "unexpected end of JSON input"),
        ("[]", "must be a JSON object"),
        ({"NAME": "n", "plugins": [{"type": "a"}]}, "name: missing network name"),
        (GOOD | {"name": "../n"}, "name: invalid characters found in network name; ../n"),
        (GOOD | {"name": 5}, "name: must be a string"),
        (GOOD | {"cniVersion": "x"}, 'cniVersion: invalid version "x": its parts must be numbers'),
        (GOOD | {"cniVersions": "1.0.0"}, "cniVersions: must be a list of versions"),
        (GOOD | {"cniVersion": "", "cniVersions": ["2.0.0"]}, "cniVersions: none of them is 1.1.0 or older"),
        (GOOD | {"disableCheck": "yes"}, 'disableCheck: must be true or false, not "yes"'),
        (GOOD | {"disableGC": 1}, 'disableGC: must be true or false, not "1"'),
        (GOOD | {"plugins": []}, "plugins: must be a list of at least one plugin"),
        (GOOD | {"plugins": ["a"]}, "plugins[0]: must be an object"),
        (GOOD | {"plugins": [{"type": "a"}, {"type": ""}]}, "plugins[1].type: must name the plugin's executable"),
        (
            GOOD | {"plugins": [{"type": "a", "capabilities": {"x": "yes"}}]},
            "plugins[0].capabilities: must be an object of true and false",
        ),
        ({"name": "n"}, "plugins: a network needs at least one plugin"),
        (
            {"name": "n", "loadOnlyInlinedPlugins": True},
            "plugins: missing, and loadOnlyInlinedPlugins leaves no other place for them",
        ),
    ],
)
def test_a_bad_list_is_refused_with_file_and_field(tmp_path, doc, error):
    path = put(tmp_path, "10-n.conflist", doc)
    with pytest.raises(ConfigError) as caught:
        load_conflist(path)
    assert str(caught.value) == f"{path}: {error}"


def test_a_bad_plugin_beside_a_list_is_refused_with_its_own_file(tmp_path):
    path = put(tmp_path, "10-n.conflist", GOOD)
    beside = put(tmp_path, "n/1.conf", {"typ": "a"})
    with pytest.raises(ConfigError) as caught:
        load_conflist(path)
    assert str(caught.value) == f"{path}: {beside}: type: must name the plugin's executable"
    with pytest.raises(ConfigError, match=r"none\.conf: No such file or directory"):
        load_conflist(tmp_path / "none.conf")


def test_networks_are_found_lists_first_and_the_default_is_the_first_file(tmp_path):
    put(tmp_path, "30.conflist", GOOD | {"cniVersion": "1.0.0"})
    put(tmp_path, "10.conf", {"name": "n", "type": "b"})
    put(tmp_path, "20.json", {"name": "m", "type": "b"})
    put(tmp_path, "00.txt", "not read")
    assert network_named("n", tmp_path).plugins[0]["type"] == "a"
    assert network_named("m", tmp_path).plugins[0]["type"] == "b"
    assert default_network(tmp_path).plugins[0]["type"] == "b"
    with pytest.raises(NotFound, match='no network "x" in '):
        network_named("x", tmp_path)
    with pytest.raises(NotFound, match="no network configuration in "):
        default_network(tmp_path / "none")


def test_the_protocol_costs_a_plugin_no_heavy_import():
    source = str(Path(tortie.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); import tortie.cni.result; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tortie.cni.spec" in loaded
    heavy = {"dataclasses", "enum", "json", "re", "socket", "subprocess", "typing", "msgspec", "logging"}
    assert not loaded & (heavy | {"asyncio", "ipaddress", "pathlib", "tempfile"})
    assert {name for name in loaded if name.startswith("tortie.")} == {
        *("tortie.base", "tortie.base.errors", "tortie.base.record"),
        *("tortie.cni", "tortie.cni.gojson", "tortie.cni.spec", "tortie.cni.result"),
    }


@pytest.mark.parametrize(
    "conf", [r'{"name": "n", "type": "t", "bridge": "a\u0000b"}', r'{"name": "n", "x": [{"\u0000": 1}]}']
)
def test_a_nul_character_is_refused_wherever_it_is(conf):
    with pytest.raises(CniError, match="a string has a NUL character in it"):
        read_call(ENV, conf.encode())


def test_the_spelling_of_a_nul_character_is_none():
    call = read_call(ENV, rb'{"name": "n", "type": "t", "comment": "a\\u0000b"}')
    assert call.conf["comment"] == r"a\u0000b"
