"""The metrics of a service, for Prometheus. Gauges of removed policies are removed too."""

import threading

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from safeflux.plan.status import State
from safeflux.policy.load import Action
from safeflux.serve.desk import Desk
from safeflux.serve.gate import Gate
from safeflux.serve.health import Health


class Metrics:
    """The metrics of one service."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        """A registry of its own, so that services in one process do not collide."""

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"safeflux_{name}", text, labels, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"safeflux_{name}", text, labels, registry=self.registry)

        self._state = gauge("guard_state", "1 for the state of the guard", "state")
        self._masked = gauge("masked_bits", "Bits that are off", "policy", "category", "policy_sha256")
        self._since = gauge("policy_since_seconds", "When it was put in force, Unix time", "policy", "policy_sha256")
        self._inside = gauge("requests", "Requests that are drawn or wait")
        self._fault = gauge("policy_folder_fault", "1 while what the folder has is not in force")
        self._refused = gauge("requests_refused", "Requests that were turned away because too many waited")
        self.changes = counter("policy_changes", "Changes of policies, by what became of them", "change")
        self.pictures = counter("pictures", "Pictures drawn")
        self.unguarded = counter("unguarded", "Requests that were not drawn because the guard did not hold")
        self.seconds = Histogram(
            "safeflux_request_seconds", "Seconds of a request that was drawn, its waiting included",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300), registry=self.registry,
        )  # fmt: skip

    def text(self, desk: Desk, gate: Gate, health: Health) -> bytes:
        """The present values, in the text format of Prometheus."""
        with self._lock:
            self._refresh(desk, gate, health)
            return generate_latest(self.registry)

    def collect(self, desk: Desk, gate: Gate, health: Health) -> list[Metric]:
        """The present values."""
        with self._lock:
            self._refresh(desk, gate, health)
            return list(self.registry.collect())

    def _refresh(self, desk: Desk, gate: Gate, health: Health) -> None:
        for state in State:
            self._state.labels(state).set(state is health.last.found.state)
        self._inside.set(gate.num_inside)
        self._refused.set(gate.num_refused)
        self._fault.set(bool(desk.fault))
        self._policies(desk)

    def _policies(self, desk: Desk) -> None:
        now, plans = desk.current, desk.engine.pool.plans
        self._masked.clear()
        self._since.clear()
        for name, policy in now.policies.items():
            self._since.labels(name, policy.digest).set(now.since[name].timestamp())
            plan = plans.get(name)
            for category in plan.categories.values() if plan and plan.policy == policy else ():
                bits = category.masks.count.masked if category.action is Action.ENFORCE else 0
                self._masked.labels(name, category.name, policy.digest).set(bits)
