"""Thin modules: they hold parameters and call :mod:`mhc_jax.ops`."""

from mhc_jax.nn import lm  # noqa: F401  registers every kind of part
