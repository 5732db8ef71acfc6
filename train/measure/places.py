"""Errors and losses of a trained model at every place of fresh rows, and so at every length up to theirs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, param_shapes
from mhc_jax.nn.model import ModelConfig
from mhc_jax.ops.loss import IGNORE, cross_entropy
from train.config import RunConfig
from train.terminal.console import task

# No split of a run's own: nothing of it was trained on, and no checkpoint was chosen by it.
SPLIT = "test"


def keeps_parameters(model: ModelConfig, length: int) -> bool:
    """Whether the model can take rows of that length with the parameters that it has."""
    return model.max_len >= length or param_shapes(model) == param_shapes(model.replace(max_len=length))


def by_place(run: RunConfig, params: Params, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The shares of wrong answers and the mean losses, in nats, (T,) each, on rows of ``length`` of the test split.

    A token's output depends on no later token, so the first l places are those of rows of length l.

    Raises:
        ConfigError: the model's parameters allow no rows of that length, as a table of learned positions.
    """
    if not keeps_parameters(run.model, length):
        raise ConfigError(f"{run.name} has parameters for {run.model.max_len} places and none for {length}")
    model = run.model.replace(max_len=max(run.model.max_len, length))
    batches = run.data.replace(seq_len=length).load((SPLIT,)).evaluation(SPLIT)
    with task(f"answering {len(batches)} batches of {run.data.batch_size} x {length} tokens", len(batches)) as work:
        found = [jax.device_get(_sums(model, params, x["inputs"], x["targets"])) for x in work.over(batches)]
    wrong_T, loss_T, count_T = np.array(found, np.float64).sum(axis=0)
    return wrong_T / count_T, loss_T / count_T


@functools.partial(jax.jit, static_argnums=0)
def _sums(model: ModelConfig, params: Params, inputs_BT: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """(3, T) wrong answers, losses, targets."""
    logits_BTV = mhc_jax.apply(model, params, inputs_BT).logits_BTV
    loss_T, count_T = jax.vmap(cross_entropy, in_axes=1)(logits_BTV, targets_BT)
    right_BT = (jnp.argmax(logits_BTV, axis=-1) == targets_BT) & jnp.isfinite(logits_BTV).all(axis=-1)
    wrong_T = jnp.sum((targets_BT != IGNORE) & ~right_BT, axis=0, dtype=loss_T.dtype)
    return jnp.stack([wrong_T, loss_T, count_T])
