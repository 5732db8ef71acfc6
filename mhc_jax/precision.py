"""Numeric policies, which assign a dtype to each part of the computation."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from mhc_jax.config import check_name

PolicyName = Literal["float32", "bfloat16", "bfloat16_wide_streams", "float16", "float64"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """Dtypes of one forward pass.

    Attributes:
        compute: matrix products, convolutions and activations.
        streams: parallel residual streams, as one site hands them to the next.
        accumulate: a single residual stream, mixing coefficients and the sums they weigh, recurrences, norm statistics,
            logits and loss.
        precision: matrix-product precision handed to XLA; ``"highest"`` forbids TF32 and bf16 passes.
    """

    compute: DTypeLike
    streams: DTypeLike
    accumulate: DTypeLike
    precision: str | None


_POLICIES: dict[str, Policy] = {
    "float32": Policy(jnp.float32, jnp.float32, jnp.float32, "highest"),
    "bfloat16": Policy(jnp.bfloat16, jnp.bfloat16, jnp.float32, None),
    "bfloat16_wide_streams": Policy(jnp.bfloat16, jnp.float32, jnp.float32, None),
    "float16": Policy(jnp.float16, jnp.float16, jnp.float32, None),
    "float64": Policy(jnp.float64, jnp.float64, jnp.float64, "highest"),
}


def policy(name: PolicyName) -> Policy:
    """The policy of that name. ``float64`` needs ``jax_enable_x64``, and training in ``float16`` a scaled loss.

    Raises:
        ConfigError: no such policy; the message says which is nearest.
    """
    check_name("policy", name, _POLICIES)
    return _POLICIES[name]
