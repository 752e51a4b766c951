"""Who may talk to whom, by manifests alone: for tests in the repository that keeps them. No cluster, no root.

    network = Network.read("manifests")
    assert network.allows("web/frontend", "db/postgres", 5432)
    assert not network.allows("outside", "db/postgres", "sql")

The answers are those of `tortie simulate`. With pytest there is a fixture of this name: see `pytest_plugin`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tortie.base.errors import TortieError
from tortie.policy.translate import POLICY_KINDS

if TYPE_CHECKING:
    from tortie.calc.explain import Explanation
    from tortie.calc.simulate import Simulation


class Disagreement(AssertionError):
    """A connection that is allowed over one IP version, or to one backend of a service, and denied over the other:
    neither `allows` nor `not allows` would tell the truth."""


@dataclass(frozen=True)
class Answer:
    """Whether a connection is allowed, and why: true or false where a truth value is asked for, and readable.

    `explanations` has one for each IP version that both ends have, and each backend of a service.
    """

    question: str
    explanations: tuple[Explanation, ...]
    written: Mapping[str, str]
    """Where policies are from, by their names in the kernel."""

    def __bool__(self) -> bool:
        """Raises Disagreement where the explanations differ."""
        __tracebackhide__ = True
        verdicts = {one.allowed for one in self.explanations}
        if len(verdicts) > 1:
            raise Disagreement(f"{self.question} is allowed and denied: see which, and ask for version=4 or 6\n{self}")
        return verdicts.pop()

    def __repr__(self) -> str:
        """One line: the verdict, and the rule that decides."""
        one = next((one for one in self.explanations if not one.allowed), self.explanations[0])
        return f"{self.question}: {'allowed' if one.allowed else 'denied'}, {self._why(one)}"

    def __str__(self) -> str:
        """Every step of every way."""
        return "\n".join(line for group in _alike(self.explanations) for line in self._lines(group))

    def _why(self, one: Explanation) -> str:
        step = one.decisive
        return f"{step.hook}: {step.reason}{self._where(step.policy)}"

    def _where(self, policy: str) -> str:
        return f" ({self.written[policy]})" if policy in self.written else ""

    def _lines(self, group: list[Explanation]) -> Iterator[str]:
        one = group[0]
        versions = " and ".join(f"IPv{each.version}" for each in group)
        ends = f"{one.source.name} → {one.destination.name}"
        what = one.protocol if one.icmp is not None else f"{one.protocol} {one.port}"
        yield f"{ends}  {what}, {versions}: {'allowed' if one.allowed else 'denied'}"
        places = [f"{step.hook} on {step.node}" if step.node else step.hook for step in one.steps]
        for place, step in zip(places, one.steps, strict=True):
            sign = "✔" if step.allowed else "✘"
            yield f"  {sign} {place.ljust(max(map(len, places)))}  {step.reason}{self._where(step.policy)}"


@dataclass(frozen=True)
class Network:
    """What some manifests make of a network. `asked` are all answers that it has given."""

    simulation: Simulation
    asked: list[Answer] = field(default_factory=list)

    @classmethod
    def read(cls, *paths: str | Path) -> Network:
        """Of files and directories of manifests: policies of all kinds, pods, and workloads that make pods.

        Raises an ExceptionGroup with a ConfigError for each document that is wrong, in the words of `tortie apply`.
        """
        from tortie.calc.simulate import Simulation

        return cls(Simulation.read(paths))

    def allows(
        self, source: str, destination: str, port: int | str = 80, protocol: str = "tcp", *, version: int | None = None
    ) -> Answer:
        """Whether the connection is allowed over every IP version that both ends have.

        Ends are `namespace/pod`, `namespace/workload`, an address, or `outside`, a host of the internet; a destination
        may be `svc/namespace/service`, too. A port may be given by its name. `protocol` is tcp, udp, sctp, icmp, ...
        Raises NotFound for an end that there is not, ConfigError for a port that nobody declares.
        """
        __tracebackhide__ = True  # pytest shows the line that asks
        versions = (4, 6) if version is None else (version,)
        try:
            explanations = self.simulation.explanations(source, destination, protocol, port, versions)
        except TortieError as error:
            raise error.with_traceback(None) from None
        what = protocol if protocol.lower().startswith("icmp") else f"{protocol} {port}"
        answer = Answer(f"{source} → {destination} {what}", tuple(explanations), self._written)
        self.asked.append(answer)
        return answer

    @property
    def pods(self) -> tuple[str, ...]:
        """Every pod, as `namespace/name`; of a workload there is one, which has the workload's name."""
        return self.simulation.names

    @property
    def _written(self) -> Mapping[str, str]:
        places: dict[str, str] = {}
        for (kind, namespace, name), given in self.simulation.written.items():
            if kind in POLICY_KINDS:
                key = "/".join(part for part in (POLICY_KINDS[kind], namespace, name) if part)
                places[key] = given[-1].source
        return places

    def __repr__(self) -> str:
        return f"<network of {len(self.pods)} pods>"


def _alike(explanations: Iterable[Explanation]) -> list[list[Explanation]]:
    """Those that say the same, together: mostly both IP versions."""
    groups: dict[object, list[Explanation]] = {}
    for one in explanations:
        said = tuple((step.hook, step.node, step.allowed, step.reason) for step in one.steps)
        groups.setdefault((one.source.name, one.destination.name, one.port, said), []).append(one)
    return list(groups.values())
