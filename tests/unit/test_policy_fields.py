"""Every field of a policy that can be wrong is told in one line, with its path; and what is right is taken as it is."""

from __future__ import annotations

import pytest

from tortie.base.errors import ConfigError
from tortie.calc.admission import Objects, Offline, admit, bootstrap, deletable
from tortie.calc.unserved import unserved
from tortie.model.document import dump_yaml, load_documents, parse
from tortie.model.kinds import kind_of_word
from tortie.model.meta import Resource
from tortie.model.policy import Tier

V3 = "projectcalico.org/v3"
CNP = "policy.networking.k8s.io/v1alpha2"


def of(kind: str, spec: str, name: str = "x", version: str = V3) -> str:
    return f"{{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}"


def rule(text: str, kind: str = "NetworkPolicy", direction: str = "ingress") -> str:
    return of(kind, f"{direction}: [{{action: Allow, {text}}}]")


def entity(text: str, more: str = "") -> str:
    return rule(f"{more}source: {{{text}}}")


def to(text: str, more: str = "") -> str:
    return rule(f"{more}destination: {{{text}}}", direction="egress")


def cnp(spec: str, subject: str = "{namespaces: {}}") -> str:
    return of("ClusterNetworkPolicy", f"tier: Admin, priority: 5, subject: {subject}, {spec}", version=CNP)


def cnp_rule(text: str, direction: str = "egress") -> str:
    return cnp(f"{direction}: [{{action: Deny, {text}}}]")


def service(spec: str) -> str:
    return of("Service", spec, version="v1")


def slice_(text: str) -> str:
    return f"{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: x}}, addressType: IPv4, {text}}}"


def many(text: str, number: int) -> str:
    return ", ".join([text] * number)


