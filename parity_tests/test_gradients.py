"""Whole models: every cotangent and every parameter's gradient, in every mode of execution."""

from parity_tests.checks import check, of_tier


# Further options of mixers over streams, whose values the other tiers compare quickly, are slow.
@of_tier("gradients", slow=lambda name: " over mhc," in name)
def test_gradients(case):
    check(case)
