"""Every op, forward and backward."""

from parity_tests.checks import check, of_tier


@of_tier("ops")
def test_ops(case):
    check(case)
