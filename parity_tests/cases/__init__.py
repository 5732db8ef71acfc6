"""The catalogue of cases. A module given to ``--import`` extends it with :func:`add`."""

import sys
from collections.abc import Iterable

from parity_tests import discover
from parity_tests.compare import Case
from parity_tests.tolerances import FLOAT64

_CASES: dict[tuple[str, str], Case] = {}


def add(cases: Iterable[Case]) -> None:
    """Registers cases.

    Raises:
        ValueError: the tier already has a case of that name.
    """
    for case in cases:
        key = case.tier, case.name
        if key in _CASES:
            raise ValueError(f"case {case.name!r} of tier {case.tier!r} is already registered")
        _CASES[key] = case


def load() -> None:
    """Registers the suite's own cases, once."""
    if _CASES:
        return
    from parity_tests import oracles

    for module in (*discover.modules(sys.modules[__name__]), oracles):
        add(module.cases())


def of_tier(tier: str) -> dict[str, Case]:
    """The cases of one tier by name."""
    load()
    return {name: case for (found, name), case in _CASES.items() if found == tier}


def everything() -> list[Case]:
    """All cases, tier by tier, small ones first."""
    load()
    return sorted(_CASES.values(), key=lambda case: list(FLOAT64).index(case.tier))
