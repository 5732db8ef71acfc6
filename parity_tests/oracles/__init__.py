"""Published implementations as references: every case runs one of them, in float64 for the truth."""

import sys
from collections.abc import Iterator

from mhc_jax.config import ConfigError
from parity_tests import discover
from parity_tests.compare import Case


def cases() -> Iterator[Case]:
    """All of them.

    Raises:
        ConfigError: a package, or a model of transformers, is not installed.
    """
    try:
        found = [module for module in discover.modules(sys.modules[__name__]) if hasattr(module, "cases")]
    except ModuleNotFoundError as error:
        raise ConfigError(f"the tier 'oracles' needs {error.name}: pip install --editable '.[test]'") from None
    for module in found:
        yield from module.cases()
