"""As whom etcd is asked, and whom we believe: keys and certificates, as files or inline, for gRPC.

Files are read anew for each connection that is built, so that renewed certificates need no restart. Keys stay in
memory.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from tortie.base.errors import ConfigError
from tortie.model.apiconfig import ApiConfig

Pem = tuple[bytes | None, bytes | None, bytes | None]
"""Certificates of authorities, private key, certificate of the client."""


def credentials(config: ApiConfig) -> grpc.ChannelCredentials:
    """What TLS connections are made with. Raises ConfigError naming the field or the file."""
    authorities, key, certificate = pem(config)
    return grpc.ssl_channel_credentials(authorities or system_authorities(), key, certificate)


def pem(config: ApiConfig) -> Pem:
    """The three texts, each checked. Raises ConfigError."""
    given = (
        _text("etcdCACert", config.etcd_ca_cert, "etcdCACertFile", config.etcd_ca_cert_file),
        _text("etcdKey", config.etcd_key, "etcdKeyFile", config.etcd_key_file),
        _text("etcdCert", config.etcd_cert, "etcdCertFile", config.etcd_cert_file),
    )
    authorities, key, certificate = given
    if (key is None) != (certificate is None):
        missing = "etcdKeyFile (or etcdKey)" if key is None else "etcdCertFile (or etcdCert)"
        raise ConfigError("a client's key and certificate go together", missing)
    if authorities is not None:
        _certificates(authorities, config.etcd_ca_cert_file or "etcdCACert")
    if certificate is not None:
        _certificates(certificate, config.etcd_cert_file or "etcdCert")
    if config.etcd_key_file and config.etcd_cert_file:
        _pair(config.etcd_cert_file, config.etcd_key_file)
    return given


def system_authorities() -> bytes | None:
    """The certificates that this machine believes; None where it has none, which leaves it to gRPC."""
    where = ssl.get_default_verify_paths().cafile
    return Path(where).read_bytes() if where and Path(where).exists() else None


def _text(field: str, inline: str, file_field: str, file: str) -> bytes | None:
    if inline:
        text, where = inline.encode(), field
    elif file:
        where = file
        try:
            text = Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", file_field, file) from None
    else:
        return None
    wanted = b"PRIVATE KEY-----" if field == "etcdKey" else b"BEGIN CERTIFICATE-----"
    if wanted not in text:
        what = "private key" if field == "etcdKey" else "certificate"
        raise ConfigError(f"is not a {what} in PEM: it has no line -----BEGIN {what.upper()}-----", where)
    return text


def _certificates(text: bytes, where: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text.decode())
    except (ssl.SSLError, ValueError):
        raise ConfigError("is not a certificate in PEM that can be read", where) from None


def _pair(certificate: str, key: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        why = "is not the key of this certificate" if "MISMATCH" in str(error).upper() else "cannot be used"
        raise ConfigError(f"{why}: {certificate}", key) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", key) from None
