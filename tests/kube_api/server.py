"""The API server's test double: a Kubernetes API on loopback, in this process.

async with KubeApi() as api:
    api.url, api.kubeconfig(path)        for whoever is tested
    api.faults, api.restart() ...        what goes wrong
    api.log                              what was asked

socket ──► who is it? ──► may they? ──► faults ──► answers | watches | reviews | discovery ──► JSON, gzip
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import yaml
from aiohttp import web

from kube_api import access, control, definitions, discovery, patches, reviews
from kube_api.access import ANONYMOUS, Attributes, Rules, Tokens, User
from kube_api.answers import Answer, Answers, NoSuchPath, decoded
from kube_api.certificates import Authority
from kube_api.collector import Collector
from kube_api.faults import Faults
from kube_api.kinds import Kind, Kinds
from kube_api.objects import Options
from kube_api.paths import Call, call
from kube_api.statuses import Refusal, not_acceptable, unauthorized
from kube_api.storage import Storage
from kube_api.watches import Watch, asked

BODY = 3 * 1024 * 1024
"""Bytes that a request's body may have."""
GZIP_FROM = 128 * 1024
"""Bytes from which an answer is compressed for whoever can read that."""
NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


class Logged(NamedTuple):
    """A request that was made. `status` 0: the connection was cut before there was one."""

    method: str
    path: str
    query: dict[str, str]
    user: str
    status: int
    seconds: float


