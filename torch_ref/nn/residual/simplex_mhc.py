"""Static mHC of mHC-SSM: simplex reading and writing weights, Sinkhorn residual mixing."""

import torch
from torch import Tensor, nn

from torch_ref.config import one_of, register
from torch_ref.nn.residual.base import Residual
from torch_ref.nn.taps import no_tap
from torch_ref.ops import sinkhorn, streams

_PROJECTIONS = {"log_sinkhorn": sinkhorn.log_sinkhorn, "sinkhorn": sinkhorn.sinkhorn_rows_then_columns}


@register("residual", "simplex_mhc")
class SimplexMHC(Residual):
    """``u = sum_i softmax(pre)_i X_i``; ``X'_i = sum_j H[i, j] X_j + w_i Y_i``.

    ``w = softmax(post)``, times n with unit writes; H projects the residual logits.
    """

    def __init__(self, config, width: int, site: int, sites: int):
        super().__init__()
        n = self.stream_count = config.streams
        if n < 1:
            raise ValueError(f"streams must be at least 1, got {n}")
        self.project = _PROJECTIONS[one_of("projection", config.projection, _PROJECTIONS)]
        self.iters, self.temperature = config.sinkhorn_iters, config.sinkhorn_temp
        self.write_gain = n if config.unit_writes else 1
        self.pre_logits = nn.Parameter(torch.zeros(n))
        self.post_logits = nn.Parameter(torch.zeros(n))
        self.res_logits = nn.Parameter(0.02 * torch.randn(n, n) + config.diagonal_bias * torch.eye(n))
        with torch.no_grad():
            self.pre_logits[site % n] = config.read_bias
            self.weights()  # refuses impossible Sinkhorn settings now rather than at the first batch

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """H_pre (N,), H_post (N,) and H_res (N, N) as they act; row i of H_res feeds stream i."""
        pre_N = self.pre_logits.softmax(0)
        post_N = self.write_gain * self.post_logits.softmax(0)
        res_NN = self.project(self.res_logits, iters=self.iters, temperature=self.temperature)
        return pre_N, post_N, res_NN

    def pre(self, state, *, tap=no_tap):
        pre_N, post_N, res_NN = self.weights()
        u_BTD = streams.read(state, tap("h_pre", pre_N))
        return u_BTD, (tap("h_post", post_N), tap("h_res", res_NN))

    def post(self, state, y, ctx, *, tap=no_tap):
        post_N, res_NN = ctx
        written = streams.write(y, post_N, per_stream=y.ndim == state.ndim)
        return streams.mix(state, res_NN) + written
