"""Whole runs by name: functions that return a frozen RunConfig, one file per system.

A plug-in adds its own with ``@register("config", NAME)`` and is loaded by ``python -m train --import MODULE NAME``.
"""

from mhc_jax import registry
from mhc_jax.config import ConfigError
from mhc_jax.models import with_topology
from train.config import RunConfig
from train.terminal.flags import ELSEWHERE

from configs import gpt, linear_attention, mhc_ssm, rlm, shc, state_tracking, transformer_scan  # isort: skip  (importing a file registers its configurations)

__all__ = [
    "describe",
    "gpt",
    "linear_attention",
    "load",
    "mhc_ssm",
    "names",
    "rlm",
    "shc",
    "state_tracking",
    "transformer_scan",
]


def names() -> list[str]:
    """Names of all registered configurations, sorted."""
    return registry.names("config")


def load(name: str) -> RunConfig:
    """The configuration of that name; ``NAME@TOPOLOGY`` is the same run over another residual topology.

    Raises:
        ConfigError: no such name; the message lists the names and the nearest one.
    """
    base, at, topology = name.partition("@")
    try:
        config = registry.get("config", base)()
    except KeyError as error:
        raise ConfigError(f"{error.args[0]}{ELSEWHERE}") from None
    return config.replace(name=name, model=with_topology(config.model, topology)) if at else config


def describe(name: str) -> str:
    """First line of the configuration's docstring."""
    return (registry.get("config", name).__doc__ or "").strip().splitlines()[0]
