"""Addresses for services of load balancers (situation 60)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from ipam_cluster import Cluster, matches
from tortie.base.errors import ConfigError
from tortie.controllers.load_balancer import ADDRESSES, POOLS, LoadBalancerIpam, decide, handle_of, is_ours, wish
from tortie.model.controllers import (
    ControllersConfig,
    KubeControllersConfiguration,
    KubeControllersConfigurationSpec,
    LoadBalancerControllerConfig,
)
from tortie.model.ipam import IPAMBlock, IPPool, IPPoolSpec
from tortie.model.meta import Metadata
from tortie.model.service import Service, ServicePort, ServiceSpec

UID = "11111111-2222-3333-4444-555555555555"


class Town(Cluster):
    def controller(self) -> LoadBalancerIpam:
        return LoadBalancerIpam(self.store, lambda: self.now, matches)

    async def service(self, name: str = "web", annotations: dict[str, str] | None = None, **spec: Any) -> Service:
        return await self.store.create(service(name, annotations, **spec))

    async def told(self, name: str = "web") -> list[str]:
        status = (await self.store.get(Service, name, "red")).status or {}
        return [each["ip"] for each in status.get("loadBalancer", {}).get("ingress", ())]

    async def held(self) -> set[str]:
        found = set()
        for block in (await self.store.list(IPAMBlock)).items:
            net = block.spec.net
            found |= {str(net[i]) for i, index in enumerate(block.spec.allocations) if index is not None}
        return found


def service(name: str = "web", annotations: dict[str, str] | None = None, **spec: Any) -> Service:
    return Service(
        metadata=Metadata(name=name, namespace="red", uid=f"uid-{name}", annotations=annotations or {}),
        spec=ServiceSpec(type="LoadBalancer", ports=(ServicePort(port=80),), **spec),
    )


@pytest.fixture
async def town() -> Town:
    town = Town()
    await town.pool("203.0.113.0/28", "lb", block_size=29, allowed_uses=("LoadBalancer",))
    await town.pool("10.0.0.0/24", "pods", block_size=26)
    return town


def test_60_the_handle_is_calico_s() -> None:
    svc1 = Service(metadata=Metadata(name="svc1", namespace="default", uid=UID))
    assert handle_of(svc1) == "lb-0qd30BIxZCj77f3rm1zyiJihPzfA2QsqTwDYXqY"


async def test_60_an_address_of_the_pool_whose_use_that_is(town: Town) -> None:
    made = await town.service(load_balancer_class="calico")
    assert await town.controller().run_once() == 0
    (ip,) = await town.told()
    assert ip.startswith("203.0.113.")
    (block,) = (await town.store.list(IPAMBlock)).items
    assert block.spec.affinity == "virtual:load-balancer"
    (held,) = [each for each in block.spec.attributes if each.handle_id]
    assert held.handle_id == handle_of(made)
    assert held.secondary is not None
    assert {"service": "web", "namespace": "red"}.items() <= held.secondary.items()
    before = (await town.store.get(Service, "web", "red")).metadata.resource_version
    assert await town.controller().run_once() == 0
    assert (await town.store.get(Service, "web", "red")).metadata.resource_version == before


@pytest.mark.parametrize(
    ("mode", "made", "ours"),
    [
        ("AllServices", service(), True),
        ("AllServices", service(load_balancer_class="other"), False),
        ("AllServices", replace(service(), spec=ServiceSpec()), False),
        ("RequestedServicesOnly", service(), False),
        ("RequestedServicesOnly", service(load_balancer_class="calico"), True),
        ("RequestedServicesOnly", service(load_balancer_ip="203.0.113.3"), True),
        ("RequestedServicesOnly", service(annotations={ADDRESSES: "[]"}), True),
        ("RequestedServicesOnly", service(annotations={ADDRESSES: "[]"}, load_balancer_class="x"), False),
    ],
)
def test_whose_a_service_is(mode: str, made: Service, ours: bool) -> None:
    assert is_ours(made, mode) is ours


async def test_an_address_that_is_asked_for(town: Town) -> None:
    await town.service(annotations={ADDRESSES: '["203.0.113.5"]'}, load_balancer_ip="203.0.113.6")
    await town.service("other", load_balancer_ip="203.0.113.7")
    await town.controller().run_once()
    assert (await town.told(), await town.told("other")) == (["203.0.113.5"], ["203.0.113.7"])
    asked = await town.store.get(Service, "other", "red")
    await town.store.update(replace(asked, spec=replace(asked.spec, load_balancer_ip="203.0.113.8")))
    await town.controller().run_once()
    assert await town.told("other") == ["203.0.113.8"]
    assert await town.held() == {"203.0.113.5", "203.0.113.8"}


async def test_one_bad_service_keeps_nobody_waiting(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    await town.service("bad", annotations={ADDRESSES: "203.0.113.5"})
    await town.service("far", load_balancer_ip="192.0.2.200")
    await town.service("good")
    assert await town.controller().run_once() == 2
    assert await town.told("good")
    assert "loadBalancerIPs" in caplog.text
    assert "192.0.2.200" in caplog.text


async def test_pools_by_annotation_and_manual_ones(town: Town) -> None:
    await town.pool("198.51.100.0/28", "vip", block_size=29, allowed_uses=("LoadBalancer",), assignment_mode="Manual")
    await town.service("any")
    await town.service("vip", annotations={POOLS[4]: json.dumps(["vip"])})
    await town.service("pods", annotations={POOLS[4]: json.dumps(["pods"])})
    assert await town.controller().run_once() == 0  # a pool that is not for this gives nothing, and is no failure
    assert (await town.told("any"))[0].startswith("203.0.113.")
    assert (await town.told("vip"))[0].startswith("198.51.100.")
    assert await town.told("pods") == []


async def test_both_families(town: Town) -> None:
    await town.pool("2001:db8:1::/120", "six", block_size=124, allowed_uses=("LoadBalancer",))
    made = await town.service(ip_families=("IPv4",))
    await town.controller().run_once()
    assert len(await town.told()) == 1
    there = await town.store.get(Service, made.name, "red")
    await town.store.update(replace(there, spec=replace(there.spec, ip_families=("IPv4", "IPv6"))))
    assert await town.controller().run_once() == 0
    four, six = await town.told()
    assert four.startswith("203.0.113.")
    assert six.startswith("2001:db8:1::")


async def test_what_ends_is_given_back(town: Town) -> None:
    await town.service("gone")
    await town.service("plain")
    await town.controller().run_once()
    assert len(await town.held()) == 2
    await town.store.delete(Service, "gone", "red")
    there = await town.store.get(Service, "plain", "red")
    await town.store.update(replace(there, spec=replace(there.spec, type="ClusterIP")))
    assert await town.controller().run_once() == 0
    assert await town.held() == set()
    assert await town.told("plain") == []
    assert await town.findings() == []


async def test_pool_that_goes_takes_its_addresses(town: Town) -> None:
    await town.service()
    await town.controller().run_once()
    await town.store.delete(IPPool, "lb")
    assert await town.controller().run_once() == 0
    assert await town.told() == []
    assert await town.held() == set()


async def test_full_pool(town: Town) -> None:
    for number in range(17):
        await town.service(f"s{number}")
    assert await town.controller().run_once() == 1
    assert len(await town.held()) == 16


async def test_only_those_that_ask(town: Town) -> None:
    config = ControllersConfig(load_balancer=LoadBalancerControllerConfig(assign_ips="RequestedServicesOnly"))
    spec = KubeControllersConfigurationSpec(controllers=config)
    await town.store.create(KubeControllersConfiguration(metadata=Metadata(name="default"), spec=spec))
    await town.service("quiet")
    await town.service("asks", load_balancer_class="calico")
    await town.controller().run_once()
    assert (await town.told("quiet"), len(await town.told("asks"))) == ([], 1)


async def test_what_cannot_be_assigned_is_not_told_of_either(town: Town) -> None:
    """The old address is given back; were it still told of, BGP would announce what the next service gets."""
    made = await town.service(load_balancer_ip="203.0.113.7")
    await town.controller().run_once()
    there = await town.store.get(Service, made.name, "red")
    await town.store.update(replace(there, spec=replace(there.spec, load_balancer_ip="192.0.2.200")))
    assert await town.controller().run_once() == 1
    assert await town.told() == []
    assert await town.held() == set()


async def test_death_between_the_release_and_the_status(town: Town) -> None:
    made = await town.service(load_balancer_ip="203.0.113.7")
    controller = town.controller()
    await controller.run_once()
    await controller._ipam.release_by_handle(handle_of(made))  # as somebody did who died before he could tell
    there = await town.store.get(Service, made.name, "red")
    await town.store.update(replace(there, spec=replace(there.spec, load_balancer_ip="")))
    await town.store.delete(IPPool, "lb")
    await town.pool("203.0.113.0/28", "other", block_size=29, allowed_uses=("LoadBalancer",), assignment_mode="Manual")
    assert await town.controller().run_once() == 0
    assert await town.told() == []


async def test_a_service_that_another_takes_over_keeps_what_he_says(town: Town) -> None:
    made = await town.service()
    await town.controller().run_once()
    (ours,) = await town.told()
    there = await town.store.get(Service, made.name, "red")
    both = {"loadBalancer": {"ingress": [{"ip": ours}, {"ip": "198.51.100.1", "ipMode": "VIP"}]}}
    await town.store.update(replace(there, spec=replace(there.spec, load_balancer_class="his"), status=both))
    assert await town.controller().run_once() == 0
    taken = await town.store.get(Service, made.name, "red")
    assert taken.status == {"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}]}}
    assert await town.held() == set()


def test_a_decision_says_what_it_does() -> None:
    one = IPPool(metadata=Metadata(name="lb"), spec=IPPoolSpec(cidr="203.0.113.0/28", allowed_uses=("LoadBalancer",)))
    assert str(decide(wish(service()), (), [one])) == "assign an IPv4 address of 203.0.113.0/28"
    assert str(decide(wish(service(load_balancer_ip="203.0.113.7")), (), [one])) == "assign 203.0.113.7"
    assert str(decide(None, (), [one])) == ""


@pytest.mark.parametrize("text", ["x", '{"a": 1}', "[1]", '["203.0.113.1", "203.0.113.2"]', '["nonsense"]'])
def test_annotations_that_mean_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="loadBalancerIPs"):
        wish(service(annotations={ADDRESSES: text}))