WRONG = [
    # rules
    (of("NetworkPolicy", "ingress: [{action: Permit}]"), 'spec.ingress[0].action: "Permit" is not one of'),
    (rule("ipVersion: 5"), "spec.ingress[0].ipVersion: 5 is not one of 4, 6"),
    (rule("ipVersion: 6, protocol: ICMP"), "spec.ingress[0].ipVersion: 6 does not go with protocol ICMP"),
    (rule("ipVersion: 6, source: {nets: [10.0.0.0/8]}"), "spec.ingress[0].ipVersion: the rule is for IPv6, its networ"),
    (rule("protocol: ICMPv6, source: {nets: [10.0.0.0/8]}"), "spec.ingress[0].ipVersion: the rule is for IPv6"),
    (rule("protocol: IGMPv9"), 'spec.ingress[0].protocol: "IGMPv9" is not a protocol'),
    (rule("protocol: 256"), 'spec.ingress[0].protocol: "256" is not a protocol'),
    (rule("notProtocol: 0"), 'spec.ingress[0].notProtocol: "0" is not a protocol'),
    (rule("protocol: ICMP, icmp: {type: 255}"), "spec.ingress[0].icmp.type: 255 is not from 0 to 254"),
    (rule("protocol: ICMP, icmp: {type: 1, code: 256}"), "spec.ingress[0].icmp.code: 256 is not from 0 to 255"),
    (rule("protocol: ICMP, notICMP: {code: 1}"), "spec.ingress[0].notICMP.code: needs a type"),
    (rule("icmp: {type: 8}"), "spec.ingress[0].icmp: needs protocol ICMP or ICMPv6"),
    (rule("protocol: UDP, http: {methods: [GET]}"), "spec.ingress[0].http: goes with action Allow and protocol TCP on"),
    (of("NetworkPolicy", "ingress: [{action: Deny, http: {methods: [GET]}}]"), "spec.ingress[0].http: goes with actio"),
    (rule("http: {methods: [GET]}", direction="egress"), "spec.egress[0].http: only in ingress rules"),
    (rule("http: {methods: [GET]}", "Profile", "egress"), "spec.egress[0].http: only in ingress rules"),
    (rule("http: {methods: [GET, GET]}"), "spec.ingress[0].http.methods: names a method twice"),
    (rule(f"http: {{methods: [{many('A', 21)}]}}"), "spec.ingress[0].http.methods: has 21 entries, at most 20"),
    (rule(f"http: {{paths: [{many('{exact: /a}', 21)}]}}"), "spec.ingress[0].http.paths: has 21 entries, at most 20"),
    (rule("http: {paths: [{exact: /a, prefix: /b}]}"), "spec.ingress[0].http.paths[0]: give exactly one of exact and"),
    (rule("http: {paths: [{}]}"), "spec.ingress[0].http.paths[0]: give exactly one of exact and prefix"),
    (rule("http: {paths: [{exact: a}]}"), 'spec.ingress[0].http.paths[0]: "a" must start with "/"'),
    (rule("http: {paths: [{prefix: '/a?b'}]}"), 'spec.ingress[0].http.paths[0]: "/a?b" must start with "/", hold no'),
    (rule(f"http: {{paths: [{{prefix: /{'a' * 1024}}}]}}"), "at most 1024 characters"),
    (rule("metadata: {annotations: [a]}"), "spec.ingress[0].metadata.annotations: is a list, must be a mapping"),
    # one side of a rule
    (entity("nets: [10.0.0.1/8]"), 'spec.ingress[0].source.nets[0]: "10.0.0.1/8" has host bits set'),
    (entity("nets: [here]"), "spec.ingress[0].source.nets[0]: "),
    (entity(f"nets: [{many('10.0.0.0/8', 257)}]"), "spec.ingress[0].source.nets: at most 256 networks, here 257"),
    (entity("nets: [10.0.0.0/8], notNets: ['fd00::/8']"), "spec.ingress[0]: mixes IPv4 and IPv6 networks"),
    (entity("notNets: [0.0.0.0/0]"), 'spec.ingress[0].source.notNets[0]: "0.0.0.0/0" excludes everything'),
    (entity("notNets: ['::/0']"), 'spec.ingress[0].source.notNets[0]: "::/0" excludes everything'),
    (entity("selector: a = 'b'"), 'spec.ingress[0].source.selector: selector "a = \'b\'", character 3'),
    (entity("notSelector: global()"), "spec.ingress[0].source.notSelector: global() is the whole of a rule's"),
    (entity(f"selector: {'a' * 1025}"), "spec.ingress[0].source.selector: a selector has at most 1024 characters"),
    (entity("namespaceSelector: global() && has(a)"), "spec.ingress[0].source.namespaceSelector: global() is the whol"),
    (entity("serviceAccounts: {selector: '(('}"), "spec.ingress[0].source.serviceAccounts.selector: selector"),
    (to("ports: [80]"), "spec.egress[0].destination.ports: ports need protocol TCP, UDP or SCTP in the rule"),
    (to("ports: ['80:90']", "protocol: UDPLite, "), "spec.egress[0].destination.ports: ports need protocol TCP"),
    (to("ports: [http]", "protocol: ICMP, "), "spec.egress[0].destination.ports: ports need protocol TCP"),
    (to("ports: [65536]", "protocol: TCP, "), "spec.egress[0].destination.ports[0]: 65536 is not from 0 to 65535"),
    (to("notPorts: ['9:8']", "protocol: TCP, "), 'spec.egress[0].destination.notPorts[0]: "9:8" is not a range of'),
    (to("ports: ['a b']", "protocol: TCP, "), 'spec.egress[0].destination.ports[0]: "a b" is neither a port'),
    (to(f"ports: [{many('1', 51)}]", "protocol: TCP, "), "spec.egress[0].destination.ports: at most 50 ports, here 51"),
    # services
    (to("services: {}"), "spec.egress[0].destination.services.name: is required"),
    (to(f"services: {{name: {'a' * 254}}}"), "spec.egress[0].destination.services.name: has 254 characters"),
    (rule("destination: {services: {name: a}}"), "spec.ingress[0].destination.services: only in the source of ingress"),
    (rule("source: {services: {name: a}}", direction="egress"), "spec.egress[0].source.services: only in the destinat"),
    *(
        (to(f"services: {{name: a}}, {field}"), f"spec.egress[0].destination.services: cannot be combined with {words}")
        for field, words in (
            ("selector: all()", "selector"),
            ("notSelector: all()", "not selector"),
            ("namespaceSelector: all()", "namespace selector"),
            ("serviceAccounts: {names: [a]}", "service accounts"),
            ("nets: [10.0.0.0/8]", "nets"),
            ("notNets: [10.0.0.0/8]", "not nets"),
        )
    ),
    (to("services: {name: a}, ports: [80]", "protocol: TCP, "), "spec.egress[0].destination.services: cannot be combi"),
    (to("services: {name: a}, notPorts: [80]", "protocol: TCP, "), "spec.egress[0].destination.services: cannot be co"),
    (rule("source: {services: {name: a}}", "GlobalNetworkPolicy"), "spec.ingress[0].source.services.namespace: is req"),
    (rule("source: {services: {name: a}}", "Profile"), "spec.ingress[0].source.services.namespace: is required in a"),
    # policies
    (of("NetworkPolicy", "tier: A.b"), 'spec.tier: "A.b" is not the name of a tier'),
    (of("NetworkPolicy", "order: x"), 'spec.order: "x" must be a number'),
    (of("NetworkPolicy", "selector: a == b"), "spec.selector: selector"),
    (of("NetworkPolicy", "selector: global()"), "spec.selector: global() is the whole of a rule's"),
    (of("NetworkPolicy", "serviceAccountSelector: '!'"), "spec.serviceAccountSelector: selector"),
    (of("GlobalNetworkPolicy", "namespaceSelector: global()"), "spec.namespaceSelector: global() is the whole"),
    (of("NetworkPolicy", "namespaceSelector: all()"), "spec.namespaceSelector: is not a known field"),
    (of("NetworkPolicy", "types: [In]"), 'spec.types[0]: "In" is not one of Ingress, Egress'),
    (of("NetworkPolicy", "types: [Ingress, Ingress]"), "spec.types: names a direction twice"),
    (of("NetworkPolicy", "performanceHints: [Fast]"), 'spec.performanceHints[0]: "Fast" is not one of AssumeNeeded'),
    (of("NetworkPolicy", f"performanceHints: [{many('AssumeNeededOnEveryNode', 2)}]"), "spec.performanceHints: names"),
    (of("NetworkPolicy", f"ingress: [{many('{action: Deny}', 1025)}]"), "spec.ingress: has 1025 entries, at most 1024"),
    (of("GlobalNetworkPolicy", "doNotTrack: true"), "spec.applyOnForward: must be true with doNotTrack or preDNAT"),
    (of("GlobalNetworkPolicy", "preDNAT: true"), "spec.applyOnForward: must be true with doNotTrack or preDNAT"),
    (of("GlobalNetworkPolicy", "preDNAT: true, doNotTrack: true, applyOnForward: true"), "spec.preDNAT: cannot be com"),
    (of("GlobalNetworkPolicy", "preDNAT: true, applyOnForward: true, types: [Egress]"), "spec.egress: a preDNAT polic"),
    (of("GlobalNetworkPolicy", "preDNAT: true, applyOnForward: true, egress: [{action: Deny}]"), "spec.egress: a preD"),
    (of("NetworkPolicy", "", "a.b.c"), 'metadata.name: "a.b.c" has more than one dot'),
    (of("StagedGlobalNetworkPolicy", "", "a.b.c"), 'metadata.name: "a.b.c" has more than one dot'),
    (of("StagedNetworkPolicy", "", "knp.default.x"), 'metadata.name: "knp.default.x" is the name of a Kubernetes poli'),
    # staged policies
    (of("StagedNetworkPolicy", "stagedAction: Undo"), 'spec.stagedAction: "Undo" is not one of Set, Delete, Learn, Ig'),
    (of("StagedNetworkPolicy", "stagedAction: Delete, order: 1"), "spec.order: must be empty with stagedAction Delete"),
    (of("StagedNetworkPolicy", "stagedAction: Delete, selector: all()"), "spec.selector: must be empty with stagedAct"),
    (of("StagedGlobalNetworkPolicy", "stagedAction: Delete, types: [Egress]"), "spec.types: must be empty with"),
    (of("StagedGlobalNetworkPolicy", "doNotTrack: true"), "spec.applyOnForward: must be true with doNotTrack"),
    (of("StagedKubernetesNetworkPolicy", "stagedAction: Delete, ingress: [{}]"), "spec.ingress: must be empty with"),
    (of("StagedKubernetesNetworkPolicy", "ingress: [{from: [{}]}]"), "spec.ingress[0].from[0]: give podSelector"),
    # tiers, sets, profiles
    (of("Tier", "defaultAction: Allow"), 'spec.defaultAction: "Allow" is not one of Deny, Pass'),
    (of("Tier", "", "a.b"), 'metadata.name: "a.b" must be lower-case letters'),
    (of("GlobalNetworkSet", "nets: [10.0.0.1/8]"), 'spec.nets[0]: "10.0.0.1/8" has host bits set'),
    # cluster policies
    (of("ClusterNetworkPolicy", "priority: 1, subject: {namespaces: {}}", version=CNP), "spec.tier: is required"),
    (cnp("").replace("Admin", "Other"), 'spec.tier: "Other" is not one of Admin, Baseline'),
    (cnp("").replace("priority: 5", "priority: 1001"), "spec.priority: 1001 is not from 0 to 1000"),
    (cnp("", "{}"), "spec.subject: give exactly one of namespaces, pods"),
    (cnp("", "{namespaces: {}, pods: {}}"), "spec.subject: give exactly one of namespaces, pods"),
    (cnp("", "{namespaces: {matchLabels: {'a b': c}}}"), 'spec.subject.namespaces.matchLabels[a b]: "a b" is not a la'),
    (cnp(f"ingress: [{many('{action: Deny, from: [{namespaces: {}}]}', 26)}]"), "spec.ingress: at most 25 entries"),
    (cnp("egress: [{action: Allow, to: [{namespaces: {}}]}]"), 'spec.egress[0].action: "Allow" is not one of Accept'),
    (cnp_rule("to: []"), "spec.egress[0].to: needs at least one peer"),
    (cnp_rule(f"name: {'a' * 101}, to: [{{namespaces: {{}}}}]"), "spec.egress[0].name: has 101 characters, at most 10"),
    (cnp_rule("to: [{}]"), "spec.egress[0].to[0]: give exactly one of namespaces, pods, nodes, networks, domainNames"),
    (cnp_rule("from: [{networks: [10.0.0.0/8]}]", "ingress"), "spec.ingress[0].from[0].networks: is not a known field"),
    (cnp_rule("to: [{networks: [10.0.0.1/8]}]"), 'spec.egress[0].to[0].networks[0]: "10.0.0.1/8" has host bits set'),
    (cnp_rule(f"to: [{{networks: [{many('10.0.0.0/8', 26)}]}}]"), "spec.egress[0].to[0].networks: at most 25 entries"),
    (cnp_rule("to: [{namespaces: {}}], protocols: [{}]"), "spec.egress[0].protocols[0]: give exactly one of tcp, udp"),
    (cnp_rule("to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]"),
     "spec.egress[0].protocols[0].tcp.destinationPort: give exactly one of number, range"),
    (cnp_rule("to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 0}}}]"),
     "spec.egress[0].protocols[0].udp.destinationPort.number: 0 is not from 1 to 65535"),
    (cnp_rule("to: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {range: {start: 9, end: 9}}}}]"),
     "spec.egress[0].protocols[0].sctp.destinationPort.range: start 9 must be below end 9"),
    (cnp_rule("to: [{namespaces: {}}], protocols: [{destinationNamedPort: 'a b'}]"),
     'spec.egress[0].protocols[0].destinationNamedPort: "a b" is not a port name'),
    (cnp_rule("to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]"),
     "spec.egress[0].protocols[0].destinationNamedPort: networks, nodes and domainNames have no named ports"),
    # services
    (service("ports: [{port: 0}]"), "spec.ports[0].port: 0 is not from 1 to 65535"),
    (service("ports: [{port: 80, targetPort: 70000}]"), "spec.ports[0].targetPort: 70000 is not from 1 to 65535"),
    (service("type: External"), 'spec.type: "External" is not one of ClusterIP'),
    (service("type: ExternalName"), "spec.externalName: is required with type ExternalName"),
    (service("clusterIP: here"), 'spec.clusterIP: "here" is not an IP address'),
    (service("loadBalancerSourceRanges: [1.2.3.4/8]"), 'spec.loadBalancerSourceRanges[0]: "1.2.3.4/8" has host bits'),
    (slice_("endpoints: [{addresses: ['fd00::1']}]"), 'endpoints[0].addresses[0]: "fd00::1" is not an IPv4 address'),
    (slice_("ports: [{protocol: ICMP}]"), 'ports[0].protocol: "ICMP" is not one of TCP, UDP, SCTP'),
    (slice_("endpoint: []"), 'endpoint: is not a known field, did you mean "endpoints"?'),
]  # fmt: skip


