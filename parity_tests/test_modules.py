"""Every mixer, residual topology and stream end alone."""

from parity_tests import cases, matrix
from parity_tests.checks import check, of_tier

# Topologies whose sites differ from those of others in what wraps the branch, or in the matrix that mixes.
WRAPPED = "mhc_ssm_adapters", "frac", "cayley", "multi_branch"


def met_elsewhere(name):
    """Whether it is part of a whole model that is compared quickly, or of a kind that is met already."""
    site, topology = (name.removeprefix(part) for part in ("site of ", "site of topology "))
    if topology != name:
        return topology not in matrix.kinds() or topology in WRAPPED
    return (
        site in cases.of_tier("models") or name.startswith("gla, ") or ", recurrent" in name or ", sequential" in name
    )


@of_tier("modules", slow=met_elsewhere)
def test_modules(case):
    check(case)
