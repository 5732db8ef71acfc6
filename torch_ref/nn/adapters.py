"""Stream-specialised adapters: a residual topology wrapped so that each stream adapts what it gives and takes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.nn.norms import Norm
from torch_ref.nn.residual.base import Residual, streams_of, with_streams
from torch_ref.ops.adapter import stream_adapter


class StreamAdapters(Residual):
    """Stream i is adapted before the site reads it, ``X_i += A(norm(X_i); gamma_pre[i])``, and what is written to it,
    ``Y_i = y + A(norm(y); gamma_post[i])``.

    ``down``, ``up`` and ``norm`` are shared by both directions and all streams; only the gains differ.

    Raises:
        ValueError: ``inner`` has no streams, or ``rank < 1``.
    """

    def __init__(self, inner: Residual, config, width: int, norm: Norm):
        super().__init__()
        if inner.stream_count is None or inner.branches > 1:
            raise ValueError("adapters need a residual with streams and one branch")
        if config.rank < 1:
            raise ValueError(f"adapter rank must be at least 1, got {config.rank}")
        self.inner, self.rate, self.stream_count = inner, config.dropout, inner.stream_count
        self.views, self.normalised, self.begin = inner.views, inner.normalised, inner.begin
        self.norm = norm
        self.down = nn.Linear(width, config.rank)
        self.up = nn.Linear(config.rank, width)
        self.gamma_pre = nn.Parameter(torch.ones(self.stream_count, config.rank))
        self.gamma_post = nn.Parameter(torch.ones(self.stream_count, config.rank))
        if config.zero_init:
            for leaf in self.up.parameters():
                nn.init.zeros_(leaf)
            for gamma in (self.gamma_pre, self.gamma_post):
                nn.init.normal_(gamma, mean=1.0, std=0.5)

    def _adapt(self, x: Tensor, gamma: Tensor, *, per_stream: bool) -> Tensor:
        down, up = self.down, self.up
        adapted = stream_adapter(
            self.norm(x), gamma, down.weight.T, down.bias, up.weight.T, up.bias, per_stream=per_stream
        )
        return F.dropout(adapted, self.rate, self.training)

    def pre(self, state, scope):
        h_BTND = streams_of(state)
        state = with_streams(state, scope.tap("adapted", h_BTND + self._adapt(h_BTND, self.gamma_pre, per_stream=True)))
        u_BTD, ctx = self.inner.pre(state, scope)
        return u_BTD, (state, ctx)

    def post(self, state, y, ctx, scope):
        state, ctx = ctx
        y_BTND = scope.tap("y_streams", y[..., None, :] + self._adapt(y, self.gamma_post, per_stream=False))
        return self.inner.post(state, y_BTND, ctx, scope)
