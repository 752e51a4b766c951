"""A certificate authority for one server, by the `openssl` program; all files in one directory, keys 0600."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path


class Authority:
    """`ca.crt`, `server.crt`, `server.key` and certificates of clients in `directory`, which must exist.

    `host` is an address that the server has beside those of loopback."""

    def __init__(self, directory: Path, host: str = "127.0.0.1") -> None:
        self.directory = directory
        self.ca = directory / "ca.crt"
        self._key = directory / "ca.key"
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(self._key))
        _openssl(
            *("req", "-x509", "-new", "-key", str(self._key), "-out", str(self.ca), "-days", "30"),
            *("-subj", "/CN=double-ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
        names = f"subjectAltName=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:::1,IP:{host}"
        self.server = self.issue("server", "/CN=kube-apiserver", f"{names}\nextendedKeyUsage=serverAuth")

    def issue(self, file: str, subject: str, extensions: str, days: int = 30) -> tuple[Path, Path]:
        """Certificate and key signed by us."""
        certificate, key = self.directory / f"{file}.crt", self.directory / f"{file}.key"
        request, extra = self.directory / f"{file}.csr", self.directory / f"{file}.ext"
        extra.write_text(f"basicConstraints=CA:FALSE\n{extensions}\n")
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
        key.chmod(0o600)
        _openssl("req", "-new", "-key", str(key), "-out", str(request), "-subj", subject)
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self._key), "-CAcreateserial"),
            *("-out", str(certificate), "-days", str(days), "-extfile", str(extra)),
        )
        return certificate, key

    def client(self, name: str, groups: Sequence[str] = ()) -> tuple[Path, Path]:
        """Of a user: the name is the CN, each group an O."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={name}"
        return self.issue(f"client-{name.replace(':', '-').replace('/', '-')}", subject, "extendedKeyUsage=clientAuth")

    def context(self) -> ssl.SSLContext:
        """For the server: certificates of clients are welcome, not demanded."""
        found = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        found.verify_mode = ssl.CERT_OPTIONAL
        found.load_cert_chain(*self.server)
        return found


def _openssl(*arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments], capture_output=True, text=True, check=False, umask=0o077, env=dict(os.environ)
    )
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr.strip()}")
