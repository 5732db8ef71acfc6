"""Training: AdamW or Muon and their schedule, one optimizer step, compilation.

``config`` arguments take a ``train`` optimizer record (read by its attributes) or its JSON dict. The
original's settings are ``decay="all"``, ``schedule="constant"``, ``warmup_steps=0``.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from torch_ref.config import as_record, one_of
from torch_ref.distillation import Distillation
from torch_ref.muon import Muon, Together, hidden_matrices
from torch_ref.nn.lm import LM, total_penalty
from torch_ref.ops.loss import IGNORE

# Matrices of dynamic topologies, which map the streams to coefficients, and the logits of a linear mHC layer.
_MAPS = ("phi", "dynamic_alpha_fn", "dynamic_beta_fn", "alpha_fn", "beta_fn", "down", "up", "inject", "logits")


def decayed(model: nn.Module, decay: str) -> set[str]:
    """Names of the parameters that weight decay acts on.

    Args:
        decay: ``"kernels"`` for the weights of linear layers and what else a module lists as its ``kernels``,
            ``"matrices"`` also for those from which dynamic topologies compute their coefficients, ``"all"`` for every
            parameter.
    """
    names = {name for name, _ in model.named_parameters()}
    if one_of("decay", decay, ("kernels", "matrices", "all")) == "all":
        return names
    chosen = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, module in model.named_modules():
        chosen |= {f"{name}.{kernel}" for kernel in getattr(module, "kernels", ())}
    if decay == "matrices":
        chosen |= {name for name in names if name.rpartition(".")[2] in _MAPS}
    return chosen


def make_optimizer(model: nn.Module, config: Any) -> torch.optim.AdamW | Together:
    """AdamW with decoupled weight decay on :func:`decayed` parameters; each group has its ``"lr_scale"``.

    ``name="muon"`` gives :func:`torch_ref.muon.hidden_matrices` to Muon.

    Args:
        config: fields lr, value_lr, residual_lr, beta1, beta2, eps, weight_decay, decay; name, and for Muon also
            muon_lr, muon_weight_decay, muon_momentum, muon_scale.
    """
    config = as_record(config)
    if one_of("name", getattr(config, "name", "adamw"), ("adamw", "muon")) == "adamw":
        return _adamw(model, config, frozenset())
    names, rate = hidden_matrices(model), config.muon_lr or config.lr
    group = {"params": [x for name, x in model.named_parameters() if name in names], "lr_scale": rate / config.lr}
    options = {"momentum": config.muon_momentum, "weight_decay": config.muon_weight_decay, "scale": config.muon_scale}
    return Together(Muon([group], lr=rate, **options), _adamw(model, config, names))


def _adamw(model: nn.Module, config: Any, without: Collection[str]) -> torch.optim.AdamW:
    chosen = decayed(model, config.decay)
    value_lr, residual_lr = config.value_lr or config.lr, config.residual_lr or config.lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in without:
            continue
        decay = config.weight_decay if name in chosen else 0.0
        rate = value_lr if name.endswith(".lambdas") else residual_lr if ".residual." in name else config.lr
        scale = rate / config.lr
        groups.setdefault((decay, scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": found, "weight_decay": decay, "lr": config.lr * scale, "lr_scale": scale}
            for (decay, scale), found in groups.items()
        ],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def learning_rate(config: Any, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step ``step``, counted from 0.

    Linear warm-up, ``lr * (step + 1) / warmup_steps`` (``warmup_end="after"`` divides by one more, ``"after_zero"``
    takes ``step / warmup_steps``); then constant, or a decay that ends after ``decay_steps`` steps (0:
    ``total_steps``): a cosine from ``lr`` to ``final_lr * lr``, or a cosine or a line to 0 that stays at
    ``final_lr * lr`` below that. ``"wsd"`` is constant but for the last ``decay_fraction`` of these steps, in which
    the rate falls to ``final_lr * lr`` by ``decay_shape``.

    Args:
        config: fields lr, schedule, warmup_steps, warmup_end, decay_steps, final_lr; for ``"wsd"`` also decay_fraction,
            decay_shape.
    """
    config = as_record(config)
    one_of("schedule", config.schedule, ("constant", "cosine", "cosine_floored", "linear_floored", "wsd"))
    end = one_of("warmup_end", getattr(config, "warmup_end", "last"), ("last", "after", "after_zero"))
    if step < config.warmup_steps:
        done, steps = step if end == "after_zero" else step + 1, config.warmup_steps + (end == "after")
        return config.lr * done / steps
    if config.schedule == "constant":
        return config.lr
    end = config.decay_steps or total_steps
    if config.schedule == "wsd":
        return config.lr * _stable_then_decayed(config, step, end)
    progress = min(1.0, (step - config.warmup_steps) / max(1, end - config.warmup_steps))
    cosine = (1 + math.cos(math.pi * progress)) / 2
    if config.schedule == "cosine":
        return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)
    return config.lr * max(config.final_lr, cosine if config.schedule == "cosine_floored" else 1 - progress)


