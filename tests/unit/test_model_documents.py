"""What a user reads when a document is wrong: one line, with the file, the object, the field and what is right."""

import itertools

import pytest

from tortie.base.errors import ConfigError
from tortie.model.bgp import as_number, community
from tortie.model.document import load_documents, parse
from tortie.model.k8s import K8sNetworkPolicy, K8sNode, Pod
from tortie.model.kinds import KINDS, kind_of_document, kind_of_word
from tortie.model.policy import NetworkPolicy


def calico(kind, spec, name="p", namespace=""):
    where = f"{{name: {name}, namespace: {namespace}}}" if namespace else f"{{name: {name}}}"
    return f"apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {where}\nspec: {spec}\n"


def pool(spec):
    return calico("IPPool", "{cidr: 10.0.0.0/16, " + spec + "}")


def policy(spec):
    return calico("NetworkPolicy", "{" + spec + "}", "web", "red")


def rule(text):
    return policy(f"ingress: [{{action: Allow, {text}}}]")


def tcp(text):
    return rule(f"protocol: TCP, {text}")


def gnp(spec):
    return calico("GlobalNetworkPolicy", "{" + spec + "}", "web")


def peer(spec):
    return calico("BGPPeer", "{" + spec + "}", "tor")


def bgp(spec, name="default"):
    return calico("BGPConfiguration", "{" + spec + "}", name)


def namespace(metadata):
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {metadata}\n"


def pod(spec):
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: red}}\nspec: {{{spec}}}\n"


def container(text):
    return pod(f"containers: [{{name: c, {text}}}]")


def knp(spec):
    head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: red}\n"
    return head + f"spec: {{{spec}}}\n"


POOL, WEB, RULE = "IPPool p: spec", "NetworkPolicy red/web: spec", "NetworkPolicy red/web: spec.ingress[0]"
GNP, PEER, BGP = "GlobalNetworkPolicy web: spec", "BGPPeer tor: spec", "BGPConfiguration default: spec"
POD, CONTAINER = "Pod red/a: spec", "Pod red/a: spec.containers[0]"
NAME_RULE = 'must be lower-case letters, digits, "-" and ".", at most 253'
DEEP = "line 1, column 101: nested more than 100 levels deep"

