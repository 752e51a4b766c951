"""Load on services of a lab, for tests: threads that ask without a pause, and connections that are held."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import ExitStack
from typing import Any

from labs import Lab
from service_packets import netns_path, opened, say
from tortie.kernel import netns

ECHO = 7
PATIENCE = 10.0


class Load:
    """Asks from some places at some addresses and ports, all the time, until it is left."""

    def __init__(self, lab: Lab, *ways: tuple[str, str, int]) -> None:
        self._lab = lab
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=way, daemon=True) for way in ways]
        self.asked = 0
        self.unanswered: list[tuple[str, str]] = []

    def __enter__(self) -> Load:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for one in self._threads:
            one.join()

    def _ask(self, place: str, to: str, port: int) -> None:
        while not self._stop.wait(0.02):
            try:
                said = say(self._lab, place, to, port, patience=PATIENCE)
            except Exception as error:  # a thread's error is nobody's
                said = repr(error), ""
            self.asked += 1
            if not said[1]:
                self.unanswered.append((place, said[0]))


class _Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    allow_reuse_address = True


class _Echo(socketserver.BaseRequestHandler):
    server: Any

    def handle(self) -> None:
        self.request.sendall(self.server.name.encode())
        while words := self.request.recv(64):
            self.request.sendall(words)


class Echoes:
    """Pods of namespace town that answer with their name at port 7, and then with whatever they are told."""

    def __init__(self, lab: Lab, *names: str) -> None:
        self._names = names
        self._paths = {name: netns_path(lab, f"town/{name}") for name in names}
        self._stack = ExitStack()

    def __enter__(self) -> Echoes:
        with self._stack as stack:
            for name, path in self._paths.items():
                with netns.entered(path):
                    server = stack.enter_context(_Server(("::", ECHO), _Echo))
                server.name = name  # type: ignore[attr-defined]
                threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
                stack.callback(server.shutdown)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def held(self, lab: Lab, where: str, to: str) -> Held:
        """A connection to each of them, by way of a service."""
        held = Held()
        for _ in range(100):
            with ExitStack() as stack:
                one = stack.enter_context(opened(lab, where, to, "tcp"))
                one.settimeout(PATIENCE)
                one.connect((to, ECHO))
                if held.keep(one.recv(64).decode(), one):
                    self._stack.enter_context(stack.pop_all())
            if set(held.by) == set(self._names):
                return held
        raise AssertionError(f"100 connections have led to {set(held.by)} alone")


class Held:
    def __init__(self) -> None:
        self.by: dict[str, socket.socket] = {}

    def keep(self, name: str, one: socket.socket) -> bool:
        return self.by.setdefault(name, one) is one

    def broken(self) -> list[str]:
        """Those that answer no more."""
        return [name for name, one in self.by.items() if not _answers(one)]


def _answers(one: socket.socket) -> bool:
    try:
        one.sendall(b"still there?")
        return one.recv(64) == b"still there?"
    except OSError:
        return False
