"""What the cloud refuses, in words that say what to do about it. Decisions on values."""

from __future__ import annotations

from tortie.base.errors import ConfigError, NotFound, TortieError, Unavailable

DENIED = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})
UNKNOWN = frozenset({"AuthFailure", "InvalidClientTokenId", "ExpiredToken", "RequestExpired", "SignatureDoesNotMatch"})
FULL = frozenset({"RouteLimitExceeded"})
NO_TABLE = frozenset({"InvalidRouteTableID.NotFound", "InvalidRouteTableId.Malformed"})
NO_INSTANCE = frozenset({"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"})
NO_ROUTE = frozenset({"InvalidRoute.NotFound"})
NOTHING_TO_REPLACE = ("ReplaceRoute", "InvalidParameterValue")
"""What is said, of all things, where there is no such route."""


def refusal(code: str, message: str, action: str, where: str) -> TortieError:
    """`code` and `message` are the API's, `action` what was asked of EC2, `where` a table, instance or ENI.
    NotFound is a route that is not there; Unavailable is worth trying again; ConfigError has somebody act."""
    message = message.partition(" Encoded authorization failure message")[0]  # a page of letters and digits
    if code in NO_ROUTE or (action, code) == NOTHING_TO_REPLACE:
        return NotFound(f"{where}: {message}")
    if code in DENIED:
        text = f"{action} is not allowed: add ec2:{action} to the IAM role of this instance ({message})"
        return ConfigError(text, where)
    if code in UNKNOWN:
        text = f"{action}: the credentials do not count ({code}: {message}): attach an IAM role to this instance"
        return ConfigError(f"{text}, and look at its clock", where)
    if code in FULL:
        text = 'it has no room for another route (50 unless the quota is raised): raise the quota "Routes per route '
        return ConfigError(f'{text}table" of VPC, or remove routes ({message})', where)
    if code in NO_TABLE:
        return ConfigError(f"there is no such route table in this region: {message}", "Backend.RouteTableID", where)
    if code in NO_INSTANCE:
        return ConfigError(f"EC2 does not know this instance: {message}", where)
    return Unavailable(f"{where}: {action} failed: {code}: {message}")
