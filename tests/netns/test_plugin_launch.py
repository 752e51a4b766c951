"""How stand-alone plugins are installed and started: as a script, by launch.c, and served by a process that waits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, Said
from namespaces import Ns
from tortie.base.errors import ConfigError, Exists
from tortie.cni import resident
from tortie.cni.install import PACK, PLUGINS, base_python, install_plugins, remove_plugins

pytestmark = pytest.mark.root

NO_PYTHON = "/nowhere/python"
"""Of launchers that start no Python: what they answer was served."""
HERE = os.getpid()


def conf(tmp_path: Path, ipam: str = "host-local") -> dict[str, Any]:
    ranges = [[{"subnet": "10.88.0.0/24"}]]
    inner = {"type": ipam, "dataDir": str(tmp_path / "state"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    return {"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "br7", "isGateway": True, "ipam": inner}


class Server:
    """A server of plugins, in a session of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        argv = [base_python(), "-I", "-S", resident.__file__, str(path)]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == f"serving plugins on {path}\n"

    @property
    def env(self) -> dict[str, str]:
        return {"TORTIE_PLUGINS_SOCKET": str(self.path), "TORTIE_PLUGINS_PATIENCE": "20000"}

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(path: Path) -> Iterator[Server]:
    server = Server(path)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()
        try:
            os.killpg(server.process.pid, signal.SIGKILL)  # children that outlived it
        except ProcessLookupError:
            pass
        assert server.process.stderr is not None
        server.process.stderr.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "plugins.sock") as one:
        yield one


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs that cannot start Python."""
    directory = tmp_path_factory.mktemp("launchers")
    install_plugins(directory, python=NO_PYTHON, packed=False)
    return directory


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cold")
    install_plugins(directory)
    return directory


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("script")
    install_plugins(directory, compiler="")
    return directory


def eventually(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def slow_ipam(directory: Path, journal: Path, seconds: float) -> Path:
    """A directory with a foreign address plugin, `slow`, that notes its calls."""
    directory.mkdir()
    body = f'#!/bin/sh\necho "$CNI_COMMAND" >> {journal}\n[ "$CNI_COMMAND" = ADD ] || exit 0\nsleep {seconds}\n'
    answer = json.dumps({"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.9/24"}]})
    (directory / "slow").write_text(f"{body}echo '{answer}'\n")
    (directory / "slow").chmod(0o755)
    return directory


def kinds(ns: Ns) -> set[str]:
    return {link.get("linkinfo", {}).get("info_kind", link["ifname"]) for link in ns.json("link", "show")}


# --- three ways ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["script", "cold", "served"])
def test_a_life_in_each_way(
    way: str, tmp_path: Path, make_ns: Callable[..., Ns], request: pytest.FixtureRequest
) -> None:
    """The address plugin is called, not started: served launchers could not start it."""
    host, pod = make_ns("host"), make_ns("pod")
    directory: Path = request.getfixturevalue("launchers" if way == "served" else way)
    env = request.getfixturevalue("server").env if way == "served" else {"TORTIE_PLUGINS_SOCKET": "/nowhere"}
    call = Caller(directory, host.name, env)
    network = conf(tmp_path)
    result = call.add(network, netns=pod.name)
    assert result["ips"] == [{"address": "10.88.0.2/24", "gateway": "10.88.0.1", "interface": 2}]
    there = pod.json("addr", "show", "dev", "eth0")[0]["addr_info"]
    assert [one["local"] for one in there if one["family"] == "inet"] == ["10.88.0.2"]
    with_result = {**network, "prevResult": result}
    assert call("CHECK", with_result, netns=pod.name) == Said(0, "", "")
    assert call("DEL", with_result, netns=pod.name) == Said(0, "", "")
    assert kinds(pod) == {"lo"}
    assert kinds(host) == {"lo", "bridge"}
    assert not (tmp_path / "state/net1/10.88.0.2").exists()
    refused = call("ADD", {**network, "mtu": "big"}, netns=pod.name)
    assert refused.error[0] == 999
    assert kinds(host) == {"lo", "bridge"}


@pytest.mark.parametrize("way", ["script", "cold"])
def test_the_address_plugin_is_no_process(
    way: str, tmp_path: Path, make_ns: Callable[..., Ns], request: pytest.FixtureRequest
) -> None:
    """In a namespace of processes whose numbers are counted: 1 is a shell, 2 the plugin, 3 whoever comes next."""
    host, pod = make_ns("host"), make_ns("pod")
    directory: Path = request.getfixturevalue(way)
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
    env = {"PATH": os.environ["PATH"], "CNI_PATH": str(directory), "TORTIE_PLUGINS_SOCKET": "/nowhere", **variables}
    line = f"{directory}/bridge > /dev/null && sh -c 'echo $$'"
    argv = ["nsenter", f"--net={host.path}", "unshare", "--pid", "--fork", "sh", "-c", line]
    stdin = json.dumps(conf(tmp_path))
    done = subprocess.run(argv, input=stdin, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "3\n"


def test_versions_and_help_in_each_way(launchers: Path, cold: Path, script: Path, server: Server) -> None:
    nobody = {"TORTIE_PLUGINS_SOCKET": "/nowhere"}
    said = [
        (Caller(directory, env=env)("VERSION", b"", type="firewall"), Caller(directory, env=env)("", b"", type="tap"))
        for directory, env in ((script, nobody), (cold, nobody), (launchers, server.env))
    ]
    assert said[0] == said[1] == said[2]
    assert said[0][0].doc["supportedVersions"][0] == "0.4.0"
    assert said[0][1].stderr.startswith("CNI tap plugin version 0.1.0\nCNI protocol versions supported: 0.1.0, ")


def test_words_are_never_served(launchers: Path, server: Server) -> None:
    """`dhcp daemon` is a program of its own."""
    argv = [str(launchers / "dhcp"), "daemon"]
    done = subprocess.run(argv, env=server.env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["msg"] == f"cannot start {NO_PYTHON}: No such file or directory"


# --- nobody serves ------------------------------------------------------------------------------------------------


def test_a_server_that_says_nothing_is_not_waited_for(cold: Path, tmp_path: Path, make_ns: Callable[..., Ns]) -> None:
    pod = make_ns("pod")
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen(0)
        call = Caller(cold, env={"TORTIE_PLUGINS_SOCKET": str(path)})
        for _ in range(3):  # the queue is full by the third
            assert call("ADD", {"cniVersion": "1.0.0", "name": "n", "type": "loopback"}, netns=pod.name).code == 0
        connection, _ = mute.accept()
        assert connection.recv(1) == b""  # nothing was sent
        connection.close()


def test_a_server_that_is_not_roots_is_told_nothing(cold: Path) -> None:
    place = Path("/tmp") / f"tortie-launch-{HERE}"
    place.mkdir()
    place.chmod(0o777)
    path = place / "s"
    code = (
        "import os, socket; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        f"s.bind({str(path)!r}); s.listen(); print('there', flush=True); c, _ = s.accept()\n"
        "try: c.sendall(b'G'); print(c.recv(100), flush=True)\n"
        "except OSError: print(b'')"
    )
    try:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "there\n"
            assert Caller(cold, env={"TORTIE_PLUGINS_SOCKET": str(path)})("VERSION", b"", type="tap").code == 0
            assert other.stdout.readline() == "b''\n"
    finally:
        path.unlink(missing_ok=True)
        place.rmdir()


def test_without_python_the_runtime_is_told(launchers: Path) -> None:
    said = Caller(launchers, env={"TORTIE_PLUGINS_SOCKET": "/nowhere"})("VERSION", b"", type="tap")
    assert said.error == (999, f"cannot start {NO_PYTHON}: No such file or directory")


# --- the server ---------------------------------------------------------------------------------------------------


def test_many_at_once(launchers: Path, server: Server, make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    """Each is served, each once, and none takes another's address."""
    host = make_ns("host")
    pods = [make_ns("pod") for _ in range(10)]
    call = Caller(launchers, host.name, server.env)
    network = conf(tmp_path)

    def connect(number: int) -> str:
        result = call.add(network, netns=pods[number].name, container=f"ctr{number}")
        return str(result["ips"][0]["address"])

    with ThreadPoolExecutor(10) as pool:
        given = list(pool.map(connect, range(10)))
    assert len(set(given)) == 10
    eventually(lambda: len(server.children()) == resident.SPARE)


