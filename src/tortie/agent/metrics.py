"""What Prometheus sees: Felix's names, so that existing dashboards keep working."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tortie.agent.standing import Standing
from tortie.calc.state import DesiredState


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        gauge, counter = self._gauge, self._counter
        self.endpoints = gauge("felix_active_local_endpoints", "Endpoints on this node.")
        self.policies = gauge("felix_active_local_policies", "Policies and profiles that local endpoints consult.")
        self.selectors = gauge("felix_active_local_selectors", "Address sets that active rules look into.")
        self.resync = gauge("felix_resync_state", "1 waiting, 2 resyncing, 3 in sync with the datastore.")
        self.failures = counter("felix_int_dataplane_failures", "Passes over the kernel that failed.")
        self.passes = Counter("tortie_passes", "Looks at the kernel.", ["worker"], registry=self.registry)
        self.cni_calls = Counter("tortie_cni_calls", "CNI calls.", ["command", "outcome"], registry=self.registry)
        self.apply_time = Histogram(
            "felix_int_dataplane_apply_time_seconds", "Time of a pass over the kernel.", registry=self.registry
        )
        self.resync.set(1)

    def watch(self, standing: Standing) -> None:
        """What is asked for whenever somebody looks. It is read on the event loop, where all of it lives."""
        datastore, view = standing.datastore, standing.view
        asked = {
            ("tortie_datastore_connected", "1 while the datastore answers."): lambda: not datastore.away,
            ("tortie_datastore_age_seconds", "How old the picture may be."): lambda: standing.picture_age,
            ("tortie_datastore_disbelieved", "1 while what the datastore says is not taken."): lambda: bool(
                datastore.disbelief
            ),
            ("tortie_datastore_snapshot", "1 while the picture is an earlier agent's."): lambda: (
                view.snapshot_from is not None
            ),
            ("tortie_pending_pods", "Pods that the datastore is to be told of."): lambda: standing.pending,
        }
        for (name, text), value in asked.items():
            self._gauge(name, text).set_function(value)

    def observe(self, state: DesiredState, failed: bool, seconds: float) -> None:
        self.endpoints.set(len(state.endpoints))
        self.policies.set(len(state.policies))
        self.selectors.set(len(state.sets))
        self.apply_time.observe(seconds)
        if failed:
            self.failures.inc()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)
