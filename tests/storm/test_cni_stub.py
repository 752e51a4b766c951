"""The two stubs are one program: same request, same bytes on stdout, same exit code. Neither prints half an answer."""

import ast
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import tortie
from tortie.base.errors import ConfigError
from tortie.cni import install
from tortie.cni.install import build_stub
from tortie.cni.spec import SUPPORTED_VERSIONS, about, version_reply

NO_COMPILER = shutil.which("cc") is None
LANGUAGES = [pytest.param("c", marks=pytest.mark.skipif(NO_COMPILER, reason="no C compiler")), "python"]

ADD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "ctr1",
    "CNI_NETNS": "/run/netns/a",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=a",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
    "CNI_NETNS_OVERRIDE": "1",
}
CONF = b'{"cniVersion":"1.0.0","name":"net1","type":"calico"}'


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Both installations, made once."""
    made = {"python": build_stub(tmp_path_factory.mktemp("python"), compiler="")}
    if not NO_COMPILER:
        made["c"] = build_stub(tmp_path_factory.mktemp("c"))
    return made


@pytest.fixture(params=LANGUAGES)
def stub(request, stubs):
    return stubs[request.param]


def run(stub, env, stdin=CONF, argv=()):
    return subprocess.run([str(stub), *argv], env=env, input=stdin, capture_output=True, timeout=30, check=False)


def answer(body, status="200 OK"):
    return b"HTTP/1.0 %s\r\nServer: x\r\ncontent-LENGTH: %d\r\n\r\n%s" % (status.encode(), len(body), body)


class Agent:
    """Reads one request to its end on a Unix socket, says what it was told to say, and closes when it may."""

    def __init__(self, directory, reply, read=True, hold=False, step=1 << 20):
        self.path = str(directory / "agent.sock")
        self.reply, self.read, self.step = reply, read, step
        self.request = b""
        self.may_close = threading.Event()
        if not hold:
            self.may_close.set()

    def environment(self, **more):
        return {"TORTIE_AGENT_SOCKET": self.path, **ADD, **more}

    def serve(self, listener):
        connection, _ = listener.accept()
        with connection:
            while self.read and not self.is_whole():
                self.request += connection.recv(1 << 16)
            try:
                for at in range(0, len(self.reply), self.step):
                    connection.sendall(self.reply[at : at + self.step])
                    time.sleep(0.002 if self.step < 1000 else 0)
            except OSError:
                pass
            self.may_close.wait(10)

    def is_whole(self):
        head, end, body = self.request.partition(b"\r\n\r\n")
        return bool(end) and len(body) >= int(head.lower().split(b"content-length:")[1].split()[0])


@contextmanager
def agent_that(directory, reply, **manner):
    agent = Agent(directory, reply, **manner)
    Path(agent.path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(agent.path)
        listener.listen()
        thread = threading.Thread(target=agent.serve, args=(listener,))
        thread.start()
        yield agent
        agent.may_close.set()
        thread.join(10)
        assert not thread.is_alive()


def unserved(path, details):
    msg = f"the agent did not serve this call on {path}; the runtime will retry"
    return json.dumps({"code": 11, "msg": msg, "details": details}, indent=4).encode()


def test_the_call_travels_whole_and_the_result_comes_back_as_it_is(stub, tmp_path):
    result = '{\n    "cniVersion": "1.0.0", "é": "\\u003c"\n}'.encode()
    with agent_that(tmp_path, answer(result)) as agent:
        done = run(stub, agent.environment(UNRELATED="x"))
    assert (done.returncode, done.stdout, done.stderr) == (0, result, b"")
    assert agent.request.decode() == (
        "POST /cni/calico HTTP/1.0\r\n"
        "Cni-Command: ADD\r\n"
        "Cni-Containerid: ctr1\r\n"
        "Cni-Netns: /run/netns/a\r\n"
        "Cni-Ifname: eth0\r\n"
        "Cni-Args: IgnoreUnknown=1;K8S_POD_NAME=a\r\n"
        "Cni-Path: /opt/cni/bin:/usr/lib/cni\r\n"
        "Cni-Netns-Override: 1\r\n"
        f"Content-Length: {len(CONF)}\r\n\r\n{CONF.decode()}"
    )


def test_the_second_name_asks_for_the_second_plugin_and_unset_variables_send_nothing(stub, tmp_path):
    with agent_that(tmp_path, answer(b"")) as agent:
        env = {"TORTIE_AGENT_SOCKET": agent.path, "CNI_COMMAND": "DEL", "CNI_NETNS": ""}
        done = run(stub.with_name("calico-ipam"), env, b"")
    assert (done.returncode, done.stdout) == (0, b"")
    assert agent.request == b"POST /cni/calico-ipam HTTP/1.0\r\nCni-Command: DEL\r\nContent-Length: 0\r\n\r\n"


def test_an_error_object_comes_back_with_exit_code_1(stub, tmp_path):
    error = b'{\n    "code": 7,\n    "msg": "no"\n}'
    with agent_that(tmp_path, answer(error, "400 Bad Request")) as agent:
        done = run(stub, agent.environment())
    assert (done.returncode, done.stdout) == (1, error)


def test_a_body_of_a_megabyte_travels_both_ways(stub, tmp_path):
    body = os.urandom(1 << 20)
    with agent_that(tmp_path, answer(body)) as agent:
        done = run(stub, agent.environment(), body)
    assert done.returncode == 0
    assert agent.request.endswith(b"\r\n\r\n" + body)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(body).digest()


def test_an_answer_in_small_pieces_is_put_together(stub, tmp_path):
    with agent_that(tmp_path, answer(b'{"a": 1}'), step=7) as agent:
        done = run(stub, agent.environment())
    assert (done.returncode, done.stdout) == (0, b'{"a": 1}')


def test_what_follows_the_announced_length_is_not_printed_nor_waited_for(stub, tmp_path):
    with agent_that(tmp_path, answer(b"{}") + b"garbage", hold=True) as agent:
        done = run(stub, agent.environment(TORTIE_CNI_TIMEOUT="5"))
    assert (done.returncode, done.stdout) == (0, b"{}")


CLOSED = "the connection closed before the whole answer came"
NOT_HTTP = "the answer is not HTTP/1 with a Content-Length"


@pytest.mark.parametrize(
    ("reply", "details"),
    [
        (b"", CLOSED),
        (b"HTTP/1.0 200 OK\r\n", CLOSED),
        (answer(b'{"cniVersion": "1.0.0"}')[:-1], CLOSED),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", NOT_HTTP),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2x\r\n\r\n{}", NOT_HTTP),
        (b"HTTP/1.0 200 OK\r\nContent-Length: -2\r\n\r\n{}", NOT_HTTP),
        (b"HTTP/1.0 OK\r\nContent-Length: 2\r\n\r\n{}", NOT_HTTP),
        (b"HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\n{}", NOT_HTTP),
        (answer(b"Internal Server Error", "500 Oops"), "HTTP status 500 without a CNI error"),
        (answer(b"", "503 Not now"), "HTTP status 503 without a CNI error"),
    ],
)
def test_an_answer_that_is_not_whole_or_not_one_is_error_11(stub, tmp_path, reply, details):
    with agent_that(tmp_path, reply) as agent:
        done = run(stub, agent.environment())
    assert (done.returncode, done.stdout) == (1, unserved(agent.path, details))


def test_an_agent_that_closes_without_reading_is_error_11(stub, tmp_path):
    with agent_that(tmp_path, b"", read=False) as agent:
        done = run(stub, agent.environment(), b"x" * (1 << 20))
    assert (done.returncode, done.stdout) == (1, unserved(agent.path, CLOSED))


def test_an_agent_that_refuses_without_reading_is_heard(stub, tmp_path):
    error = b'{"code": 7, "msg": "too large"}'
    with agent_that(tmp_path, answer(error, "413 Too Large"), read=False) as agent:
        done = run(stub, agent.environment(), b"x" * (1 << 20))
    assert (done.returncode, done.stdout) == (1, error)


def test_an_absent_agent_and_a_dead_socket_are_error_11_at_once(stub, tmp_path):
    path = str(tmp_path / 'no "agent".sock')
    done = run(stub, {**ADD, "TORTIE_AGENT_SOCKET": path})
    assert (done.returncode, done.stdout) == (1, unserved(path, "connect: No such file or directory"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    done = run(stub, {**ADD, "TORTIE_AGENT_SOCKET": path})
    assert (done.returncode, done.stdout) == (1, unserved(path, "connect: Connection refused"))


def test_a_silent_or_overrun_agent_is_given_up_after_the_time_allowed(stubs, tmp_path):
    """All at once, because a second is the shortest time that can be allowed."""
    with agent_that(tmp_path, answer(b"{}")[:-1], hold=True) as agent, socket.socket(socket.AF_UNIX) as queue:
        overrun = str(tmp_path / "overrun.sock")
        queue.bind(overrun)
        queue.listen(0)
        silent = str(tmp_path / "silent.sock")
        with (
            socket.socket(socket.AF_UNIX) as first,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            first.connect(overrun)
            listener.bind(silent)
            listener.listen()
            started = time.monotonic()
            calls = [(stub, path) for stub in stubs.values() for path in (overrun, silent)]
            calls.append((next(iter(stubs.values())), agent.path))
            late = [
                subprocess.Popen(
                    [stub],
                    env={**ADD, "TORTIE_CNI_TIMEOUT": "1", "TORTIE_AGENT_SOCKET": path},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                )
                for stub, path in calls
            ]
            for process, (_, path) in zip(late, calls, strict=True):
                out, _ = process.communicate(timeout=10)
                assert (process.returncode, out) == (1, unserved(path, "no answer within the seconds allowed: 1"))
            assert time.monotonic() - started >= 1


def refusal(msg, details=""):
    error = {"code": 4, "msg": msg} | ({"details": details} if details else {})
    return json.dumps(error, indent=4).encode()


@pytest.mark.parametrize(
    ("name", "value", "msg"),
    [
        ("CNI_ARGS", "A=1\r\nCni-Netns-Override: 1", "CNI_ARGS holds a control character"),
        ("CNI_COMMAND", "ADD\nX: y", "CNI_COMMAND holds a control character"),
        ("CNI_NETNS", "/run/netns/\x01", "CNI_NETNS holds a control character"),
        ("CNI_PATH", "/a\x7f", "CNI_PATH holds a control character"),
        ("CNI_CONTAINERID", "ctr1 ", "CNI_CONTAINERID begins or ends with a blank"),
        ("CNI_IFNAME", " eth0", "CNI_IFNAME begins or ends with a blank"),
        ("CNI_IFNAME", " ", "CNI_IFNAME begins or ends with a blank"),
    ],
)
def test_a_value_that_would_not_arrive_as_it_is_never_leaves(stub, name, value, msg):
    done = run(stub, {**ADD, "TORTIE_AGENT_SOCKET": "/nonexistent/agent.sock", name: value})
    assert (done.returncode, done.stdout) == (1, refusal(msg))


def test_bad_settings_are_refused(stub, tmp_path):
    long = "/" + "x" * 107
    done = run(stub, {**ADD, "TORTIE_AGENT_SOCKET": long})
    assert (done.returncode, done.stdout) == (1, refusal("TORTIE_AGENT_SOCKET is longer than 107 bytes", long))
    for seconds in ("0", "x", "-1", "1.5", "100000"):
        done = run(stub, {**ADD, "TORTIE_CNI_TIMEOUT": seconds})
        msg = "TORTIE_CNI_TIMEOUT must be a number of seconds from 1 to 99999"
        assert (done.returncode, done.stdout) == (1, refusal(msg, seconds))
    odd = tmp_path / "a b"
    odd.symlink_to(stub)
    done = run(odd, ADD)
    msg = "the plugin's file name may hold letters, digits, - _ and . only"
    assert (done.returncode, done.stdout) == (1, refusal(msg, "a b"))


def test_version_and_about_need_no_agent_and_no_stdin(stub):
    done = run(stub, {"CNI_COMMAND": "VERSION", "TORTIE_AGENT_SOCKET": "/nonexistent"}, b"")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, version_reply(SUPPORTED_VERSIONS), b"")
    for env in ({}, {"CNI_COMMAND": ""}):
        done = run(stub, env, b"")
        assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"", about("calico", tortie.__version__))
    done = run(stub, {}, b"", ["-v"])
    assert (done.returncode, done.stdout.decode()) == (0, f"{tortie.__version__}\n")


def test_main_runs_as_it_lies_there(tmp_path):
    name = tmp_path / "calico"
    name.symlink_to(install.PYTHON_SOURCE)
    with agent_that(tmp_path, answer(b"{}")) as agent:
        argv = [sys.executable, "-I", "-S", str(name)]
        done = subprocess.run(argv, env=agent.environment(), input=CONF, capture_output=True, check=False, timeout=10)
    assert (done.returncode, done.stdout) == (0, b"{}")
    assert agent.request.startswith(b"POST /cni/calico HTTP/1.0\r\n")


def test_the_python_stub_imports_next_to_nothing(stubs):
    tree = ast.parse(install.PYTHON_SOURCE.read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"os", "socket", "sys", "time"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    argv = [sys.executable, "-I", "-S", "-X", "importtime"]
    loaded = subprocess.run([*argv, str(stubs["python"])], env=ADD, input=b"", capture_output=True, check=False)
    bare = subprocess.run([*argv, "-c", ""], capture_output=True, check=False)
    names, base = ({line.split("|")[-1].strip() for line in p.stderr.decode().splitlines()} for p in (loaded, bare))
    cost_of_socket = {"_socket", "selectors", "collections", "enum", "functools", "operator", "types", "math", "select"}
    assert {"socket", "_socket"} <= names - base
    assert names - base <= cost_of_socket | {
        *("os", "socket", "stat", "_stat", "posixpath", "genericpath", "_collections_abc", "os.path", "array", "errno"),
        *("itertools", "keyword", "reprlib", "_collections", "_functools", "_operator", "collections.abc"),
    }


def test_installing_again_leaves_the_files_alone_and_nothing_beside_them(stubs):
    for language, stub in stubs.items():
        before = {path.name: path.stat() for path in stub.parent.iterdir()}
        assert set(before) == {"calico", "calico-ipam"}
        assert before["calico"].st_ino == before["calico-ipam"].st_ino
        assert before["calico"].st_mode & 0o777 == 0o755
        assert build_stub(stub.parent, compiler="cc" if language == "c" else "") == stub
        assert {path.name: path.stat().st_ino for path in stub.parent.iterdir()} == {
            name: stat.st_ino for name, stat in before.items()
        }


def test_a_stale_or_half_installation_is_replaced(tmp_path):
    stub = build_stub(tmp_path, compiler="")
    good = stub.read_bytes()
    stub.with_name("calico-ipam").unlink()
    assert build_stub(tmp_path, compiler="").with_name("calico-ipam").read_bytes() == good
    stub.write_text("#!/bin/sh\nexit 3\n")
    assert build_stub(tmp_path, compiler="").read_bytes() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calico", "calico-ipam"]


def test_without_a_compiler_that_works_the_stub_is_python(tmp_path, caplog):
    for compiler in ("no-such-compiler", shutil.which("false")):
        stub = build_stub(tmp_path / Path(compiler).name, compiler=compiler)
        assert stub.read_text().startswith(f"#!{sys.executable} -IS\n")
        assert run(stub, {"CNI_COMMAND": "VERSION"}, b"").stdout.decode() == version_reply()
    assert "installing the slower Python stub" in caplog.text


@pytest.mark.skipif(NO_COMPILER, reason="no C compiler")
def test_a_compiled_stub_stays_when_the_compiler_is_gone(tmp_path):
    before = build_stub(tmp_path).read_bytes()
    assert build_stub(tmp_path, compiler="no-such-compiler").read_bytes() == before


def test_a_python_no_first_line_can_name_is_said_so(tmp_path):
    with pytest.raises(ConfigError, match="cannot stand in the first line"):
        build_stub(tmp_path, compiler="", python="/opt/my python/bin/python3")
    assert list(tmp_path.iterdir()) == []
