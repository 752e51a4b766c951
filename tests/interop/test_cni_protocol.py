"""Our reading of the protocol against the Go plugins': the same call gets the same answer."""

import json
import subprocess
from pathlib import Path

import pytest

from tortie.cni.result import Result, prev_result
from tortie.cni.spec import CniError, about, format_json, load_args, read_call

GO = Path("/usr/lib/cni")
pytestmark = pytest.mark.skipif(not (GO / "static").exists(), reason="no Go plugins in /usr/lib/cni")

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "ctr1",
    "CNI_NETNS": "/run/netns/none",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": str(GO),
    "CNI_NETNS_OVERRIDE": "1",
}
IPAM = {
    "type": "static",
    "addresses": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd01::/64", "gw": "fd00::1"}],
    "dns": {"nameservers": ["1.1.1.1"], "domain": "a<b>&é"},
}
CONF = {"cniVersion": "1.0.0", "name": "net1", "type": "static", "ipam": IPAM}


def go(plugin, env, stdin):
    return subprocess.run([GO / plugin], env=env, input=stdin, capture_output=True, check=False, timeout=20)


@pytest.fixture(scope="module")
def versions():
    """Those of the plugins installed here, which may be older than the protocol we speak."""
    return json.loads(go("static", {"CNI_COMMAND": "VERSION"}, b"{}").stdout)["supportedVersions"]


def ours(env, stdin, versions):
    """The error object we would answer with, or None."""
    try:
        call = read_call(env, stdin, versions)
        load_args(call.args_text, {"IP", "GATEWAY"})
        prev_result(call)
    except CniError as error:
        return error.json()
    return None


@pytest.mark.parametrize(
    "env",
    [
        {"CNI_NETNS": "", "CNI_IFNAME": ""},
        {"CNI_CONTAINERID": "", "CNI_PATH": ""},
        {"CNI_COMMAND": "DEL", "CNI_NETNS": "", "CNI_PATH": ""},
        {"CNI_COMMAND": "DEL", "CNI_NETNS": ""},
        {"CNI_COMMAND": "CHECK", "CNI_NETNS": ""},
        {"CNI_CONTAINERID": "a b"},
        {"CNI_CONTAINERID": "-a"},
        {"CNI_CONTAINERID": "a\n"},
        {"CNI_IFNAME": "this_is_too_long_"},
        {"CNI_IFNAME": "éééééééé"},
        {"CNI_IFNAME": "exactly_fifteen"},
        {"CNI_IFNAME": ".."},
        {"CNI_IFNAME": "../e"},
        {"CNI_IFNAME": "a:b"},
        {"CNI_IFNAME": "a\u2003b"},
        {"CNI_ARGS": "FOO"},
        {"CNI_ARGS": "IP=10.0.0.1/8;"},
        {"CNI_ARGS": "FOO=BAR"},
        {"CNI_ARGS": "ip=x;FOO=BAR"},
        {"CNI_ARGS": "IgnoreUnknown=1;FOO=BAR"},
        {"CNI_ARGS": "FOO=BAR;IgnoreUnknown=TRUE"},
        {"CNI_ARGS": "IgnoreUnknown=yes"},
        {},
    ],
)
def test_an_environment_is_answered_as_go_answers_it(env, versions):
    """One fault at a time: in which order the Go framework looks for several has changed between its versions."""
    stdin = json.dumps(CONF).encode()
    done = go("static", ENV | env, stdin)
    if done.returncode == 0:
        assert ours(ENV | env, stdin, versions) is None
    else:
        assert ours(ENV | env, stdin, versions) == done.stdout.decode()


@pytest.mark.parametrize(
    ("command", "stdin"),
    [
        ("ADD", b""),
        ("FOO", b""),
        ("FOO", b'{"name":"n"}'),
        ("ADD", b'{"name":"x"'),
        ("ADD", b'{"name":"x'),
        ("ADD", b"null"),
        ("ADD", b"{}"),
        ("ADD", b'{"name":"bad name"}'),
        ("ADD", b'{"name":"a","Name":"b c"}'),
        ("ADD", b'{"name":"a","Name":"b c","name":"d e"}'),
        ("ADD", b'{"name":"n","cniVersion":"9.9.9"}'),
        ("DEL", b'{"name":"n","cniVersion":"x"}'),
        ("CHECK", b'{"name":"n","cniVersion":"0.3.1"}'),
        ("CHECK", b'{"name":"n"}'),
        ("CHECK", b'{"name":"n","cniVersion":"1"}'),
        ("CHECK", b'{"name":"n","cniVersion":"9.9.9"}'),
        ("CHECK", b'{"name":"n","cniVersion":"1.0.0.0"}'),
    ],
)
def test_a_configuration_is_refused_as_go_refuses_it(command, stdin, versions):
    env = ENV | {"CNI_COMMAND": command}
    done = go("static", env, stdin)
    assert done.returncode == 1
    assert ours(env, stdin, versions) == done.stdout.decode()


@pytest.mark.parametrize(
    "stdin",
    [
        b"[]",
        b"5",
        b'{"name":5}',
        b"{x}",
        b'{"a":1,}',
        b"nul",
        b'{"a":1} x',
        b"x",
        b'{"a":tru}',
        b'"\x01"',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_configuration_has_gos_code_if_not_its_words(stdin, versions):
    theirs, mine = json.loads(go("static", ENV, stdin).stdout), json.loads(ours(ENV, stdin, versions))
    assert theirs["code"] == mine["code"] == 6
    assert mine["msg"].startswith("error unmarshall network config: ")


@pytest.mark.parametrize(("conf", "previous"), [("0.2.0", "0.4.0"), ("0.4.0", "0.2.0"), ("0.3.1", "1.0.0")])
def test_a_previous_result_of_another_family_is_refused_as_go_refuses_it(conf, previous, versions):
    doc = {"cniVersion": conf, "name": "n", "type": "tuning", "prevResult": {"cniVersion": previous}}
    stdin = json.dumps(doc).encode()
    assert ours(ENV, stdin, versions) == go("tuning", ENV, stdin).stdout.decode()


@pytest.mark.parametrize("plugin", ["static", "bridge"])
def test_about_is_gos(plugin, versions):
    done = go(plugin, {}, b"")
    assert (done.returncode, done.stdout) == (0, b"")
    version = done.stderr.decode().split("plugin version ")[1].splitlines()[0]
    assert done.stderr.decode() == about(plugin, version, versions)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_a_result_of_go_is_written_by_us_to_the_byte_in_every_version(version):
    texts = {}
    for one in ("0.2.0", "0.4.0", "1.0.0", version):
        done = go("static", ENV, json.dumps(CONF | {"cniVersion": one}).encode())
        texts[one] = done.stdout.decode()
    for text in texts.values():
        assert format_json(Result.load(json.loads(text)).dump(version)) == texts[version]
