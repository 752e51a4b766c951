"""The labels by which policy knows namespaces, service accounts and pods. Only the network gives them."""

from __future__ import annotations

from collections.abc import Mapping

NAMESPACE = "projectcalico.org/namespace"
SERVICE_ACCOUNT = "projectcalico.org/serviceaccount"
ORCHESTRATOR = "projectcalico.org/orchestrator"
NAMESPACE_PREFIX = "pcns."
SERVICE_ACCOUNT_PREFIX = "pcsa."
NAME = "projectcalico.org/name"


def without_reserved(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of something that a tenant writes, less those that only the network gives: whoever could give them
    would slip into what others allow."""
    reserved = (NAMESPACE, SERVICE_ACCOUNT, ORCHESTRATOR)
    inherited = (NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX)
    return {key: value for key, value in labels.items() if key not in reserved and not key.startswith(inherited)}
