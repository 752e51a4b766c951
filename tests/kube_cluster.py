"""A Kubernetes cluster as its user has it: machines on a wire, the API server's double, and what a kubelet does.

    cable ── namespace with a bridge ── API server's double (TLS, RBAC), kubectl, an administrator
      │ eth0               │ eth0
    node1                node2        machines: containers of the manifest's pods, with their own files, capabilities,
      │ installed plugin   │          variables and the token of their account, and no more; sandboxes of pods

The double runs in a thread of its own, because a thread has one network namespace. A container's root is a file system
in memory, with the programs of this machine in it, volumes where the manifest mounts them, and everything gone when its
process ends.
"""

from __future__ import annotations

import os
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tortie
from kube_api import KubeApi
from kube_api.paths import call
from kube_api.plain import Answer, Plain
from kube_thread import ApiThread
from namespaces import Ns
from tortie.cni.conflist import ConfList, load_conflist
from tortie.cni.runtime import Runtime

SERVER = "192.0.2.100"
ACCOUNT = Path("run/secrets/kubernetes.io/serviceaccount")
"""In a container."""
PROGRAMS = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ETC = ("passwd", "group", "hosts", "nsswitch.conf", "ld.so.cache", "alternatives")
"""What an image has of its own."""
IN_HOST = "/run/netns"
"""The one directory of a host that machines share here: pods' network namespaces."""


class Server(ApiThread):
    """The double, and an administrator who speaks to it."""

    def __init__(self, ns: Ns, **options: Any) -> None:
        super().__init__(ns.path, KubeApi(host=SERVER, tls=True, rbac=True, bookmark_every=1.0, **options))
        self.ns = ns

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: Any) -> Answer:
        """A request of the administrator's, over the wire."""

        async def act() -> Answer:
            assert self.api.authority is not None
            context = ssl.create_default_context(cafile=self.api.authority.ca)
            async with Plain(self.api.url, self.api.admin_token, context=context) as plain:
                return await plain.ask(method, path, body, kind, **query)

        answer: Answer = self.do(act)
        return answer

    def delete(self, plural: str, name: str, namespace: str = "") -> None:
        self.do(self.api.delete, plural, name, namespace)

    def token(self, account: str, namespace: str = "kube-system", seconds: int = 3600) -> str:
        """By a TokenRequest, as a kubelet makes it."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.ask("POST", path, {"spec": {"expirationSeconds": seconds}})
        assert answer.status == 201, answer.body
        token: str = answer.body["status"]["token"]
        return token

    # --- what was asked ---

    def asked(self, account: str, since: int = 0) -> list[str]:
        """Requests of the account `kube-system/account`, in their order, but for watches and what is no resource."""
        user = f"system:serviceaccount:kube-system:{account}"
        log = list(self.api.log)[since:]
        return [
            f"{one.method} {one.path}"
            for one in log
            if one.user == user and "watch" not in one.query and call(one.method, one.path, one.query)
        ]

    def refused(self) -> list[str]:
        """What an account was not allowed."""
        log = list(self.api.log)
        return sorted({f"{one.user}: {one.method} {one.path}" for one in log if one.status == 403})


# --- machines -----------------------------------------------------------------------------------------------------


@dataclass
class Container:
    """A process of a pod of the manifest, with what it says in a file."""

    name: str
    process: subprocess.Popen[bytes]
    file: Path
    variables: Mapping[str, str]

    @property
    def log(self) -> str:
        return self.file.read_text()

    def inside(self, *words: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """`kubectl exec`, and what a kubelet's probes do."""
        enter = ["nsenter", f"--target={self.process.pid}", "--mount", "--net", "--root", "--wd=/"]
        told = ["env", "-i", *(f"{name}={value}" for name, value in self.variables.items())]
        return subprocess.run(
            [*enter, *told, *words], capture_output=True, text=True, timeout=timeout, check=False, env={}
        )

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)

    def wait(self, seconds: float = 60) -> None:
        """For an init container. Raises AssertionError with what it said when it fails."""
        assert self.process.wait(seconds) == 0, f"{self.name}: {self.log}"


