"""Numbers that the originals themselves gave, replayed in JAX; one system a file. None needs PyTorch."""

import sys

from parity_tests import discover
from parity_tests.compare import Row


def rows() -> list[Row]:
    """All of them."""
    found = [module for module in discover.modules(sys.modules[__name__]) if hasattr(module, "rows")]
    return [row for module in found for row in module.rows()]
