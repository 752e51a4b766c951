"""The `calico` plugin's configuration: every field is read, and what cannot be is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tortie.agent.cni.delegate import pod_routes
from tortie.agent.cni.hostlocal import ANYTHING, V4, V6, custom_routes, pod_cidrs, wants_pod_cidrs, with_pod_cidrs
from tortie.agent.cni.identity import Workload, container_labels, owner_of, sanitised, status_file, workload_of
from tortie.agent.cni.profile import network_profile
from tortie.agent.netconf import STATUS_DIR, LogFile, NetConf, read_netconf
from tortie.agent.pod_mtu import PodMtu
from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.cni.spec import Call, CniError, Code
from tortie.model.document import problems
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata
from tortie.model.workload import WorkloadEndpoint, WorkloadEndpointSpec

POD_ARGS = "K8S_POD_NAMESPACE=red;K8S_POD_NAME=web;K8S_POD_UID=u-1;SOMETHING=else"


def call(cni_args: str = POD_ARGS, /, container: str = "abcdefa0123456", ifname: str = "eth0", **conf: Any) -> Call:
    return Call("ADD", container, "/run/netns/x", ifname, args_text=cni_args, conf=conf, network="net")


def conf(cni_args: str = POD_ARGS, /, **members: Any) -> NetConf:
    return read_netconf(call(cni_args, **members))


# --- reading ------------------------------------------------------------------------------------------------------


def test_what_is_not_said_is_as_calico_has_it() -> None:
    found = conf()
    assert (found.network, found.namespace, found.pod, found.pod_uid) == ("net", "red", "web", "u-1")
    assert (found.mtu, found.num_queues, found.ip_forwarding, found.device_type) == (0, 1, False, "veth")
    assert (found.ipv4, found.ipv6, found.pools4, found.ipam_type, found.assigns) == (
        True,
        False,
        (),
        "calico-ipam",
        True,
    )
    assert (found.policy_type, found.reads_pod, found.reads_namespace) == ("", False, False)
    assert (found.readiness_gates, found.policy_timeout, found.status_dir) == ((), 0, None)
    assert found.log == LogFile("", "info", 100, 30, 10)


def test_everything_that_is_said_is_read() -> None:
    found = conf(
        mtu=1400,
        num_queues=4,
        device_type="netkit",
        nodename="node1",
        hostname="old",
        require_mtu_file=True,
        readiness_gates=["http://localhost:9099/readiness", "https://[::1]:8443/"],
        policy_setup_timeout_seconds=40,
        endpoint_status_dir="/run/status",
        include_default_routes=True,
        container_settings={"allow_ip_forwarding": True},
        feature_control={"ip_addrs_no_ipam": True, "floating_ips": True},
        log_level="DEBUG",
        log_file_path="/var/log/cni.log",
        log_file_max_size=1,
        log_file_max_age=2,
        log_file_max_count=3,
        policy={"type": "k8s"},
        kubernetes={"kubeconfig": "/etc/kubeconfig", "node_name": "k8s-1"},
        ipam={"type": "host-local", "assign_ipv4": "false", "assign_ipv6": "true", "ipv6_pools": ["six"]},
        args={"org.apache.mesos": {"network_info": {"labels": {"labels": [{"key": "a", "value": "b"}]}}}},
    )
    assert (found.mtu, found.num_queues, found.device_type, found.nodename) == (1400, 4, "netkit", "node1")
    assert (found.require_mtu_file, found.include_default_routes, found.ip_forwarding) == (True, True, True)
    assert found.readiness_gates == ("http://localhost:9099/readiness", "https://[::1]:8443/")
    assert (found.policy_timeout, found.status_dir) == (40, Path("/run/status"))
    assert (found.may_skip_ipam, found.may_float) == (True, True)
    assert found.log == LogFile("/var/log/cni.log", "debug", 1, 2, 3)
    assert (found.reads_pod, found.reads_namespace, found.kubernetes_node) == (True, True, "k8s-1")
    assert (found.ipam_type, found.assigns, found.ipv4, found.ipv6) == ("host-local", False, False, True)
    assert (found.pools6, found.labels) == (("six",), (("a", "b"),))


def test_keys_match_in_any_case_and_the_last_one_wins() -> None:
    found = conf(MTU=1400, Ipam={"TYPE": "calico-ipam", "Assign_IPv6": "true"}, Policy={"Type": "k8s"}, mtu=1300)
    assert (found.mtu, found.ipv6, found.reads_pod) == (1300, True, True)


def test_calicos_own_conflist_is_read() -> None:
    """With the keys of a plugin that speaks to the datastore itself, which have no effect."""
    text = """{
      "nodename_file_optional": false, "nodename_file": "/var/lib/calico/nodename", "ipam_lock_file": "/run/ipam.lock",
      "datastore_type": "etcdv3", "etcd_endpoints": "https://10.0.0.1:2379", "etcd_key_file": "/calico-secrets/key",
      "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig", "k8s_api_root": "https://10.96.0.1:443"},
      "policy": {"type": "k8s", "k8s_auth_token": "t", "k8s_api_root": "https://10.96.0.1:443/api/v1/"},
      "calico_api_group": "crd.projectcalico.org/v1", "qps": 20, "burst": 40, "windows_loopback_DSR": true,
      "runtimeConfig": {"dns": {"servers": ["10.96.0.10"]}}, "something_new": 1
    }"""
    assert conf(**json.loads(text)).reads_pod


@pytest.mark.parametrize(
    ("members", "code", "says"),
    [
        ({"mtu": "1400"}, 999, "failed to load netconf: json: cannot unmarshal string into field mtu of type int"),
        ({"mtu": -1}, 7, "mtu: -1 is negative"),
        ({"num_queues": 2.5}, 999, "cannot unmarshal number into field num_queues of type int"),
        ({"device_type": "bridge"}, 7, 'device_type: "bridge" is not known: write "veth" or "netkit"'),
        ({"policy": {"type": "calico"}}, 7, 'policy.type: "calico" is not known'),
        ({"policy": "k8s"}, 999, "cannot unmarshal string into field policy of type object"),
        ({"readiness_gates": "http://a/"}, 999, "failed to load netconf: readiness_gates must be a list of strings"),
        ({"readiness_gates": [1]}, 999, "readiness_gates must be a list of strings"),
        ({"readiness_gates": ["localhost:80"]}, 7, 'readiness_gates: "localhost:80" is not a URL'),
        ({"readiness_gates": ["http://[::1"]}, 7, 'readiness_gates: "http://[::1" is not a URL'),
        ({"readiness_gates": ["http://a:99999/"]}, 7, "is not a URL"),
        ({"policy_setup_timeout_seconds": -1}, 7, "policy_setup_timeout_seconds: -1 is negative"),
        ({"ipam": {"assign_ipv4": False}}, 999, "cannot unmarshal bool into field assign_ipv4 of type string"),
        ({"ipam": {"ipv4_pools": "10.0.0.0/8"}}, 999, "ipam.ipv4_pools must be a list of strings"),
        ({"log_file_max_size": -5}, 7, "log_file_max_size: -5 is negative"),
        ({"etcd_endpoints": ["a"]}, 999, "cannot unmarshal array into field etcd_endpoints of type string"),
        ({"policy": {"k8s_auth_token": 5}}, 999, "field k8s_auth_token of type string"),
        ({"vxlan_vni": "4096"}, 999, "field vxlan_vni of type int"),
        ({"runtimeConfig": {"dns": []}}, 999, "field dns of type object"),
        ({"args": {"org.apache.mesos": {"network_info": {"labels": {"labels": ["a"]}}}}}, 999, "labels must be a list"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(members: dict[str, Any], code: int, says: str) -> None:
    with pytest.raises(CniError) as error:
        conf(**members)
    assert error.value.code == code
    assert says in error.value.msg
    assert "\n" not in error.value.msg


@pytest.mark.parametrize("level", ["warning", "fatal", ""])
def test_a_level_that_is_none_is_info(level: str) -> None:
    assert conf(log_level=level).log.level == "info"


def test_who_waits_for_policy_finds_the_file_at_the_usual_place() -> None:
    assert conf(policy_setup_timeout_seconds=5).status_dir == STATUS_DIR


@pytest.mark.parametrize(
    "args", ["", "K8S_POD_NAME=web", "K8S_POD_NAMESPACE=red", "K8S_POD_NAME=;K8S_POD_NAMESPACE=red"]
)
def test_half_a_pod_is_none(args: str) -> None:
    found = conf(args, policy={"type": "k8s"}, kubernetes={"kubeconfig": "/k"})
    assert (found.pod, found.namespace, found.is_pod, found.reads_pod, found.reads_namespace) == ("", "", *[False] * 3)


@pytest.mark.parametrize(
    ("written", "mtu", "required", "expected"),
    [
        (None, 0, False, 0),
        ("3000\n", 0, False, 3000),
        ("3000", 1400, False, 1400),
        ("3000", 1400, True, 1400),
        ("3000", 0, True, 3000),
        ("nonsense", 1400, False, 1400),
    ],
)
def test_mtu(tmp_path: Path, written: str | None, mtu: int, required: bool, expected: int) -> None:
    """While the agent does not know better."""
    if written is not None:
        (tmp_path / "mtu").write_text(written)
    assert PodMtu(tmp_path / "mtu").of(conf(mtu=mtu, require_mtu_file=required)) == expected


@pytest.mark.parametrize(("written", "required"), [(None, True), ("nonsense", True), ("nonsense", False)])
def test_mtu_that_cannot_be_read(tmp_path: Path, written: str | None, required: bool) -> None:
    if written is not None:
        (tmp_path / "mtu").write_text(written)
    with pytest.raises(CniError, match=r"mtu (is missing|does not hold a number)"):
        PodMtu(tmp_path / "mtu").of(conf(require_mtu_file=required))


# --- whose interface ----------------------------------------------------------------------------------------------


def test_names_of_pods_and_containers() -> None:
    pod = workload_of("node-1", call(), conf())
    assert (pod.endpoint_name, pod.namespace, pod.title) == ("node--1-k8s-web-eth0", "red", "red/web")
    assert workload_of("node-1", call(ifname="eth1"), conf()).endpoint_name == pod.endpoint_name
    plain = workload_of("node-1", call(""), conf(""))
    assert (plain.endpoint_name, plain.namespace) == ("node--1-cni-abcdefa0123456-eth0", "default")
    assert plain.interface == "caliabcdefa0123"
    assert workload_of("n", call("", container="short"), conf("")).interface == "calishort"
    other = workload_of("n", call(""), conf("CNI_TEST_NAMESPACE=test"))
    assert other.namespace == "test"


@pytest.mark.parametrize(("node", "container", "ifname"), [("n-", "c", "e"), ("n", "c-", "e"), ("n", "c", "-e")])
def test_a_dash_at_an_end_would_make_two_names_one(node: str, container: str, ifname: str) -> None:
    made = workload_of(node, call("", container=container, ifname=ifname), conf(""))
    with pytest.raises(ConfigError, match="begins or ends with a dash"):
        _ = made.endpoint_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("//my/val/", "my.val"),
        ("$my..val", "my.val"),
        ("m$y.val", "m-y.val"),
        ("/a/b/c", "a.b.c"),
        ("a b\tc", "a-b-c"),
        ("a-.-b", "a.b"),
        ("a--b", "a--b"),
        ("ünï", "n"),
        ("///", ""),
    ],
)
def test_mesos_labels(text: str, expected: str) -> None:
    assert sanitised(text) == expected


def test_labels_that_become_nothing_are_left_out() -> None:
    labels = (("/", "x"), ("projectcalico.org/namespace", "red"), ("a/b", "c/d"))
    assert container_labels(labels) == {"a.b": "c.d"}


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        (Workload("n", "k8s", "default", "t est pod1", "cali1", "eth0"), "k8s default%2Ft%20est%20pod1 eth0"),
        (Workload("n", "k8s", "default", "pod", "cali1", "eth1"), "k8s default%2Fpod eth0"),
        (Workload("n", "cni", "default", "c0ffee", "cali1", "eth1"), "cni c0ffee eth1"),
    ],
)
def test_situation_64_name_of_the_status_file(workload: Workload, name: str) -> None:
    assert status_file(workload) == name


def test_owner_of_an_endpoint_is_who_made_it() -> None:
    for args in (POD_ARGS, ""):
        made = workload_of("node1", call(args), conf(args))
        spec = WorkloadEndpointSpec(
            orchestrator=made.orchestrator,
            node="node1",
            container_id="abcdefa0123456",
            pod="web" if args else "",
            endpoint="eth0",
        )
        endpoint = WorkloadEndpoint(metadata=Metadata(name=made.endpoint_name, namespace=made.namespace), spec=spec)
        assert owner_of(endpoint) == made


@pytest.mark.parametrize("orchestrator", ["k8s", "cni"])
@pytest.mark.parametrize("name", ["net", "Net.of_many-dots"])
def test_profile_of_a_network_is_a_valid_one(orchestrator: str, name: str) -> None:
    profile = network_profile(name, orchestrator)
    assert [problem for path, problem in problems(profile) if path != "metadata.name"] == []
    assert profile.spec.ingress[0].source.selector == ("" if orchestrator == "k8s" else f"has({name})")


# --- host-local ---------------------------------------------------------------------------------------------------

IPAM = {
    "Subnet": "USEPODCIDR",
    "ranges": [[{"subnet": "usePodCidrIPv6", "rangeStart": "fd00::5"}], [{"subnet": "10.1.0.0/16"}]],
    "dataDir": "/kept",
}
CIDRS = {V4: "10.77.0.0/24", V6: "fd00:77::/64"}


def test_pod_cidrs_take_the_place_of_the_words() -> None:
    document = {"name": "net", "IPAM": IPAM, "kept": {"a": 1}}
    assert wants_pod_cidrs(document)
    found = with_pod_cidrs(document, CIDRS)
    assert found == {
        "name": "net",
        "kept": {"a": 1},
        "ipam": {
            "Subnet": "10.77.0.0/24",
            "ranges": [[{"subnet": "fd00:77::/64", "rangeStart": "fd00::5"}], [{"subnet": "10.1.0.0/16"}]],
            "dataDir": "/kept",
        },
    }
    assert not wants_pod_cidrs(found)
    assert document["IPAM"] == IPAM  # and nothing was changed in place
    assert IPAM["Subnet"] == "USEPODCIDR"
    assert with_pod_cidrs(document, ANYTHING)["ipam"]["Subnet"] == "0.0.0.0/0"


@pytest.mark.parametrize(
    ("ipam", "says"),
    [
        ("host-local", "ipam: must be an object, not string"),
        ({"ranges": {}}, "ipam.ranges: must be a list, not object"),
        ({"ranges": [{"subnet": "10.0.0.0/8"}]}, "ipam.ranges[0]: must be a list, not object"),
        ({"ranges": [["10.0.0.0/8"]]}, "ipam.ranges[0][0]: must be an object, not string"),
        ({"routes": {}}, "ipam.routes: must be a list, not object"),
        ({"routes": [7]}, "ipam.routes[0]: must be an object, not number"),
        ({"routes": [{"dst": 7}]}, "ipam.routes[0].dst: must be a CIDR, not number"),
        ({"routes": [{}, {"dst": "10.0.0.1"}]}, 'ipam.routes[1].dst: "10.0.0.1" is not a CIDR'),
        ({"subnet": "usePodCidrIPv6"}, "ipam: usePodCidrIPv6: the node has no IPv6 pod CIDR"),
    ],
)
def test_shapes_that_are_none(ipam: Any, says: str) -> None:
    document = {"ipam": ipam}

    def read() -> None:
        wants_pod_cidrs(document)
        custom_routes(document)
        with_pod_cidrs(document, {V4: "10.77.0.0/24"})

    with pytest.raises(ConfigError) as error:
        read()
    assert says in str(error.value)


def node(*cidrs: str, single: str = "") -> K8sNode:
    return K8sNode(metadata=Metadata(name="n1"), spec=K8sNodeSpec(pod_cidrs=cidrs, pod_cidr=single))


def test_pod_cidrs_of_a_node() -> None:
    assert pod_cidrs(node("10.77.0.0/24", "fd00:77::/64")) == CIDRS
    assert pod_cidrs(node("10.77.0.0/24")) == {V4: "10.77.0.0/24"}
    assert pod_cidrs(node(single="fd00:77::/64")) == {V6: "fd00:77::/64"}
    with pytest.raises(ConfigError, match=r"Node n1: spec\.podCIDRs: has no pod CIDR"):
        pod_cidrs(node())
    with pytest.raises(ConfigError, match="are not one of each family"):
        pod_cidrs(node("10.77.0.0/24", "10.78.0.0/24"))


def nets(*texts: str) -> tuple[Any, ...]:
    return tuple(map(parse_net, texts))


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"ipam": {"type": "host-local"}}, nets("0.0.0.0/0", "::/0")),
        ({"ipam": {"type": "host-local", "routes": [{"dst": "10.1.2.3/16", "gw": "1.1.1.1"}]}}, nets("10.1.0.0/16")),
        (
            {"ipam": {"type": "host-local", "routes": [{"dst": "10.1.0.0/16"}]}, "include_default_routes": True},
            nets("0.0.0.0/0", "::/0", "10.1.0.0/16"),
        ),
        (
            {"ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}]}, "include_default_routes": True},
            nets("0.0.0.0/0", "::/0"),
        ),
        ({"ipam": {"type": "calico-ipam", "routes": [{"dst": "10.1.0.0/16"}]}}, nets("0.0.0.0/0", "::/0")),
    ],
)
def test_routes_in_the_pod(members: dict[str, Any], expected: tuple[Any, ...]) -> None:
    made = call(**members)
    assert pod_routes(made, read_netconf(made)) == expected


def test_codes_are_the_specifications() -> None:
    assert (Code.INVALID_CONFIG, Code.INTERNAL) == (7, 999)
