"""What a node's agent says of the services that an explanation goes through, put beside what is predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tortie.agent.client import ask
from tortie.base.errors import TortieError

if TYPE_CHECKING:
    from tortie.calc.explain import Explanation
    from tortie.calc.explain.services import Door

ANSWER = 20.0
"""Seconds: the kernel lists all services to tell of one."""


@dataclass(frozen=True, slots=True)
class ServicesOf:
    """Answers to `GET /services`, one for each service that was asked about."""

    answers: Sequence[Mapping[str, Any]]

    @property
    def off(self) -> str:
        """Why the node does not serve services, "" if it does."""
        wrong = next((one for one in self.answers if not one["on"]), None)
        return (wrong["why"] or "they are switched off") if wrong is not None else ""

    def connections(self, door: Door) -> int | None:
        found = self._backend(door)
        return found["connections"] if found is not None else None

    def differing(self, door: Door) -> Iterator[str]:
        """Where agent or kernel have something else than is predicted."""
        if self.off or not self.answers:
            return
        title, frontend = f"Service {door.title}", door.entrance.frontend
        entrance = self._entrance(door)
        if entrance is None:
            yield f"the agent does not serve {title} at {frontend}"
        elif door.backend is None:
            others = entrance["local"] if door.local else entrance["backends"]
            if others:
                yield f"the agent has backends for {title} at {frontend}: {', '.join(one['address'] for one in others)}"
        elif (found := self._backend(door)) is None:
            yield f"the agent does not lead {title} at {frontend} to {door.backend}"
        elif found["connections"] is None:
            yield f"the kernel does not lead {frontend} to {door.backend}"

    def _entrance(self, door: Door) -> Mapping[str, Any] | None:
        asked = str(door.entrance.frontend).lower(), door.entrance.frontend.version
        for answer in self.answers:
            for service in answer["services"]:
                if (service["namespace"], service["name"]) == door.key:
                    for one in service["entrances"]:
                        if (one["frontend"], one["ipVersion"]) == asked:
                            found: Mapping[str, Any] = one
                            return found
        return None

    def _backend(self, door: Door) -> Mapping[str, Any] | None:
        entrance = self._entrance(door)
        every = (entrance["local"] if door.local else entrance["backends"]) if entrance is not None else None
        return next((one for one in every or () if one["address"] == str(door.backend)), None)


def doors_of(node: str, explanations: Iterable[Explanation]) -> list[Door]:
    """The services that this node translates for, or refuses."""
    found = (step.door for one in explanations for step in one.steps if step.node == node and step.door is not None)
    return list(dict.fromkeys(found))


def asked_about(path: Path, doors: Iterable[Door]) -> ServicesOf:
    """An agent of before says nothing, and nothing is compared then."""
    answers: list[Mapping[str, Any]] = []
    for namespace, name in dict.fromkeys(door.key for door in doors):
        try:
            answer = ask(path, f"/services?{urlencode({'namespace': namespace, 'name': name})}", ANSWER)
        except TortieError:
            continue
        if isinstance(answer, Mapping) and "services" in answer:
            answers.append(answer)
    return ServicesOf(answers)
