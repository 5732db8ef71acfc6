"""Stream-specialised adapters of mHC-SSM: a shared bottleneck with one gain vector per stream."""

import jax
from jaxtyping import Array, Float

from mhc_jax.ops.streams import Streams


def stream_adapter(
    x: Float[Array, "*B D"] | Streams,
    gamma_NR: Float[Array, "N R"],
    down_DR: Float[Array, "D R"],
    down_bias_R: Float[Array, " R"],
    up_RD: Float[Array, "R D"],
    up_bias_D: Float[Array, " D"],
) -> Streams:
    """``up(gamma[i] * SiLU(down(x_i)))`` for every stream i (mHC-SSM, section 1.5).

    Args:
        x: normalised input; one array shared by all streams goes through ``down`` once.
        gamma_NR: gain of each stream on the bottleneck, the only per-stream parameter.
    """

    def down(x_BTD):
        return jax.nn.silu(x_BTD @ down_DR + down_bias_R)

    hidden = x.each(down) if isinstance(x, Streams) else Streams.copies(down(x), len(gamma_NR))
    return hidden.each(lambda hidden_BTR, gamma_R: (gamma_R * hidden_BTR) @ up_RD + up_bias_D, gamma_NR)
