"""Dynamic mHC: coefficients of every token from all its streams, in one product."""

import math

import torch
from torch import nn

from torch_ref.config import one_of, register
from torch_ref.nn.projections import build_projection
from torch_ref.nn.residual.mhc import MHC, leaning_read
from torch_ref.ops.hyper import flat_weights


@register("residual", "dynamic_mhc")
class DynamicMHC(MHC):
    """``m = alpha * (phi @ x / rms(x)) + bias`` with x the streams of a token in one vector; rows pre, post, res.

    ``H_pre = sigmoid(m_pre) + pre_eps``; ``H_post = gain * sigmoid(m_post) + post_eps``; H_res projects m_res.
    """

    def __init__(self, config, width: int, site: int, sites: int):
        super().__init__()
        n = self.stream_count = config.streams
        self.projection = build_projection(config.projection, n)
        self.norm_eps, self.pre_eps = config.norm_eps, config.pre_eps
        self.post_gain, self.post_eps = config.post_gain, config.post_eps
        res_bias = self.projection.near_identity(config.diagonal_bias).flatten()
        self.sizes = (n, n, len(res_bias))
        if one_of("bias", config.bias, ("near_identity", "zeros")) == "zeros":
            bias_K = torch.zeros(sum(self.sizes))
        else:
            post_bias = torch.full((n,), _unit_write(config))
            bias_K = torch.cat([leaning_read(n, site, config.read_lean), post_bias, res_bias])
        self.phi = nn.Parameter(config.phi_std * torch.randn(len(bias_K), n * width))
        self.bias = nn.Parameter(bias_K)
        self.alpha = nn.Parameter(torch.full((3 if len(res_bias) else 2,), float(config.alpha)))

    def coefficients(self, h_BTND):
        rows = torch.tensor(self.sizes[: len(self.alpha)], device=self.alpha.device)
        logits_BTK = flat_weights(h_BTND, self.phi, eps=self.norm_eps) * self.alpha.repeat_interleave(rows) + self.bias
        pre_BTN, post_BTN, res_BTK = logits_BTK.split(self.sizes, -1)
        res_BTNN = None
        if res_BTK.shape[-1]:
            res_BTNN = self.projection(res_BTK.reshape(*res_BTK.shape[:-1], *self.projection.shape))
        return pre_BTN.sigmoid() + self.pre_eps, self.post_gain * post_BTN.sigmoid() + self.post_eps, res_BTNN


def _unit_write(config) -> float:
    """The logit that writes with weight 1."""
    share = (1 - config.post_eps) / config.post_gain
    if not 0 < share < 1:
        raise ValueError(f"{config.kind}: post_gain must exceed 1 - post_eps, got {config.post_gain}")
    return math.log(share / (1 - share))
