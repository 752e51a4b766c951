"""One rule as nft reads it, turned into steps: matches, and statements that do something.

    ip saddr @s4-x  meta l4proto 6  th dport { 80, 443 }  counter  meta mark set meta mark | 0x10000  return
    └─ match ────┘  └─ match ────┘  └─ match ──────────┘  └─ statements ──────────────────────────┘   verdict

Every text is read once. What is not known raises NotUnderstood.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tortie.testing.tracer.flight import Flight
from tortie.testing.tracer.matches import Outcome, Step, match
from tortie.testing.tracer.statements import STATEMENTS
from tortie.testing.tracer.words import Words


@dataclass(frozen=True, slots=True)
class Rule:
    """Its counter goes by its comment; one without is not told, as the agent's metrics have it."""

    text: str
    comment: str
    steps: tuple[Step, ...]

    def applied(self, flight: Flight) -> Outcome:
        """What the rule says of the packet; what it does to it is done."""
        for step in self.steps:
            outcome = step(flight)
            if outcome is not True:
                return outcome
        return True


@lru_cache(maxsize=1 << 16)
def parse_rule(text: str) -> Rule:
    words = Words(text)
    steps: list[Step] = []
    comment = text.rpartition(' comment "')[2].removesuffix('"') if ' comment "' in text else ""
    while words:
        if words.skip("comment"):
            words.take()
            if words:
                raise words.unknown("something after the comment")
        elif words.skip("counter"):
            steps.append(_counter(words, comment))
        else:
            steps.append(_statement(words))
    return Rule(text, comment, tuple(steps))


def _counter(words: Words, name: str) -> Step:
    if words.skip("packets"):
        words.take()
        words.need("bytes")
        words.take()

    def step(flight: Flight) -> bool:
        if name:
            flight.counters[name] += 1
        return True

    return step


def _statement(words: Words) -> Step:
    for count in (3, 2, 1):
        parse = STATEMENTS.get(words.ahead(count))
        if parse is not None and words.skip(words.ahead(count)):
            return parse(words)
    return match(words)
