"""Whole runs by name: functions that return a frozen RunConfig, one file per system.

A plug-in adds its own with ``@register("config", NAME)`` and is loaded by ``python -m train --import MODULE NAME``.
"""

from mhc_jax import registry
from mhc_jax.config import ConfigError
from train.config import RunConfig

from configs import mhc_ssm  # isort: skip  (importing a file registers its configurations)

__all__ = ["describe", "load", "mhc_ssm", "names"]


def names() -> list[str]:
    """Names of all registered configurations, sorted."""
    return registry.names("config")


def load(name: str) -> RunConfig:
    """The configuration of that name.

    Raises:
        ConfigError: no such name; the message lists the names and the nearest one.
    """
    try:
        return registry.get("config", name)()
    except KeyError as error:
        raise ConfigError(error.args[0]) from None


def describe(name: str) -> str:
    """First line of the configuration's docstring."""
    return (registry.get("config", name).__doc__ or "").strip().splitlines()[0]