TYPES = [
    (calico("IPPool", "{ciddr: 10.0.0.0/16}"), f'{POOL}.ciddr: is not a known field, did you mean "cidr"?'),
    (pool("blocksize: 26"), f'{POOL}.blocksize: is not a known field, did you mean "blockSize"?'),
    (pool("colour: red"), f"{POOL}.colour: is not a known field, known: allowedUses, assignmentMode, blockSize, cidr, "
     "disableBGPExport, disabled, ipipMode, namespaceSelector, natOutgoing, nodeSelector, vxlanMode"),
    (pool("ipipMode: Sometimes"), f'{POOL}.ipipMode: "Sometimes" is not one of Never, Always, CrossSubnet'),
    (pool("ipipMode: [Always]"), f"{POOL}.ipipMode: is a list, must be one of Never, Always, CrossSubnet"),
    (pool("ipipMode: 3"), f"{POOL}.ipipMode: 3 is not one of Never, Always, CrossSubnet"),
    (pool("blockSize: x"), f'{POOL}.blockSize: "x" must be a whole number'),
    (pool("blockSize: '26'"), f'{POOL}.blockSize: "26" must be a whole number: write it without quotes'),
    (pool("blockSize: [26]"), f"{POOL}.blockSize: is a list, must be a whole number"),
    (pool("natOutgoing: 'true'"), f'{POOL}.natOutgoing: "true" must be true or false: write it without quotes'),
    (pool("nodeSelector: 1"), f"{POOL}.nodeSelector: 1 must be text: put it in quotes"),
    (pool("allowedUses: Workload"), f'{POOL}.allowedUses: "Workload" must be a list'),
    (pool("allowedUses: [Tunel]"), f'{POOL}.allowedUses[0]: "Tunel" is not one of Workload, Tunnel, LoadBalancer'),
    (calico("IPPool", "{cidr: }"), f"{POOL}.cidr: is required"),
    (calico("IPPool", "{}"), f"{POOL}.cidr: is required"),
    (calico("IPPool", ""), f"{POOL}: is required"),
    (calico("IPPool", "[1]"), f"{POOL}: is a list, must be a mapping"),
    (calico("IPReservation", "{reservedCIDRs: [null]}"),
     "IPReservation p: spec.reservedCIDRs[0]: is empty, must be text"),
    (policy("order: first"), f'{WEB}.order: "first" must be a number'),
    (policy("order: '5'"), f'{WEB}.order: "5" must be a number: write it without quotes'),
    (policy("types: Ingress"), f'{WEB}.types: "Ingress" must be a list'),
    (policy("ingress: [{}]"), f"{RULE}.action: is required"),
    (policy("ingress: [Allow]"), f'{RULE}: "Allow" must be a mapping'),
    (policy("ingress: [{action: allow}]"), f'{RULE}.action: "allow" is not one of Allow, Deny, Log, Pass'),
    (policy("ingress: [{action: Allow}, {action: Deny, sorce: {}}]"),
     'NetworkPolicy red/web: spec.ingress[1].sorce: is not a known field, did you mean "source"?'),
    (policy(f"ingress: [{', '.join(['{action: Deny}'] * 1025)}]"),
     f"{WEB}.ingress: has 1025 entries, at most 1024 are allowed"),
    (rule("ipVersion: 5"), f"{RULE}.ipVersion: 5 is not one of 4, 6"),
    (rule("protocol: ICMP, icmp: {type: 300}"), f"{RULE}.icmp.type: 300 is not from 0 to 254"),
    (tcp("source: {ports: [1.5]}"), f"{RULE}.source.ports[0]: 1.5 must be a whole number or text: put it in quotes"),
    (peer("peerIP: 10.0.0.1, asNumber: 1.10"),
     f"{PEER}.asNumber: 1.1 must be a whole number or text: put it in quotes"),
    (bgp("listenPort: 0"), f"{BGP}.listenPort: 0 is not from 1 to 65535"),
    (container("env: [{name: PORT, value: 8080}]"),
     f"{CONTAINER}.env[0].value: 8080 must be text: put it in quotes"),
    (container("tty: true, comand: [sh]"), f'{CONTAINER}.comand: is not a known field, did you mean "command"?'),
    (container("ports: [{containerPort: 70000}]"), f"{CONTAINER}.ports[0].containerPort: 70000 is not from 0 to 65535"),
    (container("ports: [{containerPort: 80, protocol: tcp}]"),
     f'{CONTAINER}.ports[0].protocol: "tcp" is not one of TCP, UDP, SCTP'),
    (pod(""), f"{POD}.containers: is required"),
    (namespace("{name: 12}"), "Namespace 12: metadata.name: 12 must be text: put it in quotes"),
    (namespace("{name: a, labels: {x: 1}}"), "Namespace a: metadata.labels[x]: 1 must be text: put it in quotes"),
    (namespace("{name: a, labels: {x: yes}}"), "Namespace a: metadata.labels[x]: true must be text: put it in quotes"),
    (namespace("{name: a, labels: [x]}"), "Namespace a: metadata.labels: is a list, must be a mapping"),
    (namespace("{name: a, label: {}}"), 'Namespace a: metadata.label: is not a known field, did you mean "labels"?'),
    (namespace('"x\\ny"'), 'Namespace: metadata: "x\\ny" must be a mapping'),
    (namespace("x" * 100), f'Namespace: metadata: "{"x" * 57}..." must be a mapping'),
]  # fmt: skip

