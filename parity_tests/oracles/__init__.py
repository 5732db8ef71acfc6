"""Code of others as the judge: every case runs a published implementation, in float64 as the truth."""

from collections.abc import Iterator

from mhc_jax.config import ConfigError
from parity_tests.compare import Case


def cases() -> Iterator[Case]:
    """All of them.

    Raises:
        ConfigError: a package, or a model of transformers, is not installed.
    """
    try:
        from parity_tests.oracles import gpt, huggingface, lucidrains
    except ModuleNotFoundError as error:
        raise ConfigError(f"the tier 'oracles' needs {error.name}: pip install --editable '.[test]'") from None
    for module in (gpt, huggingface, lucidrains):
        yield from module.cases()
