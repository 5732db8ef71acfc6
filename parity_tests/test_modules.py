"""Every mixer, residual topology and stream end alone."""

from parity_tests import matrix
from parity_tests.checks import check, of_tier


def of_a_kind_met_already(name):
    topology = name.removeprefix("site of topology ")
    return topology != name and topology not in matrix.kinds()


@of_tier("modules", slow=of_a_kind_met_already)
def test_modules(case):
    check(case)
