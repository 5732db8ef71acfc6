"""Where the code of a model runs: never in this process."""

from collections.abc import Callable

from mhc_jax.config import ConfigError
from mhc_jax.registry import unknown
from mhc_jax.rlm.environments.base import Cell, Environment, SandboxDied, SandboxUnavailable, ToolError
from mhc_jax.rlm.environments.bwrap import Bwrap
from mhc_jax.rlm.environments.hardened import HardenedMonty
from mhc_jax.rlm.environments.monty import Monty
from mhc_jax.rlm.limits import Limits

__all__ = ["Cell", "Environment", "SandboxDied", "SandboxUnavailable", "ToolError", "make"]

_KINDS: dict[str, Callable[..., Environment]] = {kind.name: kind for kind in (Monty, HardenedMonty, Bwrap)}


def make(name: str = "monty", limits: Limits = Limits(), seed: int = 0) -> Environment:
    """An environment that is still to be started.

    Args:
        name: ``"monty"``, a subset of Python that runs everywhere; ``"monty+bwrap"``, the same behind a second wall, or
            ``"bwrap"``, full CPython, both on Linux with bubblewrap.
        seed: of the random numbers inside.

    Raises:
        ConfigError: there is no such environment, or limits out of range.
    """
    if name not in _KINDS:
        raise ConfigError(unknown("environment", name, _KINDS))
    limits.validate()
    return _KINDS[name](limits, seed=seed)
