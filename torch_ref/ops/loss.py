"""Next-token cross-entropy as (sum, count)."""

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor, *, ignore: int = IGNORE) -> tuple[Tensor, Tensor]:
    """Summed negative log likelihood in nats, and the number of targets that count.

    The mean, ``sum / count``, is NaN when every target is ignored.
    """
    total = F.cross_entropy(logits_BTV.flatten(0, -2), targets_BT.flatten(), ignore_index=ignore, reduction="sum")
    return total, (targets_BT != ignore).sum()
