"""The decoder-only language model: embed, expand, stack of sites, collapse, norm, tied head."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.config import as_record, implementation, one_of, register
from torch_ref.nn.backbone import Backbone
from torch_ref.nn.layers import linear
from torch_ref.nn.scope import Scope
from torch_ref.ops.loss import cross_entropy, z_loss

_INTEGERS = (torch.int32, torch.int64)


class Embed(nn.Module):
    """Token table (V, D), also the output head if that is tied, and learned positions (P, D), if any."""

    def __init__(self, vocab_size: int, positions: int | None, width: int, std: float):
        super().__init__()
        self.tokens = nn.Parameter(std * torch.randn(vocab_size, width))
        self.positions = None if positions is None else nn.Parameter(std * torch.randn(positions, width))

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """The sum of both, (B, T, D); positions past the last learned one share it."""
        x_BTD = F.embedding(tokens_BT, self.tokens)
        if self.positions is None:
            return x_BTD
        return x_BTD + F.embedding(positions_BT.clamp(max=len(self.positions) - 1), self.positions)


@register("model", "lm")
class LM(Backbone):
    """See :func:`build`. Parameters live under ``embed``, ``ends``, ``blocks.{l}``, ``final_norm`` and, if
    the head is not tied, ``head``.

    Dropout follows ``train()`` and ``eval()``, in decoding too.
    """

    def __init__(self, config: Any):
        for name in ("vocab_size", "max_len", "width", "layers"):
            if (getattr(config, name) or 0) < 1:
                raise ValueError(f"lm: {name} must be at least 1, got {getattr(config, name)}")
        super().__init__(config)
        self.max_len: int = config.max_len
        self.rate = config.dropout
        learned = one_of("positions", getattr(config, "positions", "learned"), ("learned", "none")) == "learned"
        positions = config.max_len if learned else None
        self.embed = Embed(config.vocab_size, positions, config.width, config.embed_std)
        self.head, outputs = None, getattr(config, "outputs", None)
        if one_of("head", getattr(config, "head", "tied"), ("tied", "dense")) == "dense":
            self.head = linear(config.width, outputs or config.vocab_size, config.embed_std, bias=False)
        elif outputs is not None:
            raise ValueError("lm: outputs other than the vocabulary need head 'dense'")

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        taps: dict[str, Tensor] | None = None,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        penalties: dict[str, list[Tensor]] | None = None,
        last: int = 0,
    ) -> Tensor:
        """Logits (B, T, V).

        Args:
            tokens_BT: token ids, T at most ``max_len``.
            taps: filled with named activations, whose ``.grad`` ``backward()`` then keeps.
            positions: (B, T) absolute positions; 0 .. T-1 if omitted.
            segment_ids: (B, T); mixers keep tokens of different segments apart.
            penalties: filled with auxiliary losses; see :func:`total_penalty`.
            last: number of columns at the end whose logits are wanted; 0 for all.

        Raises:
            ValueError: tokens that are not a (B, T) integer tensor, empty, or longer than ``max_len``.
        """
        scope = self._scope(tokens_BT, positions, segment_ids, taps=taps, penalties=penalties)
        hidden_BTD, _ = self._hidden(tokens_BT, None, scope)
        return self._head(hidden_BTD, scope, last)

    def loss_terms(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        segment_ids: Tensor | None = None,
        progress: float | None = None,
        z_weight: float = 0.0,
        penalties: dict[str, list[Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy, and the number of targets that count.

        Args:
            progress: 0 at the start of training, 1 at its end.
            z_weight: weight of the mean :func:`torch_ref.ops.loss.z_loss` among the auxiliary losses.
            penalties: filled with the auxiliary losses of the parts; see :func:`total_penalty`.
        """
        scope = self._scope(tokens_BT, None, segment_ids, progress=progress, penalties=penalties)
        hidden_BTD, _ = self._hidden(tokens_BT, None, scope)
        logits_BTV = self._head(hidden_BTD, scope)
        if z_weight and penalties is not None:
            squares, count = z_loss(logits_BTV, targets_BT)
            penalties["z_loss"] = [z_weight * squares / count.clamp(min=1)]
        return cross_entropy(logits_BTV, targets_BT)

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        segment_ids: Tensor | None = None,
        progress: float | None = None,
        z_weight: float = 0.0,
    ) -> Tensor:
        """Mean cross-entropy over targets other than -100, plus the auxiliary losses."""
        penalties: dict[str, list[Tensor]] = {}
        total, count = self.loss_terms(
            tokens_BT, targets_BT, segment_ids=segment_ids, progress=progress, z_weight=z_weight, penalties=penalties
        )
        return total / count + total_penalty(penalties)

    def init_cache(self, batch: int, max_len: int | None = None, start_B: Tensor | None = None) -> dict[str, Any]:
        """The decoding state before the first column: every layer's mixer state, the column and ``start_B``.

        Args:
            max_len: columns that mixers whose state grows, such as attention, have room for; by default the model's.
            start_B: (B,) column of each row's first token; what is fed before it is padding, and what it gives means
                nothing. So rows of unequal length are aligned at their ends.

        Raises:
            ValueError: ``max_len < 1``, a ``start_B`` that is not ``batch`` integers, or a negative one.
        """
        max_len = self.max_len if max_len is None else max_len
        if max_len < 1:
            raise ValueError(f"max_len of a cache must be at least 1, got {max_len}")
        if start_B is not None and (start_B.shape != (batch,) or start_B.dtype not in _INTEGERS or (start_B < 0).any()):
            raise ValueError(f"start_B must hold a column, 0 or more, for each of {batch} rows, got {start_B}")
        return {"layers": self.init_memories(batch, max_len), "column": 0, "start_B": start_B}

    def extend(
        self, tokens_BT: Tensor, cache: dict[str, Any], *, taps: dict[str, Tensor] | None = None, last: int = 0
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits (B, T, V) of tokens that follow those of ``cache``, and the cache after them.

        Past the last learned position, states of fixed size go on at that position.

        Args:
            cache: from :meth:`init_cache` or an earlier call; it is not changed.
            taps, last: see :meth:`forward`.

        Raises:
            ValueError: tokens as in :meth:`forward`, or more than the cache has room for.
        """
        self._check(tokens_BT)
        (B, T), column, start_B = tokens_BT.shape, cache["column"], cache["start_B"]
        positions_BT = (column + torch.arange(T, device=tokens_BT.device)).expand(B, T)
        if start_B is not None:
            positions_BT = positions_BT - start_B[:, None]
        scope = Scope(positions_BT.clamp(min=0), column=column, start_B=start_B, taps=taps)
        hidden_BTD, layers = self._hidden(tokens_BT, cache["layers"], scope)
        return self._head(hidden_BTD, scope, last), {"layers": layers, "column": column + T, "start_B": start_B}

    def _scope(self, tokens_BT: Tensor, positions: Tensor | None, segments: Tensor | None, **facts: Any) -> Scope:
        """The scope of a whole sequence."""
        self._check(tokens_BT)
        if tokens_BT.shape[1] > self.max_len:
            raise ValueError(
                f"a sequence of {tokens_BT.shape[1]} tokens is longer than max_len {self.max_len}; "
                "shorten it, or train with a larger max_len"
            )
        if positions is None:
            positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand(tokens_BT.shape)
        return Scope(positions, segments, **facts)

    def _hidden(self, tokens_BT: Tensor, memories: list[Any] | None, scope: Scope) -> tuple[Tensor, list[Any] | None]:
        """Inputs of the head, and the mixers' states after the last token."""
        x_BTD = self.embed(tokens_BT, scope.positions_BT)
        return self.through(scope.tap("embed", F.dropout(x_BTD, self.rate, self.training)), memories, scope)

    def _head(self, hidden_BTD: Tensor, scope: Scope, last: int = 0) -> Tensor:
        table_VD = self.embed.tokens if self.head is None else self.head.weight
        return scope.tap("logits", F.linear(hidden_BTD[:, -last:], table_VD))

    @staticmethod
    def _check(tokens_BT: Tensor) -> None:
        if tokens_BT.ndim != 2 or tokens_BT.dtype not in _INTEGERS:
            raise ValueError(
                "tokens must be a (batch, time) tensor of int32 or int64, "
                f"got shape {tuple(tokens_BT.shape)} and dtype {tokens_BT.dtype}"
            )
        if tokens_BT.shape[1] == 0:
            raise ValueError("tokens are empty: at least one token is needed")


def total_penalty(penalties: dict[str, list[Tensor]]) -> Tensor | float:
    """Sum over the names of auxiliary losses of the mean over the calls that gave one."""
    return sum((torch.stack(values).mean() for values in penalties.values()), 0.0)


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