def test_only_root_is_served(server: Server) -> None:
    assert server.path.stat().st_mode & 0o777 == 0o600
    place = Path("/tmp") / f"tortie-launch-{HERE}.sock"
    with serving(place):
        place.chmod(0o666)
        code = (
            "import os, socket; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
            f"s.connect({str(place)!r}); print(s.recv(1))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout == "b''\n"
    assert not place.exists()


def test_one_server_for_a_socket(server: Server) -> None:
    argv = [base_python(), "-I", "-S", resident.__file__, str(server.path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (1, f"a server listens on {server.path} already\n")
    assert server.path.exists()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine\n")
    argv = [base_python(), "-I", "-S", resident.__file__, str(tmp_path / "notes")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (1, f"listen on {tmp_path / 'notes'}: File exists\n")
    assert (tmp_path / "notes").read_text() == "mine\n"


def test_the_callers_mount_namespace_and_directory(
    launchers: Path, server: Server, make_ns: Callable[..., Ns], tmp_path: Path
) -> None:
    """The pod's namespace is at a path that only the caller sees, and the state's directory is where the caller is."""
    pod = make_ns("pod")
    secret, cwd = tmp_path / "secret", tmp_path / "cwd"
    secret.touch()
    cwd.mkdir()
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": str(secret), "CNI_IFNAME": "eth0"}
    env = {"PATH": os.environ["PATH"], "CNI_PATH": str(launchers), **server.env, **variables}
    network = conf(tmp_path)
    network["ipam"]["dataDir"] = "state-here"
    line = f"mount --bind {pod.path} {secret} && exec {launchers}/bridge"
    host = make_ns("host")
    argv = ["nsenter", f"--net={host.path}", "unshare", "--mount", "sh", "-c", line]
    done = subprocess.run(
        argv, input=json.dumps(network), env=env, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done
    assert "eth0" in {link["ifname"] for link in pod.json("link", "show")}
    assert (cwd / "state-here/net1/10.88.0.2").exists()


# --- what ends in the middle of a call ----------------------------------------------------------------------------


@contextmanager
def in_mid_call(
    server: Server, launchers: Path, tmp_path: Path, host: Ns, pod: Ns, seconds: float = 2
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A served ADD that waits for its address, and the journal of what was asked of the address plugin."""
    journal = tmp_path / "journal"
    ipam = slow_ipam(tmp_path / "ipam", journal, seconds)
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
    env = {"PATH": os.environ["PATH"], "CNI_PATH": f"{launchers}:{ipam}", **server.env, **variables}
    argv = ["nsenter", f"--net={host.path}", str(launchers / "bridge")]
    with (tmp_path / "conf").open("w+") as stdin:
        json.dump(conf(tmp_path, "slow"), stdin)
        stdin.seek(0)
        with subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, env=env, text=True) as caller:
            eventually(lambda: journal.exists() and journal.read_text() == "ADD\n")
            try:
                yield caller, journal
            finally:
                caller.kill()


def test_a_child_that_is_killed_is_tried_again(
    server: Server, launchers: Path, tmp_path: Path, make_ns: Callable[..., Ns]
) -> None:
    host, pod = make_ns("host"), make_ns("pod")
    with in_mid_call(server, launchers, tmp_path, host, pod) as (caller, journal):
        os.killpg(server.process.pid, signal.SIGKILL)  # the server and all its children
        said, _ = caller.communicate(timeout=10)
        assert caller.returncode == 1
        error = json.loads(said)
        assert error["code"] == 11
        assert error["msg"].startswith("the plugin server ended in the middle of this call; the runtime will retry: ")
        assert journal.read_text() == "ADD\n"


def test_a_server_that_is_killed_takes_no_call_with_it(
    server: Server, launchers: Path, tmp_path: Path, make_ns: Callable[..., Ns]
) -> None:
    """Its idle children end, the busy one answers; a new server takes the socket."""
    host, pod = make_ns("host"), make_ns("pod")
    with in_mid_call(server, launchers, tmp_path, host, pod) as (caller, journal):
        children = server.children()
        server.end(signal.SIGKILL)
        eventually(lambda: sum(Path(f"/proc/{pid}").exists() for pid in children) == 1)
        said, _ = caller.communicate(timeout=10)
        assert caller.returncode == 0
        assert json.loads(said)["ips"][0]["address"] == "10.88.0.9/24"
        assert journal.read_text() == "ADD\n"
    assert Caller(launchers, env=server.env)("VERSION", b"", type="tap").error[0] == 999
    with serving(server.path):
        assert Caller(launchers, env=server.env)("VERSION", b"", type="tap").code == 0


def test_a_server_that_is_told_to_end_ends_its_calls_first(
    server: Server, launchers: Path, tmp_path: Path, make_ns: Callable[..., Ns]
) -> None:
    host, pod = make_ns("host"), make_ns("pod")
    with in_mid_call(server, launchers, tmp_path, host, pod) as (caller, _):
        server.process.terminate()
        said, _ = caller.communicate(timeout=10)
        assert (caller.returncode, json.loads(said)["ips"][0]["address"]) == (0, "10.88.0.9/24")
    assert server.process.wait(10) == 0
    assert not server.path.exists()


def test_what_a_caller_that_went_away_had_made_is_taken_back(
    server: Server, launchers: Path, tmp_path: Path, make_ns: Callable[..., Ns]
) -> None:
    host, pod = make_ns("host"), make_ns("pod")
    with in_mid_call(server, launchers, tmp_path, host, pod, seconds=5) as (caller, journal):
        assert "veth" in kinds(host)
        caller.kill()
        eventually(lambda: "veth" not in kinds(host), 4)
        assert kinds(pod) == {"lo"}
        eventually(lambda: len(server.children()) == resident.SPARE)
        assert journal.read_text().startswith("ADD\n")
        assert journal.read_text().count("ADD") == 1


# --- installing ---------------------------------------------------------------------------------------------------


def tortie(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tortie.cli.main", "cni", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_what_is_installed_is_one_file_and_goes_again(tmp_path: Path) -> None:
    done = tortie("install", "--bin-dir", str(tmp_path), "--plugins", "all")
    assert done.stdout == "".join(f"wrote {tmp_path / name}\n" for name in PLUGINS)
    assert {(tmp_path / name).stat().st_ino for name in PLUGINS} == {(tmp_path / "tap").stat().st_ino}
    assert (tmp_path / PACK).is_file()
    again = tortie("install", "--bin-dir", str(tmp_path), "--plugins", "bridge,tap")
    assert again.stdout == "everything is in place already\n"
    (tmp_path / "foreign").write_text("stays")
    assert tortie("uninstall", "--bin-dir", str(tmp_path), "--plugins", "tap").stdout == f"removed {tmp_path / 'tap'}\n"
    assert tortie("uninstall", "--bin-dir", str(tmp_path), "--plugins", "all").returncode == 0
    assert [one.name for one in tmp_path.iterdir()] == ["foreign"]


def test_a_foreign_program_stays_unless_it_is_to_go(tmp_path: Path) -> None:
    (tmp_path / "bridge").write_text("#!/bin/sh\n")
    with pytest.raises(Exists, match=r"bridge is another program's; --force puts ours in its place"):
        install_plugins(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["bridge"]
    refused = tortie("install", "--bin-dir", str(tmp_path), "--plugins", "bridge")
    assert refused.returncode != 0
    assert "--force puts ours in its place" in refused.stderr
    assert remove_plugins(tmp_path) == []
    assert install_plugins(tmp_path, ["tap"], packed=False) == [tmp_path / "tap"]
    assert (tmp_path / "bridge").read_text() == "#!/bin/sh\n"
    assert install_plugins(tmp_path, ["bridge"], packed=False, force=True) == [tmp_path / "bridge", tmp_path / "tap"]
    assert os.path.samefile(tmp_path / "bridge", tmp_path / "tap")


def test_a_name_that_is_no_plugin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='no plugin has the name "brigde"; there are bandwidth, bridge, '):
        install_plugins(tmp_path, ["tap", "brigde"])


def test_a_running_plugin_is_replaced(tmp_path: Path, make_ns: Callable[..., Ns]) -> None:
    """A file that is being executed cannot be written to, but another can take its name."""
    install_plugins(tmp_path, packed=False)
    with subprocess.Popen([tmp_path / "tap"], env={"CNI_COMMAND": "ADD"}, stdin=subprocess.PIPE) as running:
        assert len(install_plugins(tmp_path, compiler="", packed=False)) == len(PLUGINS)
        running.kill()
    assert (tmp_path / "tap").read_bytes().startswith(b"#!")
