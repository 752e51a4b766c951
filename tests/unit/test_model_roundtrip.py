"""Every kind survives being written and read: generated values, users' files, pods as they are found in the world."""

import types
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.model.document import decode, dump, dump_yaml, encode, load_documents, parse, problems, shape
from tortie.model.k8s import Pod
from tortie.model.kinds import KINDS
from tortie.model.meta import Resource, changed
from tortie.model.node import FelixConfiguration, FelixConfigurationSpec
from tortie.model.workload import WorkloadEndpoint, endpoint_name, interface_name

CASES = Path(__file__).parents[2] / "examples" / "cases" / "calico"

# Text that YAML readers are known to take for something else, beside plain text of any kind.
TRICKY = ("", "1", "010", "0x1f", "1e3", "1e+06", ".5", ".inf", "1_000", "yes", "null", "~", "2024-01-01", "12:30",
          "=", "<<", "- a", "a: b", "#", "a #b", "'", '"', "\\", " a ", "a\nb", "\tx", "é", "😀", "%a", "@", "!x", "&a",
          "*a", "{", "[", "\x07", "\x85", "\u2028", "\ufeff")  # fmt: skip
TEXT = st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.sampled_from(("a", "web-1", "node.n1", "default"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
LIKELY = {
    "cidr": ("10.0.0.0/16", "fd00::/64", "10.0.0.1/16"),
    "nets": ("10.0.0.0/8", "192.0.2.1"),
    "selector": ("all()", "a == 'b'"),
    "protocol": ("TCP", "17"),
    "ports": (80, "1000:1050", "http"),
    "peer_ip": ("192.0.2.1", "[fd00::1]:179"),
    "as_number": (64512, "1.10"),
    "ip_networks": ("10.0.0.1/32",),
}
"""What is likely in a field of this name; the rest of its values is as wild as its type allows."""


def of_type(expected: Any, name: str = "") -> st.SearchStrategy[Any]:
    """Values of an annotated type."""
    origin, args = get_origin(expected), get_args(expected)
    structured = isinstance(expected, type) and issubclass(expected, msgspec.Struct)
    if origin is Literal:
        return st.sampled_from(args)
    if name in LIKELY and origin not in (tuple, dict) and not structured:
        return st.sampled_from(LIKELY[name])
    if origin is Annotated:
        limits = next((note for note in args[1:] if isinstance(note, msgspec.Meta)), msgspec.Meta())
        return st.integers(limits.ge, limits.le) if args[0] is int else of_type(args[0], name)
    if origin in (Union, types.UnionType):
        return st.one_of([of_type(arg, name) for arg in args if arg is not msgspec.UnsetType])
    if origin is tuple:
        return st.lists(of_type(args[0], name), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, of_type(args[1]), max_size=2)
    if structured:
        return of_struct(expected)
    return {
        str: TEXT,
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        type(None): st.none(),
    }.get(expected, JSON)


@cache
def of_struct(struct: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Values of a struct: all that it must have and up to four of the fields that it may."""
    hints = get_type_hints(struct, include_extras=True)
    infos = msgspec.structs.fields(struct)
    must = {info.name: of_type(hints[info.name], info.name) for info in infos if info.required}
    may = [info.name for info in infos if not info.required]

    @st.composite
    def values(draw: st.DrawFn) -> Any:
        given_ = {name: draw(strategy) for name, strategy in must.items()}
        for name in draw(st.lists(st.sampled_from(may), max_size=4, unique=True)) if may else ():
            given_[name] = draw(of_type(hints[name], name))
        made = struct(**given_)
        return changed(made, name=draw(NAMES)) if isinstance(made, Resource) else made

    return st.deferred(values)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND.key)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_a_value_is_the_same_after_yaml_and_after_the_store(kind, data):
    value = data.draw(of_struct(kind))
    assert decode(kind, encode(value)) == value
    text = dump_yaml(value)
    [document] = load_documents(text)
    assert document == dump(value)
    body = {key: part for key, part in document.items() if key not in ("apiVersion", "kind")}
    assert shape(kind, body) == value
    wrong = next(problems(value), None)
    if wrong is None:
        assert parse(text) == [value]
    else:
        with pytest.raises(ConfigError) as caught:
            parse(text)
        assert caught.value.message == wrong[1]


@pytest.mark.parametrize("path", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_case_is_read_whole_and_written_back(path):
    [document] = load_documents(path.read_bytes(), path.name)
    [resource] = parse(path.read_bytes(), path.name)
    written = dump(resource)
    assert written["metadata"] == document["metadata"]
    assert parse(dump_yaml(resource)) == [resource]
    if isinstance(resource, Pod):
        assert written["spec"]["containers"][0]["ports"][0] == {"name": "nginx-port", "containerPort": 80}


def test_the_endpoint_of_the_floating_address_case_is_named_as_its_pod_asks():
    [endpoint] = parse((CASES / "workloadendpoint-floatingip.yaml").read_bytes())
    assert isinstance(endpoint, WorkloadEndpoint)
    assert endpoint.name == endpoint_name("node112", "k8s", "pod5", "eth0")
    assert endpoint.spec.interface_name == interface_name("default", "pod5")
    assert [str(ip) for ip in endpoint.spec.ips] == ["10.244.146.203"]
    assert endpoint.spec.ip_nats[0].external_ip == "172.18.22.113"


def test_a_stream_of_several_is_read_in_order():
    values = [changed(shape(FelixConfiguration, {}), name=name) for name in ("default", "node.a", "node.b")]
    assert parse(dump_yaml(*values)) == values


def test_the_settings_that_calico_installs_are_known():
    [felix] = parse(
        "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {"
        "bpfConnectTimeLoadBalancing: TCP, bpfHostNetworkedNATWithoutCTLB: Enabled, floatingIPs: Disabled, "
        "healthPort: 9099, logSeverityScreen: Info, nftablesMode: Disabled, reportingInterval: 0s, vxlanVNI: 4096, "
        "deviceRouteSourceAddressIPv6: 'fd00::1', bpfCTLBLogFilter: x, goGCThreshold: 40, wireguardMTUV6: 0, "
        "iptablesNATOutgoingInterfaceFilter: eth0, istioDSCPMark: 23, localSubnetL2Reachability: Disabled, "
        "failsafeInboundHostPorts: [{protocol: tcp, port: 22, net: 10.0.0.0/8}], nftablesMarkMask: 0xffff0000, "
        "prometheusMetricsCAFile: /ca, bpfMapSizePerCpuConntrack: 1, cgroupV2Path: /x, healthTimeoutOverrides: []}\n"
    )
    assert isinstance(felix.spec, FelixConfigurationSpec)
    assert felix.spec.nftables_mark_mask == 0xFFFF0000
    assert dump(felix)["spec"]["vxlanVNI"] == 4096


WEB = """
apiVersion: v1
kind: Pod
metadata:
  name: web-7d4b9c6f5-x2x7k
  namespace: shop
  generateName: web-7d4b9c6f5-
  uid: 6a1f0c1e-8f5e-4b0e-9f8a-1c2d3e4f5a6b
  resourceVersion: "48213"
  creationTimestamp: "2026-03-01T12:00:00Z"
  labels: {app: web, tier: front, pod-template-hash: 7d4b9c6f5, app.kubernetes.io/version: "1.27"}
  annotations:
    cni.projectcalico.org/ipv4pools: '["front"]'
    prometheus.io/scrape: "true"
  ownerReferences:
    - {apiVersion: apps/v1, kind: ReplicaSet, name: web-7d4b9c6f5, uid: x, controller: true, blockOwnerDeletion: true}
spec:
  serviceAccountName: web
  serviceAccount: web
  automountServiceAccountToken: false
  nodeName: worker-1
  nodeSelector: {kubernetes.io/os: linux, node-role.kubernetes.io/worker: }
  terminationGracePeriodSeconds: 30
  dnsPolicy: ClusterFirst
  schedulerName: default-scheduler
  priority: 0
  enableServiceLinks: true
  preemptionPolicy: PreemptLowerPriority
  securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 2000, seccompProfile: {type: RuntimeDefault}}
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [amd64]}]}]
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm: {labelSelector: {matchLabels: {app: web}}, topologyKey: kubernetes.io/hostname}
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]
  tolerations:
    - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 300}
  initContainers:
    - name: migrate
      image: registry.example.com/web:1.27
      command: ["sh", "-c", "until nc -z db 5432; do sleep 1; done"]
      resources: {}
  containers:
    - name: web
      image: registry.example.com/web:1.27
      imagePullPolicy: IfNotPresent
      args: ["--listen=:8080"]
      workingDir: /srv
      ports:
        - {name: http, containerPort: 8080, protocol: TCP}
        - {name: metrics, containerPort: 9090, hostPort: 9090, hostIP: 127.0.0.1}
      env:
        - {name: PORT, value: "8080"}
        - {name: POD_IP, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIP}}}
      envFrom: [{configMapRef: {name: web}}]
      resources: {limits: {cpu: 500m, memory: 256Mi}, requests: {cpu: 0.1, memory: 128Mi}}
      readinessProbe: {httpGet: {path: /ready, port: http, scheme: HTTP}, periodSeconds: 5}
      livenessProbe: {tcpSocket: {port: 8080}, initialDelaySeconds: 10, failureThreshold: 3}
      startupProbe: {exec: {command: [cat, /tmp/up]}}
      lifecycle: {preStop: {exec: {command: [sleep, "5"]}}}
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}
      terminationMessagePath: /dev/termination-log
      terminationMessagePolicy: File
      volumeMounts: [{name: data, mountPath: /data}, {name: token, mountPath: /var/run/secrets, readOnly: true}]
  volumes:
    - {name: data, emptyDir: {}}
    - name: token
      projected: {defaultMode: 420, sources: [{serviceAccountToken: {expirationSeconds: 3607, path: token}}]}
