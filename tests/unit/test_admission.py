"""What a user may write into the embedded datastore, what becomes of it there, and what must stay."""

import pytest
from msgspec.structs import replace

from tortie.base.errors import ConfigError
from tortie.calc.admission import Objects, Offline, admit, bootstrap, companions, deletable
from tortie.calc.unserved import unserved
from tortie.model.document import parse, problems, read
from tortie.model.ipam import IPAMBlock, IPAMBlockSpec, IPPool
from tortie.model.k8s import K8sNetworkPolicy, Namespace, Pod, PodStatus, ServiceAccount
from tortie.model.kinds import KINDS
from tortie.model.meta import Metadata, changed
from tortie.model.node import ClusterInformation
from tortie.model.policy import GlobalNetworkPolicy, NetworkPolicy, Tier
from tortie.model.service import EndpointSlice

NOT_YOURS = (
    "metadata.labels[projectcalico.org/namespace]: is what Calico gives the sets of a namespace: take another label"
)
GUID = "0123456789abcdef0123456789abcdef"


def calico(kind, spec, name="p", namespace="", labels=""):
    where = (
        f"name: {name}" + (f", namespace: {namespace}" if namespace else "") + (f", labels: {labels}" if labels else "")
    )
    return parse(f"apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{{where}}}\nspec: {spec}\n")[0]


def kubernetes(kind, spec="", name="a", namespace="", extra="", group="v1"):
    where = f"name: {name}" + (f", namespace: {namespace}" if namespace else "") + extra
    tail = f"spec: {spec}\n" if spec else ""
    return parse(f"apiVersion: {group}\nkind: {kind}\nmetadata: {{{where}}}\n{tail}")[0]


def pool(spec="", cidr="10.0.0.0/16", name="p"):
    return calico("IPPool", f"{{cidr: '{cidr}', {spec}}}", name)


def pod(spec="", name="a", namespace="", extra=""):
    return kubernetes("Pod", f"{{containers: [{{name: c, image: web}}], {spec}}}", name, namespace, extra)


@pytest.fixture
def view():
    return Objects(bootstrap(GUID))


def refusal(new, old, view):
    with pytest.raises(ConfigError) as caught:
        admit(new, old, view)
    return str(caught.value)


def test_an_empty_cluster_has_what_calico_and_kubernetes_start_with():
    first = bootstrap(GUID)
    assert [one.title for one in first] == [
        "Namespace default", "Namespace kube-system", "ServiceAccount default/default",
        "ServiceAccount kube-system/default", "Tier kube-admin", "Tier default", "Tier kube-baseline",
        "ClusterInformation default",
    ]  # fmt: skip
    assert [problem for one in first for problem in problems(one)] == []
    information = first[-1]
    assert isinstance(information, ClusterInformation)
    assert information.spec.cluster_guid == GUID
    assert information.spec.datastore_ready
    tiers = [one for one in first if isinstance(one, Tier)]
    assert [(tier.name, tier.spec.order, tier.spec.default_action) for tier in tiers] == [
        ("kube-admin", 1000, "Pass"), ("default", 1000000, "Deny"), ("kube-baseline", 10000000, "Pass"),
    ]  # fmt: skip
    objects = Objects(first)
    for one in first:
        if not one.KIND.read_only:
            assert admit(one, one, objects) == one, "what is there from the start is what a user would have written"


# Defaults


def test_a_pool_says_all_that_it_does(view):
    spec = admit(pool(), None, view).spec
    assert (spec.block_size, spec.ipip_mode, spec.vxlan_mode, spec.node_selector) == (26, "Never", "Never", "all()")
    assert (spec.allowed_uses, spec.assignment_mode) == (("Workload", "Tunnel"), "Automatic")
    assert admit(pool(cidr="FD00:0::/48", name="six"), None, view).spec.cidr == "fd00::/48"
    assert admit(pool(cidr="FD00:0::/48", name="six"), None, view).spec.block_size == 122
    said = admit(pool("blockSize: 28, vxlanMode: Always, allowedUses: [Workload], nodeSelector: a == 'b'"), None, view)
    assert (said.spec.block_size, said.spec.vxlan_mode, said.spec.allowed_uses) == (28, "Always", ("Workload",))
    assert said.spec.node_selector == "a == 'b'"


