"""Stream-specialised adapters of mHC-SSM: a shared bottleneck with one gain vector per stream."""

import torch.nn.functional as F
from torch import Tensor


def stream_adapter(
    x: Tensor,
    gamma_NR: Tensor,
    down_DR: Tensor,
    down_bias_R: Tensor,
    up_RD: Tensor,
    up_bias_D: Tensor,
    *,
    per_stream: bool,
) -> Tensor:
    """``up(gamma[i] * SiLU(down(x_i)))`` for every stream i, (B, T, N, D).

    Args:
        x: normalised input; (B, T, N, D) if ``per_stream``, else (B, T, D), the same for all streams.
        gamma_NR: gain of each stream on the bottleneck.
    """
    z = F.silu(F.linear(x, down_DR.T, down_bias_R))
    z_BTNR = gamma_NR * (z if per_stream else z[..., None, :])
    return F.linear(z_BTNR, up_RD.T, up_bias_D)