IDENTITY = [
    ("kind: Pod\n", "Pod: apiVersion: is required"),
    ("apiVersion: v1\nmetadata: {name: x}\n", "object x: kind: is required"),
    ("apiVersion: v1\nkind: Podd\nmetadata: {name: x}\n",
     'Podd x: kind: unknown kind "Podd" of "v1", did you mean "Pod"?'),
    ("apiVersion: v2\nkind: Pod\nmetadata: {name: x}\n",
     'Pod x: apiVersion: Pod of "v2" is not known here: write v1'),
    ("apiVersion: v2\nkind: NetworkPolicy\nmetadata: {name: x, namespace: y}\n",
     'NetworkPolicy y/x: apiVersion: NetworkPolicy of "v2" is not known here: '
     "write networking.k8s.io/v1 or projectcalico.org/v3"),
    (namespace("{}"), "Namespace: metadata.name: is required"),
    ("apiVersion: v1\nkind: Namespace\n", "Namespace: metadata.name: is required"),
    (namespace("{generateName: x-}"), "Namespace: metadata.name: is required (generateName is not supported)"),
    (namespace("{name: a.b}"),
     'Namespace a.b: metadata.name: "a.b" must be lower-case letters, digits and "-", at most 63'),
    (calico("IPPool", "{cidr: 10.0.0.0/8}", "Pool"), f'IPPool Pool: metadata.name: "Pool" {NAME_RULE}'),
    (calico("IPPool", "{cidr: 10.0.0.0/8}", "a..b"), f'IPPool a..b: metadata.name: "a..b" {NAME_RULE}'),
    (calico("IPPool", "{cidr: 10.0.0.0/8}", "p", "red"),
     "IPPool red/p: metadata.namespace: namespace should not be specified for a non-namespaced resource. "
     "IPPool is not a namespaced resource"),
    (calico("NetworkSet", "{}", "s", "Red"),
     'NetworkSet Red/s: metadata.namespace: "Red" must be lower-case letters, digits and "-", at most 63'),
    (namespace('{name: a, labels: {"a b": x}}'), 'Namespace a: metadata.labels[a b]: "a b" is not a label name'),
    (namespace('{name: a, labels: {a: "x y"}}'),
     'Namespace a: metadata.labels[a]: "x y" is not a label value: at most 63 of letters, digits, "-_."'),
    (namespace("{name: a, annotations: {a: " + "x" * 262144 + "}}"),
     "Namespace a: metadata.annotations: have 262145 bytes, at most 262144 are allowed"),
    (calico("FelixConfiguration", "{}", "special"), 'FelixConfiguration special: metadata.name: "special" must be '
     '"default" or "node.<node name>", or have spec.nodeSelector'),
    (calico("IPAMConfiguration", "{}", "x"), 'IPAMConfiguration x: metadata.name: "x" must be "default": '
     "there is one only"),
    (bgp("{}", "x").replace("{{}}", "{}"),
     'BGPConfiguration x: metadata.name: must be "default" or "node.<node name>"'),
]  # fmt: skip

