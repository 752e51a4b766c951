"""The meaning of policy, on values: selectors, which labelled things they match, rule order, tiers, verdicts."""
