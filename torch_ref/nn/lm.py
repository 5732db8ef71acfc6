"""The decoder-only language model: embed, expand, stack of sites, collapse, norm, tied head."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.config import as_record, implementation, register
from torch_ref.nn import channel, mixers  # noqa: F401  (importing a package registers its kinds)
from torch_ref.nn.block import Block, Site
from torch_ref.nn.layers import Norm
from torch_ref.nn.residual import StreamAdapters
from torch_ref.nn.residual.base import State, streams_of, with_streams
from torch_ref.nn.stack import run_stack
from torch_ref.nn.taps import Tap, no_tap, recorder, under
from torch_ref.nn.value_residual import ValueResidual
from torch_ref.ops import streams
from torch_ref.ops.loss import cross_entropy


class Embed(nn.Module):
    """Token table (V, D), also the output head, and learned absolute positions (max_len, D)."""

    def __init__(self, vocab_size: int, max_len: int, width: int, std: float):
        super().__init__()
        self.tokens = nn.Parameter(std * torch.randn(vocab_size, width))
        self.positions = nn.Parameter(std * torch.randn(max_len, width))


@register("model", "lm")
class LM(nn.Module):
    """See :func:`build`. Parameters live under ``embed``, ``ends``, ``blocks.{l}`` and ``final_norm``.

    Dropout follows ``train()`` and ``eval()``, in decoding too.
    """

    blocks: Sequence[Block]

    def __init__(self, config: Any):
        super().__init__()
        for name in ("vocab_size", "max_len", "width", "layers"):
            if getattr(config, name) < 1:
                raise ValueError(f"lm: {name} must be at least 1, got {getattr(config, name)}")
        self.max_len, self.rate, self.norm_streams = config.max_len, config.dropout, config.norm_streams
        self.embed = Embed(config.vocab_size, config.max_len, config.width, config.embed_std)
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.layers))
        self.stream_count = self.blocks[0].mixer.residual.stream_count
        self.ends = implementation("ends", config.ends)(config.ends, config.width, self.stream_count)
        self.final_norm = Norm(config.width, config.norm, config.norm_bias)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        taps: dict[str, Tensor] | None = None,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V).

        Args:
            tokens_BT: token ids, T at most ``max_len``.
            taps: filled with named activations, whose ``.grad`` ``backward()`` then keeps.
            positions: (B, T) absolute positions; 0 .. T-1 if omitted.
            segment_ids: (B, T); mixers keep tokens of different segments apart.

        Raises:
            ValueError: tokens that are not a (B, T) integer tensor, empty, or longer than ``max_len``.
        """
        tap = no_tap if taps is None else recorder(taps)
        state, _ = self._stack(tokens_BT, self.init_cache(len(tokens_BT)), positions, segment_ids, tap)
        return self._head(state, tap)

    def loss_terms(
        self, tokens_BT: Tensor, targets_BT: Tensor, *, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Summed cross-entropy, number of targets that count, and stream diversity (None without streams)."""
        state, _ = self._stack(tokens_BT, self.init_cache(len(tokens_BT)), None, segment_ids, no_tap)
        total, count = cross_entropy(self._head(state, no_tap), targets_BT)
        return total, count, None if self.stream_count is None else streams.diversity(streams_of(state))

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        stream_diversity: float = 0.0,
        *,
        segment_ids: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy over targets other than -100, plus ``stream_diversity`` times that term.

        Raises:
            ValueError: the term is asked for, but the residual has no streams.
        """
        total, count, diversity = self.loss_terms(tokens_BT, targets_BT, segment_ids=segment_ids)
        return total / count + weighted_diversity(diversity, stream_diversity)

    def stream_diversity(self, tokens_BT: Tensor) -> Tensor:
        """See :func:`torch_ref.ops.streams.diversity`, of the state that the collapse reads.

        Raises:
            ValueError: the residual has no streams.
        """
        if self.stream_count is None:
            raise ValueError("stream diversity needs a residual with streams")
        state, _ = self._stack(tokens_BT, self.init_cache(len(tokens_BT)), None, None, no_tap)
        return streams.diversity(streams_of(state))

    def init_cache(self, batch: int) -> dict[str, Any]:
        """Decoding state before the first token: every layer's mixer state, and the position."""
        return {"layers": [block.init_memory(batch, self.max_len) for block in self.blocks], "position": 0}

    def prefill(self, tokens_BT: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits (B, T, V) of tokens that follow ``cache``, and the cache after them."""
        state, cache = self._stack(tokens_BT, cache, None, None, no_tap)
        return self._head(state, no_tap), cache

    def step(self, token_B: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits (B, V) after one token that follows ``cache``, and the cache after it."""
        logits_B1V, cache = self.prefill(token_B[:, None], cache)
        return logits_B1V[:, 0], cache

    def _stack(
        self,
        tokens_BT: Tensor,
        cache: dict[str, Any],
        positions: Tensor | None,
        segment_ids: Tensor | None,
        tap: Tap,
    ) -> tuple[State, dict[str, Any]]:
        start = cache["position"]
        self._check(tokens_BT, start)
        end = start + tokens_BT.shape[1]
        where = self.embed.positions[start:end] if positions is None else self.embed.positions[positions]
        x_BTD = F.dropout(F.embedding(tokens_BT, self.embed.tokens) + where, self.rate, self.training)
        state = self.blocks[0].mixer.residual.begin(tap("expand", self.ends.expand(tap("embed", x_BTD))))
        state, layers = run_stack(
            self.blocks, state, cache["layers"], segment_ids=segment_ids, tap=under("blocks", tap)
        )
        return state, {"layers": layers, "position": end}

    def _head(self, state: State, tap: Tap) -> Tensor:
        if self.norm_streams:
            state = with_streams(state, tap("normalised", self.final_norm(streams_of(state))))
            hidden_BTD = self.ends.collapse(state)
        else:
            hidden_BTD = self.final_norm(tap("collapse", self.ends.collapse(state)))
        return tap("logits", F.linear(tap("hidden", hidden_BTD), self.embed.tokens))

    def _check(self, tokens_BT: Tensor, start: int) -> None:
        if tokens_BT.ndim != 2 or tokens_BT.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                "tokens must be a (batch, time) tensor of int32 or int64, "
                f"got shape {tuple(tokens_BT.shape)} and dtype {tokens_BT.dtype}"
            )
        if tokens_BT.shape[1] == 0:
            raise ValueError("tokens are empty: at least one token is needed")
        if start + tokens_BT.shape[1] > self.max_len:
            raise ValueError(
                f"a sequence of {start + tokens_BT.shape[1]} tokens is longer than max_len {self.max_len}; "
                "shorten it, or train with a larger max_len"
            )


def weighted_diversity(diversity: Tensor | None, coefficient: float) -> Tensor | float:
    """``coefficient * diversity``; ValueError if it is wanted and there is none."""
    if coefficient == 0:
        return 0.0
    if diversity is None:
        raise ValueError("stream_diversity needs a residual with streams")
    return coefficient * diversity


def _block(config: Any, layer: int) -> Block:
    parts = [("mixer", config.mixer)] + ([] if config.mlp is None else [("channel", config.mlp)])
    sites = config.layers * len(parts)
    built = [_site(config, axis, part, layer * len(parts) + i, sites) for i, (axis, part) in enumerate(parts)]
    values = None if config.value_residual is None else ValueResidual(config.value_residual)
    return Block(built[0], built[1] if len(built) > 1 else None, values)


def _site(config: Any, axis: str, part: Any, site: int, sites: int) -> Site:
    residual = implementation("residual", config.residual)(config.residual, config.width, site, sites)
    if config.adapters is not None:
        residual = StreamAdapters(residual, config.adapters, config.width, config.norm)
    branch = implementation(axis, part)(part, config.width, sites)
    if branch.views not in (1, residual.views):
        raise ValueError(f"the {axis} takes {branch.views} views, but the residual gives {residual.views}")
    return Site(residual, branch, config.width, config.norm, config.dropout, config.norm_bias)


def build(config: Any) -> nn.Module:
    """The model that ``config`` describes, freshly initialised from torch's global generator, in float32.

    Args:
        config: a language-model record of ``mhc_jax`` (read by its attributes), or its JSON dict with ``"kind"``
            tags. Its ``execution`` part is not read: the module computes in the dtype of its parameters.

    Raises:
        ValueError: an unknown kind (the message names the known ones), a missing field or a contradiction.
    """
    config = as_record(config)
    return implementation("model", config)(config)