ADDRESSES = [
    (calico("IPPool", "{cidr: 10.0.0.1/16}"),
     f'{POOL}.cidr: "10.0.0.1/16" has host bits set; the network is "10.0.0.0/16"'),
    (calico("IPPool", "{cidr: ten}"), f'{POOL}.cidr: "ten" is not a CIDR such as 10.0.0.0/24 or fd00::/64'),
    (calico("IPPool", "{cidr: 169.254.1.0/24}"), f'{POOL}.cidr: "169.254.1.0/24" overlaps the link-local range'),
    (calico("IPPool", "{cidr: 10.0.0.0/28}"), f"{POOL}.blockSize: a block of /26 is larger than the pool 10.0.0.0/28"),
    (pool("blockSize: 19"), f"{POOL}.blockSize: 19 is not from 20 to 32, as IPv4 needs"),
    (calico("IPPool", "{cidr: 'fd00::/64', blockSize: 26}"),
     f"{POOL}.blockSize: 26 is not from 116 to 128, as IPv6 needs"),
    (calico("IPPool", "{cidr: 'fd00::/64', ipipMode: Always}"),
     f"{POOL}.ipipMode: IPIP carries IPv4 only; use vxlanMode or Never"),
    (pool("ipipMode: Always, vxlanMode: CrossSubnet"),
     f"{POOL}.vxlanMode: ipipMode and vxlanMode cannot both be enabled; set one of them to Never"),
    (pool("namespaceSelector: all()"),
     f"{POOL}.allowedUses: a pool with a namespaceSelector must say allowedUses: [Workload]"),
    (pool("allowedUses: [LoadBalancer, Tunnel]"),
     f"{POOL}.allowedUses: LoadBalancer cannot be combined with other uses"),
    (calico("IPAMConfiguration", "{strictAffinity: false, autoAllocateBlocks: false}", "default"),
     "IPAMConfiguration default: spec: Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time"),
    (calico("Node", "{bgp: {ipv4Address: 'fd00::1/64'}}", "n"),
     'Node n: spec.bgp.ipv4Address: "fd00::1/64" is not an IPv4 address such as 192.0.2.1/24'),
    (calico("Node", "{bgp: {}}", "n"),
     "Node n: spec.bgp: should not be empty: give ipv4Address or ipv6Address, or leave it out"),
    (calico("Node", "{orchRefs: [{orchestrator: k8s}, {orchestrator: k8s}]}", "n"),
     'Node n: spec.orchRefs[1].orchestrator: "k8s" is there twice'),
    (calico("WorkloadEndpoint", "{ipNetworks: [10.0.0.0/24]}", "w", "red"),
     'WorkloadEndpoint red/w: spec.ipNetworks[0]: "10.0.0.0/24" must be a single address, /32 or /128'),
    (peer("peerIP: 10.0.0.300, asNumber: 1"), f'{PEER}.peerIP: "10.0.0.300" is not an IP address'),
    (peer("peerIP: '10.0.0.1:99999', asNumber: 1"), f'{PEER}.peerIP: port "99999" is not from 1 to 65535'),
    (peer("peerIP: 10.0.0.1"), f"{PEER}.asNumber: is required"),
    (peer("peerIP: 10.0.0.1, asNumber: 1.70000"), f"{PEER}.asNumber: 1.7 must be a whole number or text: "
     "put it in quotes"),
    (peer("peerIP: 10.0.0.1, asNumber: '1.70000'"),
     f'{PEER}.asNumber: "1.70000" is not an AS number: each half goes to 65535'),
    (peer("peerIP: 10.0.0.1, asNumber: 1, reachableBy: 'fd00::1'"),
     f'{PEER}.reachableBy: "fd00::1" is not an IPv4 address'),
    (peer("peerIP: 10.0.0.1, asNumber: 1, maxRestartTime: 5 minutes"),
     f'{PEER}.maxRestartTime: "5 minutes" is not a duration such as 90s or 1m30s'),
    (peer("peerSelector: all(), asNumber: 1"),
     f"{PEER}.asNumber: must be empty with peerSelector: the selected nodes have their own"),
    (bgp("prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: [gold]}]"),
     f'{BGP}.prefixAdvertisements[0].communities[0]: community "gold" is not defined in communities'),
    (bgp("prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: ['70000:1']}]"),
     f'{BGP}.prefixAdvertisements[0].communities[0]: "70000:1" is not a community: '
     "each of its 2 numbers goes to 65535"),
    (bgp("nodeToNodeMeshEnabled: false", "node.n1"), "BGPConfiguration node.n1: spec.nodeToNodeMeshEnabled: "
     "Cannot set nodeToNodeMeshEnabled on a non default BGP Configuration."),
]  # fmt: skip

