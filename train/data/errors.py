"""The error for bad data."""

from mhc_jax.config import ConfigError


class DataError(ConfigError):
    """Text, tokens or a tokenizer that cannot be used. The message names the place, the fault and the fix."""
