"""Base of the manifold-constrained hyper-connections: one read, one write and one mixing matrix."""

import torch
from torch import Tensor

from torch_ref.config import required
from torch_ref.nn.residual.base import Residual
from torch_ref.nn.scope import Scope
from torch_ref.ops import streams


class MHC(Residual):
    """``u = sum_j H_pre[j] X_j``; ``X'_i = sum_j H_res[i, j] X_j + H_post[i] y_i``."""

    @required
    def coefficients(self, h_BTND: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """H_pre (N,), H_post (N,) and H_res (N, N) as they act, or those of every token, (B, T, ...).

        H_res is None where the projection has no logits: the identity.
        """

    def pre(self, state, scope):
        return self.read_with(self.coefficients(state), state, scope)

    @staticmethod
    def read_with(coefficients: tuple[Tensor, Tensor, Tensor | None], state: Tensor, scope: Scope):
        """What :meth:`pre` returns, for given coefficients."""
        pre_N, post_N, res_NN = coefficients
        u_BTD = streams.read(state, scope.tap("h_pre", pre_N))
        return u_BTD, (scope.tap("h_post", post_N), tap_mixing(res_NN, scope))

    def post(self, state, y, ctx, scope):
        post_N, res_NN = ctx
        mixed = state if res_NN is None else streams.mix(state, res_NN)
        return mixed + streams.write(y, post_N, per_stream=y.ndim == state.ndim)


def tap_mixing(res_NN: Tensor | None, scope: Scope) -> Tensor | None:
    """An identity is not mixed with, and not recorded."""
    return None if res_NN is None else scope.tap("h_res", res_NN)


def leaning_read(streams: int, site: int, lean: float) -> Tensor:
    """Logits of sigmoid reading weights that sum to one; the site's own stream, in turn, has ``lean`` of it."""
    own = min(max(lean, 1 / streams), 1 - 1e-6)
    weights_N = torch.full((streams,), (1 - own) / max(streams - 1, 1), dtype=torch.float64)
    weights_N[site % streams] = own
    return weights_N.logit().float()
