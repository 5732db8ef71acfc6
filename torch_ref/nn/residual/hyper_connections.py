"""Hyper-connections: free reading, mixing and writing weights, static or of every token, also of fractions."""

import torch
from torch import Tensor, nn

from torch_ref.config import one_of, register
from torch_ref.nn.residual.base import Residual
from torch_ref.nn.residual.checks import at_least_one, fraction_width
from torch_ref.ops import streams
from torch_ref.ops.hyper import dynamic_weights
from torch_ref.ops.norm import layer_norm, unit_rms_norm


class StreamNorm(nn.Module):
    """Norm of what the coefficients depend on: ``"rms"`` with a gain ``1 + gamma``, or LayerNorm without parameters.

    Raises:
        ValueError: another name.
    """

    def __init__(self, width: int, name: str):
        super().__init__()
        one_of("hyper-connection norm", name, ("rms", "ln"))
        self.gamma = nn.Parameter(torch.zeros(width)) if name == "rms" else None

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, x.new_ones(x.shape[-1]), None) if self.gamma is None else unit_rms_norm(x, self.gamma)


class AlphaBeta(Residual):
    """Alpha, whose columns are what is read and mixed, and beta, which writes; one row for each stream.

    Both are static plus, if ``norm`` is not None, a function of the stream that starts at zero.

    Args:
        beta_fn_shape: of the weight of that function for beta; its first entry is the width of a row.
    """

    def __init__(
        self, alpha_RC: Tensor, beta: Tensor, beta_fn_shape: tuple[int, ...], norm: StreamNorm | None, tanh: bool
    ):
        super().__init__()
        self.static_alpha, self.static_beta = nn.Parameter(alpha_RC), nn.Parameter(beta)
        self.norm, self.tanh = norm, tanh
        if norm is not None:
            self.dynamic_alpha_fn = nn.Parameter(torch.zeros(beta_fn_shape[0], alpha_RC.shape[1]))
            self.dynamic_alpha_scale = nn.Parameter(torch.tensor(0.01))
            self.dynamic_beta_fn = nn.Parameter(torch.zeros(beta_fn_shape))
            self.dynamic_beta_scale = nn.Parameter(torch.tensor(0.01))

    def alpha_beta(self, x_BTRD: Tensor, static_beta: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and beta as they act; of every token, (B, T, ...), if they are dynamic."""
        if self.norm is None:
            return self.static_alpha, static_beta
        x = self.norm(x_BTRD)
        alpha = dynamic_weights(x, self.dynamic_alpha_fn, self.dynamic_alpha_scale, self.static_alpha, tanh=self.tanh)
        beta = dynamic_weights(x, self.dynamic_beta_fn, self.dynamic_beta_scale, static_beta, tanh=self.tanh)
        return alpha, beta


@register("residual", "hc")
class HyperConnections(AlphaBeta):
    """``alpha[f1, s, (f2, t)]`` takes fraction f1 of stream s to fraction f2 of view t, or of stream t - views.

    Rows are ordered f1 * S + s. A write sums all fractions of y into each: ``beta[f1, s, f2]``, whose static part
    depends on s and f2 alone. So with more than one fraction no choice of it makes the site start as a plain residual.
    """

    stream_count: int

    def __init__(self, config, width: int, site: int, sites: int):
        at_least_one(config, "streams", "fractions", "views")
        S, F, V = config.streams, config.fractions, config.views
        d = fraction_width(width, F)
        one_of("fraction_init", config.fraction_init, ("identity", "published"))
        initial_alpha = _identity_alpha if config.fraction_init == "identity" else _published_alpha
        norm = StreamNorm(d, config.norm) if config.dynamic else None
        super().__init__(initial_alpha(S, F, V, site % S), torch.ones(S * F), (d, F), norm, config.tanh)
        self.stream_count, self.fractions, self.views, self.mixed = S, F, V, config.mixed

    def _rows(self, h_BTND: Tensor) -> Tensor:
        """(B, T, F * S, d): the fractions of all streams, fraction by fraction."""
        return h_BTND.unflatten(-1, (self.fractions, -1)).transpose(-3, -2).flatten(-3, -2)

    def coefficients(self, rows_BTRd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H_pre (F * V, F * S), H_post (F, F * S) and H_res (F * S, F * S) as they act, all ordered by fraction first.

        As in the other topologies H_pre is (S,) for one view without fractions, and H_post (S,) without fractions.
        """
        S, F, V = self.stream_count, self.fractions, self.views
        alpha, beta = self.alpha_beta(rows_BTRd, self.static_beta.view(S, F).repeat(F, 1))
        alpha = alpha.unflatten(-1, (F, V + S))
        pre, res = alpha[..., :V].flatten(-2).mT, alpha[..., V:].flatten(-2).mT
        post = beta[..., 0] if F == 1 else beta.unflatten(-2, (F, S)).mT.flatten(-2)
        return pre[..., 0, :] if V * F == 1 else pre, post, res

    def pre(self, state, scope):
        rows_BTRd = self._rows(state)
        pre, post, res = self.coefficients(rows_BTRd)
        pre, post = scope.tap("h_pre", pre), scope.tap("h_post", post)
        ctx = post, scope.tap("h_res", res) if self.mixed else None
        read = streams.mix(rows_BTRd, pre[..., None, :] if self.views * self.fractions == 1 else pre)
        u_BTVD = read.unflatten(-2, (self.fractions, self.views)).transpose(-3, -2).flatten(-2)
        return u_BTVD.movedim(-2, 0) if self.views > 1 else u_BTVD[..., 0, :], ctx

    def post(self, state, y, ctx, scope):
        post, res_RR = ctx
        post_FSF = post[..., None, :, None] if self.fractions == 1 else post.unflatten(-1, (self.fractions, -1)).mT
        y_BTSFd = (y if y.ndim == state.ndim else y[..., None, :]).unflatten(-1, (self.fractions, -1))
        written_BTSFd = torch.einsum("...gsf,...sgd->...sfd", post_FSF, y_BTSFd)
        rows_BTRd = self._rows(state)
        mixed_BTRd = rows_BTRd if res_RR is None else streams.mix(rows_BTRd, res_RR)
        mixed_BTSFd = mixed_BTRd.unflatten(-2, (self.fractions, self.stream_count)).transpose(-3, -2)
        return (mixed_BTSFd + written_BTSFd).flatten(-2)


def _identity_alpha(S: int, F: int, V: int, stream: int) -> Tensor:
    """Every view is ``stream``, every stream itself, fraction by fraction."""
    columns = torch.cat([torch.eye(S)[:, [stream] * V], torch.eye(S)], 1)
    return torch.block_diag(*[columns] * F)


def _published_alpha(S: int, F: int, V: int, stream: int) -> Tensor:
    """All reads first, then an identity: columns in another order than they are used in, unless F is 1."""
    return torch.cat([torch.eye(S * F)[:, [stream] * (V * F)], torch.eye(S * F)], 1)
