"""Calling CNI plugins as a runtime does: a process, its environment, a configuration on stdin.

`ours` is a directory with the project's plugins, `GO` that of Debian's Go plugins. Each call runs in a host namespace
of its own, so that what a plugin does to the "host" is seen there and is gone with it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tortie.cni import plugins
from tortie.cni.install import install_plugins
from tortie.cni.plugin import Answer, answer
from tortie.kernel import netns as namespaces

GO = Path("/usr/lib/cni")
SEEN = Path("/var/lib/cni")
SECONDS = 60
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 4096, 16384, 1 << 18  # linux/sched.h, linux/mount.h


def put(dest: Path) -> Path:
    """The project's plugins as a machine without a compiler has them: one script under all names."""
    install_plugins(dest, compiler="", packed=False)
    return dest


@dataclass(frozen=True)
class Said:
    """How a call ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def doc(self) -> Any:
        """What was printed, decoded: a result, or the error object."""
        return json.loads(self.stdout)

    @property
    def error(self) -> tuple[int, str]:
        assert self.code == 1, self
        return self.doc["code"], self.doc["msg"]


@dataclass(frozen=True)
class Caller:
    """Calls the plugins of a directory from inside the host namespace `host` (a name; "" is the test's own).

    `state` is a directory that plugins see as /var/lib/cni; without one they see the machine's. In a guest, where to
    start Python takes more than all that a plugin does, ours are called in children of this process.
    """

    directory: Path
    host: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    state: Path | None = None

    def __call__(
        self,
        command: str,
        conf: Mapping[str, Any] | bytes,
        *,
        netns: str = "",
        container: str = "ctr1",
        ifname: str = "eth0",
        type: str = "",
        **env: str,
    ) -> Said:
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        name = type or (conf["type"] if isinstance(conf, Mapping) else "")
        variables = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_PATH": str(self.directory),
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{netns}" if netns and "/" not in netns else netns,
            "CNI_IFNAME": ifname,
            **self.env,
            **env,
        }
        variables = {key: value for key, value in variables.items() if value}
        if "STOCKVM" in os.environ and self.directory != GO:
            return self._forked(name, variables, stdin)
        return self._started(name, variables, stdin)

    def _started(self, name: str, env: Mapping[str, str], stdin: bytes) -> Said:
        where = ["nsenter", f"--net=/run/netns/{self.host}"] if self.host else []
        if self.state is not None:
            mount = f'mkdir -p {SEEN} && mount --bind {self.state} {SEEN} && exec "$@"'
            where += ["unshare", "--mount", "sh", "-c", mount, "-"]
        done = subprocess.run(
            [*where, str(self.directory / name)],
            input=stdin,
            env=env,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def _forked(self, name: str, env: Mapping[str, str], stdin: bytes) -> Said:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                said = self._within(name, env, stdin)
                os.write(write, json.dumps([said.code, said.stdout, said.stderr]).encode())
            finally:
                os._exit(0)
        os.close(write)
        with open(read, "rb") as answers:
            data = answers.read()
        os.waitpid(child, 0)
        return Said(*json.loads(data))

    def _within(self, name: str, env: Mapping[str, str], stdin: bytes) -> Answer:
        """Never to return: the process is another after this."""
        if self.state is not None:
            SEEN.mkdir(parents=True, exist_ok=True)
            libc = ctypes.CDLL(None, use_errno=True)
            for failed in (
                libc.unshare(CLONE_NEWNS),
                libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
                libc.mount(bytes(self.state), bytes(SEEN), None, MS_BIND, None),
            ):
                if failed:
                    raise OSError(ctypes.get_errno(), f"a place of its own for {SEEN}")
        if self.host:
            namespaces.entered(namespaces.path(self.host)).__enter__()
        os.environ.clear()
        os.environ.update(env)
        plugins.program = str(self.directory / name)
        warnings = sys.stderr = io.StringIO()
        said = answer(plugins.load(name), env, stdin)
        return Answer(said.code, said.stdout, warnings.getvalue() + said.stderr)

    def add(self, conf: Mapping[str, Any], **how: str) -> Any:
        """The result of an ADD that must succeed."""
        said = self("ADD", conf, **how)
        assert said.code == 0, said
        return said.doc
