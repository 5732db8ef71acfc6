"""The common parts of the tests of all tiers."""

import pytest

from parity_tests import cases, report
from parity_tests.compare import Case, failures, judge


def of_tier(tier: str) -> pytest.MarkDecorator:
    """One test for each case of the tier."""
    found = cases.of_tier(tier)
    return pytest.mark.parametrize("case", found.values(), ids=found)


def check(case: Case) -> None:
    """Fails with the table of the tensors that diverge, the first of them first."""
    rows = judge(case)
    assert rows
    diverging = failures(rows)
    assert not diverging, report.table(diverging)
