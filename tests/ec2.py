"""EC2 on loopback for tests: moto's server as a process, a gate before it that can refuse, and a metadata service.

backend ── AWS_ENDPOINT_URL_EC2 ──► gate ──► moto       the gate notes every call, refuses some, and says of
   └─ AWS_EC2_METADATA_SERVICE_ENDPOINT ──► Metadata    routes that they are dead, which moto never does
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from etcd_server import free_ports

REGION = "eu-west-1"
DEADLINE = 60.0
"""Seconds until moto must answer: it imports much."""
needs_moto = pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="moto is not installed")


@contextmanager
def moto(log: Path) -> Iterator[int]:
    """Its port."""
    (port,) = free_ports(1)
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", f"-p{port}"], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + DEADLINE
        while not _answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/moto-api/data.json")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Gate:
    """`calls` are the actions that were asked for, `refused` codes by action, `dead` destinations of routes."""

    port: int
    calls: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    signers: set[str] = field(default_factory=set)
    """The IDs of the keys that calls were signed with."""

    def taken(self) -> list[str]:
        """Those that change something, since the last time."""
        calls = [call for call in self.calls if not call.startswith("Describe")]
        self.calls.clear()
        return calls

    def handler(self) -> type[BaseHTTPRequestHandler]:
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = gate.answer(body, dict(self.headers))
                self.send_response(status)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        return Handler

    def answer(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        action = urllib.parse.parse_qs(body.decode())["Action"][0]
        self.calls.append(action)
        signed = re.search(r"Credential=([^/]+)/", headers.get("Authorization", ""))
        self.signers.add(signed[1] if signed else "")
        if action in self.refused:
            code = self.refused[action]
            text = f"<Error><Code>{code}</Code><Message>The gate says no.</Message></Error>"
            return 400, f"<Response><Errors>{text}</Errors><RequestID>1</RequestID></Response>".encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", "/", body, headers)
            said = connection.getresponse()
            return said.status, self._with_dead(said.read().decode()).encode()
        finally:
            connection.close()

    def _with_dead(self, text: str) -> str:
        for dst in self.dead:
            cidr = f"<destinationCidrBlock>{re.escape(dst)}</destinationCidrBlock>"
            item = rf"<item>(?:(?!</item>).)*{cidr}(?:(?!</item>).)*</item>"
            text = re.sub(item, lambda found: found[0].replace(">active<", ">blackhole<"), text, flags=re.DOTALL)
        return text


@dataclass
class Metadata:
    """An instance's. `tokens` "required", "optional", or "unknown" as services have it that know version 1 alone. With
    `role` there are credentials for programs."""

    instance: str
    tokens: str = "required"
    role: str = ""
    key: str = "AKIAROLE"
    asked: list[str] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        metadata = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                known = self.path == "/latest/api/token" and metadata.tokens != "unknown"
                self._say("the-token" if known and self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None, 404)

            def do_GET(self) -> None:
                metadata.asked.append(self.path)
                token = self.headers["X-aws-ec2-metadata-token"]
                if token != "the-token" and (metadata.tokens == "required" or token):
                    self._say(None, 401)
                else:
                    self._say(metadata.values().get(self.path), 404)

            def _say(self, text: str | None, otherwise: int) -> None:
                self.send_response(otherwise if text is None else 200)
                self.send_header("Content-Length", str(len(text or "")))
                self.end_headers()
                self.wfile.write((text or "").encode())

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        return Handler

    def values(self) -> dict[str, str]:
        data = "/latest/meta-data"
        found = {f"{data}/instance-id": self.instance, f"{data}/placement/region": REGION}
        if self.role:
            credentials = {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "AccessKeyId": self.key,
                "SecretAccessKey": "secret",
                "Token": "session",
                "LastUpdated": "2026-01-01T00:00:00Z",
                "Expiration": "2099-01-01T00:00:00Z",
            }
            found[f"{data}/iam/security-credentials/"] = self.role
            found[f"{data}/iam/security-credentials/{self.role}"] = json.dumps(credentials)
        return found
