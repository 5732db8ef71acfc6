"""Losses as (sum, count): next-token cross-entropy, z-loss and distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor, *, ignore: int = IGNORE) -> tuple[Tensor, Tensor]:
    """Summed negative log likelihood in nats, and the number of targets that count.

    The mean, ``sum / count``, is NaN when every target is ignored.
    """
    total = F.cross_entropy(logits_BTV.flatten(0, -2), targets_BT.flatten(), ignore_index=ignore, reduction="sum")
    return total, (targets_BT != ignore).sum()


def z_loss(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Summed squared logarithm of the softmax's denominator where a target counts, and the number of such places."""
    counts = targets_BT != IGNORE
    return logits_BTV[counts].logsumexp(-1).square().sum(), counts.sum()


def prefix_cross_entropy(prefixes_BNCD: Tensor, head_VCD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`cross_entropy` of the last target before every chunk but the first, by a linear map of its prefix."""
    prefixes_BNF, head_VF = prefixes_BNCD[:, 1:].flatten(2), head_VCD.flatten(1)
    chunk = head_VCD.shape[1]
    last_BN = targets_BT.unfold(1, chunk, chunk)[:, : prefixes_BNF.shape[1], -1]
    return cross_entropy(F.linear(prefixes_BNF, head_VF), last_BN)


def kl_divergence(
    teacher_BTV: Tensor, logits_BTV: Tensor, targets_BT: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Summed ``temperature^2 KL(teacher || student)`` in nats where a target counts, and the number of such places."""
    counts = targets_BT != IGNORE
    log_p, log_q = (F.log_softmax(x[counts] / temperature, dim=-1) for x in (teacher_BTV, logits_BTV))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True), counts.sum()


def chunked_distillation(
    hidden_BTD: Tensor,
    head_VD: Tensor,
    teacher_BTE: Tensor,
    teacher_head_VE: Tensor,
    targets_BT: Tensor,
    kl_weight: Tensor | float,
    entropy_weight: Tensor | float,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted sum of divergence and cross-entropy; each of them, detached; the number of targets. All at once here.

    The teacher and the weights are constants of differentiation.
    """
    logits_BTV = hidden_BTD @ head_VD.T
    teacher_BTV = (teacher_BTE @ teacher_head_VE.T).detach()
    kl, count = kl_divergence(teacher_BTV, logits_BTV, targets_BT, temperature=temperature)
    entropy, _ = cross_entropy(logits_BTV, targets_BT)
    weights = (torch.as_tensor(x, dtype=kl.dtype).detach() for x in (kl_weight, entropy_weight))
    total = sum(weight * part for weight, part in zip(weights, (kl, entropy), strict=True))
    return total, kl.detach(), entropy.detach(), count


def state_distance(states_BTD: Tensor, goals_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Summed mean squares of differences where a target counts, and the number of such places."""
    counts = targets_BT != IGNORE
    return (states_BTD - goals_BTD).square().mean(-1)[counts].sum(), counts.sum()


def published_distillation(
    logits_BTV: Tensor,
    teacher_BTV: Tensor,
    states_LBTD: Tensor,
    goals_LBTD: Tensor,
    targets_BT: Tensor,
    *,
    temperature: float = 2.0,
    weights: tuple[float, float, float] = (1.0, 0.5, 0.1),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of SHC's published distillation, and its divergence, distance and entropy.

    The divergence is a sum over all places divided by the sequences; the distance is a mean over all places.
    """
    log_q = F.log_softmax(logits_BTV / temperature, dim=-1)
    p = F.softmax(teacher_BTV / temperature, dim=-1)
    divergence = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    distance = F.mse_loss(states_LBTD, goals_LBTD)
    entropy = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE)
    total = weights[0] * divergence + weights[1] * distance + weights[2] * entropy
    return total, divergence, distance, entropy
