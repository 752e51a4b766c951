"""Which cluster is meant and as whom it is asked: kubeconfigs, environment, service accounts, what is refused."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_peers import Authority, Leaf

from tortie.base.errors import ConfigError
from tortie.model.apiconfig import ApiConfig, from_environment
from tortie.store.kube.access import Access, access
from tortie.store.kube.kubeconfig import choose, parse, paths, read
from tortie.store.kube.plugin import answer
from tortie.store.kube.proxies import bypassed, proxy_for

PAGE = Path(__file__).parents[2] / "docs/kubernetes-access.md"
NOWHERE = Path("/nonexistent/serviceaccount")
SECRET = "sekrit-of-the-test"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "test-ca")


@pytest.fixture(scope="module")
def leaf(authority: Authority) -> Leaf:
    return authority.sign("client", "/CN=alice")


def document(cluster: Any = None, user: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443"} if cluster is None else cluster}],
        "users": [{"name": "u", "user": {"token": SECRET} if user is None else user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "red"}}],
        **more,
    }


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def reached(config: ApiConfig, environment: dict[str, str] | None = None, folder: Path = NOWHERE) -> Access:
    return access(config, environment or {}, service_account=folder)


async def token_of(found: Access) -> str:
    return (await found.credentials.identity()).token


# --- one file, several files --------------------------------------------------------------------------------------


async def test_a_kubeconfig_says_server_user_and_namespace(tmp_path: Path) -> None:
    path = written(tmp_path / "config", document())
    found = reached(ApiConfig(kubeconfig=str(path)))
    assert (found.server, found.namespace, found.proxy) == ("https://192.0.2.1:6443", "red", "")
    assert found.origin == f'{path}: context "here"'
    assert await token_of(found) == SECRET
    assert SECRET not in repr(found) + repr(found.credentials) + repr(parse(path.read_text(), "f", tmp_path))


async def test_of_several_files_the_first_to_name_a_thing_wins_as_a_whole(tmp_path: Path) -> None:
    first = written(
        tmp_path / "a/config",
        {
            "clusters": [{"name": "c", "cluster": {"server": "https://first"}}],
            "users": [{"name": "u", "user": {"tokenFile": "token"}}],
        },
    )
    (tmp_path / "a/token").write_text("of-a\n")
    second = written(
        tmp_path / "b/config",
        document({"server": "https://second", "tls-server-name": "other"}, {"token": "of-b", "as": "bob"}),
    )
    third = written(tmp_path / "c/config", document(**{"current-context": "late"}))
    missing = tmp_path / "missing"
    found = reached(ApiConfig(kubeconfig=f"{missing}:{first}::{second}:{third}:{first}"))
    assert found.server == "https://first"
    assert found.tls is not None
    assert found.tls.name == ""  # nothing of the second file's cluster
    assert await token_of(found) == "of-a"  # relative to the file's own folder
    assert found.credentials.headers == ()
    assert found.origin.startswith(str(second))
    assert paths(f"{first}::{second}:{first}") == (first, second)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing: there is no such kubeconfig"):
        read((tmp_path / "missing",))
    with pytest.raises(ConfigError, match=r"none of these files is there: .*missing, .*gone"):
        read((tmp_path / "missing", tmp_path / "gone"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read((tmp_path,))


def test_the_context_is_asked_for_or_current_or_the_only_one() -> None:
    two = [{"name": name, "context": {"cluster": "c", "user": "u", "namespace": name}} for name in ("here", "there")]

    def chosen(wanted: str, **more: Any) -> str:
        return choose(parse(yaml.safe_dump(document(**more)), "f", Path()), wanted, "f").namespace

    assert chosen("", contexts=two) == "here"
    assert chosen("there", contexts=two) == "there"
    assert chosen("", **{"current-context": ""}) == "red"
    with pytest.raises(ConfigError, match=r'f: there is no context "ther": did you mean "there"\?'):
        chosen("ther", contexts=two)
    with pytest.raises(ConfigError, match=r"no context is chosen: .* \(one of here, there\)"):
        chosen("", contexts=two, **{"current-context": ""})


def test_what_kubectl_writes_for_nothing_is_nothing() -> None:
    text = "apiVersion: v1\nkind: Config\nclusters: null\ncontexts: null\ncurrent-context: ''\npreferences: {}\n"
    assert parse(text, "f", Path()).empty
    assert parse("", "f", Path()).empty


# --- what is wrong with it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({}, None, 'cluster "c": server is not given'),
        ({"server": "192.0.2.1:6443"}, None, "is not a URL such as https://192.0.2.1:6443"),
        ({"server": "https://h:x"}, None, "is not a URL"),
        ({"server": f"https://me:{SECRET}@h"}, None, "a user in the URL is not supported"),
        (
            {"server": "https://h", "insecure-skip-tls-verify": True, "certificate-authority-data": "eA=="},
            None,
            "exclude",
        ),
        ({"server": "https://h", "certificate-authority": "nothing.crt"}, None, "nothing.crt cannot be read: No such"),
        ({"server": "https://h", "certificate-authority-data": "!"}, None, "certificate-authority-data: is not base64"),
        ({"server": "https://h", "certificate-authority-data": "eA=="}, None, "is not a PEM certificate"),
        (
            {"server": "https://h", "proxy-url": f"socks5://me:{SECRET}@p:1"},
            None,
            "proxy-url: is not a URL such as http:",
        ),
        ({"server": 7}, None, "Expected `str`, got `int`"),
        (None, {"username": "me", "password": SECRET}, "Kubernetes has no passwords any more"),
        (None, {"auth-provider": {"name": "gcp", "config": {"t": SECRET}}}, "auth-provider was removed"),
        (None, {"client-key-data": "eA=="}, "client-key is given without client-certificate"),
        (None, {"client-certificate-data": "eA==", "client-key-data": "eA=="}, "is not PEM"),
        (None, {"token": f"{SECRET}\nx"}, "what is in it is not a token"),
        (None, {"tokenFile": "nothing"}, "nothing cannot be read: No such file"),
        (None, {"as-uid": "7"}, "need as"),
        (
            None,
            {"exec": {"apiVersion": "client.authentication.k8s.io/v1alpha1", "command": "true"}},
            "v1alpha1.* is none",
        ),
        (None, {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "true"}}, "must be given in v1"),
        (
            None,
            {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "true", "interactiveMode": "Always"}},
            "wants a terminal",
        ),
        (
            None,
            {
                "exec": {
                    "apiVersion": "client.authentication.k8s.io/v1beta1",
                    "command": "no-such-plugin",
                    "args": [SECRET],
                    "installHint": "get it\nfrom there",
                }
            },
            "no-such-plugin is not there, or not executable: get it from there",
        ),
        (None, {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1"}}, "exec.command: names no program"),
    ],
)
def test_what_is_refused_is_told_with_its_place_and_without_credentials(
    cluster: Any, user: Any, words: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "config", document(cluster, user))
    with pytest.raises(ConfigError, match=words) as caught:
        reached(ApiConfig(kubeconfig=str(path)), {"PATH": "/usr/bin:/bin"})
    assert str(caught.value).startswith(str(path))
    assert SECRET not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "f: .*not valid YAML"),
        ("--- {}\n--- {}\n", "has several documents"),
        ("kind: Pod\napiVersion: v1", 'is "Pod" of "v1"'),
        ("- 1", "Expected `object`"),
        ("clusters: [{name: a}, {name: a}]", 'f: clusters: "a" is there twice'),
        ("contexts: [{name: a, context: {cluster: x}}]", 'there is no cluster "x"'),
        ("clusters: [{name: x}]\ncontexts: [{name: a, context: {cluster: x, user: y}}]", 'there is no user "y"'),
        ("{}", "there are no contexts"),
    ],
)
def test_files_that_say_nothing_of_use(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose(parse(text, "f", Path()), "", "f")


def test_a_certificate_and_another_ones_key(authority: Authority, leaf: Leaf, tmp_path: Path) -> None:
    user = {"client-certificate": str(leaf.certificate), "client-key": str(authority.key)}
    path = written(tmp_path / "config", document(user=user))
    with pytest.raises(ConfigError, match="client-key: is not the key of client-certificate"):
        reached(ApiConfig(kubeconfig=str(path)))


def test_a_key_with_a_passphrase_is_not_asked_for(leaf: Leaf, tmp_path: Path) -> None:
    key = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
    user = {"client-certificate": str(leaf.certificate), "client-key-data": base64.b64encode(key).decode()}
    path = written(tmp_path / "config", document(user=user))
    with pytest.raises(ConfigError, match="is encrypted, and nobody is there to ask"):
        reached(ApiConfig(kubeconfig=str(path)))


# --- which comes first --------------------------------------------------------------------------------------------


@pytest.fixture
def pod(tmp_path: Path, authority: Authority) -> Path:
    """A service account's folder."""
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text("of-the-pod\n")
    (folder / "namespace").write_text("kube-system\n")
    (folder / "ca.crt").write_bytes(authority.certificate.read_bytes())
    return folder


