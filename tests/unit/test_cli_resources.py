"""The verbs of the command line over an SQLite datastore: what they print, what they leave behind, how they end."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from tortie import __version__
from tortie.base.errors import ConfigError, Conflict, NotFound
from tortie.cli import columns, datastore
from tortie.cli.main import COMMANDS, main
from tortie.cli.manifests import Manifest
from tortie.cli.output import aligned
from tortie.cli.writes import Done, Verb, carry_out, planned, snapshot
from tortie.model.bgp import BGPConfiguration
from tortie.model.document import parse
from tortie.model.ipam import IPAMBlock, IPAMBlockSpec, IPPool
from tortie.model.k8s import Namespace, Pod, PodIP, PodStatus
from tortie.model.kinds import KINDS
from tortie.model.meta import Metadata, changed
from tortie.store import open_store
from tortie.store.memory import MemoryStore

EXAMPLES = Path(__file__).parents[2] / "examples"
POOL = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: main}\nspec: {cidr: 10.244.0.0/16}\n"
NAT = POOL.replace("/16}", "/16, natOutgoing: true}")
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: red}\n"
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: red}\nspec: {containers: [{name: web}]}\n"
POLICY = (
    "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: web, namespace: red}\n"
    "spec: {order: 10, selector: app == 'web'}\n"
)
TIER = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: security}\nspec: {order: 500}\n"


class Shell:
    """Runs commands against one datastore file; a command that ends otherwise than it should is a failure."""

    def __init__(self, directory, capsys):
        self.directory, self.capsys = directory, capsys
        self.store = directory / "store.db"
        self.err = ""

    def __call__(self, *arguments, status=0, where=True):
        place = ("--datastore", str(self.store)) if where else ()
        got = main([*arguments, *place])
        out, self.err = self.capsys.readouterr()
        assert got == status, self.err
        return out

    def file(self, *texts, name="all.yaml"):
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("---\n".join(texts))
        return str(path)

    def apply(self, *texts, status=0):
        return self("apply", "-f", self.file(*texts), status=status)

    def stored(self, kind, name, namespace=""):
        return self.ask(lambda store: store.get(kind, name, namespace))

    def revision(self):
        return self.stored(IPPool, "main").metadata.resource_version

    def ask(self, question):
        async def run():
            store = open_store(self.store)
            try:
                return await question(store)
            finally:
                await store.close()

        return asyncio.run(run())


@pytest.fixture
def tortie(tmp_path, capsys):
    return Shell(tmp_path, capsys)


# apply, create, replace


def test_apply_says_what_became_of_each_object_in_the_order_of_what_needs_what(tortie):
    assert tortie.apply(POD, POLICY, POOL, NAMESPACE) == (
        "namespace/red created\nippool/main created\nnetworkpolicy/web created\npod/web created\n"
        "Successfully applied 4 resource(s)\n"
    )
    assert tortie.apply(POD, POOL) == ("ippool/main unchanged\npod/web unchanged\nSuccessfully applied 2 resource(s)\n")
    assert tortie.apply(NAT) == "ippool/main configured\nSuccessfully applied 1 'IPPool' resource(s)\n"
    pool = tortie.stored(IPPool, "main")
    assert pool.spec.nat_outgoing
    assert pool.spec.node_selector == "all()"
    assert tortie.stored(Pod, "web", "red").spec.service_account_name == "default"


def test_what_did_not_change_is_not_written(tortie):
    tortie.apply(POOL)
    before = tortie.revision()
    tortie.apply(POOL)
    assert tortie.revision() == before


def test_one_wrong_document_and_nothing_is_written(tortie):
    path = tortie.file(POOL, POLICY, POD.replace("web}]", "web, prots: []}]"), name="all.yaml")
    tortie("apply", "-f", path, status=2)
    assert tortie.err == (
        f'tortie: {path}: Pod red/web: spec.containers[0].prots: is not a known field, did you mean "ports"?\n'
    )
    tortie("apply", "-f", tortie.file(POOL, POLICY, POOL.replace("main", "other")), status=2)
    assert tortie.err == (
        f"tortie: {path}: IPPool other: spec.cidr: IPPool(other) CIDR overlaps with IPPool(main) CIDR 10.244.0.0/16\n"
        f'tortie: {path}: NetworkPolicy red/web: metadata.namespace: namespace "red" does not exist: create it first\n'
    )
    assert tortie("get", "ippools", "-o", "name") == ""


def test_every_wrong_document_is_told(tortie):
    path = tortie.file(POOL.replace("cidr", "sidr"), "a: [", name="a.yaml")
    other = tortie.file(NAMESPACE.replace("red", "Red"), POOL.replace("16", "33"), name="b.yaml")
    tortie("apply", "-f", path, "-f", other, status=2)
    lines = tortie.err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [path, other, other]


def test_a_dry_run_writes_nothing(tortie):
    tortie.apply(NAMESPACE)
    assert tortie("apply", "--dry-run", "-f", tortie.file(POOL, NAMESPACE, POD)) == (
        "namespace/red unchanged (dry run)\nippool/main created (dry run)\npod/web created (dry run)\n"
    )
    assert tortie("get", "ippools", "-o", "name") == ""
    tortie("apply", "--dry-run", "-f", tortie.file(POOL, POOL.replace("main", "b")), status=2)


def test_the_first_write_makes_the_cluster(tortie):
    tortie.apply(POOL)
    assert tortie("get", "tiers") == (
        "NAME            ORDER\nkube-admin      1000\ndefault         1000000\nkube-baseline   10000000\n"
    )
    assert tortie("get", "ns").splitlines() == ["NAME          STATUS", "default       Active", "kube-system   Active"]
    first = tortie("get", "clusterinfo", "default", "-o", "json")
    assert len(json.loads(first)["spec"]["clusterGUID"]) == 32
    tortie.apply(TIER)
    assert tortie("get", "clusterinfo", "default", "-o", "json") == first
    assert tortie("get", "tiers", "-o", "name").splitlines()[0] == "tier/security"


def test_a_new_namespace_brings_its_service_account(tortie):
    tortie.apply(NAMESPACE)
    assert tortie("get", "sa", "-n", "red") == "NAMESPACE   NAME\nred         default\n"


def test_create_only_creates(tortie):
    assert (
        tortie("create", "-f", tortie.file(POOL))
        == "ippool/main created\nSuccessfully created 1 'IPPool' resource(s)\n"
    )
    tortie("create", "-f", tortie.file(POOL, TIER), status=1)
    assert tortie.err == "tortie: failed to create any resources: [resource already exists: IPPool(main)]\n"
    assert "security" not in tortie("get", "tiers")
    assert tortie("create", "--skip-exists", "-f", tortie.file(POOL, TIER)) == (
        "tier/security created\nSuccessfully created 2 resource(s)\n"
    )


def test_replace_only_replaces(tortie):
    tortie("replace", "-f", tortie.file(POOL), status=1)
    assert tortie.err == "tortie: failed to replace 'IPPool' resource: [resource does not exist: IPPool(main)]\n"
    tortie.apply(POOL)
    assert tortie("replace", "-f", tortie.file(POOL)) == (
        "ippool/main replaced\nSuccessfully replaced 1 'IPPool' resource(s)\n"
    )


def test_an_outdated_document_is_refused(tortie):
    tortie.apply(POOL)
    text = tortie("get", "ippool", "main", "-o", "yaml")
    stale, version = (
        text.replace("spec:", "spec:\n  natOutgoing: true"),
        tortie.stored(IPPool, "main").metadata.resource_version,
    )
    assert tortie.apply(stale).startswith("ippool/main configured\n")
    latest = tortie.revision()
    tortie.apply(stale, status=1)
    assert tortie.err == (
        "tortie: failed to apply 'IPPool' resource: [update conflict: IPPool(main): "
        f"resource version '{version}' is out of date (latest: {latest})]\n"
    )


def test_what_was_printed_can_be_applied_again(tortie):
    tortie.apply(NAMESPACE, POOL, POD, POLICY)
    for kind in ("ippool", "pods", "networkpolicies", "namespaces", "sa", "tiers"):
        text = tortie("get", kind, "-o", "yaml", *(["-A"] if kind in ("pods", "networkpolicies", "sa") else []))
        assert {line.split()[1] for line in tortie.apply(text).splitlines()[:-1]} == {"unchanged"}
    several = tortie("get", "ns", "red", "default", "-o", "json")
    assert tortie.apply(several).startswith("namespace/red unchanged\nnamespace/default unchanged\nSuccess")


def test_a_directory_is_read_in_order_and_deeper_only_when_asked(tortie):
    tortie.file(POOL, name="set/b.yaml")
    tortie.file(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}}), name="set/a.json")
    tortie.file("not yaml: [", name="set/README.md")
    tortie.file(TIER, name="set/deeper/c.yml")
    directory = str(tortie.directory / "set")
    assert tortie("apply", "-f", directory).startswith("namespace/red created\nippool/main created\nSuccess")
    assert "tier/security created\n" in tortie("apply", "-R", "-f", directory)


def test_the_examples_apply(tortie):
    for path in sorted(EXAMPLES.glob("cases/calico/*.yaml")):
        assert tortie("apply", "-f", str(path)).endswith(" resource(s)\n")
    assert tortie("get", "wep", "-o", "name") == "workloadendpoint/node112-k8s-pod5-eth0\n"


def test_a_namespace_of_the_command_fills_in_and_does_not_contradict(tortie):
    tortie.apply(NAMESPACE)
    bare = POD.replace(", namespace: red", "")
    tortie("apply", "-n", "red", "-f", tortie.file(bare))
    assert tortie("get", "pods", "-n", "red", "-o", "name") == "pod/web\n"
    tortie("apply", "-f", tortie.file(bare))
    assert tortie("get", "pods", "-o", "name") == "pod/web\n"
    path = tortie.file(POD)
    tortie("apply", "-n", "blue", "-f", path, status=2)
    assert tortie.err == (
        f"tortie: {path}: Pod red/web: metadata.namespace: "
        "resource namespace does not match client namespace. red != blue\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["apply"], "nothing to read: give -f FILE, a directory, or - for standard input"),
        (["apply", "-f", "/nowhere/x.yaml"], "/nowhere/x.yaml: cannot be read: No such file or directory"),
        (["apply", "-f", "/dev/null"], "no resources specified in file /dev/null"),
        (["get", "ippol"], 'unknown kind "ippol", did you mean "ippool"?'),
        (["get", "pods", "-n", "a", "-A"],
         "cannot use both --namespace and --all-namespaces flags at the same time"),
        (["get", "ippools", "-n", "a"], "IPPool is not namespaced"),
        (["get", "ippools", "-A"], "IPPool is not namespaced"),
        (["get", "ippools", "-o", "xml"],
         '-o: output format "xml" is not one of ps, wide, yaml, json, name, custom-columns=HEADING,..., '
         'go-template=TEMPLATE or go-template-file=FILE'),
        (["get"], "nothing to get: give KIND, or -f FILE"),
        (["get", "pods", "-f", "x"], "give either KIND, or -f"),
        (["get", "ippools", "-o", "go-template"], "-o: go-template: needs something behind it: go-template=..."),
        (["get", "ippool/a", "b"], '"b" must be ippool/NAME: one kind at a time'),
        (["delete"], "nothing to delete: give KIND and NAME, or -f FILE"),
        (["delete", "pods"], "give the name of the Pod to delete"),
        (["delete", "pods", "-f", "x"], "give either KIND and NAME, or -f"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_exit_2(tortie, arguments, message):
    tortie.apply(POOL)
    try:
        tortie(*arguments, status=2)
    finally:
        assert tortie.err == f"tortie: {message}\n"


def test_documents_on_standard_input_into_the_datastore_of_the_environment(tortie):
    command = [sys.executable, "-m", "tortie.cli.main", "apply", "-f", "-"]
    environment = {**os.environ, "TORTIE_DATASTORE": str(tortie.store)}
    done = subprocess.run(command, input=POOL, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "ippool/main created\nSuccessfully applied 1 'IPPool' resource(s)\n",
        "",
    )
    assert tortie.stored(IPPool, "main").spec.block_size == 26


# Others write too


class Busy(MemoryStore):
    """A datastore in which somebody else writes the same object just before each of our first updates."""

    others = 0

    async def update(self, obj):
        if self.others:
            self.others -= 1
            theirs = await self.get(type(obj), obj.name, obj.namespace)
            await super().update(changed(theirs, annotations={"count": str(self.others)}))
        return await super().update(obj)


@pytest.mark.parametrize(("others", "lost"), [(1, False), (4, False), (5, True)])
async def test_a_write_is_decided_again_when_somebody_else_was_faster(others, lost):
    store, said = Busy(), []
    await datastore.initialise(store)
    await store.create(parse(POOL)[0])
    [wanted] = parse(NAT)
    view = await snapshot(store, [IPPool])
    writes = planned([Manifest(wanted, "f")], view, Verb.APPLY)
    store.others = others
    if lost:
        [error] = (await carry_out(store, writes, view, Verb.APPLY, said.append, said.append)).errors
        assert isinstance(error, Conflict)
        assert "written by others 5 times meanwhile, try again" in str(error)
    else:
        assert await carry_out(store, writes, view, Verb.APPLY, said.append, said.append) == Done(1, [])
        assert said == ["ippool/main configured"]
        assert (await store.get(IPPool, "main")).spec.nat_outgoing


async def test_an_object_that_appears_or_goes_meanwhile_is_decided_again():
    store, said = MemoryStore(), []
    await datastore.initialise(store)
    [wanted] = parse(POOL)
    view = await snapshot(store, [IPPool])
    fresh = planned([Manifest(wanted, "f")], view, Verb.APPLY)
    await store.create(replace(wanted, spec=replace(wanted.spec, disabled=True)))
    await carry_out(store, fresh, view, Verb.APPLY, said.append, said.append)
    view = await snapshot(store, [IPPool])
    known = planned([Manifest(replace(wanted, spec=replace(wanted.spec, disabled=True)), "f")], view, Verb.APPLY)
    await store.delete(IPPool, "main")
    await carry_out(store, known, view, Verb.APPLY, said.append, said.append)
    assert said == ["ippool/main configured", "ippool/main created"]
    assert (await store.get(IPPool, "main")).spec.disabled


# get


def spec(kind, name, body):
    return f"apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{body}}}\n"


def test_the_tables_of_calico(tortie):
    tortie.apply(
        NAMESPACE,
        POOL,
        POLICY,
        spec("BGPPeer", "tor", "peerIP: 192.0.2.1, asNumber: 65001"),
        spec("BGPConfiguration", "default", "asNumber: 64600"),
        spec("Node", "n1", "bgp: {ipv4Address: 192.0.2.11/24}"),
        spec("Node", "n2", "bgp: {asNumber: '1.5', ipv6Address: 'fd00::2/64'}"),
    )
    printed = {
        ("ippool",): "NAME    CIDR            SELECTOR\nmain    10.244.0.0/16   all()\n",
        ("pools", "-o", "custom-columns=CIDR,NAT"): "CIDR            NAT\n10.244.0.0/16   false\n",
        ("bgppeers",): "NAME    PEERIP      NODE       ASN\ntor     192.0.2.1   (global)   65001\n",
        ("bgpconfig",): "NAME      LOGSEVERITY   MESHENABLED   ASNUMBER\ndefault   -             -             64600\n",
        ("nodes",): "NAME\nn1\nn2\n",
        ("nodes", "-o", "wide"): (
            "NAME    ASN       IPV4            IPV6\n"
            "n1      (64600)   192.0.2.11/24\n"
            "n2      1.5                       fd00::2/64\n"
        ),
        ("policies", "-A", "-o", "wide"): (
            "NAMESPACE   NAME    TIER      ORDER   SELECTOR\nred         web     default   10      app == 'web'\n"
        ),
        ("np", "web", "-n", "red"): "NAMESPACE   NAME    TIER\nred         web     default\n",
    }
    for arguments, table in printed.items():
        assert tortie("get", *arguments) == table
    heading, row = (line.split() for line in tortie("get", "pools", "-o", "wide").splitlines())
    assert dict(zip(heading, row, strict=True)) == {
        "NAME": "main", "CIDR": "10.244.0.0/16", "NAT": "false", "IPIPMODE": "Never", "VXLANMODE": "Never",
        "DISABLED": "false", "DISABLEBGPEXPORT": "false", "SELECTOR": "all()", "ASSIGNMENTMODE": "Automatic",
    }  # fmt: skip
    tortie("get", "ippool", "-o", "custom-columns=CIDR,NET", status=2)
    assert tortie.err.startswith("tortie: unknown heading NET, valid values are: NAME, CIDR, SELECTOR, NAT, ")


def test_the_table_of_pods(tortie):
    tortie.apply(NAMESPACE, POD)

    async def start(store):
        pod = await store.get(Pod, "web", "red")
        status = PodStatus(phase="Running", pod_ip="10.0.0.5", pod_ips=(PodIP(ip="10.0.0.5"), PodIP(ip="fd00::5")))
        return await store.update(replace(pod, spec=replace(pod.spec, node_name="n1"), status=status))

    assert tortie("get", "pods", "-n", "red").split("\n")[1].split() == ["red", "web", "Pending", "<none>", "<none>"]
    tortie.ask(start)
    assert tortie("get", "pods", "-A").splitlines() == [
        "NAMESPACE   NAME    STATUS    IP         NODE",
        "red         web     Running   10.0.0.5   n1",
    ]
    assert tortie("get", "po", "-A", "-o", "wide").splitlines()[1].split() == [
        "red", "web", "Running", "10.0.0.5,fd00::5", "n1", "default", "calif45b743d7ae",
    ]  # fmt: skip
    assert tortie.apply(POD).startswith("pod/web unchanged\n"), (
        "neither the node nor the status is the user's to take away"
    )


def test_every_kind_has_a_table():
    for kind in KINDS:
        for wide in (False, True):
            assert columns.columns(kind, wide)
    pool, block = parse(POOL)[0], IPAMBlock(
        metadata=Metadata(name="b"),
        spec=IPAMBlockSpec(cidr="10.0.0.0/30", affinity="host:n1", allocations=(0, None, None, 1), unallocated=(1, 2)),
    )  # fmt: skip
    assert columns.cells(pool, columns.columns(IPPool)) == ["main", "10.244.0.0/16", "all()"]
    assert columns.cells(block, columns.columns(IPAMBlock, True)) == ["b", "10.0.0.0/30", "host:n1", "2", "2"]
    config = BGPConfiguration(metadata=Metadata(name="default"))
    assert columns.cells(config, columns.columns(BGPConfiguration)) == ["default", "-", "-", "-"]


def test_a_long_list_of_networks_is_cut():
    nets = ", ".join(f"10.0.{i}.0/24" for i in range(20))
    [nets_] = parse(
        f"apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {{name: s}}\nspec: {{nets: [{nets}]}}"
    )
    cell = columns.cells(nets_, columns.columns(type(nets_), True))[1]
    assert len(cell) == 80
    assert cell.startswith("10.0.0.0/24,10.0.1.0/24,")
    assert cell.endswith("...")


def test_lines_carry_no_spaces_at_their_end():
    assert aligned([["A", "B"], ["", ""], ["long value", ""]]) == "A            B\n\nlong value\n"


def test_a_name_gives_the_object_none_gives_a_list_several_give_an_array(tortie):
    tortie.apply(POOL, TIER)
    assert json.loads(tortie("get", "ippool", "main", "-o", "json"))["metadata"]["name"] == "main"
    assert json.loads(tortie("get", "ippool/main", "-o", "json"))["kind"] == "IPPool"
    every = json.loads(tortie("get", "ippools", "-o", "json"))
    assert (every["kind"], every["apiVersion"], len(every["items"])) == ("IPPoolList", "projectcalico.org/v3", 1)
    several = json.loads(tortie("get", "tier", "default", "security", "-o", "json"))
    assert [one["metadata"]["name"] for one in several] == ["default", "security"]
    assert tortie("get", "tier/default", "tier/security", "-o", "name") == "tier/default\ntier/security\n"
    assert json.loads(tortie("get", "gnp", "-o", "json"))["items"] == []
    exported = json.loads(tortie("get", "ippool", "main", "--export", "-o", "json"))
    assert exported["metadata"] == {"name": "main"}


def test_what_is_not_there(tortie):
    tortie.apply(POOL)
    assert tortie("get", "ippool", "nope", status=1) == ""
    assert tortie.err == "tortie: resource does not exist: IPPool(nope)\n"
    assert tortie("get", "ippool", "main", "nope", "-o", "name", status=1) == "ippool/main\n"
    tortie("get", "pod", "web", "-n", "red", status=1)
    assert tortie.err == "tortie: resource does not exist: Pod(red/web)\n"
    tortie("get", "pod", "web", "-A", status=1)
    assert tortie.err == "tortie: resource does not exist: Pod(web)\n"
    assert tortie("get", "gnp") == ""
    assert tortie.err == "No resources found\n"
    assert tortie("get", "pods") == ""
    assert tortie.err == "No resources found in default namespace\n"


def test_a_datastore_that_is_not_there_is_not_made_by_looking(tortie):
    tortie("get", "pods", status=1)
    assert tortie.err.startswith(f"tortie: there is no datastore {tortie.store}: ")
    assert not tortie.store.exists()
    assert main(["get", "pods", "--datastore", "etcd://x"]) == 1
    assert main(["get", "pods", "--datastore", "ftp://x"]) == 2


# delete


def test_delete_by_name(tortie):
    tortie.apply(POOL, NAMESPACE, POD, TIER)
    one = "Successfully deleted 1 '{}' resource(s)\n".format
    assert tortie("delete", "ippool", "main") == "ippool/main deleted\n" + one("IPPool")
    assert tortie("delete", "pod/web", "-n", "red") == "pod/web deleted\n" + one("Pod")
    assert tortie("delete", "ippool", "main", status=1) == ""
    assert tortie.err == "tortie: Failed to delete 'IPPool' resource: resource does not exist: IPPool(main)\n"
    assert tortie("delete", "tier", "nope", "security", status=1) == "tier/security deleted\n" + one("Tier")
    for flag in ("--ignore-not-found", "--skip-not-exists", "-s"):
        assert tortie("delete", "ippool", "main", flag) == one("IPPool")


def test_delete_what_files_describe_users_before_what_they_use(tortie):
    inside = POLICY.replace("order", "tier: security, order")
    path = tortie.file(TIER, NAMESPACE, inside, POOL)
    tortie("apply", "-f", path)
    assert tortie("delete", "--dry-run", "-f", path).count("(dry run)") == 5
    assert tortie("delete", "-f", path) == (
        "networkpolicy/web deleted\ntier/security deleted\nippool/main deleted\n"
        "serviceaccount/default deleted\nnamespace/red deleted\nSuccessfully deleted 4 resource(s)\n"
    )


def test_a_namespace_goes_with_what_is_in_it(tortie):
    tortie.apply(NAMESPACE, POD, POLICY)
    assert tortie("delete", "ns", "red") == (
        "pod/web deleted\nnetworkpolicy/web deleted\nserviceaccount/default deleted\nnamespace/red deleted\n"
        "Successfully deleted 1 'Namespace' resource(s)\n"
    )
    with pytest.raises(NotFound):
        tortie.stored(Namespace, "red")


def test_what_must_stay_stays_and_with_it_the_rest(tortie):
    tortie.apply(POOL, TIER, NAMESPACE, POLICY.replace("order", "tier: security, order"))
    tortie("delete", "tier", "security", "default", status=2)
    assert tortie.err == (
        "tortie: Tier security: the tier holds NetworkPolicy red/web: delete them first\n"
        "tortie: Tier default: the tier default is built in and cannot be deleted\n"
    )
    tortie("delete", "ns", "kube-system", "red", status=2)
    assert (
        tortie.err == "tortie: Namespace kube-system: the namespace kube-system is always there and cannot be deleted\n"
    )
    assert tortie("get", "np", "-A", "-o", "name") == "networkpolicy/web\n"


# validate, the program itself


def test_validate_needs_no_datastore(tortie):
    assert tortie("validate", "-f", tortie.file(POD), where=False) == "Successfully validated 1 'Pod' resource(s)\n"
    assert tortie("validate", "-f", tortie.file(POD, POOL), where=False) == "Successfully validated 2 resource(s)\n"
    path = tortie.file(POLICY.replace("==", "="))
    tortie("validate", "-f", path, where=False, status=2)
    assert tortie.err.startswith(f"tortie: {path}: NetworkPolicy red/web: spec.selector: selector ")
    assert tortie("validate", "-R", "-f", str(EXAMPLES / "cases" / "calico"), where=False).startswith("Successfully")


def test_the_version(tortie):
    assert tortie("--version", where=False) == f"tortie {__version__}\n"


@pytest.mark.parametrize("arguments", [["nope"], ["patch"], ["get", "--nope", "x"], ["apply", "-f"]])
def test_a_wrong_use_is_one_line_and_exit_2(tortie, arguments):
    assert tortie(*arguments, where=False, status=2) == ""
    assert tortie.err.startswith("tortie: ")
    assert tortie.err.endswith("--help tells more)\n")
    assert tortie.err.count("\n") == 1


def test_the_help_names_every_command_and_imports_nothing_heavy():
    script = "import sys; from tortie.cli.main import main; main(['--help']); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    help_, _, modules = out.rpartition("[")
    for name, _ in COMMANDS:
        assert f"\n  {name} " in help_
    for heavy in (
        "'rich",
        "'asyncio",
        "'sqlite3",
        "'msgspec",
        "'yaml",
        "'aiohttp",
        "'tortie.model",
        "'tortie.store",
        "'tarfile",
    ):
        assert heavy not in modules


@pytest.mark.parametrize("words", [[], ["lab"], ["policy", "staged"]])
def test_a_group_without_a_command_says_which_there_are(words, capsys):
    assert main(words) == 0
    assert "Commands:" in capsys.readouterr().out


def test_a_word_that_is_none_of_an_option_s(capsys):
    assert main(["dns", "--pods", "some"]) == 2
    assert capsys.readouterr().err == (
        "tortie: Invalid value for '--pods': 'some' is not one of 'insecure', 'verified', 'disabled'. "
        "(tortie dns --help tells more)\n"
    )


def test_a_terminal_gets_a_drawn_table_a_pipe_plain_columns(tortie):
    tortie.apply(POOL)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tortie.cli.main", "get", "ippools", "--datastore", str(tortie.store)]
    with subprocess.Popen(command, stdout=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"}) as process:
        os.close(theirs)
        assert process.wait(timeout=30) == 0
    drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\x1b[1m" in drawn
    assert "10.244.0.0/16" in drawn
    assert "\x1b" not in tortie("get", "ippools")


def test_an_interrupt_ends_quietly(tortie):
    command = [sys.executable, "-m", "tortie.cli.main", "apply", "-f", "-", "--datastore", str(tortie.store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        waiting, patience = Path(f"/proc/{process.pid}/wchan"), time.monotonic() + 60
        while "pipe_read" not in waiting.read_text() and time.monotonic() < patience:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip() == ""


def test_a_reader_that_goes_away_is_no_error_of_ours(tortie):
    tortie.apply(*(f"{NAMESPACE.replace('red', f'n{i}')}" for i in range(3)))
    command = f"{sys.executable} -m tortie.cli.main get ns -o yaml --datastore {tortie.store} | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


# Which datastore


def lab_directory(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "store.db").touch()
    return root


def test_the_datastore_that_is_meant(tmp_path):
    labs = lab_directory(tmp_path / "labs", "default", "other")
    machine = tmp_path / "machine.db"

    def locate(*arguments, labs=labs, **environment):
        return datastore.locate(*arguments, environment=environment, labs=labs, machine=machine)

    assert locate("/x.db") == "/x.db"
    assert locate("/x.db", TORTIE_DATASTORE="/y.db", TORTIE_LAB="other") == "/x.db"
    assert locate("", "other", TORTIE_DATASTORE="/y.db") == str(labs / "other" / "store.db")
    assert locate(TORTIE_DATASTORE="/y.db", TORTIE_LAB="other") == "/y.db"
    assert locate(TORTIE_LAB="other") == str(labs / "other" / "store.db")
    assert locate() == str(labs / "default" / "store.db")
    assert locate(labs=lab_directory(tmp_path / "one", "only")) == str(tmp_path / "one" / "only" / "store.db")
    assert locate(labs=tmp_path / "none") == str(machine)
    (tmp_path / "half" / "starting").mkdir(parents=True)
    assert locate(labs=tmp_path / "half") == str(machine)


def test_a_datastore_that_cannot_be_told(tmp_path):
    labs = lab_directory(tmp_path / "labs", "red", "blue")

    def refusal(*arguments):
        with pytest.raises(ConfigError) as caught:
            datastore.locate(*arguments, environment={}, labs=labs)
        return str(caught.value)

    assert refusal() == "several labs are up, name one with --lab: blue, red"
    assert refusal("", "rad") == 'no lab "rad" is up, did you mean "red"?'
    assert refusal("", "xyz") == 'no lab "xyz" is up, known: blue, red'
    assert refusal("/x.db", "red") == "--datastore and --lab both name a datastore: give one of them"
    with pytest.raises(ConfigError, match=r'^no lab "a" is up, start it with "tortie lab up --name a"$'):
        datastore.locate("", "a", environment={}, labs=tmp_path / "none")
