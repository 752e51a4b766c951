"""Single packets to services of a lab, for tests, by sockets of this process in the namespaces of its places."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from labs import Lab
from tortie.kernel import netns
from tortie.lab.responder import parse_answer

DROPPED, REFUSED = "dropped", "refused"
KIND = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
SILENCE = 0.5
"""Seconds after which an answer is taken not to come."""
UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH}

Said = tuple[str, str]
"""Who answered, such as `red/web`, and whom it saw; or what became of the packet, and ""."""


def netns_path(lab: Lab, where: str) -> str:
    """A pod as `red/web`, a node as `node1`, or `outside`."""
    topology = lab.directory.read()
    if where == "outside":
        return netns.path(topology.outside.netns)
    namespace, _, name = where.rpartition("/")
    return netns.path(topology.pod_netns(namespace, name) if namespace else topology.node(name).netns)


@contextmanager
def opened(lab: Lab, where: str, to: str, protocol: str) -> Iterator[socket.socket]:
    family = socket.AF_INET if ip_address(to).version == 4 else socket.AF_INET6
    with netns.entered(netns_path(lab, where)):
        one = socket.socket(family, KIND[protocol])
    with one:
        one.settimeout(SILENCE)
        yield one


def say(lab: Lab, where: str, to: str, port: int, protocol: str = "tcp", patience: float = SILENCE) -> Said:
    """One question from a place, and what became of it."""
    with opened(lab, where, to, protocol) as one:
        one.settimeout(patience)
        try:
            one.connect((to, port))
            with suppress(PermissionError):  # that it goes no further is told at once; why, next
                one.send(b"who?\n")
            return heard(one)
        except TimeoutError:
            return DROPPED, ""
        except ConnectionRefusedError:
            return REFUSED, ""
        except OSError as error:
            if error.errno in UNREACHABLE:
                return os.strerror(error.errno or 0).lower(), ""
            raise


def heard(one: socket.socket) -> Said:
    """The answer that a connected socket gets: one to each datagram, and one to a TCP connection."""
    answer = parse_answer(one.recv(2048))
    assert answer is not None
    return answer.name, answer.caller


def saw(lab: Lab, where: str, to: str, port: int, protocol: str = "tcp", times: int = 12) -> dict[str, set[str]]:
    """Who answers a series of questions, and whom they saw."""
    found: dict[str, set[str]] = {}
    for _ in range(times):
        who, whom = say(lab, where, to, port, protocol)
        found.setdefault(who, set()).add(whom)
    return found
