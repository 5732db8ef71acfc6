"""Stream-specialised adapters of mHC-SSM: a shared bottleneck with one gain vector per stream."""

import jax
from jaxtyping import Array, Float


def stream_adapter(
    x: Float[Array, "*B D"] | Float[Array, "*B N D"],
    gamma_NR: Float[Array, "N R"],
    down_DR: Float[Array, "D R"],
    down_bias_R: Float[Array, " R"],
    up_RD: Float[Array, "R D"],
    up_bias_D: Float[Array, " D"],
    *,
    per_stream: bool,
) -> Float[Array, "*B N D"]:
    """``up(gamma[i] * SiLU(down(x_i)))`` for every stream i (mHC-SSM, section 1.5).

    Args:
        x: normalised input; (B, T, N, D) if ``per_stream``, else (B, T, D) shared by all streams.
        gamma_NR: gain of each stream on the bottleneck, the only per-stream parameter.
    """
    hidden = jax.nn.silu(x @ down_DR + down_bias_R)
    if not per_stream:
        hidden = hidden[..., None, :]
    return (gamma_NR * hidden) @ up_RD + up_bias_D
