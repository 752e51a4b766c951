"""Questions to an agent over its socket: whoever shows what a node is doing asks its agent, and touches no kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tortie.base.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

TIMEOUT = 10.0
DEFAULT_SOCKET = Path("/run/tortie/agent.sock")


def tell(path: Path, what: str, timeout: float = TIMEOUT) -> Any:
    """The JSON answer of the agent at a socket to `POST what`. Raises and blocks as `ask`."""
    return ask(path, what, timeout, "POST")


def ask(path: Path, question: str, timeout: float = TIMEOUT, method: str = "GET", who: str = "agent") -> Any:
    """The JSON answer of the agent at a socket to `GET question`. Raises NotFound without one, Unavailable.

    Blocks for at most `timeout` seconds at each step. `who` is what listens there, for people.
    """
    connection = _connection(timeout)
    try:
        with _in_words(path, who):
            response = _asked(connection, path, question, method)
            answer = json.loads(response.read())
    finally:
        connection.close()
    if response.status != 200 and isinstance(answer, dict) and "error" in answer:
        raise Unavailable(str(answer["error"]))
    return answer


class Stream:
    """An answer that has no end: one JSON value a line, as they come; made, it has begun. Raises as `ask`.

    It ends with the agent, or when it is closed, which any thread may do.
    """

    def __init__(self, path: Path, question: str, timeout: float = TIMEOUT) -> None:
        connection = _connection(timeout)
        self._socket = connection.sock
        try:
            with _in_words(path):
                self._response = _asked(connection, path, question)
                if self._response.status != 200:
                    raise Unavailable(str(json.loads(self._response.read()).get("error", "refused")))
            self._socket.settimeout(None)
        except BaseException:
            self._socket.close()
            raise

    def __iter__(self) -> Iterator[Any]:
        import http.client

        with suppress(OSError, ValueError, http.client.HTTPException):
            while line := self._response.readline():
                yield json.loads(line)

    def close(self) -> None:
        import socket

        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _connection(timeout: float) -> HTTPConnection:
    import http.client
    import socket

    connection = http.client.HTTPConnection("agent", timeout=timeout)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(timeout)
    return connection


def _asked(connection: HTTPConnection, path: Path, question: str, method: str = "GET") -> HTTPResponse:
    connection.sock.connect(str(path))
    connection.request(method, question)
    return connection.getresponse()


@contextmanager
def _in_words(path: Path, who: str = "agent") -> Iterator[None]:
    """What can go wrong with a question, as a person should read it."""
    import http.client

    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"no {who} at {path}: is it running on this node?") from None
    except PermissionError:
        raise Unavailable(f"no permission for {path}: the {who} answers root only") from None
    except ConnectionRefusedError:
        raise Unavailable(f"nobody listens at {path}: the {who} has ended; its log says why") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(f"the {who} at {path} does not answer: {error}") from None
