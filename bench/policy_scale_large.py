"""`policy_scale` ten times as big: 100,000 pods and 10,000 policies. There are no targets here."""

from __future__ import annotations

import sys

from bench import policy_scale
from bench.figures import Report
from bench.progress import Advance, alone
from bench.world import World

NAME = "policy_scale_large"
ROUNDS = 100
STEPS = policy_scale.STEPS


def measure(advance: Advance) -> Report:
    return policy_scale.measured(NAME, World(pods=100_000, policies=10_000), ROUNDS, advance, targets=False)


if __name__ == "__main__":
    sys.exit(alone(NAME))
