"""The profile of a network without Kubernetes policy: its containers reach everything, and one another reach them."""

from __future__ import annotations

from tortie.agent.cni.identity import POD
from tortie.model.meta import Metadata
from tortie.model.policy import EntityRule, Profile, ProfileSpec, Rule


def network_profile(network: str, orchestrator: str) -> Profile:
    """As Calico makes it: endpoints of the network get a label of its name, by which containers are let in; where
    Kubernetes is the orchestrator, everybody is."""
    anybody = EntityRule()
    members = anybody if orchestrator == POD else EntityRule(selector=f"has({network})")
    spec = ProfileSpec(
        ingress=(Rule(action="Allow", source=members),),
        egress=(Rule(action="Allow"),),
        labels_to_apply={network: ""},
    )
    return Profile(metadata=Metadata(name=network), spec=spec)