@pytest.mark.parametrize(
    ("rules", "types"),
    [
        ("", ("Ingress",)),
        ("ingress: [{action: Allow}]", ("Ingress",)),
        ("egress: [{action: Allow}]", ("Egress",)),
        ("ingress: [], egress: []", ("Ingress",)),
        ("ingress: [{action: Allow}], egress: [{action: Allow}]", ("Ingress", "Egress")),
        ("egress: [{action: Allow}], types: [Ingress]", ("Ingress",)),
    ],
)
@pytest.mark.parametrize("kind", ["NetworkPolicy", "GlobalNetworkPolicy"])
def test_a_policy_says_its_directions_and_its_tier(view, kind, rules, types):
    policy = admit(calico(kind, f"{{{rules}}}"), None, view)
    assert isinstance(policy, NetworkPolicy | GlobalNetworkPolicy)
    assert policy.spec.types == types
    assert policy.spec.tier == "default"
    assert policy.labels == {"projectcalico.org/tier": "default"}


def test_a_tier_that_does_not_exist_may_be_named(view):
    policy = admit(calico("NetworkPolicy", "{tier: later}"), None, view)
    assert policy.labels == {"projectcalico.org/tier": "later"}


def test_protocols_are_spelt_as_calico_does(view):
    rules = "[{action: Deny, protocol: tcp}, {action: Deny, notProtocol: '6'}, {action: Deny, protocol: icmpV6}]"
    policy = admit(calico("GlobalNetworkPolicy", f"{{ingress: {rules}}}"), None, view)
    assert [(rule.protocol, rule.not_protocol) for rule in policy.spec.ingress] == [
        ("TCP", None), (None, 6), ("ICMPv6", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "types"),
    [("{}", ("Ingress",)), ("{egress: [{}]}", ("Ingress", "Egress")), ("{policyTypes: [Egress]}", ("Egress",))],
)
def test_a_kubernetes_policy_says_its_directions(view, spec, types):
    policy = admit(kubernetes("NetworkPolicy", spec, group="networking.k8s.io/v1"), None, view)
    assert isinstance(policy, K8sNetworkPolicy)
    assert policy.spec.policy_types == types


def test_the_port_of_a_kubernetes_policy_is_of_tcp(view):
    new = kubernetes("NetworkPolicy", "{ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}]}]}",
                     group="networking.k8s.io/v1")  # fmt: skip
    policy = admit(new, None, view)
    assert [port.protocol for port in policy.spec.ingress[0].ports] == ["TCP", "UDP"]


def test_a_pod_gets_a_namespace_a_service_account_and_a_phase(view):
    new = admit(pod(), None, view)
    assert (new.namespace, new.spec.service_account_name, new.status.phase) == ("default", "default", "Pending")
    view.put(ServiceAccount(metadata=Metadata(name="web", namespace="default")))
    assert admit(pod("serviceAccount: web"), None, view).spec.service_account_name == "web"


def test_a_namespace_carries_its_name_and_brings_a_service_account(view):
    new = admit(kubernetes("Namespace", name="red", extra=", labels: {team: a}"), None, view)
    assert new.labels == {"team": "a", "kubernetes.io/metadata.name": "red"}
    assert new.status == {"phase": "Active"}
    assert [one.title for one in companions(new)] == ["ServiceAccount red/default"]
    assert companions(admit(pool(), None, view)) == ()


