"""Every mixer, residual topology and stream end alone."""

from parity_tests.checks import check, of_tier


@of_tier("modules")
def test_modules(case):
    check(case)
