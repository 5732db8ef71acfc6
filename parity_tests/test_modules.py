"""Every mixer, residual topology and stream end alone."""

from parity_tests import cases, matrix
from parity_tests.checks import check, of_tier


def met_elsewhere(name):
    """Whether it is part of a whole model that is compared quickly, or a topology of a kind met already."""
    site, topology = (name.removeprefix(part) for part in ("site of ", "site of topology "))
    return site in cases.of_tier("models") or (topology != name and topology not in matrix.kinds())


@of_tier("modules", slow=met_elsewhere)
def test_modules(case):
    check(case)
