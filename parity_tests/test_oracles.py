"""Published implementations of others, forward and backward."""

from parity_tests.checks import check, of_tier


@of_tier("oracles")
def test_oracles(case):
    check(case)
