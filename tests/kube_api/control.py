"""The faults of a double that is a program: POST /-/<verb> with a JSON object of arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from kube_api.answers import Answer, NoSuchPath
from kube_api.statuses import bad_request

if TYPE_CHECKING:
    from kube_api.server import KubeApi


async def control(api: KubeApi, request: web.BaseRequest) -> Answer:
    """Raises Refusal (400) for arguments that do not fit, NoSuchPath."""
    verb = request.path.removeprefix("/-/")
    if verb == "log":
        return Answer(200, msgspec.json.encode([one._asdict() for one in api.log]))
    if request.method != "POST":
        raise NoSuchPath
    body = await request.read()
    try:
        arguments = msgspec.json.decode(body, type=dict[str, Any]) if body else {}
        found = await _do(api, verb, arguments)
    except (TypeError, ValueError, msgspec.DecodeError) as error:
        raise bad_request(f"/-/{verb}: {error}") from None
    return Answer(200, msgspec.json.encode(found))


async def _do(api: KubeApi, verb: str, arguments: dict[str, Any]) -> Any:
    faults = api.faults
    if verb == "faults":
        for name, value in arguments.items():
            if name not in ("latency", "slow", "silent", "no_bookmarks"):
                raise TypeError(f"{name} is no fault")
            setattr(faults, name, value)
    elif verb in ("fail", "stale", "empty", "partial"):
        getattr(faults, verb)(**arguments)
    elif verb == "clear":
        faults.clear()
    elif verb == "compact":
        api.compact()
    elif verb == "revoke":
        api.revoke(**arguments)
    elif verb == "cut":
        return {"cut": api.cut_watches()}
    elif verb in ("away", "restart"):
        # The answer goes out first: this very connection will be cut.
        api.later(0.1, getattr(api, verb)(**arguments))
    else:
        raise NoSuchPath
    return {"revision": api.revision}