def _stable_then_decayed(config: Any, step: int, end: int) -> float:
    """Share of the peak rate after the warm-up of a schedule of ``end`` steps."""
    begin = max(end - round(config.decay_fraction * end), config.warmup_steps)
    if step < begin:
        return 1.0
    if step >= end:
        return config.final_lr
    done = (step - begin) / (end - begin)
    shape = one_of("decay_shape", config.decay_shape, ("1-sqrt", "linear", "cosine"))
    cosine = (1 + math.cos(math.pi * done)) / 2
    left = cosine if shape == "cosine" else 1 - (done if shape == "linear" else math.sqrt(done))
    return config.final_lr + (1 - config.final_lr) * left


def train_step(
    model: LM | Distillation,  # pyright: ignore[reportGeneralTypeIssues]
    optimizer: torch.optim.Optimizer | Together,
    tokens_BT: Tensor,
    targets_BT: Tensor,
    *,
    lr: float | None = None,
    clip: float = 0.0,
    accumulate: int = 1,
    segment_ids: Tensor | None = None,
    progress: float | None = None,
    z_weight: float = 0.0,
) -> Tensor:
    """One optimizer step; returns the loss before it, without auxiliary losses.

    Args:
        tokens_BT, targets_BT: the whole batch; targets of -100 do not count.
        lr: learning rate of this step; the optimizer's own if omitted.
        clip: largest global gradient norm (scaled by ``clip / (norm + 1e-6)``); 0 for no clipping.
        accumulate: micro-batches that the batch is cut into, weighted by their number of targets.
        progress: 0 at the start of training, 1 at its end.
        z_weight: of the z-loss, see :meth:`torch_ref.nn.lm.LM.loss_terms`.

    Raises:
        ValueError: a batch that ``accumulate`` does not divide.
    """
    if len(tokens_BT) % accumulate:
        raise ValueError(f"a batch of {len(tokens_BT)} is not a multiple of accumulate {accumulate}")
    if lr is not None:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
    optimizer.zero_grad()
    targets = (targets_BT != IGNORE).sum()
    options = {"progress": progress} | ({"z_weight": z_weight} if z_weight else {})
    segments = [None] * accumulate if segment_ids is None else segment_ids.chunk(accumulate)
    loss = torch.zeros((), dtype=next(model.parameters()).dtype, device=tokens_BT.device)
    for tokens, labels, ids in zip(tokens_BT.chunk(accumulate), targets_BT.chunk(accumulate), segments, strict=True):
        penalties: dict[str, list[Tensor]] = {}
        total, count = model.loss_terms(tokens, labels, segment_ids=ids, penalties=penalties, **options)
        part = total / targets
        (part + count * total_penalty(penalties) / targets).backward()
        loss += part.detach()
    if clip > 0:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss


def compile_model(model: LM, **options: Any) -> LM:
    """The same module with ``forward`` and ``loss_terms`` through ``torch.compile``; its state dict is unchanged."""
    model.forward = torch.compile(model.forward, **options)
    model.loss_terms = torch.compile(model.loss_terms, **options)
    return model
