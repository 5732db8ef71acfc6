"""The seeded faults, each with the case that must notice it; one file for each system."""

import sys
from collections.abc import Iterator

from parity_tests import discover
from parity_tests.mutations import Mutation


def mutations() -> Iterator[Mutation]:
    """All of them."""
    for module in discover.modules(sys.modules[__name__]):
        yield from module.mutations()