@pytest.fixture
def view() -> Objects:
    return Offline(bootstrap("0" * 32))


@pytest.mark.parametrize(
    ("text", "message"), WRONG, ids=[f"{i} {message[:50]}" for i, (_, message) in enumerate(WRONG)]
)
def test_what_is_wrong_is_one_line_that_says_where(text: str, message: str, view: Objects) -> None:
    with pytest.raises(ConfigError) as caught:
        admit(parse(text)[0], None, view)
    line = str(caught.value)
    assert message in line
    assert "\n" not in line


# --- what is right ----------------------------------------------------------------------------------------------------

RIGHT = """
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata:
  name: internal-access.allow-tcp-6379
  namespace: production
spec:
  tier: internal-access
  selector: role == 'database'
  types:
    - Ingress
    - Egress
  ingress:
    - action: Allow
      metadata:
        annotations:
          from: frontend
      protocol: TCP
      source:
        selector: role == 'frontend'
      destination:
        ports:
          - 6379
  egress:
    - action: Allow
---
apiVersion: crd.projectcalico.org/v1
kind: StagedGlobalNetworkPolicy
metadata:
  name: internal-access.allow-tcp-6379
spec:
  tier: internal-access
  stagedAction: Delete
---
apiVersion: projectcalico.org/v3
kind: StagedKubernetesNetworkPolicy
metadata:
  name: test-network-policy
  namespace: production
spec:
  podSelector:
    matchLabels:
      role: db
  ingress:
    - from:
        - ipBlock:
            cidr: 172.17.0.0/16
            except:
              - 172.17.1.0/24
        - namespaceSelector:
            matchLabels:
              project: myproject
      ports:
        - port: 6379
  egress:
    - to:
        - ipBlock:
            cidr: 10.0.0.0/24
      ports:
        - protocol: TCP
          port: 5978
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata:
  name: cluster-control
spec:
  tier: Admin
  priority: 10
  subject:
    pods:
      namespaceSelector: {}
      podSelector:
        matchLabels:
          role: db
  ingress:
    - name: deny-other-tenants
      action: Deny
      from:
        - namespaces:
            matchExpressions:
              - {key: tenant, operator: NotIn, values: [a]}
      protocols:
        - tcp:
            destinationPort:
              number: 5432
        - udp:
            destinationPort:
              range: {start: 1000, end: 1010}
        - destinationNamedPort: pg
  egress:
    - action: Accept
      to:
        - networks: [10.0.0.0/8, "fd00::/8"]
status:
  conditions: []
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: production
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
  externalTrafficPolicy: Cluster
  internalTrafficPolicy: Cluster
  ports:
    - {name: http, port: 80, targetPort: http, nodePort: 30080, protocol: TCP, appProtocol: http}
status:
  loadBalancer: {}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-abc12
  namespace: production
  generateName: web-
  labels:
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
    kubernetes.io/service-name: web
addressType: IPv4
endpoints:
  - addresses: [10.244.1.7]
    conditions: {ready: true, serving: true, terminating: false}
    nodeName: n1
    targetRef: {kind: Pod, name: web-0, namespace: production, uid: x}
    hints: {forZones: [{name: a}]}
ports:
  - {name: http, port: 8080, protocol: TCP}
  - {name: "", port: null}
"""


