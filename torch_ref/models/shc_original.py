"""SHC as published: each block makes streams of a token, routes them by the mean over the sequence, and merges them."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.config import as_record, register
from torch_ref.nn.channel import SwiGLU
from torch_ref.nn.layers import linear
from torch_ref.nn.mixers import Attention
from torch_ref.nn.norms import build_norm
from torch_ref.nn.scope import Scope
from torch_ref.ops import factor, projections, routing, streams
from torch_ref.ops.loss import cross_entropy

ROUTES = ("pre", "res", "post")
LONGEST = 8192
# As an input this token trains nothing.
PADDING = 0


@register("model", "shc_original")
class SHCOriginal(nn.Module):
    """Parameters live under ``embed``, ``blocks.{l}``, ``final_norm`` and, if it is not tied, ``head``."""

    def __init__(self, config):
        super().__init__()
        for name in ("vocab_size", "max_len", "width", "layers", "heads", "streams", "components", "rank"):
            if (getattr(config, name) or 0) < 1:
                raise ValueError(f"shc_original: {name} must be at least 1, got {getattr(config, name)}")
        if config.max_len > LONGEST:
            raise ValueError(f"shc_original: max_len must be at most {LONGEST}, got {config.max_len}")
        self.config = config
        self.embed = nn.ParameterDict({"tokens": 0.02 * torch.randn(config.vocab_size, config.width)})
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = build_norm(as_record({"kind": "rms", "eps": 1e-6}), config.width)
        self.head = None if config.tied else linear(config.width, config.vocab_size, 0.02, bias=False)

    def forward(self, tokens_BT, *, taps=None, positions=None, segment_ids=None, penalties=None):
        """Logits (B, T, V).

        Raises:
            ValueError: more tokens than ``max_len``, or segments where routing would mix them.
        """
        if tokens_BT.shape[1] > self.config.max_len:
            raise ValueError(f"a sequence of {tokens_BT.shape[1]} tokens is longer than max_len {self.config.max_len}")
        if segment_ids is not None and self.config.streams > 1:
            raise ValueError("shc_original: routing takes the mean of a row, whose segments it cannot keep apart")
        if positions is None:
            positions = torch.arange(tokens_BT.shape[1]).expand(tokens_BT.shape)
        scope = Scope(positions, segment_ids, taps=taps)
        x_BTD = F.dropout(
            F.embedding(tokens_BT, self.embed["tokens"], padding_idx=PADDING), self.config.dropout, self.training
        )
        x_BTD = scope.tap("embed", x_BTD)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, dataclasses.replace(scope / "blocks" / str(layer), layer=layer))
        hidden_BTD = scope.tap("hidden", self.final_norm(x_BTD))
        table_VD = self.embed["tokens"] if self.head is None else self.head.weight
        return scope.tap("logits", F.linear(hidden_BTD, table_VD))

    def loss(self, tokens_BT, targets_BT):
        """Mean cross-entropy over targets other than -100; NaN if there are none."""
        total, count = cross_entropy(self(tokens_BT), targets_BT)
        return total / count


class Block(nn.Module):
    """``y = M(H_res z + H_post E(f)) + x`` with ``f = ffn(norm(attention(M(H_pre z))))`` and ``z = norm(E(norm(x)))``.

    E expands a token to n streams, M merges n streams; each is used twice, and no stream outlives the block.
    """

    def __init__(self, config):
        super().__init__()
        n, D = config.streams, config.width
        self.config, self.streams = config, n
        norm = as_record({"kind": "ln", "eps": 1e-5, "bias": True})
        self.norm_1, self.norm_2, self.norm_streams = (build_norm(norm, D) for _ in range(3))
        attention = {"heads": config.heads, "rotary": "half" if config.rotary else "none", "bias": False, "views": 1}
        attention |= {"init_std": 0.02, "scale_output": False, "dropout": config.dropout}
        self.attention = Attention(as_record(attention), D, 1)
        hidden = int(8 / 3 * D) if config.hidden is None else config.hidden
        self.mlp = SwiGLU(as_record({"hidden": hidden, "init_std": 0.02, "scale_output": False}), D, 1)
        self.selector = RankSelector(D, n) if config.adaptive_rank else None
        self.expand, self.merge = linear(D, n * D, 0.02, bias=True), linear(n * D, D, 0.02, bias=True)
        self.routing = nn.ModuleDict({name: SequenceMixture(n, config.components, D) for name in ROUTES})
        self.code = FactorizedCode(n, D, config.rank)

    def forward(self, x_BTD: Tensor, scope: Scope) -> Tensor:
        n = self.streams
        if self.selector is not None and n > 1:
            n = int(scope.tap("rank", self.selector(x_BTD)))
            if n not in (1, self.streams):
                raise ValueError(f"shc_original: {n} streams meet mixing matrices of {self.streams}")
        if n == 1:
            x_BTD = x_BTD + self._attended(self.norm_1(x_BTD), scope)
            return scope.tap("state", x_BTD + self._transformed(self.norm_2(x_BTD), scope))
        h_BTND = self.norm_streams(self._expanded(self.norm_1(x_BTD)))
        pooled_BD = h_BTND.mean(-2).mean(1)
        pre, res, post = (self._route(name, pooled_BD, scope / "routing")[:, None] for name in ROUTES)
        a_BTD = self._attended(self._merged(streams.mix(h_BTND, pre)), scope)
        f_BTD = self._transformed(self.norm_2(a_BTD), scope)
        out_BTND = streams.mix(h_BTND, res) + streams.mix(self._expanded(f_BTD), post)
        scope.tap("code", self.code(out_BTND))
        return scope.tap("state", self._merged(out_BTND) + x_BTD)

    def _route(self, name: str, x_BD: Tensor, scope: Scope) -> Tensor:
        mixture = self.routing[name]
        assert isinstance(mixture, SequenceMixture)
        weight_BC = scope.tap(f"alpha_{name}", mixture.weights(x_BD))
        return scope.tap(f"h_{name}", mixture.mixed(weight_BC))

    def _expanded(self, x_BTD: Tensor) -> Tensor:
        return streams.split_streams(self.expand(x_BTD), self.streams)

    def _merged(self, h_BTND: Tensor) -> Tensor:
        return self.merge(h_BTND.flatten(-2))

    def _attended(self, x_BTD: Tensor, scope: Scope) -> Tensor:
        return F.dropout(self.attention(x_BTD, None, scope / "attention")[0], self.config.dropout, self.training)

    def _transformed(self, x_BTD: Tensor, scope: Scope) -> Tensor:
        f_BTD = F.dropout(self.mlp(x_BTD, scope / "mlp"), self.config.dropout, self.training)
        return F.dropout(f_BTD, self.config.dropout, self.training)


class SequenceMixture(nn.Module):
    """``H = sum_c alpha_c Q_c`` with ``alpha = softmax(proj(x) / temperature)``, for a vector x of each sequence."""

    def __init__(self, streams: int, components: int, width: int):
        super().__init__()
        self.streams = streams
        self.skew = nn.Parameter(0.01 * torch.randn(components, streams * (streams - 1) // 2))
        self.proj = linear(width, components, 0.02, bias=True)

    def weights(self, x_BD: Tensor, temperature: float = 1.0) -> Tensor:
        return (self.proj(x_BD) / temperature).softmax(-1)

    def mixed(self, weight_BC: Tensor) -> Tensor:
        return projections.mixture(weight_BC, projections.cayley_transform(self.skew, size=self.streams))

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.mixed(self.weights(x_BD))


class FactorizedCode(nn.Module):
    """Streams as coefficients of ``U_r V_r^T``; nothing trains U and V."""

    def __init__(self, streams: int, width: int, rank: int):
        super().__init__()
        self.U, self.V = (nn.Parameter(nn.init.orthogonal_(torch.empty(size, rank))) for size in (streams, width))

    def forward(self, h_BTND: Tensor) -> Tensor:
        return factor.compress(h_BTND, self.U, self.V)

    def decode(self, code_BTR: Tensor) -> Tensor:
        return factor.decompress(code_BTR, self.U, self.V)


class RankSelector(nn.Module):
    """``floor(mean over the batch of n_eff)``; each n_eff is drawn in training, else the likeliest."""

    def __init__(self, width: int, streams: int):
        super().__init__()
        self.in_proj = linear(width, width // 4, 0.02, bias=True)
        self.out_proj = linear(width // 4, streams, 0.02, bias=True)
        self.layer_bias = nn.Parameter(torch.zeros(streams))

    def logits(self, x_BTD: Tensor) -> Tensor:
        return self.out_proj(F.gelu(self.in_proj(x_BTD.mean(1)))) + self.layer_bias

    def forward(self, x_BTD: Tensor) -> Tensor:
        logits_BN = self.logits(x_BTD)
        noise_BN = -torch.empty_like(logits_BN).exponential_().log() if self.training else None
        return routing.prefix_mask(routing.straight_through(logits_BN, 1.0, noise_BN)).sum(-1).mean().floor()