INSIDE = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


async def test_the_order_of_precedence(pod: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    written(home / ".kube/config", document({"server": "https://of-home"}))
    file = written(tmp_path / "config", document({"server": "https://of-file"}))
    environment = {**INSIDE, "HOME": str(home)}
    inline = yaml.safe_dump(document({"server": "https://inline"}))

    def server(config: ApiConfig) -> str:
        return reached(config, environment, pod).server

    everything = ApiConfig(kubeconfig_inline=inline, kubeconfig=str(file))
    assert server(everything) == "https://inline"
    assert server(ApiConfig(kubeconfig=str(file))) == "https://of-file"
    assert server(ApiConfig()) == "https://of-home"
    assert server(ApiConfig(k8s_api_endpoint="https://named/")) == "https://named"
    assert await token_of(reached(ApiConfig(k8s_api_endpoint="https://named"), environment, pod)) == "of-the-pod"
    (home / ".kube/config").write_text("apiVersion: v1\nkind: Config\n")
    assert server(ApiConfig()) == "https://10.96.0.1:443"


async def test_in_a_pod(pod: Path) -> None:
    found = reached(ApiConfig(), {**INSIDE, "KUBERNETES_SERVICE_HOST": "fd00::1"}, pod)
    assert (found.server, found.namespace, found.origin) == ("https://[fd00::1]:443", "kube-system", "service account")
    assert await token_of(found) == "of-the-pod"
    assert found.tls is not None
    assert [one["subject"] for one in found.tls.context(None).get_ca_certs()]  # the pod's CA, and no other
    assert len(found.tls.context(None).get_ca_certs()) == 1


def test_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^kubernetes: no cluster is named: set KUBECONFIG or K8S_API_ENDPOINT"):
        reached(ApiConfig(), {"HOME": str(tmp_path)})
    with pytest.raises(ConfigError, match="no cluster is named"):
        reached(ApiConfig(), INSIDE)  # a pod without a service account


async def test_the_environment_replaces_parts_of_a_kubeconfig(leaf: Leaf, authority: Authority, tmp_path: Path) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "true"}}
    cluster = {"server": "https://of-file", "tls-server-name": "of-file", "certificate-authority-data": "eA=="}
    path = str(written(tmp_path / "config", document(cluster, user)))
    environment = {
        "KUBECONFIG": path,
        "K8S_API_ENDPOINT": "https://named:6443",
        "K8S_CA_FILE": str(authority.certificate),
        "K8S_CERT_FILE": str(leaf.certificate),
        "K8S_KEY_FILE": str(leaf.key),
        "K8S_CLIENT_QPS": "5",
    }
    found = reached(from_environment(environment), environment)
    assert (found.server, found.qps, found.burst) == ("https://named:6443", 5, 100)
    assert found.tls is not None
    assert found.tls.name == ""
    identity = await found.credentials.identity()
    assert identity.token == ""
    assert identity.pair is not None
    assert identity.pair.certificate == leaf.certificate.read_bytes()

    environment = {"KUBECONFIG": path, "K8S_API_TOKEN": SECRET, "K8S_INSECURE_SKIP_TLS_VERIFY": "true"}
    found = reached(from_environment(environment), environment)
    assert await token_of(found) == SECRET  # and no plugin is run
    assert found.tls is not None
    assert found.tls.insecure