def test_what_the_datastore_and_the_network_wrote_stays(view):
    stored = admit(pod(extra=", annotations: {a: old, b: old}"), None, view)
    stored = changed(stored, uid="u", creation_timestamp="t", generation=3, resource_version="7", annotations={
        **stored.metadata.annotations, "cni.projectcalico.org/podIP": "10.0.0.5/32"})  # fmt: skip
    stored = replace(
        stored, spec=replace(stored.spec, node_name="n1"), status=PodStatus(phase="Running", pod_ip="10.0.0.5")
    )
    again = admit(
        pod(extra=", annotations: {a: new}, uid: other, creationTimestamp: x, managedFields: []"), stored, view
    )
    assert (again.metadata.uid, again.metadata.creation_timestamp, again.metadata.generation) == ("u", "t", 3)
    assert again.metadata.managed_fields is None
    assert again.metadata.annotations == {"a": "new", "cni.projectcalico.org/podIP": "10.0.0.5/32"}
    assert again.spec.node_name == "n1"
    assert again.status.pod_ip == "10.0.0.5"
    assert again.metadata.resource_version == "", "the document's own, for the store to compare"


def test_writing_what_is_stored_changes_nothing(view):
    for new in (pool(), pod(), calico("NetworkPolicy", "{}"), calico("Tier", "{order: 5}"), kubernetes("Namespace")):
        stored = admit(new, None, view)
        assert admit(new, stored, view) == stored
        assert admit(stored, stored, view) == stored


# Refusals

