"""Which datastore a command means: options, variables, calicoctl's file, labs, this machine, somebody's KUBECONFIG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tortie.base.errors import ConfigError
from tortie.cli import datastore
from tortie.cli.explain_kernel import same_datastore
from tortie.cli.main import command_line, main
from tortie.store.place import of_a_daemon

ETCD_FILE = "{apiVersion: projectcalico.org/v3, kind: CalicoAPIConfig, spec: {etcdEndpoints: 'http://192.0.2.1:2379'}}"
CLUSTER = {"KUBECONFIG": "/home/me/.kube/work"}


class Machine:
    """What there is: labs, calicoctl's file, the machine's own datastore."""

    def __init__(self, root: Path) -> None:
        self.labs, self.own, self.calicoctl = root / "labs", root / "store.db", root / "calicoctl.cfg"

    def lab(self, name: str) -> str:
        (self.labs / name).mkdir(parents=True)
        (self.labs / name / "store.db").touch()
        return str(self.labs / name / "store.db")

    def __call__(self, option: str = "", lab: str = "", environment: Mapping[str, str] | None = None) -> str:
        return datastore.locate(option, lab, environment or {}, self.labs, self.own, self.calicoctl)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    datastore.begin()
    yield Machine(tmp_path)
    datastore.begin()


def test_each_goes_before_what_comes_later(machine: Machine) -> None:
    lab, other = machine.lab("default"), machine.lab("other")
    machine.own.touch()
    machine.calicoctl.touch()
    told = {"TORTIE_DATASTORE": "etcd:http://a:1", "TORTIE_LAB": "other", "DATASTORE_TYPE": "kubernetes", **CLUSTER}
    datastore._take_config("/mine.cfg")
    assert machine(environment=told) == "config:/mine.cfg"
    datastore.begin()
    assert machine("/x.db", environment=told) == "/x.db"
    assert machine("", "other", told) == other
    for name, located in (
        ("TORTIE_DATASTORE", "etcd:http://a:1"),
        ("TORTIE_LAB", other),
        ("DATASTORE_TYPE", "kubernetes:"),
    ):
        assert machine(environment=told) == located
        del told[name]
    assert machine(environment=told) == f"config:{machine.calicoctl}"
    machine.calicoctl.unlink()
    assert machine(environment=told) == lab
    for store in machine.labs.glob("*/store.db"):
        store.unlink()
    assert machine(environment=told) == str(machine.own)
    machine.own.unlink()
    assert machine(environment=told) == "kubernetes:"
    assert machine() == str(machine.own)


@pytest.mark.parametrize(
    ("environment", "located"),
    [
        ({"DATASTORE_TYPE": "kubernetes"}, "kubernetes:"),
        ({"CALICO_DATASTORE_TYPE": "etcdv3"}, "etcd:"),
        ({"ETCD_ENDPOINTS": "http://a:1"}, "etcd:"),
        ({"ETCD_DISCOVERY_SRV": "a"}, "etcd:"),
        ({"CALICO_ETCD_ENDPOINTS": "http://a:1", **CLUSTER}, "etcd:"),
        ({"K8S_API_ENDPOINT": "https://a"}, "kubernetes:"),
        ({"CALICO_KUBECONFIG": "/a"}, "kubernetes:"),
    ],
)
def test_variables_of_calico_name_a_datastore_whatever_else_there_is(
    machine: Machine, environment: Mapping[str, str], located: str
) -> None:
    machine.lab("default")
    machine.own.touch()
    assert machine(environment=environment) == located
    assert of_a_daemon("", environment) == located


@pytest.mark.parametrize("environment", [CLUSTER, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, {"K8S_API_TOKEN": "a"}])
def test_what_others_set_takes_nobody_from_his_lab_or_machine(machine: Machine, environment: Mapping[str, str]) -> None:
    machine.own.touch()
    assert machine(environment=environment) == str(machine.own)
    lab = machine.lab("default")
    assert machine(environment=environment) == lab


def test_a_context_is_of_a_cluster(machine: Machine) -> None:
    machine.lab("default")
    machine.own.touch()
    datastore._take_context("blue")
    assert machine() == machine(environment=CLUSTER) == "kubernetes:"
    assert datastore.environment_of({"A": "b"}) == {"A": "b", "CALICO_K8S_CURRENT_CONTEXT": "blue"}
    machine.calicoctl.touch()
    assert machine() == f"config:{machine.calicoctl}"
    for given in (("/x.db", ""), ("", "default")):
        with pytest.raises(ConfigError, match=r"^--context: is of a kubeconfig, and the datastore is /"):
            machine(*given)


def test_one_of_them_is_enough(machine: Machine) -> None:
    datastore._take_config("/mine.cfg")
    with pytest.raises(ConfigError, match=r"^--datastore and --config both name a datastore: give one of them$"):
        machine("/x.db")
    with pytest.raises(ConfigError, match=r"^--datastore and --config and --lab all name a datastore"):
        machine("/x.db", "default")


def test_programs_that_run_on() -> None:
    assert of_a_daemon("/x.db", {"DATASTORE_TYPE": "kubernetes"}) == "/x.db"
    assert of_a_daemon("", CLUSTER) == "kubernetes:"
    assert of_a_daemon("", {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}) == "kubernetes:"
    assert of_a_daemon("", {"ETCD_ENDPOINTS": "http://a:1", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}) == "etcd:"
    with pytest.raises(ConfigError, match=r"^--datastore: is needed: "):
        of_a_daemon("", {})


@pytest.mark.parametrize(
    ("agents", "commands", "one"),
    [
        ("/x.db", "sqlite:/x.db", True),
        ("/x.db", "/y.db", False),
        ("etcd:http://a:1", "etcd:http://b:1 and kubernetes:/k", True),
        ("kubernetes:", "kubernetes:/k (context blue)", True),
        ("kubernetes:", "etcd:http://a:1", False),
        ("etcd:http://a:1", "/x.db", False),
        ("/x.db", "etcd:http://a:1", False),
        ("", "/x.db", True),
    ],
)
def test_an_agent_is_asked_when_it_follows_the_same_datastore(agents: str, commands: str, one: bool) -> None:
    assert same_datastore(agents, commands) is one


# The options


def test_every_command_of_a_datastore_has_them() -> None:
    def commands(command: object) -> Iterator[object]:
        yield command
        for inner in getattr(command, "commands", {}).values():
            yield from commands(inner)

    seen = 0
    for command in commands(command_line()):
        names = [name for parameter in command.params for name in parameter.opts]  # type: ignore[attr-defined]
        if "--lab" in names and "--datastore" in names:
            assert {"-c", "--config", "--context"} <= set(names), command
            seen += 1
        assert len(names) == len(set(names)), command
    assert seen > 20


def test_a_file_of_calicoctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What of it cannot be read or is wrong is told at once, and the next command begins anew."""
    file = tmp_path / "calicoctl.cfg"
    for option in ("-c", "--config"):
        assert main(["get", "nodes", option, str(file)]) == 1
        assert capsys.readouterr().err == f"tortie: Error reading config file: {file}\n"
    file.write_text(ETCD_FILE.replace("etcdEndpoints", "etcdEndpoint"))
    assert main(["version", "-c", str(file)]) == 2
    assert f"tortie: {file}: spec.etcdEndpoint: is not a known field" in capsys.readouterr().err
    store = str(tmp_path / "store.db")
    assert main(["get", "nodes", "--datastore", store, "-c", str(file)]) == 2
    assert "both name a datastore" in capsys.readouterr().err
    assert main(["get", "nodes", "--datastore", store]) == 1
    assert "there is no datastore" in capsys.readouterr().err
    for words in (["--context", "blue", "get", "nodes"], ["get", "nodes", "--context", "blue"]):
        assert main([*words, "--datastore", store]) == 2
        assert "tortie: --context: is of a kubeconfig" in capsys.readouterr().err


def test_a_server_that_is_away_is_told_in_one_line_and_soon(capsys: pytest.CaptureFixture[str], free_port: int) -> None:
    import time

    begin = time.monotonic()
    assert main(["get", "nodes", "--datastore", f"etcd:127.0.0.1:{free_port}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["datastore", "status", "--datastore", f"etcd:127.0.0.1:{free_port}"]) == 1
    out, err = capsys.readouterr()
    assert "REACHABLE  no: " in out
    assert not err
    assert time.monotonic() - begin < 10


@pytest.fixture
def free_port() -> Iterator[int]:
    """Held, but not listened at."""
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
