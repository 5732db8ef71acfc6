"""What the mixers with attention heads share: positions, dropped probabilities, and checks of their fields."""

from typing import Any

import jax
import jax.numpy as jnp

from mhc_jax.ops.rotary import frequencies, rotate
from mhc_jax.precision import Policy


def check_fields(config: Any) -> None:
    """Raises FieldError if one of the fields that all such mixers have contradicts another."""
    config.require_counts(1, "heads")
    config.require(config.rotary_base > 0, f"rotary_base must be positive, got {config.rotary_base}")
    if config.rotary_scaling is not None:
        base = config.rotary_base
        config.require(config.rotary != "none", "rotary_scaling scales rotary positions; set rotary to 'half'")
        config.require(base > 1, f"rotary_scaling needs a rotary_base above 1, got {base}")
    config.require(config.init_std > 0, f"init_std must be positive, got {config.init_std}")
    config.require(0 <= config.dropout < 1, f"dropout must lie in [0, 1), got {config.dropout}")
    config.require(
        config.implementation == "xla" or config.dropout == 0,
        f"implementation {config.implementation!r} has no dropout of probabilities; use 'xla' or dropout 0",
    )


def turned(config: Any, x_BTHK: jax.Array, positions_BT: jax.Array, policy: Policy) -> jax.Array:
    """Queries or keys turned by their positions, as ``config`` says."""
    scaling, width, angles = config.rotary_scaling, x_BTHK.shape[-1], {}
    if config.rotary == "none":
        return x_BTHK
    if scaling is not None:
        frequency_P = frequencies(jnp.asarray(config.rotary_base, policy.accumulate), width)
        angles = {"frequency_P": scaling.scale(frequency_P, config.rotary_base), "gain": scaling.gain}
    return rotate(x_BTHK, positions_BT, base=config.rotary_base, layout=config.rotary, **angles)


def kept(rate: float, shape: tuple[int, ...], key: jax.Array | None, policy: Policy) -> jax.Array | None:
    """Factors (B, H, T, S) of the probabilities that drop each at that rate; None if none is dropped."""
    if key is None or rate == 0:
        return None
    return jax.random.bernoulli(key, 1 - rate, shape).astype(policy.accumulate) / (1 - rate)
