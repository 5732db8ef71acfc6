"""Sparse selective hyper-connections: orthogonal matrices that every token weighs, over the streams it asks for."""

import torch
from torch import Tensor, nn

from torch_ref.config import register
from torch_ref.nn.residual.checks import at_least_one
from torch_ref.nn.residual.mhc import MHC
from torch_ref.nn.scope import Scope
from torch_ref.ops import projections, routing
from torch_ref.ops.norm import rms_norm


@register("residual", "shc")
class SHC(MHC):
    """Softmax weights of Q_c, ``alpha(x) = top_k(phi x + b)`` with x the normalised mean of a token's streams.

    ``H_pre = read @ H1``, ``H_res = a I + (1 - a) H2``, ``H_post = H3 @ write`` with ``H = sum_c alpha_c Q_c``, and
    ``a = (1 + floor^(1 / sites)) / 2``, so that all sites together shrink no vector by more than ``floor``.
    If adaptive, a token uses its first n_eff streams; the others are as if they were not there.
    """

    stream_count: int

    def __init__(self, config, width: int, site: int, sites: int):
        super().__init__()
        at_least_one(config, "streams", "components")
        n = self.stream_count = config.streams
        self.config = config
        self.used = config.components if config.top_k is None else config.top_k
        if not 1 <= self.used <= config.components:
            raise ValueError(f"shc: top_k must lie in 1 .. {config.components}, got {self.used}")
        if not 0 <= config.floor < 1:
            raise ValueError(f"shc: floor must lie in [0, 1), got {config.floor}")
        self.kept = (1 + config.floor ** (1 / sites)) / 2
        lean = max(config.read_lean, 1 / n)
        read_N = torch.full((n,), (1 - lean) / max(n - 1, 1))
        read_N[site % n] = lean
        self.read, self.write = nn.Parameter(read_N), nn.Parameter(torch.ones(n))
        if n == 1:
            return
        self.skew = nn.Parameter(torch.zeros(3, config.components, n * (n - 1) // 2))
        bias = torch.zeros(3, config.components)
        bias[:, 0] = config.identity_bias
        self.sizes = [config.components] * 3 + ([n] if config.adaptive else [])
        self.bias = nn.Parameter(torch.zeros(sum(self.sizes)))
        with torch.no_grad():
            self.bias[: bias.numel()] = bias.flatten()
            if config.adaptive:
                self.bias[-1] = 4.0
        self.phi = nn.Parameter(0.02 * torch.randn(sum(self.sizes), width))

    def pre(self, state, scope):
        return self.read_with(self._routed(state, scope), state, scope)

    def _routed(self, h_BTND: Tensor, scope: Scope) -> tuple[Tensor, Tensor, Tensor | None]:
        """H_pre, H_post and H_res as they act on each token."""
        if self.stream_count == 1:
            return self.read, self.write, None
        x_BTD = rms_norm(h_BTND.mean(-2), torch.ones_like(self.phi[0]))
        logits = (x_BTD @ self.phi.mT + self.bias).split(self.sizes, -1)
        alphas = [
            scope.tap(f"alpha_{name}", routing.top_k_softmax(route, k=self.used))
            for name, route in zip(("pre", "res", "post"), logits)
        ]
        if self.used < self.config.components:
            loads = [routing.load_balance(route, alpha) for route, alpha in zip(logits, alphas)]
            scope.penalise("routing_balance", self.config.balance * torch.stack(loads).mean())
        orthogonal = projections.spread_rotations(self.skew, size=self.stream_count)
        h1, h2, h3 = (projections.mixture(alpha, q) for alpha, q in zip(alphas, orthogonal, strict=True))
        pre_BTN, post_BTN = (h1 * self.read[:, None]).sum(-2), (h3 * self.write).sum(-1)
        res_BTNN = projections.identity_mix(h2, 1 - self.kept)
        if not self.config.adaptive:
            return pre_BTN, post_BTN, res_BTNN
        mask_BTN = self._mask(logits[-1], scope)
        return pre_BTN * mask_BTN, post_BTN * mask_BTN, projections.masked_mixing(res_BTNN, mask_BTN)

    def _mask(self, logits_BTN: Tensor, scope: Scope) -> Tensor:
        """Ones for the first n_eff streams; n_eff is drawn in training, and else the likeliest."""
        start, end = self.config.temperature, self.config.final_temperature
        progress = 1.0 if scope.progress is None else scope.progress
        noise_BTN = -torch.empty_like(logits_BTN).exponential_().log() if self.training else None
        choice_BTN = routing.straight_through(logits_BTN, start ** (1 - progress) * end**progress, noise_BTN)
        mask_BTN = routing.prefix_mask(choice_BTN)
        rank_BT = scope.tap("rank", mask_BTN.sum(-1))
        scope.penalise("rank", self.config.rank_penalty * rank_BT.mean() / self.stream_count)
        return mask_BTN
