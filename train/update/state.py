"""The state of training: everything that changes from one step to the next, but for the data position."""

import dataclasses

import jax
import optax

from mhc_jax.functional import Infos, Params, param_info
from train.config import RunConfig
from train.update.loss_scale import LossScale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree; immutable, so each step returns a new one.

    Attributes:
        step: int32 scalar, optimizer steps taken or skipped so far.
        params: the model's parameters, float32.
        opt_state: the optimizer's.
        skipped: int32 scalar, steps skipped so far because loss, gradient or update was not finite.
        consecutive_skipped: int32 scalar, how many of the latest steps were skipped in a row, not counting overflows
            that a smaller loss scale may mend.
        loss_scale: what keeps the gradients inside the range of float16; None under other policies.
        objective: the objective's own parameters, float32; most objectives have none.
        ema: exponential moving average of ``params``, float32; None under an ``optim.ema`` of 0.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    skipped: jax.Array
    consecutive_skipped: jax.Array
    loss_scale: LossScale | None = None
    objective: Params = dataclasses.field(default_factory=dict)
    ema: Params | None = None

    @property
    def trained(self) -> Params:
        """All that is trained: the model's parameters and, under :data:`OWN`, the objective's."""
        return joined(self.params, self.objective)


# Of the objective's parameters among the model's, where the optimizer takes both.
OWN = "objective"


def joined(params: Params, own: Params) -> Params:
    """The parameters of a model and of an objective as one tree."""
    return params | {OWN: own} if own else params


def parted(trained: Params) -> tuple[Params, Params]:
    """Inverse of :func:`joined`."""
    return {name: tree for name, tree in trained.items() if name != OWN}, trained.get(OWN, {})


def trained_info(config: RunConfig) -> Infos:
    """Descriptions of all that a run trains, by the names of :attr:`TrainState.trained`.

    Raises:
        ConfigError: see :func:`mhc_jax.functional.param_info`, or the objective's teacher is not known yet.
    """
    own = config.objective.param_info(config.model)
    return param_info(config.model) | {f"{OWN}.{name}": info for name, info in own.items()}
