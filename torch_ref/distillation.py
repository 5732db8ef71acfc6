"""Distillation: a student beside a frozen teacher, with the projections of its hidden states."""

from typing import Any

import torch
from torch import Tensor, nn

from torch_ref.config import as_record
from torch_ref.nn.lm import LM
from torch_ref.ops.loss import chunked_distillation, state_distance
from torch_ref.ops.norm import unit_rms_norm


class Distillation(nn.Module):
    """What :func:`torch_ref.train.train_step` takes in the place of a model: the student and its projections.

    Args:
        config: fields temperature, kl, hidden, cross_entropy, hidden_until, kl_from and cross_entropy_from.
        pairs: layers of the student and of the teacher, counted from 0, whose outputs are compared.
    """

    def __init__(self, student: LM, teacher: LM, config: Any, pairs: list[tuple[int, int]]):
        super().__init__()
        self.student, self.config, self.pairs = student, as_record(config), pairs
        self._teacher = (teacher.eval(),)  # not a submodule: it is not trained
        widths = [model.embed.tokens.shape[1] for model in (student, teacher)]
        self.projections = nn.ModuleList(nn.Linear(*widths, bias=False) for _ in pairs)

    def loss_terms(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        segment_ids: Tensor | None = None,
        progress: float | None = None,
        penalties: dict[str, list[Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the three terms over targets, and their number; see :meth:`LM.loss_terms`."""
        taps: tuple[dict[str, Tensor], ...] = ({}, {})
        self.student(tokens_BT, taps=taps[0], segment_ids=segment_ids, penalties=penalties)
        with torch.no_grad():
            self._teacher[0](tokens_BT, taps=taps[1], segment_ids=segment_ids)
        heads = []
        for model, found in zip((self.student, self._teacher[0]), taps):
            heads += [found["hidden"], model.embed.tokens if model.head is None else model.head.weight]
        kl, hidden, entropy = self._weights(1.0 if progress is None else progress)
        ours, table, theirs, aim_table = heads
        total, _, _, count = chunked_distillation(
            ours, table, theirs, aim_table, targets_BT, kl, entropy, temperature=self.config.temperature
        )
        for pair, projection in zip(self.pairs, self.projections):
            state, aim = (self._state(found, layer) for found, layer in zip(taps, pair))
            total = total + hidden * state_distance(projection(state), aim, targets_BT)[0] / len(self.pairs)
        return total, count

    def _weights(self, progress: float) -> tuple[float, float, float]:
        config = self.config
        early = progress < config.hidden_until or config.hidden_until == 1
        return (
            config.kl * (progress >= config.kl_from),
            config.hidden * early,
            config.cross_entropy * (progress >= config.cross_entropy_from),
        )

    @staticmethod
    def _state(taps: dict[str, Tensor], layer: int) -> Tensor:
        """The normalised output (B, T, D) of a layer: of its last site, the mean of the streams if there are some."""
        *_, x = (x for name, x in taps.items() if name.startswith(f"blocks.{layer}.") and name.endswith(".state"))
        x_BTD = x.mean(2) if x.ndim == 4 else x
        return unit_rms_norm(x_BTD, torch.zeros_like(x_BTD[0, 0]))