SELECTORS = [
    ("NetworkPolicy", "{selector: %s}", "spec.selector"),
    ("NetworkPolicy", "{serviceAccountSelector: %s}", "spec.serviceAccountSelector"),
    ("GlobalNetworkPolicy", "{namespaceSelector: %s}", "spec.namespaceSelector"),
    ("NetworkPolicy", "{ingress: [{action: Log}, {action: Deny, source: {selector: %s}}]}",
     "spec.ingress[1].source.selector"),
    ("NetworkPolicy", "{egress: [{action: Deny, destination: {notSelector: %s}}]}",
     "spec.egress[0].destination.notSelector"),
    ("Profile", "{egress: [{action: Deny, destination: {namespaceSelector: %s}}]}",
     "spec.egress[0].destination.namespaceSelector"),
    ("GlobalNetworkPolicy", "{ingress: [{action: Deny, source: {serviceAccounts: {selector: %s}}}]}",
     "spec.ingress[0].source.serviceAccounts.selector"),
    ("IPPool", "{cidr: 10.0.0.0/8, nodeSelector: %s}", "spec.nodeSelector"),
    ("IPPool", "{cidr: 10.0.0.0/8, allowedUses: [Workload], namespaceSelector: %s}", "spec.namespaceSelector"),
    ("BGPPeer", "{peerIP: 10.0.0.1, asNumber: 1, nodeSelector: %s}", "spec.nodeSelector"),
    ("BGPPeer", "{peerSelector: %s}", "spec.peerSelector"),
    ("BGPPeer", "{localWorkloadSelector: %s, asNumber: 1}", "spec.localWorkloadSelector"),
    ("FelixConfiguration", "{nodeSelector: %s}", "spec.nodeSelector"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spec", "path"), SELECTORS, ids=lambda text: text[:50])
def test_a_selector_is_read_wherever_it_stands(view, kind, spec, path):
    admit(calico(kind, spec % "'a in {\"x\"}'"), None, view)
    wrong = refusal(calico(kind, spec % "'a = \"x\"'"), None, view)
    assert wrong.startswith(f"{path}: selector 'a = ")
    assert wrong.endswith("equality is written ==")


@pytest.mark.parametrize(("kind", "spec", "path"), SELECTORS, ids=lambda text: text[:50])
def test_global_is_a_whole_namespace_selector_of_a_rule_or_nothing(view, kind, spec, path):
    message = f"{path}: global() is the whole of a rule's namespaceSelector or nowhere"
    assert refusal(calico(kind, spec % "'!has(x) || global()'"), None, view) == message
    if path.endswith("destination.namespaceSelector"):
        admit(calico(kind, spec % "global()"), None, view)
    else:
        assert refusal(calico(kind, spec % "global()"), None, view) == message
    admit(calico(kind, spec % "\"a == 'global()'\""), None, view)


@pytest.mark.parametrize(
    ("cidr", "spec", "message"),
    [
        ("", "", "spec.cidr: "),
        ("10.0.0.0/33", "", "spec.cidr: "),
        ("10.0.0.1/24", "", 'spec.cidr: "10.0.0.1/24" has host bits set; the network is "10.0.0.0/24"'),
        ("169.254.0.0/24", "", "spec.cidr: "),
        ("160.0.0.0/4", "", "spec.cidr: "),
        ("fe80::/64", "", "spec.cidr: "),
        ("10.0.0.0/27", "", "spec.blockSize: a block of /26 is larger than the pool 10.0.0.0/27"),
        ("10.0.0.0/16", "blockSize: 19", "spec.blockSize: 19 is not from 20 to 32"),
        ("10.0.0.0/16", "blockSize: 33", "spec.blockSize: 33 is not from 20 to 32"),
        ("fd00::/64", "blockSize: 115", "spec.blockSize: 115 is not from 116 to 128"),
        ("fd00::/64", "blockSize: 129", "spec.blockSize: 129 is not from 116 to 128"),
        ("10.0.0.0/16", "ipipMode: Always, vxlanMode: CrossSubnet", "spec.vxlanMode: "),
        ("fd00::/64", "ipipMode: Always", "spec.ipipMode: IPIP carries IPv4 only"),
        ("10.0.0.0/16", "ipipMode: Sometimes", "spec.ipipMode: "),
        ("10.0.0.0/16", "allowedUses: [LoadBalancer, Workload]", "spec.allowedUses: LoadBalancer cannot be combined"),
        ("10.0.0.0/16", "allowedUses: [LoadBalancer, Tunnel]", "spec.allowedUses: LoadBalancer cannot be combined"),
        ("10.0.0.0/16", "allowedUses: [LoadBalancer], ipipMode: Always", "spec.allowedUses: a LoadBalancer pool takes"),
        ("10.0.0.0/16", "allowedUses: [LoadBalancer], vxlanMode: CrossSubnet", "spec.allowedUses: a LoadBalancer"),
        ("10.0.0.0/16", "allowedUses: [LoadBalancer], disableBGPExport: true", "spec.allowedUses: a LoadBalancer"),
        ("10.0.0.0/16", "allowedUses: [LoadBalancer], nodeSelector: a == 'b'", 'spec.nodeSelector: must be "all()"'),
        ("10.0.0.0/16", "allowedUses: [Printers]", "spec.allowedUses[0]: "),
        ("10.0.0.0/16", "namespaceSelector: a == 'b'", "spec.allowedUses: a pool with a namespaceSelector must say"),
        ("10.0.0.0/16", "namespaceSelector: a == 'b', allowedUses: [Workload, Tunnel]", "spec.allowedUses: a pool"),
        ("10.0.0.0/16", "nodeSelector: global()", "spec.nodeSelector: global()"),
        ("10.0.0.0/16", "namespaceSelector: global(), allowedUses: [Workload]", "spec.namespaceSelector: global()"),
        ("10.0.0.0/16", "nodeSelector: 'a =='", "spec.nodeSelector: "),
    ],
)
def test_rules_of_pools(view, cidr, spec, message):
    with pytest.raises(ConfigError) as caught:
        admit(pool(spec, cidr), None, view)
    assert str(caught.value).removeprefix("IPPool p: ").startswith(message)


@pytest.mark.parametrize(
    ("cidr", "spec"),
    [
        ("10.0.0.0/27", "disabled: true"),
        ("10.0.0.0/26", ""),
        ("10.0.0.0/16", "blockSize: 20"),
        ("10.0.0.0/16", "blockSize: 32"),
        ("fd00::/64", "blockSize: 116, vxlanMode: Always"),
        ("10.0.0.0/16", "allowedUses: [LoadBalancer], nodeSelector: all()"),
        ("10.0.0.0/16", "allowedUses: [Tunnel], ipipMode: CrossSubnet"),
        ("10.0.0.0/16", "namespaceSelector: a == 'b', allowedUses: [Workload]"),
    ],
)
def test_pools_that_are_right(view, cidr, spec):
    assert isinstance(admit(pool(spec, cidr), None, view), IPPool)


def test_a_small_pool_cannot_be_opened(view):
    closed = admit(pool("disabled: true", "10.0.0.0/27"), None, view)
    assert isinstance(closed, IPPool)
    opened = replace(closed, spec=replace(closed.spec, disabled=False))
    assert refusal(opened, closed, view) == "spec.blockSize: a block of /26 is larger than the pool 10.0.0.0/27"


def test_pools_do_not_overlap(view):
    view.put(admit(pool(cidr="10.0.0.0/16", name="b"), None, view))
    assert refusal(pool(cidr="10.0.1.0/24", name="a"), None, view) == (
        "spec.cidr: IPPool(a) CIDR overlaps with IPPool(b) CIDR 10.0.0.0/16"
    )
    assert refusal(pool("disabled: true", "10.0.0.0/8", "a"), None, view).startswith(
        "spec.cidr: IPPool(a) CIDR overlaps"
    )
    admit(pool(cidr="10.1.0.0/16", name="a"), None, view)
    admit(pool(cidr="fd00::/64", name="a"), None, view)


def test_a_pool_keeps_its_network_and_its_block_size(view):
    old = admit(pool("natOutgoing: true"), None, view)
    view.put(old)
    assert refusal(pool(cidr="10.0.0.0/15"), old, view) == (
        "spec.cidr: cannot change from 10.0.0.0/16 to 10.0.0.0/15: create another pool"
    )
    assert refusal(pool("blockSize: 27"), old, view) == (
        "spec.blockSize: cannot change from 26 to 27: create another pool"
    )
    assert admit(pool("blockSize: 26, disabled: true"), old, view).spec.disabled
    six = admit(pool(cidr="fd00:1::/64"), None, view)
    assert admit(pool(cidr="FD00:0001::/64"), six, view) == six, "the same network in other letters"


def test_a_load_balancer_pool_stays_one(view):
    old = admit(pool("allowedUses: [LoadBalancer]"), None, view)
    assert refusal(pool("allowedUses: [Workload]"), old, view) == (
        "spec.allowedUses: a LoadBalancer pool cannot get another use: create another pool"
    )


def test_a_pool_takes_the_blocks_that_are_there(view):
    view.put(IPAMBlock(metadata=Metadata(name="10-0-4-0-26"), spec=IPAMBlockSpec(cidr="10.0.4.0/26")))
    assert refusal(pool("blockSize: 28"), None, view) == (
        "spec.blockSize: must be 26: there is the block 10.0.4.0/26 in the pool already"
    )
    assert isinstance(admit(pool(), None, view), IPPool)
    assert isinstance(admit(pool("blockSize: 28", "10.9.0.0/16"), None, view), IPPool)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.KIND.namespaced], ids=lambda kind: kind.KIND.key)
