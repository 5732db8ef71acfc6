"""Where the code of a model runs: never in this process."""

from collections.abc import Callable

from mhc_jax.config import ConfigError
from mhc_jax.rlm.environments.base import Cell, Environment, SandboxDied, SandboxUnavailable, ToolError
from mhc_jax.rlm.environments.bwrap import Bwrap
from mhc_jax.rlm.environments.monty import Monty
from mhc_jax.rlm.limits import Limits

__all__ = ["Cell", "Environment", "SandboxDied", "SandboxUnavailable", "ToolError", "make"]

_KINDS: dict[str, Callable[..., Environment]] = {"monty": Monty, "bwrap": Bwrap}


def make(name: str = "monty", limits: Limits = Limits(), seed: int = 0) -> Environment:
    """An environment that is still to be started.

    Args:
        name: ``"monty"``, a subset of Python that runs everywhere, or ``"bwrap"``, full CPython on Linux.
        seed: of the random numbers inside.

    Raises:
        ConfigError: there is no such environment.
    """
    if name not in _KINDS:
        raise ConfigError(f"there is no environment {name!r}; known: {', '.join(_KINDS)}")
    return _KINDS[name](limits, seed=seed)
