"""Whole models: every cotangent and every parameter's gradient, in every mode of execution."""

from parity_tests.checks import check, of_tier


@of_tier("gradients")
def test_gradients(case):
    check(case)