RULES = [
    (rule("source: {nets: [10.0.0.0/8, 'fd00::/8']}"),
     f"{RULE}: mixes IPv4 and IPv6 networks; write one rule for each"),
    (rule("source: {nets: [10.0.0.0/8]}, destination: {notNets: ['fd00::/8']}"),
     f"{RULE}: mixes IPv4 and IPv6 networks; write one rule for each"),
    (rule("ipVersion: 6, source: {nets: [10.0.0.0/8]}"),
     f"{RULE}.ipVersion: the rule is for IPv6, its networks are not"),
    (rule("ipVersion: 4, protocol: ICMPv6"), f"{RULE}.ipVersion: 4 does not go with protocol ICMPv6"),
    (rule("source: {notNets: [0.0.0.0/0]}"),
     f'{RULE}.source.notNets[0]: "0.0.0.0/0" excludes everything, the rule could never match'),
    (rule("source: {nets: [10.0.0.5/24]}"),
     f'{RULE}.source.nets[0]: "10.0.0.5/24" has host bits set; the network is "10.0.0.0/24"'),
    (rule("protocol: TPC"), f'{RULE}.protocol: "TPC" is not a protocol: TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite '
     "or a number from 1 to 255"),
    (rule("protocol: ICMP, icmp: {code: 1}"), f"{RULE}.icmp.code: needs a type"),
    (tcp("icmp: {type: 8}"), f"{RULE}.icmp: needs protocol ICMP or ICMPv6"),
    (tcp("destination: {ports: [99999]}"), f"{RULE}.destination.ports[0]: 99999 is not from 0 to 65535"),
    (tcp("destination: {ports: ['9:1']}"), f'{RULE}.destination.ports[0]: "9:1" is not a range of ports: '
     'write "first:last", first not above last, at most 65535'),
    (tcp("destination: {ports: ['80-90!']}"),
     f'{RULE}.destination.ports[0]: "80-90!" is neither a port, a range "first:last" nor a port name'),
    (tcp(f"destination: {{ports: {list(range(51))}}}"), f"{RULE}.destination.ports: at most 50 ports, here 51"),
    (rule("destination: {ports: [80]}"), f"{RULE}.destination.ports: ports need protocol TCP, UDP or SCTP in the rule"),
    (rule("protocol: ICMP, destination: {ports: [80]}"),
     f"{RULE}.destination.ports: ports need protocol TCP, UDP or SCTP in the rule"),
    (rule("destination: {services: {name: web}}"),
     f"{WEB}.ingress[0].destination.services: only in the source of ingress rules"),
    (policy("selector: " + "a" * 1025), f"{WEB}.selector: a selector has at most 1024 characters, this one 1025"),
    (policy("types: [Ingress, Ingress]"), f"{WEB}.types: names a direction twice"),
    (gnp("doNotTrack: true"), f"{GNP}.applyOnForward: must be true with doNotTrack or preDNAT"),
    (gnp("preDNAT: true, doNotTrack: true, applyOnForward: true"),
     f"{GNP}.preDNAT: cannot be combined with doNotTrack"),
    (gnp("preDNAT: true, applyOnForward: true, types: [Egress]"),
     f"{GNP}.egress: a preDNAT policy has ingress rules only"),
    (gnp("ingress: [{action: Allow, source: {services: {name: web}}}]"),
     f"{GNP}.ingress[0].source.services.namespace: is required in a global policy"),
    (knp("ingress: [{ports: [{port: 70000}]}]"), f"{WEB}.ingress[0].ports[0].port: 70000 is not from 1 to 65535"),
    (knp("ingress: [{ports: [{port: http, endPort: 90}]}]"),
     f"{WEB}.ingress[0].ports[0].endPort: needs a numeric port"),
    (knp("ingress: [{from: [{}]}]"), f"{WEB}.ingress[0].from[0]: give podSelector, namespaceSelector or ipBlock"),
    (knp("ingress: [{from: [{podSelector: {matchLabels: {app: 'a b'}}}]}]"),
     f"{WEB}.ingress[0].from[0].podSelector.matchLabels[app]: "
     '"a b" is not a label value: at most 63 of letters, digits, "-_."'),
    (knp("podSelector: {matchExpressions: [{key: a, operator: In}]}"),
     f"{WEB}.podSelector.matchExpressions[0].values: operator In needs at least one value"),
    (knp("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]"),
     f'{WEB}.ingress[0].from[0].ipBlock.except[0]: "11.0.0.0/16" must be strictly inside "10.0.0.0/8"'),
    (pod("containers: []"), f"{POD}.containers: needs at least one container"),
    (pod("containers: [{name: c}, {name: c}]"), f'{POD}.containers: two containers are named "c"'),
]  # fmt: skip