def right() -> dict[str, Resource]:
    return {one.KIND.kind: one for one in parse(RIGHT)}


def test_what_users_have_in_hand_is_read_whole_and_written_back() -> None:
    for document, one in zip(load_documents(RIGHT), parse(RIGHT), strict=True):
        assert parse(dump_yaml(one)) == [one]
        [written] = load_documents(dump_yaml(one))
        assert document.get("spec", {}).keys() <= written.get("spec", {}).keys()


def test_what_is_filled_in(view: Objects) -> None:
    stored = {kind: admit(one, None, view) for kind, one in right().items()}
    staged, delete = stored["StagedNetworkPolicy"], stored["StagedGlobalNetworkPolicy"]
    assert (staged.spec.staged_action, staged.labels) == ("Set", {"projectcalico.org/tier": "internal-access"})
    assert (delete.spec.staged_action, delete.spec.types, delete.spec.tier) == ("Delete", (), "internal-access")
    assert delete.labels == {"projectcalico.org/tier": "internal-access"}
    kubernetes = stored["StagedKubernetesNetworkPolicy"].spec
    assert (kubernetes.staged_action, kubernetes.policy_types) == ("Set", ("Ingress", "Egress"))
    assert kubernetes.ingress[0].ports[0].protocol == "TCP"
    for one in stored.values():
        assert admit(one, one, view) == one, "what is stored is not changed by storing it again"
    plain = parse(of("StagedNetworkPolicy", "egress: [{action: Allow, protocol: tcp}]"))[0]
    spec = admit(plain, None, view).spec
    assert (spec.tier, spec.types, spec.egress[0].protocol) == ("default", ("Egress",), "TCP")


