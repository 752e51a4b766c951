"""Questions to agents: the command line touches no kernel, it asks the agent of the node over its socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from tortie.base.errors import NotFound, Unavailable

TIMEOUT = 10.0
DEFAULT_SOCKET = Path("/run/tortie/agent.sock")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


def ask(path: Path, question: str) -> Any:
    """The JSON answer of the agent at a socket to `GET question`. Raises NotFound without one, Unavailable."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", question)
        response = connection.getresponse()
        body = response.read()
        answer = json.loads(body)
    except FileNotFoundError:
        raise NotFound(f"no agent at {path}: is it running on this node?") from None
    except PermissionError:
        raise Unavailable(f"no permission for {path}: the agent answers root only") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(f"the agent at {path} does not answer: {error}") from None
    finally:
        connection.close()
    if response.status != 200 and isinstance(answer, dict) and "error" in answer:
        raise Unavailable(str(answer["error"]))
    return answer
