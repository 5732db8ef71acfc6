"""The state of training: everything that changes from one step to the next, but for the data position."""

import dataclasses

import jax
import optax

from mhc_jax.functional import Params
from train.update.loss_scale import LossScale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree; immutable, so each step returns a new one.

    Attributes:
        step: int32 scalar, optimizer steps taken or skipped so far.
        params: the parameters, float32.
        opt_state: the optimizer's.
        skipped: int32 scalar, steps skipped so far because a gradient was not finite.
        consecutive_skipped: int32 scalar, how many of the latest steps were skipped in a row, not counting overflows
            that a smaller loss scale may mend.
        loss_scale: what keeps the gradients inside the range of float16; None under other policies.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    skipped: jax.Array
    consecutive_skipped: jax.Array
    loss_scale: LossScale | None = None