def test_acting_for_somebody_else(tmp_path: Path) -> None:
    user = {"token": "t", "as": "bob", "as-uid": "7", "as-groups": ["a", "b"], "as-user-extra": {"Ex/y": ["1"]}}
    found = reached(ApiConfig(kubeconfig=str(written(tmp_path / "config", document(user=user)))))
    assert found.credentials.headers == (
        ("Impersonate-User", "bob"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
        ("Impersonate-Extra-Ex%2Fy", "1"),
    )


# --- proxies ------------------------------------------------------------------------------------------------------


def test_whose_proxy() -> None:
    environment = {"HTTPS_PROXY": "proxy:3128", "http_proxy": "http://plain:80"}
    assert proxy_for("https://h", "http://own:1", environment, "w") == "http://own:1"
    assert proxy_for("https://h", "", environment, "w") == "http://proxy:3128"
    assert proxy_for("http://h", "", environment, "w") == "http://plain:80"
    assert proxy_for("https://h", "", {**environment, "no_proxy": "h"}, "w") == ""
    assert proxy_for("https://127.0.0.1:6443", "", environment, "w") == ""


@pytest.mark.parametrize(
    ("server", "excepted", "expected"),
    [
        ("https://a.example", "example", True),
        ("https://a.example", ".example", True),
        ("https://a.example", "*.example", True),
        ("https://example", ".example", False),
        ("https://example", "example", True),
        ("https://badexample", "example", False),
        ("https://a.example:6443", "a.example:443", False),
        ("https://a.example:6443", "x, a.example:6443", True),
        ("https://10.1.2.3", "10.0.0.0/8", True),
        ("https://11.1.2.3", "10.0.0.0/8", False),
        ("https://[fd00::1]:6443", "[fd00::1]:6443", True),
        ("https://[fd00::1]", "fd00::/8", True),
        ("https://a", "*", True),
        ("https://a", "", False),
        ("https://localhost", "", True),
    ],
)
def test_what_no_proxy_excepts(server: str, excepted: str, expected: bool) -> None:
    assert bypassed(server, excepted) is expected


# --- what plugins print -------------------------------------------------------------------------------------------

V1 = "client.authentication.k8s.io/v1"


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("", "not an ExecCredential"),
        (f'{{"token": "{SECRET}"', "not an ExecCredential"),
        ('{"kind": "Pod", "apiVersion": "v1"}', "prints Pod of v1, not ExecCredential"),
        (f'{{"kind": "ExecCredential", "apiVersion": "{V1}"}}', "neither token nor certificate"),
        (f'{{"kind": "ExecCredential", "apiVersion": "{V1}", "status": {{}}}}', "neither token nor certificate"),
        (
            f'{{"kind": "ExecCredential", "apiVersion": "{V1}", "status": {{"clientKeyData": "{SECRET}"}}}}',
            "without its certificate",
        ),
        (
            f'{{"kind": "ExecCredential", "apiVersion": "{V1}", "status": {{"token": "{SECRET} x"}}}}',
            "what is in it is not a token",
        ),
    ],
)
def test_what_is_no_credential_is_told_and_not_shown(printed: str, words: str) -> None:
    with pytest.raises(Exception, match=words) as caught:
        answer(printed.encode(), V1)
    assert SECRET not in str(caught.value)


