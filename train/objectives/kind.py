"""The contract of an objective: sums over the tokens of a batch, one of which training minimises."""

import dataclasses
from collections.abc import Mapping

import jax

from mhc_jax.config import Config
from mhc_jax.functional import Params
from mhc_jax.nn.model import ModelConfig
from mhc_jax.registry import required

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Config):
    """A kind of axis ``"objective"``.

    Attributes:
        chunk: tokens of each sequence whose logits exist at once.
    """

    axis = "objective"

    chunk: int = 128

    def validate(self):
        super().validate()
        self.require_counts(1, "chunk")

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError, on a field of the model, unless the model can be trained on it."""

    @required
    def sums(
        self,
        model: ModelConfig,
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
        batch_sharding: jax.sharding.Sharding | None = None,
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """Sums over a batch, and the model's auxiliary losses.

        Args:
            batch: arrays as described by :meth:`train.data.kind.DataConfig.arrays`.
            key: randomness of training; None for evaluation.
            progress: training progress from 0 to 1; None, as in evaluation, counts as 1.
            batch_sharding: see :func:`mhc_jax.apply`.

        Returns:
            ``{"loss": ..., "tokens": ..., ...}``: the mean of ``loss`` over ``tokens`` is minimised, and runs are
            compared by it; the means of further sums are reported. Then auxiliary losses by name, weighted, to be added
            to that mean.
        """
