"""TransformerScan: a reader of chunks behind prefixes, which an aggregator merges from the chunks before."""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.config import one_of, register
from torch_ref.nn.backbone import Backbone
from torch_ref.nn.layers import linear
from torch_ref.nn.lm import Embed, total_penalty
from torch_ref.nn.scope import Scope
from torch_ref.ops.loss import cross_entropy
from torch_ref.ops.prefix_scan import Counter, prefixes


@register("model", "transformer_scan")
class TransformerScan(nn.Module):
    """Parameters live under ``embed``, ``aggregator``, ``reader``; ``sides``, ``prefix``, ``head`` where they exist."""

    def __init__(self, config: Any):
        super().__init__()
        for name in ("vocab_size", "max_len", "chunk"):
            if (getattr(config, name) or 0) < 1:
                raise ValueError(f"transformer_scan: {name} must be at least 1, got {getattr(config, name)}")
        if config.aggregator.width != config.reader.width:
            raise ValueError("transformer_scan: aggregator and reader must have one width")
        self.config, width = config, config.reader.width
        one_of("boundary", config.boundary, ("prefix", "token", "unscored"))
        local = one_of("positions", config.positions, ("local", "absolute", "legacy_mixed")) == "local"
        legacy = one_of("init", config.init, ("gpt2", "legacy")) == "legacy"
        std = 1.0 if legacy else 0.02
        self.embed = Embed(config.vocab_size, config.chunk if local else config.max_len, width, std)
        self.sides = nn.ParameterDict({"table": 0.02 * torch.randn(2, width)}) if config.side_embedding else None
        self.prefix = nn.ParameterDict({"table": std * torch.randn(1, width)}) if config.prefix_embedding else None
        self.aggregator, self.reader = Backbone(config.aggregator), Backbone(config.reader)
        self.head = None
        if one_of("head", config.head, ("tied", "dense")) == "dense":
            self.head = linear(width, config.outputs or config.vocab_size, std, bias=False)
            if legacy:
                nn.init.uniform_(self.head.weight, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        taps: dict[str, Tensor] | None = None,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        penalties: dict[str, list[Tensor]] | None = None,
    ) -> Tensor:
        """Logits (B, T, V); see :meth:`torch_ref.LM.forward`.

        Raises:
            ValueError: more tokens than ``max_len``, or segments, which chunks do not keep apart.
        """
        (B, T), C, longest = tokens_BT.shape, self.config.chunk, self.config.max_len
        if longest < T:
            raise ValueError(f"a sequence of {T} tokens is longer than max_len {longest}")
        if segment_ids is not None:
            raise ValueError("transformer_scan: chunks are cut from the start of a row, whose segments they mix")
        if positions is None:
            positions = torch.arange(T).expand(B, T)
        scope = Scope(positions, taps=taps, penalties=penalties)
        x_BTD, leaves_BTD = self._embedded(tokens_BT, positions, torch.arange(T) % C, scope)

        after = self.config.boundary == "prefix"
        rows = T // C + 1 if after else math.ceil(T / C)
        fronts = [torch.zeros_like(x_BTD[:, :1]).expand(B, C, -1)]
        of_merges: dict[str, list[Tensor]] = {}
        if rows > 1:
            # One row after another: elements of the scan are chunks, of all texts.
            leaves = leaves_BTD[:, : (rows - 1) * C].unflatten(1, (rows - 1, C)).transpose(0, 1)
            merge = functools.partial(self._merged_in_all_texts, penalties=of_merges)
            fronts += prefixes(merge, leaves, form=self.config.scan).unbind(0)
        prefixes_BRCD = scope.tap("prefixes", torch.stack(fronts, 1))
        chunks_BRCD = F.pad(x_BTD, (0, 0, 0, rows * C - T)).unflatten(1, (rows, C))

        z_PTD = torch.cat([self._as_prefix(prefixes_BRCD), chunks_BRCD], 2).flatten(0, 1)
        has_prefix_P = torch.arange(rows).repeat(B) > 0
        shown_PT = torch.cat([has_prefix_P[:, None].expand(-1, C), torch.ones(B * rows, C, dtype=torch.bool)], 1)
        of_rows: dict[str, list[Tensor]] = {}
        reading = Scope(torch.arange(2 * C).expand(B * rows, -1), shown_PT.long(), taps=taps, penalties=of_rows)
        y_PTD, _ = self.reader.through(z_PTD, None, reading / "reader")
        # Of one name the two networks weigh the same, however many calls they have.
        for name, found in [*of_merges.items(), *of_rows.items()]:
            scope.penalise(name, torch.stack(found).mean())
        y_BRTD = self._dropped(y_PTD).unflatten(0, (B, rows))
        if after:
            y_BTD = y_BRTD[:, :, C - 1 : 2 * C - 1].flatten(1, 2)[:, 1 : T + 1]
        else:
            y_BTD = y_BRTD[:, :, C:].flatten(1, 2)[:, :T]
        return self._logits(y_BTD, scope)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy over targets other than -100, and of tokens that count, and the auxiliary losses."""
        if self.config.boundary == "unscored":
            last_T = torch.arange(1, tokens_BT.shape[1] + 1) % self.config.chunk == 0
            targets_BT = targets_BT.masked_fill(last_T, -100)
        penalties: dict[str, list[Tensor]] = {}
        total, count = cross_entropy(self(tokens_BT, penalties=penalties), targets_BT)
        return total / count + total_penalty(penalties)

    def init_cache(self, batch: int, max_len: int | None = None, start_B: Tensor | None = None) -> dict[str, Any]:
        """The decoding state before the first column; see :meth:`torch_ref.LM.init_cache`.

        Every row has its counter, the embeddings of its unfinished chunk, the reader's states, and its tokens so far.

        Raises:
            ValueError: a legacy scan, which cannot be extended.
        """
        if self.config.scan.startswith("legacy"):
            raise ValueError(f"a text under scan {self.config.scan!r} cannot be extended")
        rows = [(Counter(), [], self.reader.init_memories(1, 2 * self.config.chunk), 0) for _ in range(batch)]
        return {"rows": rows, "column": 0, "start_B": start_B}

    def extend(
        self, tokens_BT: Tensor, cache: dict[str, Any], *, taps: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits (B, T, V) of tokens that follow those of ``cache``, and the cache after them; zeros in padding."""
        (B, T), column, start_B = tokens_BT.shape, cache["column"], cache["start_B"]
        skipped = [0] * B if start_B is None else (start_B - column).clamp(min=0).tolist()
        hidden, rows = [], []
        for tokens_T, row, skip in zip(tokens_BT, cache["rows"], skipped):
            found = [torch.zeros_like(self.embed.tokens[0])] * min(skip, T)
            for token in tokens_T[skip:].split(1):
                y_D, row = self._step(token, row)
                found.append(y_D)
            hidden.append(torch.stack(found))
            rows.append(row)
        logits_BTV = self._logits(torch.stack(hidden), Scope(tokens_BT, taps=taps))
        return logits_BTV, {"rows": rows, "column": column + T, "start_B": start_B}

    def _step(self, token_1: Tensor, row: tuple[Counter, list[Tensor], list[Any], int]) -> tuple[Tensor, Any]:
        (counter, chunk, memories, count), C = row, self.config.chunk
        place = torch.full((1, 1), count % C)
        x_11D, leaf_11D = self._embedded(token_1[None], torch.full((1, 1), count), place, Scope(place))
        # The first chunk's tokens stand where they would behind a prefix, but in the first columns of the cache.
        column = len(chunk) if counter.prefix is None else C + len(chunk)
        y_11D, memories = self.reader.through(x_11D, memories, Scope(C + place, column=column))
        chunk = [*chunk, leaf_11D]
        if len(chunk) == C:
            counter, chunk = counter.push(self._merged, torch.cat(chunk, 1)), []
            fresh, positions = self.reader.init_memories(1, 2 * C), torch.arange(C)[None]
            y_1CD, memories = self.reader.through(self._as_prefix(counter.prefix), fresh, Scope(positions))
            if self.config.boundary == "prefix":
                y_11D = y_1CD[:, -1:]
        return y_11D[0, 0], (counter, chunk, memories, count + 1)

    def _embedded(self, tokens_BT: Tensor, positions_BT: Tensor, place_BT: Tensor, scope: Scope) -> list[Tensor]:
        """What is read, and what is aggregated."""

        def embed(positions: Tensor) -> Tensor:
            x_BTD = self.embed(tokens_BT, positions.expand(tokens_BT.shape))
            return F.dropout(x_BTD, self.config.dropout, self.training)

        kind = self.config.positions
        x_BTD = scope.tap("embed", embed(place_BT if kind == "local" else positions_BT))
        return [x_BTD, embed(place_BT) if kind == "legacy_mixed" else x_BTD]

    def _as_prefix(self, summary: Tensor) -> Tensor:
        return summary if self.prefix is None else summary + self.prefix["table"]

    def _merged(self, older_BCD: Tensor, newer_BCD: Tensor, penalties: dict[str, list[Tensor]] | None = None) -> Tensor:
        if self.sides is not None:
            left_D, right_D = self.sides["table"]
            older_BCD, newer_BCD = older_BCD + left_D, newer_BCD + right_D
        z_BTD = torch.cat([older_BCD, newer_BCD], 1)
        scope = Scope(torch.arange(z_BTD.shape[1]).expand(z_BTD.shape[:2]), penalties=penalties)
        return self._dropped(self.aggregator.through(z_BTD, None, scope)[0])[:, self.config.chunk :]

    def _merged_in_all_texts(
        self, older_1BCD: Tensor, newer_1BCD: Tensor, penalties: dict[str, list[Tensor]]
    ) -> Tensor:
        """The counter's elements come one by one, so that every merge leaves its own penalties."""
        return self._merged(older_1BCD[0], newer_1BCD[0], penalties)[None]

    def _dropped(self, y_BTD: Tensor) -> Tensor:
        return F.dropout(y_BTD, self.config.output_dropout, self.training)

    def _logits(self, hidden_BTD: Tensor, scope: Scope) -> Tensor:
        table_VD = self.embed.tokens if self.head is None else self.head.weight
        return scope.tap("logits", F.linear(scope.tap("hidden", hidden_BTD), table_VD))