status:
  phase: Running
  conditions: [{type: Ready, status: "True", lastTransitionTime: "2026-03-01T12:00:05Z"}]
  podIP: 10.244.1.7
  podIPs: [{ip: 10.244.1.7}, {ip: "fd00::7"}]
  hostIP: 192.0.2.11
  qosClass: Burstable
"""

DAEMON = """
apiVersion: v1
kind: Pod
metadata: {name: kube-proxy-4kq2z, namespace: kube-system, creationTimestamp: null}
spec:
  hostNetwork: true
  hostPID: true
  priorityClassName: system-node-critical
  restartPolicy: Always
  tolerations: [{operator: Exists}]
  containers:
    - name: kube-proxy
      image: registry.k8s.io/kube-proxy:v1.33.0
      command: [/usr/local/bin/kube-proxy, --config=/var/lib/kube-proxy/config.conf]
      securityContext: {privileged: true}
      volumeMounts: [{name: modules, mountPath: /lib/modules, readOnly: true}]
  volumes: [{name: modules, hostPath: {path: /lib/modules, type: ""}}]
status: {}
"""

JOB = """
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "backup"},
 "spec": {"restartPolicy": "OnFailure", "activeDeadlineSeconds": 600, "imagePullSecrets": [{"name": "registry"}],
          "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["db"]}], "dnsConfig": {"options": [{"name": "ndots"}]},
          "containers": [{"name": "backup", "image": "busybox", "stdin": true, "tty": false,
                          "command": ["sh", "-c", "echo \\"done\\""]}]}}
