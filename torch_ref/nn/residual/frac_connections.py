"""Frac-connections: hyper-connections between equal fractions of a plain residual, which stays as wide as it is."""

import torch

from torch_ref.config import register
from torch_ref.nn.residual.checks import at_least_one, fraction_width
from torch_ref.nn.residual.hyper_connections import AlphaBeta, StreamNorm
from torch_ref.ops import streams


@register("residual", "frac")
class FracConnections(AlphaBeta):
    """``u_i = sum_j Y[j, i] X_j``; ``X'_i = sum_j A[j, i] X_j + beta_i y_i`` with ``alpha = [Y | A]``; state (B, T, D).

    Fraction i of the state receives fraction i of y alone, as in the paper.
    """

    stream_count = None

    def __init__(self, config, width: int, site: int, sites: int):
        at_least_one(config, "fractions")
        m = config.fractions
        d = fraction_width(width, m)
        norm = StreamNorm(d, "ln") if config.dynamic else None
        super().__init__(torch.eye(m).repeat(1, 2), torch.ones(m), (d,), norm, config.tanh)
        self.fractions = m

    def pre(self, state, scope):
        x_BTMd = streams.split_streams(state, self.fractions)
        alpha, beta = self.alpha_beta(x_BTMd, self.static_beta)
        pre, res = alpha.mT.chunk(2, -2)
        u_BTMd = streams.mix(x_BTMd, scope.tap("h_pre", pre))
        return u_BTMd.flatten(-2), (scope.tap("h_post", beta), scope.tap("h_res", res))

    def post(self, state, y, ctx, scope):
        post, res = ctx
        x_BTMd, y_BTMd = (streams.split_streams(x, self.fractions) for x in (state, y))
        return (streams.mix(x_BTMd, res) + streams.write(y_BTMd, post, per_stream=True)).flatten(-2)
