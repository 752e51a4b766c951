"""Routers of others: FRR and GoBGP, each in a namespace, with a configuration, asked for their own view."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgp_nodes import eventually
from namespaces import Ns

FRR = Path("/usr/lib/frr")
"""Where Debian's frr has its daemons."""
TEMPORARY = Path("/var/tmp/frr")
"""Where these make a directory each."""
needs_frr = pytest.mark.skipif(not (FRR / "bgpd").exists(), reason="needs /usr/lib/frr/bgpd: apt install frr")
needs_gobgp = pytest.mark.skipif(shutil.which("gobgpd") is None, reason="needs gobgpd: apt install gobgpd")


@contextlib.contextmanager
def directory_of(user: str) -> Iterator[Path]:
    """One that a daemon which gives up root can read and write."""
    with tempfile.TemporaryDirectory(prefix="tt-router-") as name:
        shutil.chown(name, user, user)
        yield Path(name)


class Daemon:
    """A program in a namespace; its output is in a file."""

    def __init__(self, ns: Ns, directory: Path, name: str, *words: str | Path) -> None:
        self._command = ["nsenter", f"--net={ns.path}", *map(str, words)]
        self._log = directory / f"{name}.out"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def check(self) -> None:
        """Fails with its last words when it has ended."""
        ended = self._process is not None and self._process.poll() is not None
        assert not ended, f"{' '.join(self._command)}: {self._log.read_text()[-1000:]}"

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None


# --- FRR ----------------------------------------------------------------------------------------------------------


class Frr:
    """zebra, which writes its routes to the kernel, and bgpd. They run as the user frr, with a directory of their own
    for what they leave behind when they are killed."""

    def __init__(self, ns: Ns, directory: Path, config: str, port: int = 179) -> None:
        self.ns = ns
        self._directory = directory
        for name, text in (("zebra", ""), ("bgpd", config)):
            head = f"frr defaults traditional\nlog file {directory}/{name}.log\n"
            (directory / f"{name}.conf").write_text(head + text)
        self.zebra = self._daemon("zebra")
        self.bgpd = self._daemon("bgpd", "-p", str(port))

    def _daemon(self, name: str, *more: str) -> Daemon:
        here = self._directory
        files = ["-f", here / f"{name}.conf", "-i", here / f"{name}.pid", "-z", here / "zserv.api"]
        apart = ["unshare", "--mount", "sh", "-c", 'mkdir -p "$0" && mount -t tmpfs tmpfs "$0" && exec "$@"', TEMPORARY]
        return Daemon(self.ns, here, name, *apart, FRR / name, *files, "--vty_socket", here, "-P", "0", *more)

    def start(self) -> None:
        self.zebra.start()
        eventually((self._directory / "zserv.api").exists, what="zebra's socket")
        self.start_bgpd()

    def start_bgpd(self) -> None:
        (self._directory / "bgpd.vty").unlink(missing_ok=True)
        self.bgpd.start()
        eventually((self._directory / "bgpd.vty").exists, what="bgpd's socket")
        self.bgpd.check()

    def close(self) -> None:
        self.bgpd.end()
        self.zebra.end()

    def say(self, *commands: str) -> str:
        """What vtysh answers."""
        words = [word for command in commands for word in ("-c", command)]
        where = ["--vty_socket", str(self._directory), "--config_dir", str(self._directory)]
        return self.ns.run("env", "VTYSH_HISTFILE=/dev/null", "vtysh", *where, *words)

    def show(self, command: str) -> Any:
        return json.loads(self.say(f"show {command} json") or "{}")

    def configure(self, *lines: str) -> None:
        said = self.say("configure terminal", *lines)
        assert "%" not in said, said

    def sessions(self) -> dict[str, str]:
        """Their states, by the peer's address."""
        return {address: one["bgpState"] for address, one in self.show("bgp neighbors").items() if "bgpState" in one}

    def routes(self, version: int = 4) -> dict[str, list[dict[str, Any]]]:
        """Paths by prefix, as `show bgp` has them."""
        found: dict[str, list[dict[str, Any]]] = self.show(f"bgp ipv{version} unicast").get("routes", {})
        return found

    def path(self, prefix: str) -> dict[str, Any]:
        """The best path to a prefix, with all its attributes; empty for none."""
        version = 6 if ":" in prefix else 4
        paths = self.show(f"bgp ipv{version} unicast {prefix}").get("paths", [])
        return next((path for path in paths if path.get("bestpath", {}).get("overall")), {})

    def fib(self) -> dict[str, dict[str, Any]]:
        """What zebra has written, by destination."""
        every = [row for version in (4, 6) for row in self.ns.json(f"-{version}", "route", "show", "proto", "bgp")]
        return {row["dst"]: row for row in every}


@contextlib.contextmanager
def frr(ns: Ns, config: str, port: int = 179) -> Iterator[Frr]:
    """Running, until the end."""
    with directory_of("frr") as directory:
        router = Frr(ns, directory, config, port)
        try:
            router.start()
            yield router
        finally:
            router.close()


# --- GoBGP --------------------------------------------------------------------------------------------------------

ESTABLISHED = 6
"""GoBGP's number for it, and the RFC's (4271, section 8.2.2: the sixth state)."""


class Gobgp:
    """It has a table and no kernel."""

    def __init__(self, ns: Ns, directory: Path, config: str) -> None:
        self.ns = ns
        file = directory / "gobgpd.toml"
        file.write_text(config)
        words = ["gobgpd", "-f", file, "--pprof-disable", "--api-hosts", "127.0.0.1:50051"]
        self.daemon = Daemon(ns, directory, "gobgpd", *words)
        self._again = Daemon(ns, directory, "gobgpd", *words, "--graceful-restart")

    def start(self, *, again: bool = False) -> None:
        """`again`: it tells its peers that it has restarted."""
        if again:
            self.daemon = self._again
        self.daemon.start()

        def answers() -> bool:
            self.daemon.check()
            return bool(self.ns.run("gobgp", "-j", "global", check=False).startswith("{"))

        eventually(answers, what="gobgpd answers")

    def close(self) -> None:
        self.daemon.end()

    def ask(self, *words: str) -> Any:
        return json.loads(self.ns.run("gobgp", "-j", *words) or "null")

    def sessions(self) -> dict[str, bool]:
        """Whether each is established, by the peer's address."""
        return {one["conf"]["neighbor_address"]: _state(one) == ESTABLISHED for one in self.ask("neighbor")}

    def routes(self, version: int = 4) -> dict[str, dict[int, dict[str, Any]]]:
        """Attributes of the best path by their types (RFC 4271, 4760, 8092), by prefix."""
        table = self.ask("global", "rib", "-a", f"ipv{version}") or {}
        return {prefix: {one["type"]: one for one in paths[0]["attrs"]} for prefix, paths in table.items()}


def _state(neighbor: dict[str, Any]) -> int:
    return int(neighbor.get("state", {}).get("session_state", 0))


@contextlib.contextmanager
def gobgp(ns: Ns, config: str) -> Iterator[Gobgp]:
    """Running, until the end."""
    with tempfile.TemporaryDirectory(prefix="tt-router-") as name:
        router = Gobgp(ns, Path(name), config)
        try:
            router.start()
            yield router
        finally:
            router.close()