"""


@pytest.mark.parametrize("text", [WEB, DAEMON, JOB], ids=["web", "daemon", "job"])
def test_a_pod_as_found_in_the_world_is_read_and_nothing_that_a_user_wrote_is_lost(text):
    [pod] = parse(text)
    assert isinstance(pod, Pod)
    [document] = load_documents(text)
    written = dump(pod)
    for name, value in document["spec"].items():
        if name in (
            "volumes",
            "affinity",
            "securityContext",
            "tolerations",
            "topologySpreadConstraints",
            "hostAliases",
        ):
            assert written["spec"][name] == value
    for name in ("resources", "readinessProbe", "livenessProbe", "lifecycle", "securityContext", "volumeMounts"):
        if name in document["spec"]["containers"][0]:
            assert written["spec"]["containers"][0][name] == document["spec"]["containers"][0][name]
    assert parse(dump_yaml(pod)) == [pod]


def test_what_the_network_needs_of_a_pod_is_typed():
    [web] = parse(WEB)
    assert isinstance(web, Pod)
    assert web.service_account == "web"
    assert [port.name for port in web.spec.containers[0].ports] == ["http", "metrics"]
    assert [ip.ip for ip in web.status.pod_ips] == ["10.244.1.7", "fd00::7"]
    [daemon] = parse(DAEMON)
    assert isinstance(daemon, Pod)
    assert daemon.spec.host_network