TEXTS = [
    ("a: 1\na: 2\n", 'line 2, column 1: not valid YAML: key "a" is given twice'),
    ("a: {b: 1, 'b': 2}\n", 'line 1, column 11: not valid YAML: key "b" is given twice'),
    ("? [a]\n: b\n", "line 1, column 3: not valid YAML: a key must be plain text"),
    ("a: b: c\n",
     'line 1, column 5: not valid YAML: a ":" where none can be: text with one in it must be in quotes, or the line is '
     "indented too far"),
    ("a:\n\tb: 1\n", "line 2, column 1: not valid YAML: a tab, where only spaces can be"),
    ("a: @b\n", "line 1, column 4: not valid YAML: what begins with @ must be in quotes"),
    ("{a: 1\n", "line 2, column 1: not valid YAML: did not find expected ',' or '}'"),
    ("a: |\n b\n\tc\n",
     "line 3, column 1: not valid YAML: found a tab character where an indentation space is expected"),
    ("a: *x\n", 'line 1, column 4: not valid YAML: alias "*x" has no anchor before it'),
    ("a: &x [*x]\n", 'line 1, column 8: not valid YAML: alias "*x" has no anchor before it'),
    ("a: !foo b\n", 'line 1, column 4: not valid YAML: tag "!foo" cannot be used here'),
    ("a: !!python/object/apply:os.system [ls]\n",
     'line 1, column 4: not valid YAML: tag "tag:yaml.org,2002:python/object/apply:os.system" cannot be used here'),
    ("a: {<<: 1}\n", "line 1, column 9: not valid YAML: << takes a mapping or a list of them"),
    ("a: " + "9" * 5000 + "\n", "line 1, column 4: 99999999999999999999... is too large a number"),
    ("a: 1e999\n", "line 1, column 4: 1e999 is too large a number"),
    ("[" * 101 + "]" * 101, DEEP),
    ("[" * 100_000, DEEP),
    ("{a: " * 100_000, "line 1, column 401: nested more than 100 levels deep"),
    ("".join(" " * i + "a:\n" for i in range(200)), "line 101, column 101: nested more than 100 levels deep"),
    ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in
     itertools.pairwise("abcdefgh")), "line 6, column 8: aliases stand for more than 100000 values"),
    (b"a: caf\xe9\n", "line 1: not UTF-8 text: byte 0xe9"),
    ("a: b\n".encode("utf-16"), "line 1: not UTF-8 text: byte 0xff"),
    ("a: \0\n", "not valid YAML: unacceptable character #x0000: control characters are not allowed"),
    ("hello\n", 'document 1: is "hello", not an object with kind'),
    ("---\n---\n7\n", "document 2: is 7, not an object with kind"),
    ("- 1\n", "document 1[0]: is 1, not an object with kind"),
    ("apiVersion: v1\nkind: List\nitems: [{}, x]\n", 'items[1]: is "x", not an object with kind'),
    ("apiVersion: v1\nkind: List\nitems: x\n", 'items: is "x", must be a list'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"), [*TYPES, *IDENTITY, *ADDRESSES, *RULES, *TEXTS], ids=lambda text: text[:60]
)
def test_a_wrong_document_is_one_line_that_says_where_and_what(text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    assert str(caught.value) == f"f.yaml: {message}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "---\n---\n", "--- ~\n", "[]\n", "\ufeff", b"", b"\xef\xbb\xbf"]
)
def test_nothing_is_no_documents(text):
    assert parse(text) == []


def test_a_stream_lists_and_arrays_are_the_same_objects():
    one, two = namespace("{name: a}"), namespace("{name: b}")
    stream = parse(f"{one}---\n# between\n---\n{two}...\n")
    array = parse("".join("- " + text.replace("\n", "\n  ").rstrip() + "\n" for text in (one, two)))
    kind_list = parse("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n"
                      "- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n")  # fmt: skip
    typed = parse(
        "apiVersion: v1\nkind: NamespaceList\nmetadata: {}\nitems: [{metadata: {name: a}}, {metadata: {name: b}}]"
    )
    assert [r.name for r in stream] == ["a", "b"]
    assert stream == array == kind_list == typed
    assert parse("apiVersion: v1\nkind: PodList\nitems: []\n") == parse("apiVersion: v1\nkind: PodList\nitems:\n") == []


