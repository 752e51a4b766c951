"""flanneld's flags: Go's syntax, the environment, what is refused, and the page that lists them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from ipaddress import ip_address
from pathlib import Path

import pytest

from tortie import __version__
from tortie.base.errors import ConfigError, TortieError
from tortie.cli.main import main
from tortie.flannel.options import FLAGS, Options, parse, usage

PAGE = Path(__file__).parents[2] / "docs/reference/flanneld.md"


def flags(*words: str, **environment: str) -> Options:
    return parse(words, environment)


def refused(*words: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(words, environment)
    return str(caught.value)


# --- defaults and syntax ------------------------------------------------------------------------------------------


def test_the_defaults_are_flannels() -> None:
    found = flags()
    assert found.etcd_endpoints == ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    assert found.etcd_prefix == "/coreos.com/network"
    assert found.subnet_file == Path("/run/flannel/subnet.env")
    assert found.net_config_path == Path("/etc/kube-flannel/net-conf.json")
    assert (found.subnet_lease_renew_margin, found.iptables_resync, found.healthz_port) == (60, 5, 0)
    assert found.kube_annotation_prefix == "flannel.alpha.coreos.com"
    assert found.healthz_ip == "0.0.0.0"
    on = {"iptables_forward_rules", "set_node_network_unavailable"}
    booleans = {one.name: getattr(found, one.name) for one in fields(Options) if isinstance(one.default, bool)}
    assert {name for name, value in booleans.items() if value} == on


@pytest.mark.parametrize(
    "words",
    [
        ["-iface", "eth1"],
        ["--iface", "eth1"],
        ["-iface=eth1"],
        ["--iface=eth1"],
        ["-ip-masq", "--iface", "eth1"],
        ["--iface", "eth1", "--"],
    ],
    ids=" ".join,
)
def test_one_dash_or_two_and_a_value_behind_an_equals_sign_or_as_the_next_word(words: list[str]) -> None:
    assert flags(*words).iface == ("eth1",)


def test_a_value_may_begin_with_a_dash_and_may_have_an_equals_sign() -> None:
    assert flags("-etcd-password", "-a=b").etcd_password == "-a=b"
    assert flags("-etcd-password=x=y").etcd_password == "x=y"


def test_interfaces_are_given_again_and_others_are_said_last() -> None:
    found = flags("-iface=eth0", "-iface-regex=^10", "-iface", "10.0.0.1", "-iface-regex=eth.*", "-v=1", "-v", "0x2")
    assert found.iface == ("eth0", "10.0.0.1")
    assert found.iface_regex == ("^10", "eth.*")
    assert found.v == 2


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_what_is_true(text: str) -> None:
    assert flags(f"-ip-masq={text}").ip_masq


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_what_is_false(text: str) -> None:
    assert not flags(f"--iptables-forward-rules={text}").iptables_forward_rules


def test_values_have_their_types() -> None:
    found = flags(
        "-public-ip=192.0.2.7", "-public-ipv6=2001:db8::7", "-iface-can-reach=198.51.100.1", "-etcd-endpoints= a, b,"
    )
    assert (found.public_ip, found.public_ipv6) == (ip_address("192.0.2.7"), ip_address("2001:db8::7"))
    assert found.iface_can_reach == ip_address("198.51.100.1")
    assert found.etcd_endpoints == ("a", "b")
    assert flags("-public-ip=").public_ip is None


def test_a_password_is_not_shown() -> None:
    assert "hidden" not in repr(flags("-etcd-password=hidden"))


def test_the_socket_is_beside_the_subnet_file() -> None:
    assert flags().socket == Path("/run/flannel/subnet.sock")
    assert flags("-subnet-file=/run/flannel/red.env").socket == Path("/run/flannel/red.sock")
    assert flags("-status-socket=/run/x").socket == Path("/run/x")


def test_help_and_version_come_before_what_else_is_wrong() -> None:
    assert flags("-h").help
    assert flags("-iface=eth0", "--help", "-nonsense").help
    assert flags("-version", "-subnet-lease-renew-margin=0").version


# --- the environment ----------------------------------------------------------------------------------------------


def test_the_environment_is_read_where_no_flag_is() -> None:
    found = flags("-ip-masq=false", FLANNELD_IP_MASQ="true", FLANNELD_IFACE="eth7", FLANNELD_ETCD_PREFIX="")
    assert not found.ip_masq
    assert found.iface == ("eth7",)
    assert found.etcd_prefix == "/coreos.com/network"  # an empty variable is none


def test_every_flag_has_a_variable_but_the_question_for_the_version() -> None:
    assert FLAGS["set-node-network-unavailable"].variable == "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE"
    assert FLAGS["log_backtrace_at"].variable == "FLANNELD_LOG_BACKTRACE_AT"
    assert not flags(FLANNELD_VERSION="v0.28.0").version  # what images set for other purposes
    assert [name for name, flag in FLAGS.items() if not flag.variable] == ["version"]


def test_a_variable_that_cannot_be_read_is_named() -> None:
    text = refused(FLANNELD_HEALTHZ_PORT="abc")
    assert text == 'invalid value "abc" for FLANNELD_HEALTHZ_PORT: write a port from 1 to 65535, or 0'


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-foo"], "flag provided but not defined: -foo"),
        (["--ip-mask"], 'flag provided but not defined: -ip-mask did you mean "ip-masq"?'),
        (["-iface"], "flag needs an argument: -iface"),
        (["---iface=x"], "bad flag syntax: ---iface=x"),
        (["-=x"], "bad flag syntax: -=x"),
        (["-ip-masq=maybe"], 'invalid boolean value "maybe" for flag -ip-masq: write true or false'),
        (["-ip-masq", "true"], '"true" is not a flag; a value of true or false is written with "=", as -ip-masq=true'),
        (["--", "x"], '"x" is not a flag; a value of true or false is written with "=", as -ip-masq=true'),
        (["-v=x"], 'invalid value "x" for flag -v: write a whole number'),
        (["-iptables-resync=0"], 'invalid value "0" for flag -iptables-resync: write a whole number of seconds, at'),
        (["-healthz-port=65536"], 'invalid value "65536" for flag -healthz-port: write a port'),
        (["-public-ip=::1"], 'invalid value "::1" for flag -public-ip: write an IPv4 address'),
        (["-public-ipv6=10.0.0.1"], 'invalid value "10.0.0.1" for flag -public-ipv6: write an IPv6 address'),
        (["-iface-can-reach=example"], 'invalid value "example" for flag -iface-can-reach: write an IP address'),
        (["-iface-regex=("], 'invalid value "(" for flag -iface-regex: write a regular expression'),
        (["-subnet-file="], 'invalid value "" for flag -subnet-file: write a path'),
        (["-datastore=/x"], "-datastore is for Kubernetes' Nodes: give -kube-subnet-mgr, too"),
        (["-datastore=/x", "-kube-subnet-mgr", "-kubeconfig-file=y"], "-datastore and -kube-api-url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(words: list[str], why: str) -> None:
    text = refused(*words)
    assert text.startswith(why)
    assert "\n" not in text


@pytest.mark.parametrize("margin", [0, -1, 1440])
def test_situation_123_a_margin_out_of_range_ends_it_with_1(margin: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TortieError, match="Invalid subnet-lease-renew-margin option, out of acceptable range") as found:
        flags("-subnet-lease-renew-margin", str(margin))
    assert not isinstance(found.value, ConfigError)
    assert main(["flanneld", f"-subnet-lease-renew-margin={margin}"]) == 1
    assert "from 1 to 1439 minutes" in capsys.readouterr().err


@pytest.mark.parametrize("margin", [1, 1439])
def test_margins_in_range(margin: int) -> None:
    assert flags(f"-subnet-lease-renew-margin={margin}").subnet_lease_renew_margin == margin


# --- the command, and the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["-h", "-help", "--help"])
def test_the_command_lists_the_flags(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", "-iface=eth0", word]) == 0
    listed = re.findall(r"^  -([\w-]+)", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(FLAGS)


def test_the_command_passes_every_word_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", "-iface", "-c", "-o", "json"]) == 2
    assert "flag provided but not defined: -o" in capsys.readouterr().err


def test_the_version_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flanneld", "-version"]) == 0
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("tortie ")


def test_the_page_has_every_flag_with_its_default() -> None:
    section = PAGE.read_text().partition("## Flags")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:3] for row in section.splitlines() if row.startswith("| `-")]
    documented = {name: default.strip().strip("`") for cell, default in rows for name in re.findall(r"`-(\S+?)`", cell)}
    assert set(documented) == set(FLAGS)
    elsewhere = {"public-ip", "public-ipv6", "status-socket"}  # what the default is follows from something else
    for name, flag in FLAGS.items():
        if name not in elsewhere and name != "version":
            assert documented[name] == flag.default, name


def test_the_usage_names_the_program_and_the_environment() -> None:
    text = usage("flanneld")
    assert text.startswith("Usage: flanneld [FLAG]...")
    assert "FLANNELD_IFACE" in text


def test_a_link_called_flanneld_is_the_daemon(tmp_path: Path) -> None:
    """Units and scripts that start flanneld go on without a change."""
    link = tmp_path / "flanneld"
    link.symlink_to(Path(sys.executable).parent / "tortie")
    said = subprocess.run([link, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", f"tortie {__version__}\n")
    said = subprocess.run([link, "-iptables-resync", "0"], capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 2
    assert "iptables-resync" in said.stderr