def test_a_credential_and_when_it_ends() -> None:
    text = '{"kind": "ExecCredential", "apiVersion": "%s", "status": {"token": "t", "expirationTimestamp": "%s"}}'
    assert answer((text % (V1, "1970-01-01T00:01:00Z")).encode(), V1).ends == 60
    assert answer((text % (V1, "1970-01-01T01:01:00+01:00")).encode(), V1).ends == 60


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_kubeconfigs_of_the_page_are_understood(authority: Authority, leaf: Leaf, tmp_path: Path) -> None:
    blocks = re.findall(r"^```yml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    data = {
        "BASE64-OF-CA.CRT": base64.b64encode(authority.certificate.read_bytes()).decode(),
        "BASE64-OF-CLIENT.CRT": base64.b64encode(leaf.certificate.read_bytes()).decode(),
        "BASE64-OF-CLIENT.KEY": base64.b64encode(leaf.key.read_bytes()).decode(),
    }
    (tmp_path / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (tmp_path / "token").write_text("t")
    plugin = tmp_path / "print-token"
    plugin.write_text("#!/bin/sh\n")
    plugin.chmod(0o755)
    for number, block in enumerate(blocks):
        for name, content in data.items():
            block = block.replace(name, content)
        path = tmp_path / f"{number}.conf"
        path.write_text(block)
        found = reached(ApiConfig(kubeconfig=str(path)), {"PATH": str(tmp_path)})
        assert found.server.startswith("https://"), block
