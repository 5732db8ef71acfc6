"""Gated residual of Qwen4: a low-rank gate on every channel of the read, no mixing."""

import torch
from torch import nn

from torch_ref.config import register
from torch_ref.nn.residual.base import Residual
from torch_ref.nn.residual.checks import at_least_one
from torch_ref.ops import streams
from torch_ref.ops.hyper import stream_gate


@register("residual", "gated")
class GatedResidual(Residual):
    """``u = mean_s gate_s * x_s``; ``X'_s = X_s + 2 sigmoid(inject_s @ x / N) y`` with x the normalised streams.

    The gate starts at 1/2 everywhere: the branch's own norm, which the published form goes without, removes that.
    """

    stream_count: int

    def __init__(self, config, width: int, site: int, sites: int):
        super().__init__()
        at_least_one(config, "streams", "rank")
        n = self.stream_count = config.streams
        self.norm_eps, self.normalised = config.norm_eps, not config.branch_norm
        self.gate_scale = nn.Parameter(torch.zeros(n, width))
        self.down = nn.Parameter(0.02 * torch.randn(config.rank, n * width))
        self.up = nn.Parameter(torch.zeros(n * width, config.rank))
        self.inject = nn.Parameter(torch.zeros(n, n * width))

    def pre(self, state, scope):
        u_BTD, x_BTND = stream_gate(state, self.gate_scale, self.down, self.up, eps=self.norm_eps)
        post_BTN = 2 * (streams.project(x_BTND, self.inject) / self.stream_count).sigmoid()
        return u_BTD, scope.tap("h_post", post_BTN)

    def post(self, state, y, ctx, scope):
        return state + streams.write(y, ctx, per_stream=y.ndim == state.ndim)
