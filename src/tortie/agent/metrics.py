"""What Prometheus sees: Felix's names, so that existing dashboards keep working."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
        self.cni_calls = Counter("tortie_cni_calls", "CNI calls.", ["command", "outcome"], registry=self.registry)
        self.apply_time = Histogram(
            "felix_int_dataplane_apply_time_seconds", "Time of a pass over the kernel.", registry=self.registry
        )
        self.resync.set(1)

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