@dataclass
class Machine:
    """A node. `directory` holds what its host has at absolute paths, and the tokens of its pods."""

    server: Server
    name: str
    ns: Ns
    directory: Path
    containers: list[Container] = field(default_factory=list)

    def host(self, path: str) -> Path:
        return self.directory / "host" / path.lstrip("/")

    def renew(self, account: str) -> None:
        """A fresh token of the account for its containers here, in one step, as a kubelet renews it."""
        folder = self.directory / "accounts" / account
        folder.mkdir(parents=True, exist_ok=True)
        assert self.server.api.authority is not None
        shutil.copy(self.server.api.authority.ca, folder / "ca.crt")
        (folder / "namespace").write_text("kube-system")
        new = folder / "new"
        new.touch(mode=0o600)
        new.write_text(self.server.token(account))
        new.rename(folder / "token")

    def start(self, workload: Mapping[str, Any], name: str) -> Container:
        """A container of a DaemonSet's or Deployment's pod, by its name."""
        spec = workload["spec"]["template"]["spec"]
        (one,) = (each for each in (*spec.get("initContainers", ()), *spec["containers"]) if each["name"] == name)
        account = spec["serviceAccountName"]
        if not (self.directory / "accounts" / account / "token").exists():
            self.renew(account)
        variables = self.variables(one)
        script = "\n".join((*self._root(spec, one, account), self._confined(one, variables)))
        file = self.directory / f"{name}.log"
        command = [
            "nsenter",
            f"--net={self.ns.path}",
            "unshare",
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-ec",
            script,
        ]
        with file.open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        made = Container(name, process, file, variables)
        self.containers.append(made)
        return made

    def variables(self, container: Mapping[str, Any]) -> dict[str, str]:
        """As a kubelet fills them in."""
        found = {
            "PATH": PROGRAMS,
            "HOME": "/",
            "HOSTNAME": self.name,
            "KUBERNETES_SERVICE_HOST": SERVER,
            "KUBERNETES_SERVICE_PORT": str(self.server.api.port),
        }
        for one in container["env"]:
            source = one.get("valueFrom", {})
            if "configMapKeyRef" in source:
                asked = source["configMapKeyRef"]
                found[one["name"]] = self.server.get("configmaps", asked["name"], "kube-system")["data"][asked["key"]]
            elif "fieldRef" in source:
                assert source["fieldRef"] == {"fieldPath": "spec.nodeName"}
                found[one["name"]] = self.name
            else:
                found[one["name"]] = one["value"]
        return found

    def _root(self, spec: Mapping[str, Any], container: Mapping[str, Any], account: str) -> list[str]:
        """Lines of a shell that make the container's root, in a mount namespace of its own."""
        root = self.directory / "root"
        root.mkdir(exist_ok=True)
        lines = [f"R={shlex.quote(str(root))}", "mount -t tmpfs tmpfs $R", "mkdir $R/etc $R/var $R/run $R/tmp"]
        lines += ["ln -s /run $R/var/run", *(f"cp -a /etc/{name} $R/etc/" for name in ETC)]
        lines += [f"cp -P /{name} $R/" for name in os.listdir("/") if Path("/", name).is_symlink()]
        volumes = {one["name"]: one for one in spec["volumes"]}
        for mount in container.get("volumeMounts", ()):
            lines += self._volume(volumes[mount["name"]], mount)
        # After the volumes: what is tested may lie in a directory that one of them covers.
        ours = (sys.base_prefix, sys.prefix, str(Path(tortie.__file__).parents[1]))
        places = dict.fromkeys(("/usr", "/proc", "/sys", "/dev", *ours))
        lines += [f"mkdir -p $R{one} && mount --rbind {one} $R{one}" for one in places]
        lines += ["mount --bind /proc/sys $R/proc/sys && mount -o remount,bind,ro $R/proc/sys"]
        token = self.directory / "accounts" / account
        lines += [f"mkdir -p $R/{ACCOUNT} && mount --bind -o ro {token} $R/{ACCOUNT}"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        return [*lines, "mount -o remount,bind,ro $R"]

    def _volume(self, volume: Mapping[str, Any], mount: Mapping[str, Any]) -> list[str]:
        place = f"$R{mount['mountPath']}"
        if "hostPath" not in volume:
            assert volume.get("emptyDir") == {}, volume
            return [f"mkdir -p {place} && mount -t tmpfs tmpfs {place}"]
        path = volume["hostPath"]["path"]
        assert volume["hostPath"]["type"] == "DirectoryOrCreate"
        source = Path(path) if path == IN_HOST else self.host(path)
        source.mkdir(parents=True, exist_ok=True)
        how = "--rbind" if mount.get("mountPropagation") == "HostToContainer" else "--bind"
        lines = [f"mkdir -p {place} && mount {how} {shlex.quote(str(source))} {place}"]
        return [*lines, f"mount -o remount,bind,ro {place}"] if mount.get("readOnly") else lines

    def _confined(self, container: Mapping[str, Any], variables: Mapping[str, str]) -> str:
        """The line that becomes the container. Its user stays root: what is installed here may be root's alone."""
        held = container["securityContext"]["capabilities"]
        assert held["drop"] == ["ALL"]
        bounding = ",".join(("-all", *(f"+{name.lower()}" for name in held.get("add", ()))))
        words = ["exec", "chroot", str(self.directory / "root"), "setpriv", "--bounding-set", bounding]
        words += ["--inh-caps", "-all", "env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        return shlex.join([*words, *container["command"]])

    def runtime(self) -> tuple[Runtime, ConfList]:
        """What a container runtime of this machine calls, with the network that it finds."""
        (file,) = self.host("/etc/cni/net.d").glob("*.conflist")
        socket = {"TORTIE_AGENT_SOCKET": str(self.host("/run/tortie/agent.sock"))}
        plugins, cache = self.host("/opt/cni/bin"), self.directory / "cache"
        return Runtime([str(plugins)], cache, socket, ["nsenter", f"--net={self.ns.path}"], 60), load_conflist(file)

    def stop(self) -> None:
        """Everything that runs here ends."""
        for one in self.containers:
            one.kill()
        for pid in self.ns._ip("netns", "pids", self.ns.name).split():
            subprocess.run(["kill", "-9", pid], check=False, capture_output=True)


# --- pods ---------------------------------------------------------------------------------------------------------


@dataclass
class Sandbox:
    """A pod that a kubelet runs. `uid` is what the kubelet calls it."""

    machine: Machine
    namespace: str
    name: str
    uid: str
    ns: Ns
    container_id: str = field(default_factory=lambda: os.urandom(32).hex())
    ip: str = ""

    def _where(self) -> dict[str, Any]:
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.namespace,
            "K8S_POD_NAME": self.name,
            "K8S_POD_INFRA_CONTAINER_ID": self.container_id,
            "K8S_POD_UID": self.uid,
        }
        return {"container_id": self.container_id, "netns": self.ns.path, "args": args}

    async def attach(self) -> str:
        """ADD; the address."""
        runtime, network = self.machine.runtime()
        result = await runtime.add(network, **self._where())
        (address,) = result["ips"]
        self.ip = address["address"].partition("/")[0]
        return self.ip

    async def detach(self) -> None:
        """DEL."""
        runtime, network = self.machine.runtime()
        await runtime.delete(network, **self._where())

    def report(self, phase: str = "Running") -> None:
        """What the kubelet says of it; of one that has ended no address is told any more."""
        status: dict[str, Any] = {"phase": phase}
        if phase == "Running":
            status |= {"podIP": self.ip, "podIPs": [{"ip": self.ip}], "hostIP": "192.0.2.1"}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}/status"
        answer = self.machine.server.ask("PATCH", path, {"status": status}, "application/merge-patch+json")
        assert answer.status == 200, answer.body

    def reaches(self, ip: str) -> bool:
        """Whether a packet and its answer come through."""
        return " 1 received" in self.ns.run("ping", "-c1", "-W1", ip, check=False)

    def annotations(self) -> dict[str, str]:
        """Those of ours, without the group."""
        found = self.machine.server.get("pods", self.name, self.namespace)["metadata"].get("annotations", {})
        return {key.rpartition("/")[2]: value for key, value in found.items() if "projectcalico.org" in key}
