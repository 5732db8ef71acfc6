"""The common parts of the tests of all tiers."""

from collections.abc import Callable

import pytest

from parity_tests import cases, report
from parity_tests.compare import Case, failures, judge


def of_tier(tier: str, slow: Callable[[str], bool] = lambda name: False) -> pytest.MarkDecorator:
    """One test for each case of the tier; those whose names are ``slow`` are among the slow tests."""
    marks = {name: [pytest.mark.slow] if slow(name) else [] for name in cases.of_tier(tier)}
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=name, marks=marks[name]) for name, case in cases.of_tier(tier).items()]
    )


def beyond(first: int, tier: str, words: int) -> Callable[[str], bool]:
    """Whether as many as ``first`` cases of the tier, whose names begin with the same ``words``, come before a case."""
    group = [(name.split()[:words], name) for name in cases.of_tier(tier)]
    return lambda name: [n for key, n in group if key == name.split()[:words]].index(name) >= first


def check(case: Case) -> None:
    """Fails with the table of the tensors that diverge, the first of them first."""
    rows = judge(case)
    assert rows
    diverging = failures(rows)
    assert not diverging, report.table(diverging)
