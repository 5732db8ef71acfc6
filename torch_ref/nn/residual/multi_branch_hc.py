"""Hyper-connections around several runs of the branch, each with a read and a write of its own."""

import torch
from torch import Tensor

from torch_ref.config import one_of, register
from torch_ref.nn.residual.checks import at_least_one
from torch_ref.nn.residual.hyper_connections import AlphaBeta, StreamNorm
from torch_ref.ops import streams


@register("residual", "multi_branch_hc")
class MultiBranchHC(AlphaBeta):
    """``u_i = sum_s alpha[s, i] X_s``; ``X'_t = sum_s alpha[s, I + t] X_s + sum_i beta[t, i] y_i``.

    ``write_init`` is the weight of each of the I results: 1 as ``"published"``, or 1/I, so that the site starts as a
    plain residual (``"mean"``).
    """

    def __init__(self, config, width: int, site: int, sites: int):
        at_least_one(config, "streams", "branches")
        S, I = config.streams, config.branches
        write = 1 / I if one_of("write_init", config.write_init, ("mean", "published")) == "mean" else 1.0
        alpha = torch.cat([_round_robin(S, I, site), torch.eye(S)], 1)
        super().__init__(alpha, torch.full((S, I), write), (width, I), StreamNorm(width, "rms"), tanh=True)
        self.stream_count, self.branches = S, I

    def pre(self, state, scope):
        alpha_BTSC, beta_BTSI = self.alpha_beta(state, self.static_beta)
        pre_BTIS, res_BTSS = alpha_BTSC.mT.split((self.branches, self.stream_count), -2)
        u = streams.mix(state, scope.tap("h_pre", pre_BTIS)).movedim(-2, 0)
        return u if self.branches > 1 else u[0], (scope.tap("h_post", beta_BTSI.mT), scope.tap("h_res", res_BTSS))

    def post(self, state, y, ctx, scope):
        post_BTIS, res_BTSS = ctx
        runs = y if self.branches > 1 else y[None]
        return streams.mix(state, res_BTSS) + sum(
            streams.write(run, weight_BTS, per_stream=run.ndim == state.ndim)
            for run, weight_BTS in zip(runs, post_BTIS.unbind(-2), strict=True)
        )


def _round_robin(S: int, I: int, site: int) -> Tensor:
    """(S, I): branch i reads the stream s for which ``s + i + site * I`` is a multiple of S."""
    rows, columns = torch.arange(S)[:, None], torch.arange(I)
    return ((rows + columns + site * I) % S == 0).float()
