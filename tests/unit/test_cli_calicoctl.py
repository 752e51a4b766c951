"""calicoctl's commands to the last flag, on an SQLite datastore: words, tables, documents and exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from calicoctl_shell import Calicoctl, document
from tortie import __version__
from tortie.base.errors import Unavailable
from tortie.calc.versions import CALICO_VERSION
from tortie.cli import completion, dialect
from tortie.cli.columns import columns
from tortie.cli.datastore import demand_our_version, initialise, initialise_if_allowed
from tortie.cli.main import LOG_LEVELS, command_line, main
from tortie.cli.manifests import Manifest
from tortie.cli.node_run import instead
from tortie.cli.output import Found, templated
from tortie.cli.writes import Verb, carry_out, planned, snapshot
from tortie.model.document import parse
from tortie.model.ipam import IPPool
from tortie.model.k8s import K8sNetworkPolicy
from tortie.model.kinds import kind_of_word
from tortie.model.meta import Metadata
from tortie.model.node import ClusterInformation, Node
from tortie.model.policy import NetworkPolicy
from tortie.model.secret import Secret
from tortie.model.store import Store
from tortie.store.memory import MemoryStore

POOL = document("IPPool", "main", "cidr: 10.9.0.0/16, natOutgoing: true")
OTHER = document("IPPool", "other", "cidr: 10.8.0.0/16")
CLASH = document("IPPool", "clash", "cidr: 10.9.3.0/24")
TIER = document("Tier", "security", "order: 500")
POLICY = document("NetworkPolicy", "web", "selector: app == 'web', order: 10", "default")


@pytest.fixture
def calicoctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Calicoctl:
    return Calicoctl(tmp_path, capsys)


# --- what is written ----------------------------------------------------------------------------------------------


def test_the_sentences(calicoctl: Calicoctl) -> None:
    pools, mixed = calicoctl.file(POOL, OTHER, name="pools.yaml"), calicoctl.file(POOL, TIER, name="mixed.yaml")
    for arguments, said in (
        (["validate", "-f", pools], "Successfully validated 2 'IPPool' resource(s)"),
        (["create", "-f", pools], "Successfully created 2 'IPPool' resource(s)"),
        (["apply", "-f", mixed], "Successfully applied 2 resource(s)"),
        (["replace", "-f", pools], "Successfully replaced 2 'IPPool' resource(s)"),
        (["create", "-f", pools, "--skip-exists"], "Successfully created 2 'IPPool' resource(s)"),
        (["delete", "ippool", "other"], "Successfully deleted 1 'IPPool' resource(s)"),
        (["delete", "-f", pools, "-s"], "Successfully deleted 2 'IPPool' resource(s)"),
        (["delete", "-f", mixed, "--skip-not-exists"], "Successfully deleted 2 resource(s)"),
    ):
        assert calicoctl(*arguments, where=arguments[0] != "validate") == f"{said}\n"
        assert calicoctl.err == ""


def test_some_are_handled_and_some_are_not(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    both = calicoctl.file(POOL, OTHER)
    exists = "resource already exists: IPPool(main)"
    assert calicoctl("create", "-f", both, status=1) == (
        "Partial success: created the first 1 out of 2 'IPPool' resources:\n"
    )
    assert calicoctl.err == f"hit error: [{exists}]\n"
    assert calicoctl("get", "ippools", "-o", "name").split() == ["ippool/main", "ippool/other"]
    assert calicoctl("create", "-f", both, status=1) == ""
    assert (
        calicoctl.err == f"failed to create any 'IPPool' resources: [{exists} resource already exists: IPPool(other)]\n"
    )
    nobody = document("IPPool", "nobody", "cidr: 10.1.0.0/16")
    said = calicoctl("replace", "-f", calicoctl.file(POOL, nobody, OTHER), status=1)
    assert said == "Partial success: replaced the first 1 out of 3 'IPPool' resources:\n", "replace stops"
    assert calicoctl.err == "hit error: resource does not exist: IPPool(nobody)\n", "replace prints the bare error"
    assert calicoctl("replace", "-f", calicoctl.file(nobody, POOL), status=1) == ""
    assert calicoctl.err == "failed to replace any 'IPPool' resources: [resource does not exist: IPPool(nobody)]\n"


def test_a_document_that_is_wrong_keeps_all_others_only_from_tortie(calicoctl: Calicoctl) -> None:
    both = calicoctl.file(POOL, CLASH, TIER)
    assert calicoctl.tortie("apply", "-f", both, status=2) == ""
    assert calicoctl.tortie("get", "ippools", "-o", "name") == ""
    assert calicoctl("apply", "-f", both, status=1) == "Partial success: applied the first 2 out of 3 resources:\n"
    assert calicoctl.err.startswith("hit error: [")
    assert "IPPool(clash) CIDR overlaps with IPPool(main) CIDR 10.9.0.0/16" in calicoctl.err


def test_each_that_cannot_be_deleted_is_told(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL, TIER)
    assert (
        calicoctl("delete", "ippool", "main", "nope", "no", status=1) == "Successfully deleted 1 'IPPool' resource(s)\n"
    )
    assert calicoctl.err == (
        "Failed to delete 'IPPool' resource: resource does not exist: IPPool(nope)\n"
        "Failed to delete 'IPPool' resource: resource does not exist: IPPool(no)\n"
    )
    assert calicoctl("delete", "tier", "default", "security", status=1) == "Successfully deleted 1 'Tier' resource(s)\n"
    assert calicoctl.err.startswith("Failed to delete 'Tier' resource: ")


async def test_a_datastore_that_goes_away_in_the_middle_ends_the_writing() -> None:
    class Going(MemoryStore):
        left = 1

        async def create(self, obj):  # type: ignore[no-untyped-def]
            if isinstance(obj, IPPool):
                self.left -= 1
                if self.left < 0:
                    raise Unavailable("the datastore is away")
            return await super().create(obj)

    store, said = Going(), []
    await initialise(store)
    view = await snapshot(store, [IPPool])
    wanted = [*parse(POOL), *parse(OTHER), *parse(document("IPPool", "third", "cidr: 10.7.0.0/16"))]
    writes = planned([Manifest(one, "f") for one in wanted], view, Verb.APPLY)
    done = await carry_out(store, writes, view, Verb.APPLY, said.append, said.append)
    assert said == ["ippool/main created"]
    assert done.count == 1
    assert [str(error) for error in done.errors] == ["the datastore is away"], "the third is not tried"


@pytest.mark.parametrize(("why", "ends"), [("connection is unauthorized: no", False), ("it is away", True)])
async def test_who_may_not_touch_what_is_the_clusters_may_write_all_the_same(why: str, ends: bool) -> None:
    class Strict(MemoryStore):
        async def get(self, kind, name, namespace=""):  # type: ignore[no-untyped-def]
            if kind is ClusterInformation:
                raise Unavailable(why)
            return await super().get(kind, name, namespace)

    for step in (initialise_if_allowed, demand_our_version):
        with pytest.raises(Unavailable) if ends else nullcontext():
            await step(Strict())


def test_files_without_documents(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    empty = calicoctl.file("# nothing\n", name="empty.yaml")
    for verb in ("apply", "create", "replace", "delete", "get", "validate"):
        where = verb != "validate"
        calicoctl(verb, "-f", empty, status=1, where=where)
        assert calicoctl.err == f"no resources specified in file {empty}\n"
        assert calicoctl(verb, "-f", empty, "--skip-empty", where=where) == ""
        assert calicoctl.err == ""


def test_copies_of_kubernetes_policies_are_kubernetes_own(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    copy = document("NetworkPolicy", "knp.default.web", "selector: all()", "default")
    [stored] = parse(copy)
    calicoctl.ask(lambda store: store.create(stored))
    path = calicoctl.file(copy)
    for verb, doing in (("apply", "create or apply"), ("create", "create or apply"), ("replace", "create or apply")):
        calicoctl(verb, "-f", path, status=1)
        assert f"operation {doing} is not supported on NetworkPolicy(default/knp.default.web): " in calicoctl.err
    calicoctl("delete", "-f", path, status=1)
    assert "operation delete is not supported" in calicoctl.err
    calicoctl("patch", "np", "knp.default.web", "-p", "{spec: {order: 1}}", status=1)
    calicoctl("label", "np", "knp.default.web", "a=b", status=1)
    assert calicoctl.ask(lambda store: store.get(NetworkPolicy, "knp.default.web", "default")).spec.order is None


def test_what_the_network_writes_and_where_namespaces_contradict(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    information = calicoctl("get", "clusterinfo", "default", "-o", "yaml")
    calicoctl.apply(information.replace("datastoreReady: true", "datastoreReady: false"), status=1)
    assert "read-only" in calicoctl.err
    for arguments, said in (
        (["get", "ippools", "-n", "red"], "IPPool is not namespaced"),
        (["get", "ippools", "-A"], "IPPool is not namespaced"),
        (["delete", "ippool", "main", "-n", "red"], "IPPool is not namespaced"),
        (["get", "pods", "-n", "red", "-A"], "cannot use both --namespace and --all-namespaces flags at the same time"),
        (["apply", "-n", "red", "-f", calicoctl.file(POLICY)],
         "resource namespace does not match client namespace. default != red"),
    ):  # fmt: skip
        calicoctl(*arguments, status=1)
        assert said in calicoctl.err
    calicoctl.apply(POOL.replace("name: main", "name: main, namespace: red"), status=1)
    said = "namespace should not be specified for a non-namespaced resource. IPPool is not a namespaced resource"
    assert said in calicoctl.err


# --- what is read -------------------------------------------------------------------------------------------------

TABLES = {
    "BGPConfiguration": ("NAME LOGSEVERITY MESHENABLED ASNUMBER", ""),
    "BGPFilter": ("NAME NUMEXPORTV4 NUMIMPORTV4 NUMEXPORTV6 NUMIMPORTV6", ""),
    "BGPPeer": ("NAME PEERIP NODE ASN", ""),
    "ClusterInformation": ("NAME CLUSTERGUID CLUSTERTYPE CALICOVERSION DATASTOREREADY", ""),
    "FelixConfiguration": ("NAME", ""),
    "GlobalNetworkPolicy": ("NAME TIER", "NAME TIER ORDER SELECTOR"),
    "GlobalNetworkSet": ("NAME", "NAME NETS"),
    "HostEndpoint": ("NAME NODE", "NAME NODE INTERFACE IPS PROFILES"),
    "IPAMConfiguration": (
        "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS",
        "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS MAXBLOCKSPERHOST",
    ),
    "IPPool": (
        "NAME CIDR SELECTOR",
        "NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR ASSIGNMENTMODE",
    ),
    "IPReservation": ("NAME", "NAME CIDRS"),
    "KubeControllersConfiguration": ("NAME", ""),
    "NetworkPolicy": ("NAME TIER", "NAME TIER ORDER SELECTOR"),
    "NetworkSet": ("NAME", "NAME NETS"),
    "Node": ("NAME", "NAME ASN IPV4 IPV6"),
    "CalicoNodeStatus": ("NAME NODE", "NAME NODE CLASSES"),
    "Profile": ("NAME", "NAME LABELS"),
    "StagedGlobalNetworkPolicy": ("NAME TIER", "NAME TIER ORDER SELECTOR"),
    "StagedKubernetesNetworkPolicy": ("NAME", "NAME PODSELECTOR"),
    "StagedNetworkPolicy": ("NAME TIER", "NAME TIER ORDER SELECTOR"),
    "Tier": ("NAME ORDER", ""),
    "WorkloadEndpoint": ("WORKLOAD NODE NETWORKS INTERFACE", "NAME WORKLOAD NODE NETWORKS INTERFACE PROFILES NATS"),
}  # fmt: skip
ALIASES = {
    "BGPConfiguration": "bgpconfig bgpconfigs", "BGPFilter": "bgpf bgpfs bf bfs", "BGPPeer": "bgpp bgpps bp bps",
    "ClusterInformation": "clusterinfo", "FelixConfiguration": "felixconfig", "GlobalNetworkPolicy": "gnp gnps",
    "GlobalNetworkSet": "gnetsets", "HostEndpoint": "hep heps", "IPAMConfiguration": "ipamconfig",
    "IPPool": "ipp ipps pool pools", "IPReservation": "reservation",
    "KubeControllersConfiguration": "kubecontrollersconfig", "NetworkPolicy": "policy np policies pol pols",
    "NetworkSet": "netsets", "Node": "no nos", "CalicoNodeStatus": "nodestatus", "Profile": "pro pros",
    "StagedGlobalNetworkPolicy": "sgnp", "StagedKubernetesNetworkPolicy": "sknp skpol",
    "StagedNetworkPolicy": "snp spol", "WorkloadEndpoint": "wep weps",
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_the_columns_and_words_of(kind: str) -> None:
    narrow, wide = TABLES[kind]
    found = kind_of_word(kind)
    assert " ".join(columns(found)) == narrow
    assert " ".join(columns(found, True)) == (wide or narrow)
    assert all(kind_of_word(word) is found for word in ALIASES.get(kind, "").split())


def test_tables_to_the_last_space(calicoctl: Calicoctl) -> None:
    assert calicoctl.tortie("apply", "-f", calicoctl.file(POOL, POLICY)).endswith(
        "\nSuccessfully applied 2 resource(s)\n"
    )
    assert calicoctl("get", "pools") == "NAME   CIDR          SELECTOR   \nmain   10.9.0.0/16   all()      \n\n"
    assert calicoctl("get", "gnp") == "NAME   TIER   \n\n", "headings without objects"
    assert calicoctl("get", "np", "-A", "-o", "wide") == (
        "NAMESPACE   NAME   TIER      ORDER   SELECTOR       \ndefault     web    default   10      app == 'web'   \n\n"
    )
    assert calicoctl("get", "np") == "NAME   TIER      \nweb    default   \n\n"
    assert calicoctl("get", "pools", "-o", "ps") == calicoctl("get", "pools")
    assert (
        calicoctl("get", "pools", "-o", "custom-columns=CIDR,NAT") == "CIDR          NAT    \n10.9.0.0/16   true   \n\n"
    )
    calicoctl("get", "pools", "-o", "custom-columns=CIDR,NET", status=1)
    assert calicoctl.err.startswith("unknown heading NET, valid values are: NAME, CIDR, SELECTOR")


def test_documents_of_objects_lists_and_arrays(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL, OTHER, TIER)
    listed = json.loads(calicoctl("get", "ippools", "-o", "json"))
    assert (listed["kind"], listed["apiVersion"]) == ("IPPoolList", "projectcalico.org/v3")
    assert listed["metadata"]["resourceVersion"].isdecimal()
    assert [one["metadata"]["name"] for one in listed["items"]] == ["main", "other"]
    assert yaml.safe_load(calicoctl("get", "ippools", "-o", "yaml")) == listed
    one = calicoctl("get", "ippool", "main", "-o", "json")
    assert one.startswith('{\n  "apiVersion": "projectcalico.org/v3",\n  "kind": "IPPool",\n')
    assert [each["kind"] for each in json.loads(calicoctl("get", "pools", "main", "other", "-o", "json"))] == [
        "IPPool"
    ] * 2
    exported = json.loads(calicoctl("get", "ippool", "main", "--export", "-o", "json"))
    assert exported["metadata"] == {"name": "main"}
    every = json.loads(calicoctl("get", "ippools", "--export", "-o", "json"))
    assert every["items"][0]["metadata"]["uid"], "--export is for names"


def test_the_configuration_of_ipam_has_calicos_name(calicoctl: Calicoctl) -> None:
    ours = document("IPAMConfiguration", "default", "strictAffinity: true, autoAllocateBlocks: true")
    assert calicoctl.apply(ours) == "Successfully applied 1 'IPAMConfiguration' resource(s)\n"
    assert json.loads(calicoctl("get", "ipamconfig", "default", "-o", "json"))["kind"] == "IPAMConfiguration"
    assert json.loads(calicoctl("get", "ipamconfigs", "-o", "json"))["kind"] == "IPAMConfigurationList"
    assert calicoctl.apply(calicoctl("get", "ipamconfigs", "-o", "yaml")).startswith("Successfully applied 1")
    said = calicoctl("patch", "ipamconfig", "default", "-p", "{spec: {maxBlocksPerHost: 3}}")
    assert said == "Successfully patched 1 'IPAMConfiguration' resource\n"


def test_get_what_files_name(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL, TIER)
    one, both = calicoctl.file(POOL, name="one.yaml"), calicoctl.file(TIER, POOL, OTHER, name="more.yaml")
    assert json.loads(calicoctl("get", "-f", one, "-o", "json"))["spec"]["natOutgoing"]
    assert json.loads(calicoctl("get", "-f", one, "-o", "json", "--export"))["metadata"] == {"name": "main"}
    found = yaml.safe_load(calicoctl("get", "-f", both, "-o", "yaml", status=1))
    assert [each["kind"] for each in found] == ["Tier", "IPPool"]
    assert calicoctl.err == "resource does not exist: IPPool(other)\n"
    assert calicoctl("get", "-f", both, status=1) == (
        "NAME       ORDER   \nsecurity   500     \n\n"
        "NAME   CIDR          SELECTOR   \nmain   10.9.0.0/16   all()      \n\n"
    )


def test_templates(calicoctl: Calicoctl) -> None:
    calicoctl.apply(
        POOL, OTHER, document("BGPConfiguration", "default", "asNumber: 64600"),
        document("GlobalNetworkSet", "nets", "nets: [192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24]"),
        document("Node", "n1", "bgp: {ipv4Address: 10.0.0.1/24}"),
    )  # fmt: skip
    rows = (
        '{{range .}}{{range .Items}}{{.ObjectMeta.Name}}\t{{.Spec.CIDR}}\t{{.Spec.NATOutgoing}}{{"\\n"}}{{end}}{{end}}'
    )
    file = calicoctl.directory / "rows.tmpl"
    file.write_text(rows)
    table = "main    10.9.0.0/16   true\nother   10.8.0.0/16   false\n"
    assert calicoctl("get", "ippools", "-o", f"go-template={rows}") == table
    assert calicoctl("get", "ippools", "-o", f"go-template-file={file}") == table
    for arguments, template, text in (
        (["ippool", "main"], "{{range .}}{{.Name}} {{.Kind}} {{.spec.cidr}}{{end}}", "main IPPool 10.9.0.0/16"),
        (["gnetsets", "nets"], '{{range .}}{{join .Spec.Nets "; "}}{{end}}',
         "192.0.2.0/24; 198.51.100.0/24; 203.0.113.0/24"),
        (["gnetsets", "nets"], '{{range .}}{{joinAndTruncate .Spec.Nets "," 20}}{{end}}', "192.0.2.0/24,198...."),
        (["nodes", "n1"], '{{config "asnumber"}}{{range .}} {{.Spec.BGP.IPv4Address}} {{.Spec.BGP.ASNumber}}{{end}}',
         "64600 10.0.0.1/24 <nil>"),
        (["nodes", "n1"], "{{range .}}{{.Spec.Wireguard}}{{with .Labels.rack}}x{{else}}-{{end}}{{end}}", "<nil>-"),
    ):  # fmt: skip
        assert calicoctl("get", *arguments, "-o", f"go-template={template}") == text
    for template, said in (
        ("{{range .}}{{.Nam}}{{end}}", "template: can't evaluate field Nam in IPPoolList"),
        ("{{range .}}{{range .Items}}{{.Spec.Cidrs}}{{end}}{{end}}", "can't evaluate field Cidrs in IPPoolSpec"),
        ('{{config "x"}}', 'unhandled config type "x"'),
        ("{{if}", "an action that begins with {{ has no end"),
    ):
        calicoctl("get", "ippools", "-o", f"go-template={template}", status=1)
        assert said in calicoctl.err
    calicoctl("get", "ippools", "-o", "go-template-file=/nowhere/x", status=1)
    assert calicoctl.err == "/nowhere/x: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("field", ["Name", "Namespace", "Labels", "UID", "ResourceVersion", "APIVersion", "Kind"])
def test_fields_of_metadata_are_the_objects_own(field: str) -> None:
    [policy] = parse(POLICY)
    found = Found(type(policy), [policy], 1)
    assert templated(f"{{{{range .}}}}{{{{.{field}}}}}{{{{end}}}}", found, 64512) != "<no value>"


# --- the program --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "program"),
    [
        ("/usr/local/bin/calicoctl", "calicoctl"),
        ("kubectl-calico", "kubectl-calico"),
        ("/opt/calicoctl-linux-arm64", "calicoctl"),
        ("/usr/bin/tortie", "tortie"),
        ("/x/calicoctl.py", "tortie"),
        ("", "tortie"),
    ],
)
def test_the_name_of_the_program(path: str, program: str) -> None:
    assert dialect.of_name(path) == program


def test_a_link_makes_it_calicoctl(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    link = calicoctl.directory / "calicoctl"
    link.symlink_to(Path(sys.executable).parent / "tortie")
    environment = {**os.environ, "TORTIE_DATASTORE": str(calicoctl.store)}
    done = subprocess.run([link, "get", "ippools"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, calicoctl("get", "ippools"))
    done = subprocess.run([link, "nope"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("(calicoctl --help tells more)\n")
    main(["--version"])
    assert not dialect.is_calicoctl()


def test_levels_of_the_log(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    script = (
        "import logging, sys; from tortie.cli.main import main; status = main(sys.argv[1:]);"
        "logging.getLogger('x').info('said'); sys.exit(status)"
    )

    def said(*arguments: str, **variables: str) -> tuple[int, str]:
        command = [sys.executable, "-c", script, *arguments, "get", "ippools", "--datastore", str(calicoctl.store)]
        environment = {**os.environ, **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    status, text = said("-l", "info")
    assert status == 0
    assert " INFO x: said\n" in text
    assert " INFO x: said\n" in said(TORTIE_LOG_LEVEL="debug")[1]
    assert said(TORTIE_LOG_LEVEL="loud") == (0, ""), "which may be an agent's"
    calicoctl("-l", "loud", "get", "ippools", status=1)
    assert calicoctl.err.startswith('--log-level: "loud" is not one of panic, ')
    assert set(LOG_LEVELS) >= {"panic", "fatal", "error", "warn", "info", "debug"}


def test_the_version_of_both_and_when_it_changes(calicoctl: Calicoctl) -> None:
    ours = f"Client Version:    {CALICO_VERSION}\nGit commit:        none (tortie {__version__})\n"
    assert calicoctl("version", "--client", where=False) == ours
    calicoctl.apply(POOL)
    theirs = f"Cluster Version:   {CALICO_VERSION}\nCluster Type:      tortie\n"
    assert calicoctl("version") == ours + theirs
    calicoctl("version", "--poll", "often", status=1)
    assert "--poll" in calicoctl.err
    command = [
        sys.executable,
        "-m",
        "tortie.cli.main",
        "version",
        "--poll",
        "100ms",
        "--datastore",
        str(calicoctl.store),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(4)] == (ours + theirs).splitlines(keepends=True)

            async def newer(store: Store) -> None:
                there = await store.get(ClusterInformation, "default")
                await store.update(replace(there, spec=replace(there.spec, calico_version="v9.9.9")))

            calicoctl.ask(newer)
            assert process.stdout.readline() == "Cluster Version:   v9.9.9\n"
        finally:
            process.terminate()


def test_node_run_says_what_to_do_instead(calicoctl: Calicoctl) -> None:
    calicoctl("node", "run", "--node-image=calico/node:v3", "--name=n1", "--ip=10.0.0.1/24", status=1, where=False)
    assert calicoctl.err.endswith(
        "run the agent as a service of this machine: tortie agent --node n1 --ipv4 10.0.0.1/24\n"
    )
    assert instead(["--ip6", "fd00::1", "--no-default-ippools", "--init-system", "--log-dir=/x"]) == (
        "NO_DEFAULT_POOLS=true tortie agent --ipv6 fd00::1"
    )


def test_every_command_of_calicoctl_is_there() -> None:
    known = command_line().commands  # type: ignore[attr-defined]
    for path in [
        "create",
        "apply",
        "replace",
        "delete",
        "get",
        "validate",
        "patch",
        "label",
        "version",
        "ipam/show",
        "ipam/check",
        "ipam/release",
        "ipam/split",
        "ipam/configure",
        "node/status",
        "node/diags",
        "node/checksystem",
        "node/run",
        "cluster/diags",
        "datastore/migrate",
    ]:
        commands = known
        for word in path.split("/"):
            assert word in commands
            commands = getattr(commands[word], "commands", {})


# --- completion ---------------------------------------------------------------------------------------------------


def completed(words: str, store: Path | str) -> list[str]:
    """What bash would offer for the last word."""
    given = words.split(" ")
    environment = {
        **os.environ, "TORTIE_DATASTORE": str(store), "_CALICOCTL_COMPLETE": "complete_bash", "COMP_WORDS": words,
        "COMP_CWORD": str(len(given) - 1),
    }  # fmt: skip
    script = "from tortie.cli.main import main; main(program='calicoctl')"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_kinds_and_names(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL, OTHER, POLICY)
    assert {"ippool", "ippools"} <= set(completion.kinds("ippo"))
    assert completed("calicoctl get ippo", calicoctl.store) == completion.kinds("ippo")
    assert completed("calicoctl delete ippools ot", calicoctl.store) == ["other"]
    assert completed("calicoctl patch np ", calicoctl.store) == ["web"]
    assert completed("calicoctl get np -n kube", calicoctl.store) == ["kube-system"]


def test_completion_is_silent_and_quick_when_nobody_answers(tmp_path: Path) -> None:
    before = time.monotonic()
    assert completed("calicoctl get ippools ", tmp_path / "none.db") == []
    assert completed("calicoctl get ippools ", "etcd:http://127.0.0.1:9") == []
    assert not (tmp_path / "none.db").exists()
    assert time.monotonic() - before < 15


# --- cluster diags ------------------------------------------------------------------------------------------------


def test_diagnostics_of_a_cluster_have_all_objects_and_no_secret(calicoctl: Calicoctl) -> None:
    node = Node(metadata=Metadata(name="n1", annotations={"note": "password: hunter2"}))
    secret = Secret(metadata=Metadata(name="bgp", namespace="kube-system"), data={"p": "aHVudGVyMg=="})
    calicoctl.apply(POOL, POLICY)
    calicoctl.ask(lambda store: store.create(node))
    calicoctl.ask(lambda store: store.create(secret))
    file = calicoctl.directory / "out.tar.gz"
    said = calicoctl("cluster", "diags", "-o", str(file), "--since=5m", "--max-logs=2", "--focus-nodes=n1,n2")
    assert said.endswith(f"Diagnostics saved to {file}\n")
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as tar:
        members = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar.getmembers()}
        texts = {name: opened.read().decode() for name, opened in members.items() if opened is not None}
    assert yaml.safe_load(texts["objects/ippools.projectcalico.org.yaml"])["metadata"]["name"] == "main"
    assert "Check complete" in texts["ipam-check.txt"]
    assert K8sNetworkPolicy.KIND.key in "".join(texts)
    everything = "".join(texts.values())
    assert "hunter2" not in everything
    assert "aHVudGVyMg" not in everything
    calicoctl("cluster", "diags", "-o", str(file), "--since=long", status=1)
    assert calicoctl.err.startswith("--since: ")
