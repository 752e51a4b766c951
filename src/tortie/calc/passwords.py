"""Passwords of BGP sessions: what is in the Secrets of one namespace, key by key.

Nothing here says what a password is: neither a message nor a `repr`.
"""

from __future__ import annotations

from tortie.bgp.passwords import unfit
from tortie.model.bgp import SecretKeySelector
from tortie.model.secret import Secret


class Passwords:
    """Feed it Secrets as they come; ask `find`. Those of other namespaces are not kept."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._secrets: dict[str, Secret] = {}

    def set_secret(self, namespace: str, name: str, secret: Secret | None) -> bool:
        """It is like this, or (None) gone. Whether that is news."""
        if namespace != self._namespace:
            return False
        old = self._secrets.pop(name, None)
        if secret is not None:
            self._secrets[name] = secret
        return (old.data if old is not None else None) != (secret.data if secret is not None else None)

    def find(self, ref: SecretKeySelector) -> tuple[str | None, str]:
        """The password, and why there is none: "" where there is one."""
        title = f"Secret {self._namespace}/{ref.name}"
        secret = self._secrets.get(ref.name)
        if secret is None:
            return None, f"{title} is not there"
        value = secret.value(ref.key)
        if value is None:
            return None, f'{title} has nothing under "{ref.key}"'
        try:
            password = value.decode()
        except UnicodeDecodeError:
            return None, f'{title}: what is under "{ref.key}" is not text'
        why = unfit(password)
        return (None, f'{title}: what is under "{ref.key}" {why}') if why else (password, "")
