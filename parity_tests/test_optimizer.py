"""AdamW, update by update."""

from parity_tests.checks import check, of_tier


@of_tier("optimizer")
def test_optimizer(case):
    check(case)
