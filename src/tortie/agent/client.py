"""Questions to an agent over its socket: whoever shows what a node is doing asks its agent, and touches no kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tortie.base.errors import NotFound, Unavailable

TIMEOUT = 10.0
DEFAULT_SOCKET = Path("/run/tortie/agent.sock")


def ask(path: Path, question: str, timeout: float = TIMEOUT) -> Any:
    """The JSON answer of the agent at a socket to `GET question`. Raises NotFound without one, Unavailable.

    Blocks for at most `timeout` seconds at each step.
    """
    import http.client
    import socket

    connection = http.client.HTTPConnection("agent", timeout=timeout)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(timeout)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", question)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except FileNotFoundError:
        raise NotFound(f"no agent at {path}: is it running on this node?") from None
    except PermissionError:
        raise Unavailable(f"no permission for {path}: the agent answers root only") from None
    except ConnectionRefusedError:
        raise Unavailable(f"nobody listens at {path}: the agent has ended; its log says why") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(f"the agent at {path} does not answer: {error}") from None
    finally:
        connection.close()
    if response.status != 200 and isinstance(answer, dict) and "error" in answer:
        raise Unavailable(str(answer["error"]))
    return answer
