"""mHC of lucidrains: the coefficients that concern a stream depend on that stream alone."""

import torch
from torch import nn

from torch_ref.config import one_of, register
from torch_ref.nn.projections import build_projection
from torch_ref.nn.residual.hyper_connections import StreamNorm
from torch_ref.nn.residual.mhc import MHC, leaning_read
from torch_ref.ops.hyper import dynamic_weights

READ_LEAN = 0.7
DIAGONAL_BIAS = 4.0


@register("residual", "per_stream_mhc")
class PerStreamMHC(MHC):
    """Row s of ``alpha = scale * norm(X_s) @ alpha_fn + alpha_static``: the logits of the read of stream s, and of its
    weights to all streams, column s of what the projection gets. ``H_post[s]`` is twice a sigmoid, also of X_s alone.
    """

    stream_count: int

    def __init__(self, config, width: int, site: int, sites: int):
        super().__init__()
        n = self.stream_count = config.streams
        self.projection = build_projection(config.projection, n)
        if self.projection.shape != (n, n):
            raise ValueError("per_stream_mhc: the projection must act on one logit for each pair of streams")
        if one_of("form", config.form, ("near_identity", "published")) == "published":
            read_N, res_NN, write = torch.eye(n)[site % n], torch.eye(n), 1.0
        else:
            read_N = leaning_read(n, site, READ_LEAN)
            res_NN, write = self.projection.near_identity(DIAGONAL_BIAS), 0.0
        self.alpha_static = nn.Parameter(torch.cat([read_N[:, None], res_NN.mT], 1))
        self.alpha_fn = nn.Parameter(torch.zeros(width, 1 + n))
        self.beta_static = nn.Parameter(torch.full((n,), write))
        self.beta_fn = nn.Parameter(torch.zeros(width))
        self.pre_scale, self.res_scale, self.post_scale = (nn.Parameter(torch.tensor(0.01)) for _ in range(3))
        self.norm = StreamNorm(width, "rms")

    def coefficients(self, h_BTND):
        x_BTND = self.norm(h_BTND)
        scale = torch.cat([self.pre_scale[None], self.res_scale.expand(self.stream_count)])
        alpha = dynamic_weights(x_BTND, self.alpha_fn, scale, self.alpha_static, tanh=False)
        beta_BTN = dynamic_weights(x_BTND, self.beta_fn, self.post_scale, self.beta_static, tanh=False)
        return alpha[..., 0].sigmoid(), 2 * beta_BTN.sigmoid(), self.projection(alpha[..., 1:].mT)