def test_a_namespace_comes_first(view, kind):
    bodies = {"Pod": "{containers: [{name: c}]}", "ServiceAccount": "", "Secret": "",
              "WorkloadEndpoint": "{node: n, orchestrator: k8s, pod: a, endpoint: eth0}"}  # fmt: skip
    name = "n-k8s-a-eth0" if kind.KIND.kind == "WorkloadEndpoint" else "a"
    if kind is EndpointSlice:
        new = EndpointSlice(metadata=Metadata(name="a", namespace="red"), address_type="IPv4")
    else:
        new = kubernetes(kind.KIND.kind, bodies.get(kind.KIND.kind, "{}"), name, "red", group=kind.KIND.api_version)
    assert refusal(new, None, view) == 'metadata.namespace: namespace "red" does not exist: create it first'
    namespace = kubernetes("Namespace", name="red")
    for one in (namespace, *companions(namespace)):
        view.put(one)
    assert admit(new, None, view).namespace == "red"


def test_a_service_account_comes_before_its_pod(view):
    assert refusal(pod("serviceAccountName: web"), None, view) == (
        'spec.serviceAccountName: service account "web" does not exist in namespace "default": create it first'
    )


def test_without_a_datastore_what_a_document_names_is_taken_to_be_there():
    assert admit(pod("serviceAccountName: web", namespace="red"), None, Offline(bootstrap(GUID))).namespace == "red"
    with pytest.raises(ConfigError):
        admit(calico("NetworkPolicy", "{selector: 'a ='}"), None, Offline())


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("hostNetwork: true", "hostNetwork"),
        ("serviceAccountName: web", "serviceAccountName"),
        ("initContainers: [{name: i}]", "initContainers"),
        ("volumes: [{name: v, emptyDir: {}}]", "volumes"),
    ],
)
def test_a_pod_stays_what_it_is(view, spec, field):
    old = admit(pod(), None, view)
    assert refusal(pod(spec), old, view) == (
        f"spec.{field}: cannot change once the pod is there: delete the pod and create it again"
    )


