"""Whose certificate counts on a connection between an agent and a fan-out server. Both sides show one.

As with Typha, a peer is known by its common name or by a URI among its alternative names, not by where it is: a server
that is found by its address has no name that a certificate could have. One of the two that are demanded is enough.
Without either, a client demands that the certificate names the host it has connected to, a server takes any that the
authority has signed.

Files are read anew for each context. A client makes one for each connection, so that renewed certificates need no
restart; a server makes one for its life.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tortie.base.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM; all three or none. `cn` and `uri` are what the peer's certificate must have."""

    ca: str = ""
    cert: str = ""
    key: str = field(default="", repr=False)
    cn: str = ""
    uri: str = ""

    def __bool__(self) -> bool:
        return bool(self.ca)

    def checked(self, *names: str) -> Tls:
        """Itself. `names` are those of the options for the five fields. Raises ConfigError."""
        files = dict(zip(names, (self.ca, self.cert, self.key), strict=False))
        missing = [name for name, file in files.items() if not file]
        if missing and (len(missing) < len(files) or self.cn or self.uri):
            raise ConfigError("is missing: TLS needs an authority, a certificate and its key", missing[0])
        if self:
            self._context(server=True)
        return self

    def of_server(self) -> ssl.SSLContext | None:
        """Raises ConfigError for files that are none."""
        return self._context(server=True) if self else None

    def of_client(self) -> ssl.SSLContext | None:
        return self._context(server=False) if self else None

    def _context(self, *, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = not server and not (self.cn or self.uri)
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"is no authority in PEM: {_why(error)}", self.ca) from None
        try:
            context.load_cert_chain(self.cert, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"and its key are no certificate in PEM: {_why(error)}", self.cert) from None
        return context

    def refusal(self, certificate: Mapping[str, Any] | None) -> str:
        """Why a peer with this certificate (as `ssl` gives it, verified) is not the one; "" if it is.

        >>> Tls("ca", "crt", "key", cn="agent").refusal({"subject": ((("commonName", "other"),),)})
        'its certificate has the common name "other", not "agent"'
        """
        if not (self.cn or self.uri):
            return ""
        subject = (certificate or {}).get("subject", ())
        names = [value for part in subject for key, value in part if key == "commonName"]
        uris = [value for key, value in (certificate or {}).get("subjectAltName", ()) if key == "URI"]
        if (self.cn and self.cn in names) or (self.uri and self.uri in uris):
            return ""
        if self.cn:
            return f'its certificate has the common name "{", ".join(names)}", not "{self.cn}"'
        return f'its certificate has the URIs "{", ".join(uris)}", not "{self.uri}"'


def _why(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or "cannot be read")