def test_yaml_is_read_as_kubernetes_reads_it():
    text = (
        "time: 2024-01-01T00:00:00Z\ndate: 2024-01-01\nrange: 1000:1050\ncommunity: 65000:10\nmask: 0xffff0000\n"
        "octal: 010\nother: 0o10\nbig: 1e+06\nreal: 1.5\nword: on\ndash: '-'\nquoted: '12'\nforced: !!str 12\n"
        "12: number\ntrue: word\n=: equals\ninf: .inf\n"
    )
    assert load_documents(text) == [
        {
            "time": "2024-01-01T00:00:00Z", "date": "2024-01-01", "range": "1000:1050", "community": "65000:10",
            "mask": 0xFFFF0000, "octal": 8, "other": 8, "big": 1e6, "real": 1.5, "word": True, "dash": "-",
            "quoted": "12", "forced": "12", "12": "number", "true": "word", "=": "equals", "inf": ".inf",
        }
    ]  # fmt: skip


def test_a_key_beside_a_merge_wins_over_the_merged_one():
    text = (
        "base: &base {x: 1, y: 2}\nother: &other {y: 3, z: 4}\na: {<<: *base, x: 5}\nb: {y: 0, <<: [*other, *base]}\n"
    )
    [document] = load_documents(text)
    assert document["a"] == {"x": 5, "y": 2}
    assert document["b"] == {"x": 1, "y": 0, "z": 4}


def test_a_null_is_a_field_left_out():
    [policy_] = parse(policy("selector: null, ingress: , order: ~, types: [Ingress]"))
    assert isinstance(policy_, NetworkPolicy)
    assert policy_ == parse(policy("types: [Ingress]"))[0]
    [pod_] = parse(pod("containers: [{name: c, ports: null}], nodeSelector: {node-role.kubernetes.io/worker: }"))
    assert isinstance(pod_, Pod)
    assert pod_.spec.node_selector == {"node-role.kubernetes.io/worker": ""}


def test_a_network_policy_is_of_calico_or_of_kubernetes():
    assert isinstance(parse(policy("selector: all()"))[0], NetworkPolicy)
    assert isinstance(parse(knp("podSelector: {}"))[0], K8sNetworkPolicy)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND.key)
def test_a_kind_is_found_by_document_and_by_word(kind):
    assert kind_of_document(kind.KIND.api_version, kind.KIND.kind) is kind
    assert all(kind_of_word(alias.upper()) is kind for alias in kind.KIND.aliases)
    if kind is not K8sNode:  # the word "nodes" means Calico's
        assert kind_of_word(kind.KIND.key) is kind


def test_the_crds_of_a_cluster_are_the_same_kinds():
    text = calico("IPPool", "{cidr: 10.0.0.0/16}")
    assert parse(text.replace("projectcalico.org/v3", "crd.projectcalico.org/v1")) == parse(text)


def test_an_unknown_word_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r'^unknown kind "ippol", did you mean "ippool"\?$'):
        kind_of_word("ippol")


@pytest.mark.parametrize(
    ("text", "number"), [(64512, 64512), ("64512", 64512), ("1.10", 65546), ("4294967295", 2**32 - 1)]
)
def test_as_numbers(text, number):
    assert as_number(text) == number


@pytest.mark.parametrize("text", ["", "-1", "4294967296", "1.2.3", "x", "٣", "9" * 5000])
def test_what_is_no_as_number(text):
    with pytest.raises(ConfigError):
        as_number(text)


def test_communities():
    assert community("65000:100") == (65000, 100)
    assert community("4294967295:1:2") == (4294967295, 1, 2)
    for wrong in ("1", "65536:1", "1:2:4294967296", "1:2:3:4", "a:b", "1:", "9" * 5000 + ":1"):
        with pytest.raises(ConfigError):
            community(wrong)