def test_the_words_for_the_kinds() -> None:
    words = {
        "snp": "StagedNetworkPolicy", "scnp": "StagedNetworkPolicy", "stagednetworkpolicies": "StagedNetworkPolicy",
        "sgnp": "StagedGlobalNetworkPolicy", "sknp": "StagedKubernetesNetworkPolicy", "kcnp": "ClusterNetworkPolicy",
        "clusternetworkpolicies.policy.networking.k8s.io": "ClusterNetworkPolicy", "cnp": "NetworkPolicy",
        "svc": "Service", "endpointslices": "EndpointSlice",
    }  # fmt: skip
    assert {word: kind_of_word(word).KIND.kind for word in words} == words


def test_a_tier_holds_its_staged_policies(view: Objects) -> None:
    tier = admit(parse(of("Tier", "order: 5", "sec"))[0], None, view)
    assert isinstance(tier, Tier)
    view.put(admit(parse(of("StagedGlobalNetworkPolicy", "tier: sec"))[0], None, view))
    with pytest.raises(ConfigError, match="the tier holds StagedGlobalNetworkPolicy x: delete them first"):
        deletable(tier, view)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (cnp_rule("to: [{namespaces: {}}, {domainNames: [a.example]}]"),
         "spec.egress[0].to[1].domainNames: is not supported, so this rule denies all egress"),
        (cnp("egress: [{action: Accept, to: [{nodes: {}}]}]"),
         "spec.egress[0].to[0].nodes: is not supported, so this rule accepts nothing"),
        (of("StagedNetworkPolicy", "stagedAction: Learn"), "spec.stagedAction: Learn says nothing about packets"),
        (of("StagedGlobalNetworkPolicy", "doNotTrack: true, applyOnForward: true"),
         "spec: what staged policies would do at host endpoints is not counted yet"),
        (service(""), None),
        (cnp_rule("to: [{namespaces: {}}]"), None),
        (of("StagedNetworkPolicy", "ingress: [{action: Deny}]"), None),
    ],
)  # fmt: skip
def test_what_nobody_acts_on_is_said(text: str, line: str | None) -> None:
    assert list(unserved(parse(text)[0])) == ([line] if line else [])
