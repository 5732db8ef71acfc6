"""Loss, perplexity and bits per byte of a model over a whole split.

Definitions. The split is cut into windows of ``data.seq_len`` tokens that do not overlap; every
token after the first of the split is predicted once, from the tokens before it in its window (the
state is empty at the start of a window). ``loss`` is the mean negative log likelihood of these
tokens in nats, each token weighted equally; ``ppl = exp(loss)``; ``bpb`` is the same likelihood in
bits, per UTF-8 byte of the text that the tokens stand for.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from mhc_jax.config import ConfigError

EvalStep = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


def evaluate(eval_step: EvalStep, params: Any, batches: Iterable[Any]) -> tuple[float, int]:
    """Summed negative log likelihood (nats) and number of predicted tokens over all batches.

    The device is not waited for between batches, and the sums over batches are taken in float64.

    Raises:
        ConfigError: there is no token to predict.
    """
    sums = jax.device_get([eval_step(params, batch) for batch in batches])
    count = int(sum(float(count) for _, count in sums))
    if count == 0:
        raise ConfigError("nothing to evaluate: the split holds fewer than two tokens")
    return math.fsum(float(loss) for loss, _ in sums), count


def summarise(loss_sum: float, count: int, bytes_per_token: float) -> dict[str, float]:
    """``loss``, ``ppl``, ``bpb`` and ``tokens`` from the sums of :func:`evaluate`.

    Args:
        loss_sum: in nats.
        count: predicted tokens.
        bytes_per_token: UTF-8 bytes of the split's text over the number of its tokens.
    """
    loss = loss_sum / count
    ppl = math.exp(loss) if loss < 700 else math.inf  # exp overflows float64 at 709
    return {"loss": loss, "ppl": ppl, "bpb": loss / math.log(2) / bytes_per_token, "tokens": count}
