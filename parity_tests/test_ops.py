"""Every op, forward and backward."""

from parity_tests.checks import beyond, check, of_tier


@of_tier("ops", slow=beyond(1, "ops", words=1))
def test_ops(case):
    check(case)
