"""The sums of an objective over a whole split, and the scores that the data derives from them."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from train.config import RunConfig
from train.data.kind import Data
from train.terminal.console import task
from train.update.step import make_eval_step

EvalStep = Callable[[Any, Any], Mapping[str, jax.Array]]


# Enough to keep a device busy. Several devices on one CPU share its threads: once more programs are queued than XLA
# accepts, a waiting dispatch occupies a thread that the first program needs on every device, which is a deadlock.
PENDING = 8


def evaluate(eval_step: EvalStep, params: Params, batches: Iterable[Any]) -> dict[str, float]:
    """The sums that ``eval_step`` returns, over all batches; ``tokens`` among them is the number of targets.

    At most :data:`PENDING` batches are in flight at a time. The sums over batches are taken in float64.

    Raises:
        ConfigError: there is no token to predict.
    """
    pending, found = deque(), []
    for batch in batches:
        if len(pending) == PENDING:
            found.append(jax.device_get(pending.popleft()))
        pending.append(eval_step(params, batch))
    found += jax.device_get(list(pending))
    sums = {name: math.fsum(float(one[name]) for one in found) for name in (found[0] if found else ())}
    if not sums.get("tokens"):
        raise ConfigError("nothing to evaluate: the split holds fewer than two tokens")
    return sums


def evaluate_split(config: RunConfig, params: Params, data: Data, split: str = "validation") -> dict[str, float]:
    """All scores of the whole split, see :meth:`train.data.kind.Data.scores`."""
    return evaluator(config, data, split)(params)


def evaluator(config: RunConfig, data: Data, split: str = "validation") -> Callable[[Params], dict[str, float]]:
    """:func:`evaluate_split` for several parameters of one model, which is compiled once."""
    eval_step, rows = jax.jit(make_eval_step(config)), f"{config.data.batch_size} x {config.data.seq_len} tokens"

    def scores(params: Params) -> dict[str, float]:
        batches = data.evaluation(split)
        with task(f"evaluating {len(batches)} batches of {rows}", len(batches)) as work:
            sums = evaluate(eval_step, params, work.over(batches))
        return data.scores(split, sums, thorough=True)

    return scores
