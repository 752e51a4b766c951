"""The Profiles of a Kubernetes cluster: one for each Namespace and ServiceAccount, and one that is always there.

Namespace red           ──► kns.red       allows everything, gives labels pcns.*
ServiceAccount red/web  ──► ksa.red.web   has no rules, gives labels pcsa.*
"""

from __future__ import annotations

import msgspec

from tortie.model.k8s import Namespace, ServiceAccount
from tortie.model.meta import Metadata
from tortie.model.policy import Profile, ProfileSpec, Rule
from tortie.policy.translate import DEFAULT_ALLOW, namespace_profile, service_account_profile

OF_NAMESPACE, OF_ACCOUNT = "kns.", "ksa."
_ALLOW = (Rule(action="Allow"),)

ALLOW_ALL = Profile(metadata=Metadata(name=DEFAULT_ALLOW), spec=ProfileSpec(ingress=_ALLOW, egress=_ALLOW))


def of_namespace(namespace: Namespace) -> Profile:
    _, labels = namespace_profile(namespace)
    spec = ProfileSpec(ingress=_ALLOW, egress=_ALLOW, labels_to_apply=labels)
    return Profile(metadata=_named(OF_NAMESPACE + namespace.name, namespace), spec=spec)


def of_account(account: ServiceAccount) -> Profile:
    _, labels = service_account_profile(account)
    name = f"{OF_ACCOUNT}{account.namespace}.{account.name}"
    return Profile(metadata=_named(name, account), spec=ProfileSpec(labels_to_apply=labels))


def source(name: str) -> tuple[type[Namespace] | type[ServiceAccount], str, str] | None:
    """The object that a profile is of: kind, name, namespace; None for a name that no profile has.

    >>> source("ksa.red.web.old")[1:]
    ('web.old', 'red')
    """
    if name.startswith(OF_NAMESPACE):
        return Namespace, name.removeprefix(OF_NAMESPACE), ""
    namespace, _, account = name.removeprefix(OF_ACCOUNT).partition(".")
    return (ServiceAccount, account, namespace) if name.startswith(OF_ACCOUNT) and account else None


def _named(name: str, of: Namespace | ServiceAccount) -> Metadata:
    metadata = of.metadata
    kept = Metadata(name=name, uid=metadata.uid, creation_timestamp=metadata.creation_timestamp)
    return msgspec.structs.replace(kept, resource_version=metadata.resource_version)
