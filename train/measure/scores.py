"""Loss, perplexity and bits per byte of a model over a whole split.

Definitions. The split is cut into windows of ``data.seq_len`` targets that do not overlap (a rest
shorter than a window is dropped); every target is predicted once, from the tokens before it in its
window, whose state starts empty. ``loss`` is the mean negative log likelihood of all targets in
nats, each weighted equally; ``ppl = exp(loss)``; ``bpb`` is the loss in bits per UTF-8 byte of text,
``loss / ln 2`` times the split's tokens over its bytes. An end token is predicted like any other
and stands for no byte. ``word_ppl``, for WikiText, is ``exp`` of the loss per word.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import numpy as np

from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from train.config import RunConfig
from train.data import Corpus, Tokenizer, eval_batches, eval_count
from train.terminal.console import task
from train.update.step import make_eval_step

EvalStep = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


# Enough to keep a device busy. Several devices on one CPU share its threads: a dispatch that waits behind more programs
# than XLA holds takes a thread that the program at the front needs on every device, and none ends.
PENDING = 8


def evaluate(eval_step: EvalStep, params: Params, batches: Iterable[Any]) -> tuple[float, int]:
    """Summed negative log likelihood (nats) and number of predicted tokens over all batches.

    At most :data:`PENDING` batches are on their way at a time. The sums over batches are taken in float64.

    Raises:
        ConfigError: there is no token to predict.
    """
    pending, sums = deque(), []
    for batch in batches:
        if len(pending) == PENDING:
            sums.append(jax.device_get(pending.popleft()))
        pending.append(eval_step(params, batch))
    sums += jax.device_get(list(pending))
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
    return {"loss": loss, "ppl": _exp(loss), "bpb": loss / math.log(2) / bytes_per_token, "tokens": count}


def evaluate_split(config: RunConfig, params: Params, tokens: np.ndarray, n_bytes: int) -> dict[str, float]:
    """:func:`summarise` for the whole split ``tokens``, which stand for ``n_bytes`` bytes of text."""
    eval_step = jax.jit(make_eval_step(config))
    batches, count = eval_batches(tokens, config.data), eval_count(tokens, config.data)
    with task(f"evaluating {count} batches of {config.data.batch_size} x {config.data.seq_len} tokens", count) as work:
        loss_sum, count = evaluate(eval_step, params, work.over(batches))
    return summarise(loss_sum, count, n_bytes / len(tokens))


def split_of(corpus: Corpus, name: Literal["validation", "test"]) -> tuple[np.ndarray, int]:
    """Tokens and bytes of one split.

    Raises:
        ConfigError: the corpus has no such split.
    """
    if name == "test" and corpus.test is None:
        raise ConfigError("this corpus has no test split; evaluate its validation split")
    return getattr(corpus, name), getattr(corpus, f"{name}_bytes")


def word_ppl(loss: float, tokens: np.ndarray, tokenizer: Tokenizer) -> float:
    """Perplexity per word, as WikiText counts: whitespace-separated words, and one end mark per row.

    Args:
        loss: mean nats per token.
        tokens: the split that it was measured on.
    """
    (ends,) = np.nonzero(np.asarray(tokens) == tokenizer.eos_id)
    rows = np.split(np.asarray(tokens), ends + 1)  # a word ends with its row, whether a line end follows or not
    words = sum(len(tokenizer.decode(row[row != tokenizer.eos_id].tolist()).split()) for row in rows) + len(ends)
    return _exp(loss * len(tokens) / words)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf  # exp overflows float64 at 709