def test_a_pod_is_placed_once(view):
    old = admit(pod(), None, view)
    placed = admit(pod("nodeName: n1"), old, view)
    assert placed.spec.node_name == "n1"
    assert admit(pod("nodeName: n1"), placed, view) == placed
    assert refusal(pod("nodeName: n2"), placed, view) == (
        'spec.nodeName: cannot change from "n1" to "n2": a pod does not move'
    )


def test_a_pod_may_change_what_kubernetes_lets_change(view):
    old = admit(pod(), None, view)
    new = kubernetes("Pod", "{containers: [{name: c, image: web:2}], terminationGracePeriodSeconds: 1, "
                     "activeDeadlineSeconds: 5, tolerations: [{operator: Exists}]}")  # fmt: skip
    assert isinstance(admit(new, old, view), Pod)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (calico("Tier", "{order: 5, defaultAction: Deny}", "default"),
         "spec.order: must be 1000000 in the built-in tier default"),
        (calico("Tier", "{order: 1000}", "kube-admin"),
         "spec.defaultAction: must be Pass in the built-in tier kube-admin"),
        (calico("NetworkPolicy", "{}", "knp.default.web"),
         'metadata.name: "knp.default.web" is the name of a Kubernetes policy: write that one instead'),
        (calico("NetworkSet", "{}", labels="{projectcalico.org/namespace: red}"),
         NOT_YOURS),
        (calico("GlobalNetworkSet", "{}", labels="{projectcalico.org/namespace: red}"),
         NOT_YOURS),
        (calico("Profile", "{}", "kns.red"),
         'metadata.name: "kns.red" is a profile that namespaces and service accounts make by themselves'),
        (calico("Profile", "{}", "projectcalico-default-allow"), 'metadata.name: "projectcalico-default-allow" '
         "is a profile that namespaces and service accounts make by themselves"),
        (calico("BGPPeer", "{peerIP: 10.0.0.1, asNumber: 1, filters: [a, b]}"),
         "spec.filters: BGPFilter(s) not found: a, b"),
        (calico("WorkloadEndpoint", "{node: n-1, orchestrator: k8s, pod: a, endpoint: eth0}", "n-1-k8s-a-eth0"),
         'metadata.name: "n-1-k8s-a-eth0" must be "n--1-k8s-a-eth0", made of what spec says'),
        (calico("WorkloadEndpoint", "{orchestrator: k8s, pod: a, endpoint: eth0}"), "spec.node: is required"),
        (calico("ClusterInformation", "{}", "default"),
         "ClusterInformation is read-only: the network writes it, users look at it"),
        (calico("BlockAffinity", "{cidr: 10.0.0.0/26, node: n}"),
         "BlockAffinity is read-only: the network writes it, users look at it"),
        (changed(pool(), name="P"), 'metadata.name: "P" must be lower-case letters, digits, "-" and ".", at most 253'),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else value.title,
)  # fmt: skip
def test_what_is_refused(view, new, message):
    assert refusal(new, None, view) == message


def test_an_endpoint_is_named_by_its_parts(view):
    for name, spec in (
        ("node--1-k8s-pod--name-eth0", "orchestrator: k8s, pod: pod-name"),
        ("node--1-cni-abc-eth0", "orchestrator: cni, containerID: abc"),
        ("node--1-libnetwork-libnetwork-eth0", "orchestrator: libnetwork"),
        ("node--1-openstack-vm-eth0", "orchestrator: openstack, workload: vm"),
    ):
        admit(calico("WorkloadEndpoint", f"{{node: node-1, endpoint: eth0, {spec}}}", name), None, view)


