"""What annotations limit: how they are read, what they become in an endpoint, in nft and in traffic control."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.base.plan import Plan, Verb
from tortie.calc import qos
from tortie.calc.cluster import Cluster
from tortie.calc.qos import DEFAULT_BURST, QOS, Limits, QoS, controls, qos_of, quantity
from tortie.calc.unserved import unserved
from tortie.calc.workloads import disregarded, endpoint_of_pod, refreshed
from tortie.dataplane.stages.qos import Ifb, Key, Redirect, Thing, bucket, ifb_name, plan
from tortie.kernel import tc
from tortie.model.document import parse
from tortie.model.k8s import Container, Pod, PodSpec
from tortie.model.meta import Metadata, changed
from tortie.model.workload import QOS_RANGES, QoSControls, WorkloadEndpoint
from tortie.render.match import denial
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import Ruleset, transaction

# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("1500", 1500), ("10k", 10_000), ("10M", 10**7), ("1G", 10**9), ("1P", 10**15), ("1E", 10**18),
        ("1Ki", 1024), ("2Mi", 2 << 20), ("4Gi", 4 << 30), ("1e3", 1000), ("1.5M", 1_500_000), (".5k", 500),
        ("2.", 2), ("+7", 7), ("-7", -7), ("1500m", 2), ("1n", 1), ("100u", 1), ("0.1", 1), ("12E-1", 2),
    ],
)  # fmt: skip
def test_a_quantity_is_what_kubernetes_reads(text: str, value: int) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 10M",
        "10M ",
        "ten",
        "10m0",
        "10KB",
        "10K",
        "1e3k",
        "1e",
        ".",
        "+",
        "1.2.3",
        "0x10",
        "١",
        "1e9999",
        "9" * 65,
    ],
)
def test_what_is_no_quantity_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a quantity such as 10M or 1Gi"):
        quantity(text)


def read(**annotations: str) -> tuple[QoSControls | None, tuple[str, ...]]:
    return controls({QOS + name: text for name, text in annotations.items()})


def test_nothing_asked_is_nothing() -> None:
    assert read() == (None, ())
    assert controls({"a": "b", QOS + "other": "1"}) == (None, ())


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_every_limit_of_a_side(side: str) -> None:
    asked = {
        "Bandwidth": "10M",
        "Burst": "20M",
        "Peakrate": "30M",
        "Minburst": "5k",
        "PacketRate": "100",
        "PacketBurst": "7",
        "MaxConnections": "9",
    }
    found, wrong = read(**{side + name: text for name, text in asked.items()})
    assert wrong == ()
    values = (10**7, 2 * 10**7, 3 * 10**7, 5000, 100, 7, 9)
    assert found == QoSControls(**{f"{side}_{name}": value for name, value in zip(QOS_RANGES, values, strict=True)})
    limits = Limits(*values)
    assert qos_of(found) == (QoS(ingress=limits) if side == "ingress" else QoS(egress=limits))


def test_kubernetes_own_annotations_count_where_calicos_are_not() -> None:
    kubernetes = {"kubernetes.io/ingress-bandwidth": "1M", "kubernetes.io/egress-bandwidth": "2M"}
    found, _ = controls(kubernetes)
    assert found == QoSControls(
        ingress_bandwidth=10**6, egress_bandwidth=2 * 10**6, ingress_burst=DEFAULT_BURST, egress_burst=DEFAULT_BURST
    )
    found, _ = controls(kubernetes | {QOS + "egressBandwidth": "3M"})
    assert found is not None
    assert (found.ingress_bandwidth, found.egress_bandwidth) == (10**6, 3 * 10**6)
    found, wrong = controls(kubernetes | {QOS + "egressBandwidth": "much"})  # and what is said wrongly is no limit
    assert found is not None
    assert found.egress_bandwidth == 0
    assert wrong == (f'annotation {QOS}egressBandwidth: "much" is not a quantity such as 10M or 1Gi; off',)


@pytest.mark.parametrize("limit", QOS_RANGES)
def test_out_of_range_is_the_nearest_in_it(limit: str) -> None:
    """With whatever it needs besides, to mean anything."""
    needs = {
        "burst": {"Bandwidth": "1M"},
        "peakrate": {"Bandwidth": "1k"},
        "minburst": {"Bandwidth": "1k", "Peakrate": "1M"},
        "packet_burst": {"PacketRate": "5"},
    }.get(limit, {})
    name = qos.annotation("egress", limit)
    others = {f"{QOS}egress{other}": text for other, text in needs.items()}
    least, most = QOS_RANGES[limit]
    for text, value in (("-1", least), ("0", least), (str(least), least), (str(most), most), (str(most + 1), most)):
        found, wrong = controls(others | {name: text})
        assert getattr(found, f"egress_{limit}") == value
        said = f"annotation {name}: {text} is not from {least} to {most}; taken as {value}"
        assert wrong == (() if least <= int(text) <= most else (said,))


@pytest.mark.parametrize(
    ("asked", "left_out", "why"),
    [
        ({"ingressBurst": "1M"}, "ingressBurst", "means nothing without a bandwidth"),
        ({"ingressBandwidth": "2M", "ingressPeakrate": "2M"}, "ingressPeakrate", "must be more than the bandwidth"),
        ({"egressPeakrate": "2M"}, "egressPeakrate", "must be more than the bandwidth"),
        ({"egressBandwidth": "2M", "egressMinburst": "2k"}, "egressMinburst", "means nothing without a peakrate"),
        ({"egressPacketBurst": "7"}, "egressPacketBurst", "means nothing without a packet rate"),
    ],
)
def test_what_means_nothing_without_another_is_left_out(asked: dict[str, str], left_out: str, why: str) -> None:
    found, wrong = read(**asked)
    assert wrong == (f"annotation {QOS}{left_out}: {why}; left out",)
    rest, nothing = read(**{name: text for name, text in asked.items() if name != left_out})
    assert (found, nothing) == (rest, ())


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("63", 63), ("DF", 0), ("ef", 46), ("AF11", 10), ("af43", 38), ("CS0", 0), ("cs6", 48), (" EF ", 46)],
)
def test_a_dscp_is_a_number_or_a_name(text: str, number: int) -> None:
    assert read(dscp=text) == (QoSControls(dscp=number), ())


@pytest.mark.parametrize("text", ["64", "-1", "CS7", "AF44", "AF14", "1.5", "46ish", "²"])
def test_what_is_no_dscp_is_ignored_and_said(text: str) -> None:
    assert read(dscp=text) == (
        None,
        (f'annotation {QOS}dscp: "{text}" is neither 0 to 63 nor a name such as EF or AF21; off',),
    )


@given(st.dictionaries(st.sampled_from([qos.annotation("egress", one) for one in QOS_RANGES]), st.text(max_size=8)))
def test_whatever_is_written_what_comes_out_is_in_range(annotations: dict[str, str]) -> None:
    found, _ = controls(annotations)
    if found is not None:
        assert list(found.problems()) == []
    assert qos_of(found) == qos_of(found)


# --- an endpoint --------------------------------------------------------------------------------------------------


def pod(**annotations: str) -> Pod:
    metadata = Metadata(name="a", namespace="red", annotations={QOS + name: v for name, v in annotations.items()})
    return Pod(metadata=metadata, spec=PodSpec(node_name="n1", containers=(Container(name="main"),)))


def endpoint(one: Pod) -> WorkloadEndpoint:
    return endpoint_of_pod(one, node="n1", container_id="c", interface="cali0", mac="", ips=())


def test_an_endpoint_has_what_its_pod_says_and_follows_it() -> None:
    made = endpoint(pod(egressBandwidth="1M", dscp="EF"))
    expected = {"egressBandwidth": 10**6, "egressBurst": DEFAULT_BURST, "dscp": 46}  # as Calico's documents have it
    assert made.spec.qos_controls == QoSControls(egress_bandwidth=10**6, egress_burst=DEFAULT_BURST, dscp=46)
    document = {"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint"}
    name = {"name": "n", "namespace": "red"}
    assert parse(f"{ {**document, 'metadata': name, 'spec': {'qosControls': expected}} }")[0].spec == (  # type: ignore[attr-defined]
        WorkloadEndpoint().spec.__class__(qos_controls=made.spec.qos_controls)
    )
    assert refreshed(made, pod()).spec.qos_controls is None
    assert refreshed(made, pod(egressBandwidth="1M", dscp="EF")) == made


def test_source_prefixes_follow_the_pod_and_none_are_taken_from_what_cannot_be_read() -> None:
    name = "cni.projectcalico.org/allowedSourcePrefixes"
    made = endpoint(changed(pod(), annotations={name: '["10.9.0.0/16"]'}))
    assert made.spec.allow_spoofed_source_prefixes == ("10.9.0.0/16",)
    for text, prefixes in (('["10.8.0.0/16"]', ("10.8.0.0/16",)), ("all", ()), ("", ())):
        other = changed(pod(), annotations={name: text})
        assert refreshed(made, other).spec.allow_spoofed_source_prefixes == prefixes
    assert list(disregarded(changed(pod(), annotations={name: "all"}))) == [
        f"annotation {name}: 'all' is not a JSON list of CIDRs"
    ]


def test_who_writes_a_pod_is_told_what_of_it_is_not_followed() -> None:
    assert list(unserved(pod(ingressBandwidth="1M"))) == []
    assert list(unserved(pod(ingressBandwidth="1 M", dscp="99"))) == [
        f'annotation {QOS}ingressBandwidth: "1 M" is not a quantity such as 10M or 1Gi; off',
        f'annotation {QOS}dscp: "99" is neither 0 to 63 nor a name such as EF or AF21; off',
    ]


def test_an_endpoint_that_somebody_writes_is_checked_and_held_to_the_range_all_the_same() -> None:
    written = QoSControls(ingress_bandwidth=1, egress_packet_rate=10**7, ingress_burst=5000, dscp="CS9")
    assert list(written.problems()) == [
        ("ingressBandwidth", "1 is not from 1000 to 1000000000000000, nor 0, which is no limit"),
        ("egressPacketRate", "10000000 is not from 1 to 10000, nor 0, which is no limit"),
        ("dscp", '"CS9" is neither 0 to 63 nor a name such as EF or AF21'),
    ]
    assert qos_of(written) == QoS(Limits(bandwidth=1000, burst=5000), Limits(packet_rate=10_000, packet_burst=5))
    assert qos_of(QoSControls(dscp="af21")) == QoS(dscp=18)
    with pytest.raises(ConfigError, match=r"spec\.qosControls\.dscp: 64|spec\.qosControls\.dscp: \"64\""):
        parse(ENDPOINT % ("a", "a", "{dscp: 64}"))


# --- nft ----------------------------------------------------------------------------------------------------------

ENDPOINT = """
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n1-k8s-%s-eth0, namespace: red, labels: {projectcalico.org/namespace: red}}
spec: {node: n1, interfaceName: cali%s, ipNetworks: [10.0.0.1/32, "fd00::1/128"], qosControls: %s}
"""
POLICY = (
    "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: p, namespace: red},"
    " spec: {selector: all(), ingress: [{action: Allow}]}}"
)


def rendered(limits: str, *more: str) -> Ruleset:
    cluster = Cluster("n1")
    for document in (ENDPOINT % ("a", "a", limits), *more):
        for resource in parse(document):
            cluster.put(resource)
    assert not cluster.problems
    return NftRenderer().render(cluster.state())


def test_nothing_of_limits_is_there_while_nobody_has_one() -> None:
    plain, shaped = rendered("null"), rendered("{ingressBandwidth: 10000}")
    assert transaction(shaped, plain) == ""
    assert not {"rates-forward", "rates-input", "dscp"} & plain.chains.keys()


def test_each_limit_has_a_chain_of_its_own() -> None:
    limited = rendered("{ingressPacketRate: 10, egressPacketRate: 20, egressPacketBurst: 3, egressMaxConnections: 4}")
    assert limited.chains["rt-calia"].rules == (
        f"limit rate over 10/second burst 5 packets {denial('qos|calia|ingress|packet-rate', 'dropped')}",
    )
    assert limited.chains["rf-calia"].rules == (
        f"limit rate over 20/second burst 3 packets {denial('qos|calia|egress|packet-rate', 'dropped')}",
    )
    assert limited.chains["cf-calia"].rules == (
        f"meta l4proto 6 ct count over 4 {denial('qos|calia|egress|connections', 'refused')}",
    )
    assert "ct-calia" not in limited.chains
    assert limited.chains["fw-calia"].rules[:3] == (
        "ct state established,related return",
        f"ct state invalid {denial('invalid', 'dropped')}",
        "jump cf-calia",
    )
    assert limited.sets["rates-to"].elements == {'"calia" : jump rt-calia'}
    assert limited.chains["rates-forward"].rules == ("iifname vmap @rates-from", "oifname vmap @rates-to")
    assert "filter - 1" in limited.chains["rates-forward"].hook


def test_a_change_of_policy_leaves_what_counts_alone() -> None:
    asked = "{egressMaxConnections: 4, ingressMaxConnections: 4, ingressPacketRate: 10}"
    text = transaction(rendered(asked, POLICY), rendered(asked))
    assert "flush chain inet tortie tw-calia" in text
    for chain in ("cf-calia", "ct-calia", "rt-calia"):
        assert f"flush chain inet tortie {chain}" not in text


def test_a_dscp_is_set_on_what_leaves_pools_and_hosts() -> None:
    marked = rendered("{dscp: 46}", ENDPOINT % ("b", "b", "{dscp: 0}"))
    assert marked.chains["dscp"].rules == (
        "ip daddr != @pools4 ip daddr != @hosts4 ip saddr vmap @dscp4",
        "ip6 daddr != @pools6 ip6 daddr != @hosts6 ip6 saddr vmap @dscp6",
    )
    assert marked.chains["dscp4-46"].rules == ("ip dscp set 46",)
    assert marked.chains["dscp6-0"].rules == ("ip6 dscp set 0",)
    assert {"hosts4", "hosts6"} <= marked.sets.keys()


# --- traffic control ----------------------------------------------------------------------------------------------

GSO = 65536


@given(
    st.integers(1000, 10**15), st.integers(1000, 34359738360), st.integers(0, 1010 * 10**12), st.integers(0, 10**8),
    st.integers(68, 65535),
)  # fmt: skip
def test_a_bucket_is_one_that_the_kernel_takes(
    bandwidth: int, burst: int, peakrate: int, minburst: int, mtu: int
) -> None:
    one = bucket(Limits(bandwidth, burst, peakrate, minburst), mtu)
    packet = mtu + 14
    assert one.rate == bandwidth // 8 > 0
    assert 0 < one.buffer <= tc.MOST
    assert 0 < one.limit <= tc.MOST
    # Never smaller than a packet, unless the kernel cannot count for so long as one takes: a packet in 275 s.
    assert tc.size_of(one.buffer, one.rate) >= packet or one.buffer == tc.MOST
    if one.peak:
        assert one.peak == peakrate // 8 > one.rate
        assert tc.size_of(one.peak_buffer, one.peak) >= packet or one.peak_buffer == tc.MOST
    assert one.limit <= one.rate * 0.025 + 2 * GSO + 1 or one.limit == tc.MOST


def test_how_a_bucket_is_made_up() -> None:
    one = bucket(Limits(bandwidth=10_000_000, burst=800_000), 1500)
    assert one == tc.TokenBucket(rate=1_250_000, buffer=1_250_000, limit=31_250 + 100_000)
    assert str(one) == "tbf rate 10000000bit burst 100000 limit 131250"
    assert bucket(Limits(bandwidth=8_000_000, burst=DEFAULT_BURST), 1500).limit == 25_000 + 2 * GSO
    peak = bucket(Limits(bandwidth=8_000_000, burst=8_000_000, peakrate=16_000_000), 1500)
    assert (peak.peak, tc.size_of(peak.peak_buffer, peak.peak)) == (2_000_000, 1514)
    assert bucket(Limits(bandwidth=1008, burst=1000, peakrate=1010), 1500).peak == 0  # both are 126 bytes a second


NAMES = ("calia", "calib")
things: dict[str, st.SearchStrategy[Thing]] = {
    "ifb": st.builds(Ifb, st.sampled_from([1450, 1500]), st.booleans()),
    "tbf": st.builds(tc.TokenBucket, st.integers(1, 2), st.just(1), st.just(1)),
    "redirect": st.builds(Redirect, st.sampled_from(["", *map(ifb_name, NAMES)])),
}


@st.composite
def kernels(draw: st.DrawFn) -> dict[Key, Thing]:
    """Anything that can be there: a bucket is on a link that is."""
    found: dict[Key, Thing] = {}
    for name in NAMES:
        ifb = ifb_name(name)
        for kind, where, pref in (("ifb", ifb, 0), ("tbf", ifb, 0), ("tbf", name, 0), ("redirect", name, 1)):
            if draw(st.booleans()) and (kind != "tbf" or where == name or ("ifb", ifb, 0) in found):
                found[kind, where, pref] = draw(things[kind])
    return found


def after(have: dict[Key, Thing], steps: Plan[Key, Thing]) -> dict[Key, Thing]:
    """What the kernel makes of the steps. It takes a bucket away with its link, and leaves a filter behind."""
    now = dict(have)
    for step in steps:
        kind, name, _ = step.key
        if step.want is not None:
            assert kind != "tbf" or name in NAMES or ("ifb", name, 0) in now, f"{step}: there is no {name}"
            now[step.key] = step.want
            continue
        assert step.key in now, f"{step}: it is not there"
        del now[step.key]
        if kind == "ifb":
            now.pop(("tbf", name, 0), None)
            led = [key for key, thing in now.items() if key[0] == "redirect" and thing == Redirect(name)]
            assert not led, f"{step}: {led} would lead to nowhere"
    return now


@st.composite
def wanted(draw: st.DrawFn) -> dict[Key, Thing]:
    """As the stage wants it: a redirect with its ifb and its bucket, or nothing of them."""
    found: dict[Key, Thing] = {}
    for name in NAMES:
        ifb = ifb_name(name)
        if draw(st.booleans()):
            found["ifb", ifb, 0] = Ifb(draw(st.sampled_from([1450, 1500])))
            found["tbf", ifb, 0] = draw(things["tbf"])
            found["redirect", name, 1] = Redirect(ifb)
        if draw(st.booleans()):
            found["tbf", name, 0] = draw(things["tbf"])
    return found


@given(wanted(), kernels())
def test_a_plan_reaches_what_is_wanted_and_then_there_is_nothing_to_do(
    want: dict[Key, Thing], have: dict[Key, Thing]
) -> None:
    reached = after(have, plan(want, have))
    assert reached == want
    assert not plan(want, reached)


def test_what_is_made_is_made_before_what_goes() -> None:
    have: dict[Key, Thing] = {("ifb", "bwcalix", 0): Ifb(1500), ("tbf", "bwcalix", 0): tc.TokenBucket(1, 1, 1)}
    want: dict[Key, Thing] = {("tbf", "calia", 0): tc.TokenBucket(125, 1000, 1000)}
    steps = plan(want, have)
    assert [step.verb for step in steps] == [Verb.ADD, Verb.DELETE]
    assert str(steps) == (
        "tc qdisc replace dev calia root handle ca11: tbf rate 1000bit burst 0 limit 1000\nip link del bwcalix"
    )
