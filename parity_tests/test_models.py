"""Whole models: every activation and the logits."""

from parity_tests.checks import check, of_tier


@of_tier("models")
def test_models(case):
    check(case)