class KubeApi:
    """See the module. `port` 0: a free one, kept over restarts. `tls`: certificates of an authority of its own.

    `rbac`: requests are authorised, those without credentials are anonymous; without it everybody may do everything.
    `bookmark_every`, `watch_timeout` in seconds (the real ones are 60 and 1800 to 3600). `keep`: events remembered of a
    kind. `shortest_token`: least seconds that a TokenRequest may ask for. `kubelet`: pods whose grace is over vanish.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: bool = False,
        rbac: bool = False,
        bookmark_every: float = 60.0,
        watch_timeout: float = 1800.0,
        keep: int = 100_000,
        shortest_token: float = 600.0,
        kubelet: bool = True,
        control: bool = False,
    ) -> None:
        self.host, self.port, self.tls, self.rbac = host, port, tls, rbac
        self.bookmark_every, self.watch_timeout = bookmark_every, watch_timeout
        self.keep, self.shortest_token, self.kubelet, self.control = keep, shortest_token, kubelet, control
        self.faults = Faults()
        self.log: deque[Logged] = deque(maxlen=200_000)
        self.admin_token = "admin-" + secrets.token_hex(16)
        self.authority: Authority | None = None
        self._server: asyncio.Server | None = None
        self._http: web.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: dict[int, web.BaseRequest] = {}
        self._cleanup = contextlib.ExitStack()
        self._faults_task: asyncio.Task[None] | None = None
        self._begin(Storage(keep=keep), Kinds())

    def _begin(self, storage: Storage, kinds: Kinds) -> None:
        self.storage, self.kinds = storage, kinds
        self.answers = Answers(storage, kinds, self.faults)
        self.objects = self.answers.objects
        self.tokens = Tokens(storage, kinds)
        self.tokens.fixed[self.admin_token] = User("kubernetes-admin", (access.ADMIN_GROUP,))
        self.rules = Rules(storage, kinds)
        self.collector = Collector(self.objects, kubelet=self.kubelet)

    def _furnish(self) -> None:
        """What a fresh cluster has."""
        for name in NAMESPACES:
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        if self.rbac:
            for one in access.BOOTSTRAP:
                self.create(msgspec.json.decode(msgspec.json.encode({"apiVersion": f"{access.RBAC}/v1"} | one)))

    # --- life

    async def __aenter__(self) -> Self:
        if self.tls and self.authority is None:
            directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="kube-api-")))
            self.authority = Authority(directory, self.host)
        self._furnish()
        await self._listen()
        self._start(self.collector.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()
        self._cleanup.close()

    def _start(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)

    async def _listen(self) -> None:
        self._http = web.Server(self._handle, access_log=None, keepalive_timeout=300.0, auto_decompress=True)
        context = self.authority.context() if self.authority is not None else None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._http, self.host, self.port, ssl=context, backlog=512, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        await self.refuse()
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        """Raises what one of them failed with: a bug of the double."""
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def revision(self) -> int:
        return self.storage.revision

    # --- credentials

    def user(self, name: str, groups: Iterable[str] = ()) -> str:
        """A bearer token for a user."""
        token = f"user-{secrets.token_hex(16)}"
        self.tokens.fixed[token] = User(name, tuple(groups))
        return token

    def service_account_token(self, namespace: str, name: str, seconds: float = 3600) -> str:
        """As a TokenRequest gives it; the account must be there."""
        record = self.objects.get(self._kind("serviceaccounts"), namespace, name)
        return self.tokens.issue(namespace, name, record.uid, seconds, ())

    def revoke(self, token: str = "") -> None:
        """This token, or all of them but the administrator's, are refused from now on (401)."""
        if token:
            self.tokens.fixed.pop(token, None)
            return
        self.tokens.revoke_all()
        self.tokens.fixed[self.admin_token] = User("kubernetes-admin", (access.ADMIN_GROUP,))

    def kubeconfig(self, path: Path | str, *, token: str = "", certificate: tuple[Path, Path] | None = None) -> Path:
        """Write a kubeconfig (0600) for the administrator, or for a token or client certificate; returns its path."""
        cluster: dict[str, Any] = {"server": self.url}
        if self.authority is not None:
            cluster["certificate-authority"] = str(self.authority.ca)
        user: dict[str, Any] = {"token": token or self.admin_token}
        if certificate is not None:
            user = {"client-certificate": str(certificate[0]), "client-key": str(certificate[1])}
        context = {"cluster": "double", "user": "user", "namespace": "default"}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "clusters": [{"name": "double", "cluster": cluster}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "double", "context": context}],
        }
        found = Path(path)
        found.touch(mode=0o600)
        found.write_text(yaml.safe_dump(document))
        return found

    # --- objects, for tests that furnish a cluster

    def _kind(self, plural: str) -> Kind:
        """By plural (`pods`), plural.group, or kind (`Pod`)."""
        for kind in self.kinds.served.values():
            if plural in (kind.plural, kind.kind, f"{kind.plural}.{kind.group}"):
                return kind
        raise LookupError(f"no kind is called {plural}")

    def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        """As a POST does. Raises Refusal. The status is kept, unlike there."""
        kind = self.kinds.of_object(obj)
        if kind is None:
            raise LookupError(f"{obj.get('apiVersion')} {obj.get('kind')} is not served")
        own = msgspec.json.decode(msgspec.json.encode(obj))
        status = own.get("status")
        namespace = own.get("metadata", {}).get("namespace", "default") if kind.namespaced else ""
        made = msgspec.json.decode(self.objects.create(kind, namespace, own, Options()).body)
        if status and made.get("status") != status:
            record = self.objects.get(kind, namespace, made["metadata"]["name"])
            made["status"] = status
            made = msgspec.json.decode(self.objects.replace(kind, record, made, Options(), "status").body)
        return dict(made)

    def get(self, plural: str, name: str, namespace: str = "") -> dict[str, Any]:
        """Raises Refusal (404)."""
        kind = self._kind(plural)
        return self.objects.get(kind, namespace, name).object(kind)

    def list(self, plural: str) -> list[dict[str, Any]]:
        kind = self._kind(plural)
        return [record.object(kind) for record in self.storage.snapshot(kind.resource, self.revision)]

    def delete(self, plural: str, name: str, namespace: str = "", *, grace: int = 0) -> None:
        kind = self._kind(plural)
        self.objects.delete(kind, self.objects.get(kind, namespace, name), {"gracePeriodSeconds": grace}, Options())

    def bulk(self, plural: str, objects: Iterable[dict[str, Any]]) -> int:
        """Write many new objects as they are, unchecked: only uid, time and revision are added. Returns how many."""
        kind = self._kind(plural)
        return self.storage.bulk(kind, reviews.stamped(kind, objects))

    # --- what goes wrong, beside `faults`

    def compact(self) -> None:
        """Forget all history now: watches from earlier revisions and next pages of lists get 410."""
        self.storage.compact()

    def cut_watches(self) -> int:
        """Break the connections of all watches, in the middle of whatever; returns how many there were."""
        transports = [request.transport for request in self._watches.values() if request.transport is not None]
        for transport in transports:
            transport.abort()
        return len(transports)

    @property
    def watching(self) -> int:
        """How many watches run."""
        return len(self._watches)

    async def refuse(self) -> None:
        """Close the listening socket and break all connections, until `accept`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._http is not None:
            for connection in list(self._http.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await self._http.shutdown(0.2)
            self._http = None

    async def accept(self) -> None:
        """Listen again, on the same port."""
        if self._server is None:
            await self._listen()

    async def away(self, seconds: float) -> None:
        """Refuse connections for a while."""
        await self.refuse()
        await asyncio.sleep(seconds)
        await self.accept()

    def backup(self) -> Storage:
        """What is there now, for `restart`."""
        return self.storage.copy()

    async def restart(self, *, keep: bool = True, backup: Storage | None = None, seconds: float = 0.0) -> None:
        """A new process: history is forgotten. It listens again after `seconds`.

        Without `keep` it is a new, empty cluster with low revisions; with a `backup` it is what that holds, at the
        revision of then: the same revisions are given to other writes now.
        """
        await self.refuse()
        await self._end_tasks()
        if backup is not None:
            self._begin(backup.copy(), Kinds())
            for obj in self.list("customresourcedefinitions"):
                self.kinds.replace_custom(obj["metadata"]["name"], definitions.kinds(obj))
        elif keep:
            self.storage.compact()
        else:
            self._begin(Storage(keep=self.keep), Kinds())
            self._furnish()
        await asyncio.sleep(seconds)
        await self._listen()
        self._start(self.collector.run())

    def later(self, seconds: float, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it after a while, even if it ends everything else that runs."""

        async def run() -> None:
            await asyncio.sleep(seconds)
            await coroutine

        self._faults_task = asyncio.get_running_loop().create_task(run())

    # --- requests

    def requests(self, method: str = "", path: str = "") -> Sequence[Logged]:
        """Those made so far, by method and begin of the path."""
        return [one for one in self.log if one.method == (method or one.method) and one.path.startswith(path)]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        begun = time.monotonic()
        user, status = ANONYMOUS, 0
        query = dict(request.query)
        try:
            try:
                await self.faults.delay(f"{request.method} {request.path}")
                user = self._impersonated(request, self._authenticated(request))
                response = await self._respond(request, user, query)
            except Refusal as refused:
                response = _plain(refused.code, refused.body(), headers=refused.headers)
            except NoSuchPath:
                response = _plain(404, b"404 page not found\n", "text/plain; charset=utf-8")
            status = response.status
            return response
        finally:
            seconds = time.monotonic() - begun
            self.log.append(Logged(request.method, request.path, query, user.name, status, seconds))

    def _authenticated(self, request: web.BaseRequest) -> User:
        """Raises Refusal (401)."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and token:
            return self.tokens.user(token.strip())
        if kind:
            raise unauthorized()
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport is not None else None
        return access.of_certificate(certificate) or ANONYMOUS

    def _impersonated(self, request: web.BaseRequest, user: User) -> User:
        """Whom the request is to be seen as from. Raises Refusal (403) when its user may not do that."""
        name = request.headers.get("Impersonate-User", "")
        if not name:
            return user
        groups = tuple(request.headers.getall("Impersonate-Group", ()))
        parts = name.split(":")
        wanted = Attributes("impersonate", resource="users", name=name)
        if name.startswith("system:serviceaccount:") and len(parts) == 4:
            wanted = Attributes("impersonate", resource="serviceaccounts", namespace=parts[2], name=parts[3])
            groups = groups or ("system:serviceaccounts", f"system:serviceaccounts:{parts[2]}")
        self._authorize(user, wanted)
        for group in request.headers.getall("Impersonate-Group", ()):
            self._authorize(user, Attributes("impersonate", resource="groups", name=group))
        return User(name, tuple(dict.fromkeys((*groups, "system:authenticated"))))

    def _authorize(self, user: User, wanted: Attributes) -> None:
        if self.rbac and not self.rules.allows(user, wanted):
            raise access.refusal(user, wanted)

    def _authorize_creation(self, request: web.BaseRequest, user: User, found: Call, wanted: Attributes) -> None:
        """What PUT or apply would make must also be allowed to be created."""
        kind = self.kinds.find(found.group, found.version, found.plural)
        applied = request.headers.get("Content-Type", "").startswith(patches.APPLY)
        if kind is None or found.sub or not (applied or (kind.create_on_update and found.verb == "update")):
            return
        key = f"{found.namespace}/{found.name}" if found.namespace else found.name
        if self.storage.get(kind, key) is None:
            self._authorize(user, wanted._replace(verb="create"))

    async def _respond(self, request: web.BaseRequest, user: User, query: Mapping[str, str]) -> web.StreamResponse:
        found = call(request.method, request.url.raw_path, query)
        if self.control and request.path.startswith("/-/"):
            return _answered(await control.control(self, request), request)
        wanted = found.attributes(query) if found else Attributes(request.method.lower(), path=request.path)
        failure = self.faults.failure(f"{request.method} {request.path}")
        if failure is not None and not failure.taken:
            raise failure.refusal()
        self._authorize(user, wanted)
        _check_accept(request)
        if found is not None and found.verb == "watch":
            return await self._watch(request, found, query)
        body = await self._body(request)
        if found is not None and found.verb in ("update", "patch"):
            self._authorize_creation(request, user, found, wanted)
        answer = self._answer(request, user, found, query, body)
        if failure is not None:
            raise failure.refusal()
        return await _compressed(answer, request)

    def _answer(
        self, request: web.BaseRequest, user: User, found: Call | None, query: Mapping[str, str], body: bytes
    ) -> Answer:
        content_type = request.headers.get("Content-Type", "")
        if found is None:
            told = discovery.answer(self.kinds, request.path)
            if told is None or request.method not in ("GET", "HEAD"):
                raise NoSuchPath
            return Answer(200, told[0], told[1])
        if found.verb == "create" and (own := reviews.REVIEWS.get((found.group, found.plural, found.sub))) is not None:
            made = own(self, user, found, decoded(body, content_type))
            return Answer(201, msgspec.json.encode(made))
        return self.answers.answer(found, request.path, query, body, content_type)

    async def _body(self, request: web.BaseRequest) -> bytes:
        chunks, size = [], 0
        async for chunk in request.content.iter_any():
            chunks.append(chunk)
            size += len(chunk)
            if size > BODY:
                raise Refusal(413, "RequestEntityTooLarge", f"Request entity too large: limit is {BODY}", {})
        return b"".join(chunks)

    async def _watch(self, request: web.BaseRequest, found: Call, query: Mapping[str, str]) -> web.StreamResponse:
        kind = self.answers.kind_of(found)
        chosen = self.answers.selection(kind, found, query)
        want = asked(query, self.watch_timeout)
        transport, storage = request.transport, self.storage

        def alive() -> bool:
            there = transport is not None and not transport.is_closing()
            return there and storage is self.storage and self.kinds.of(kind.resource) is not None

        watch = Watch(storage, kind, chosen, want, self.faults, self.bookmark_every, alive)
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        self._watches[id(request)] = request
        try:
            async for chunk in watch.chunks():
                await response.write(chunk)
        except ConnectionError:
            pass  # the client went, or was cut off
        finally:
            del self._watches[id(request)]
        return response


def _check_accept(request: web.BaseRequest) -> None:
    accepted = request.headers.get("Accept", "")
    if accepted and not any(word in accepted for word in ("json", "*/*", "application/*", "text/plain", "yaml")):
        raise not_acceptable(("application/json", "application/yaml", "application/vnd.kubernetes.protobuf"))


def _plain(
    status: int, body: bytes, content_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(status=status, body=body, headers={"Content-Type": content_type, **(headers or {})})


def _answered(answer: Answer, request: web.BaseRequest) -> web.Response:
    response = _plain(answer.status, answer.body, answer.content_type, answer.headers)
    for warning in dict.fromkeys(answer.warnings):
        words = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{words}"')
    response.headers["Cache-Control"] = "no-cache, private"
    return response


async def _compressed(answer: Answer, request: web.BaseRequest) -> web.Response:
    if len(answer.body) >= GZIP_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
        body = await asyncio.to_thread(gzip.compress, answer.body, 1)
        answer = Answer(answer.status, body, answer.content_type, answer.headers | {"Content-Encoding": "gzip"})
    return _answered(answer, request)
