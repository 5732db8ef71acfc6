"""Thin modules: they hold parameters and call :mod:`mhc_jax.ops`."""
