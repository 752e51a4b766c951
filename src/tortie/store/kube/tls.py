"""TLS to an API server: whom we trust, what we show, and what is wrong with the server's certificate.

`ssl` reads a client's key from a file only. Keys are given to it through an anonymous file in memory (memfd), which has
no name in any folder, is never written to a disk, and is gone when it is closed; so nothing is left by a process that
is killed in between. Keys in files take the same way, so that the certificate and the key that are used are those that
were compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import ssl
from collections.abc import Iterator

from tortie.base.errors import ConfigError
from tortie.store.kube.credentials import Content, Pair

log = logging.getLogger(__name__)

LOOK = 2.0
"""Seconds to look at a certificate that was not believed."""

# OpenSSL's X509_V_ERR_*
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_CA = frozenset({2, 18, 19, 20, 21})
_OTHER_NAME = frozenset({62, 64})

_SHORT = {
    b"\x55\x04\x03": "CN",
    b"\x55\x04\x06": "C",
    b"\x55\x04\x07": "L",
    b"\x55\x04\x08": "ST",
    b"\x55\x04\x0a": "O",
    b"\x55\x04\x0b": "OU",
}
"""Object identifiers of names' parts: 2.5.4.N."""


class Tls:
    """Makes contexts, one for as long as CA and client certificate stay as they are.

    `name` is what the server's certificate must say instead of the host of the URL, if anything.
    """

    def __init__(self, ca: Content | None = None, *, name: str = "", insecure: bool = False) -> None:
        self.name = name
        self.insecure = insecure
        self._ca = ca
        self._made: tuple[bytes, Pair | None] | None = None
        self._context: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"Tls(ca={self._ca!r}, name={self.name!r}, insecure={self.insecure})"

    def context(self, pair: Pair | None) -> ssl.SSLContext:
        """For this client certificate. One that does not fit to its key does not replace one that did: files that are
        renewed are different for a moment. Raises Unavailable: a file; ConfigError: there is no good one yet."""
        wanted = (self._ca.current() if self._ca is not None else b"", pair)
        if self._context is None or wanted != self._made:
            try:
                self._context = _context(*wanted, self.insecure)
            except ConfigError as error:
                if self._context is None:
                    raise
                log.warning("%s; what was there before is used", error)
            self._made = wanted
        return self._context

    def expire(self) -> None:
        """The server was not believed: look for another CA."""
        if self._ca is not None:
            self._ca.expire()


def _context(ca: bytes, pair: Pair | None, insecure: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca:
        try:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise ConfigError("is not a PEM certificate", "certificate-authority") from None
    else:
        context.load_default_certs()
    if pair is not None:
        _show(context, pair)
    return context


def _show(context: ssl.SSLContext, pair: Pair) -> None:
    """Have the context show a client certificate. Raises ConfigError."""
    if b"ENCRYPTED" in pair.key:
        raise ConfigError("is encrypted, and nobody is there to ask: give one without a passphrase", "client-key")
    with _in_memory(pair.certificate) as certificate, _in_memory(pair.key) as key:
        try:
            context.load_cert_chain(certificate, key, password=lambda: b"")  # else OpenSSL would ask at the terminal
        except (ssl.SSLError, ValueError) as error:
            if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
                raise ConfigError("is not the key of client-certificate", "client-key") from None
            raise ConfigError("client-certificate or client-key is not PEM", "client-certificate") from None


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path by which this process can read the content, while the block runs."""
    fd = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as stream:
            stream.write(content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


# --- what is wrong with a server's certificate -------------------------------------------------------------------


def disbelief(code: int, reason: str, host: str, certificate: bytes) -> str:
    """Why a server is not believed, and what would help. `code` is OpenSSL's, `certificate` is DER, or empty."""
    if code in _UNKNOWN_CA:
        who = issuer(certificate) if certificate else ""
        given = f"is signed by {who}, which" if who else "is signed by a CA that"
        seen = f"; it is sha256:{hashlib.sha256(certificate).hexdigest()}" if certificate else ""
        return f"its certificate {given} is not trusted: give that CA's as certificate-authority or K8S_CA_FILE{seen}"
    if code in _OTHER_NAME:
        return f"its certificate is not for {host}: tls-server-name can say what it is for"
    if code in (_EXPIRED, _NOT_YET_VALID):
        wrong = "has expired" if code == _EXPIRED else "is not valid yet"
        return f"its certificate, or its CA's, {wrong}: renew it, or set this machine's clock"
    return f"its certificate is not believed: {reason}"


async def shown(host: str, port: int, name: str) -> bytes:
    """The certificate that a server shows to anybody, as DER; empty when it shows none. Nothing is sent to it."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(LOOK):
            _, writer = await asyncio.open_connection(host, port, ssl=anybody, server_hostname=name or host)
            found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.transport.abort()
            return found or b""
    return b""


def issuer(certificate: bytes) -> str:
    """Who signed a DER certificate: `CN=kubernetes`; empty when that cannot be read. Source: RFC 5280, 4.1."""
    try:
        inside = _fields(_fields(certificate)[0][1])
        to_be_signed = _fields(inside[0][1])
        at = 3 if to_be_signed[0][0] == 0xA0 else 2  # after version (if it is there), serial number, algorithm
        parts = []
        for _, together in _fields(to_be_signed[at][1]):
            for _, part in _fields(together):
                (_, kind), (_, value) = _fields(part)[:2]
                parts.append(f"{_SHORT.get(kind, kind.hex())}={value.decode(errors='replace')}")
    except (IndexError, ValueError):
        return ""
    return "".join(c if c.isprintable() else "?" for c in ",".join(parts))[:200]


def _fields(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of the values that follow one another. Raises IndexError when they are cut short."""
    found = []
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        if at + length > len(der):
            raise IndexError("cut short")
        found.append((tag, der[at : at + length]))
        at += length
    return found