# Deletion


def kept(resource, view):
    with pytest.raises(ConfigError) as caught:
        deletable(resource, view)
    return str(caught.value)


def test_a_namespace_takes_its_contents_along(view):
    red = kubernetes("Namespace", name="red")
    inside = [
        *companions(red),
        pod(namespace="red"),
        calico("NetworkPolicy", "{}", "web", "red"),
        calico("NetworkSet", "{}", "web", "red"),
        calico("WorkloadEndpoint", "{node: n, orchestrator: k8s, pod: a, endpoint: eth0}", "n-k8s-a-eth0", "red"),
        calico(
            "WorkloadEndpoint", "{node: n, orchestrator: cni, containerID: x, endpoint: eth0}", "n-cni-x-eth0", "red"
        ),
    ]
    for one in (red, *inside, pod()):
        view.put(one)
    assert [one.title for one in deletable(red, view)] == [
        "WorkloadEndpoint red/n-cni-x-eth0", "Pod red/a", "NetworkPolicy red/web", "NetworkSet red/web",
        "ServiceAccount red/default", "Namespace red",
    ]  # fmt: skip


def test_what_must_stay(view):
    for name in ("default", "kube-system"):
        assert kept(view.get(Namespace, name), view) == f"the namespace {name} is always there and cannot be deleted"
    for name in ("default", "kube-admin", "kube-baseline"):
        assert kept(view.get(Tier, name), view) == f"the tier {name} is built in and cannot be deleted"
    assert kept(view.get(ServiceAccount, "default", "default"), view) == (
        "every namespace has its default service account; it goes with the namespace"
    )
    assert kept(view.get(ClusterInformation, "default"), view).startswith("ClusterInformation is read-only")


def test_a_tier_goes_when_it_is_empty(view):
    tier = admit(calico("Tier", "{order: 5}", "security"), None, view)
    assert deletable(tier, view) == (tier,)
    view.put(admit(calico("GlobalNetworkPolicy", "{tier: security}", "g"), None, view))
    assert kept(tier, view) == "the tier holds GlobalNetworkPolicy g: delete them first"
    view.put(admit(calico("NetworkPolicy", "{tier: security}", "n"), None, view))
    assert kept(tier, view) == "the tier holds NetworkPolicy default/n and 1 more: delete them first"


def test_other_objects_go_by_themselves(view):
    for one in (admit(pool(), None, view), admit(pod(), None, view)):
        assert deletable(one, view) == (one,)


# --- what nobody acts on yet ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("FelixConfiguration", {"bpfEnabled": True}, "spec: kept, but not acted on yet: bpfEnabled"),
    ],
)
def test_what_nobody_acts_on_yet_is_said(kind: str, spec: dict[str, object], words: str) -> None:
    document = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": "default"}, "spec": spec}
    (line,) = unserved(read(document))
    assert line.startswith(words)


def test_what_is_acted_on_needs_no_word() -> None:
    for kind, spec in (
        ("IPPool", {"cidr": "10.9.0.0/16", "ipipMode": "Never"}),
        ("FelixConfiguration", {"logPrefix": "x", "floatingIPs": "Enabled"}),
        (
            "BGPPeer",
            {"peerIP": "192.0.2.1", "asNumber": 1, "password": {"secretKeyRef": {"name": "a", "key": "b"}}},
        ),
    ):
        document = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": "default"}, "spec": spec}
        assert list(unserved(read(document))) == []


def test_the_service_of_a_rule_is_of_the_own_namespace_or_says_its() -> None:

    spec = {"egress": [{"action": "Deny", "destination": {"services": {"name": "x"}}}]}
    document = {"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "spec": spec}
    policy = read(document | {"metadata": {"name": "p", "namespace": "default"}})
    assert admit(policy, None, Objects(bootstrap("0" * 32)))
    with pytest.raises(ConfigError, match=r"spec.egress\[0\].destination.services.namespace: is required"):
        read(document | {"kind": "GlobalNetworkPolicy", "metadata": {"name": "p"}})
