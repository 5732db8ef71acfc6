"""The contract of an objective: sums over the tokens of a batch, one of which training minimises."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

import jax
import jax.numpy as jnp
import tyro

from mhc_jax.config import Config, ConfigError
from mhc_jax.functional import ParamInfo, Params
from mhc_jax.nn.model import ModelConfig
from mhc_jax.ops.loss import IGNORE
from mhc_jax.registry import required

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TeacherConfig(Config):
    """A trained model that a student is to predict like.

    Attributes:
        path: run directory, exported folder, or local folder of Hugging Face transformers.
        digest: SHA-256 of its parameters, which the run records: a resumed run takes no other teacher.
        model: the model itself, which the run records.
    """

    path: str = ""
    digest: Annotated[str, tyro.conf.Fixed] = ""
    model: Annotated[ModelConfig | None, tyro.conf.Fixed] = None

    @property
    def known(self) -> ModelConfig:
        """The model.

        Raises:
            ConfigError: no run has found it yet.
        """
        if self.model is None:
            raise ConfigError("the teacher is known once a run has begun: python -m train.distill TEACHER NAME")
        return self.model

    def check_begun(self, begun: Self) -> None:
        """Raises ConfigError if a run has recorded ``begun``, and that is another teacher than this one."""
        if begun.digest not in ("", self.digest):
            place = "" if begun.path == self.path else f", {begun.path}"
            raise ConfigError(
                f"the teacher {self.path} (SHA-256 {self.digest[:12]}) is not the one that the run began with{place} "
                f"(SHA-256 {begun.digest[:12]}); give that one, or choose another --run-dir"
            )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Config):
    """A kind of axis ``"objective"``.

    Attributes:
        chunk: tokens of each sequence whose logits exist at once.
    """

    axis = "objective"

    # A trained model whose parameters :meth:`training_sums` takes, for kinds that have one.
    teacher: ClassVar[TeacherConfig | None] = None

    chunk: int = 128

    def validate(self):
        super().validate()
        self.require_counts(1, "chunk")

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError, on a field of the model, unless the model can be trained on it."""

    def check_kernels(self, model: ModelConfig) -> None:
        """Raises ConfigError, on a field of the objective, if it has no such kernel for the model."""

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

    def training_sums(
        self,
        model: ModelConfig,
        params: Params,
        own: Params,
        teacher: Params | None,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
        batch_sharding: jax.sharding.Sharding | None = None,
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """What training sums, for kinds with a teacher or with parameters of their own; others have :meth:`sums` alone.

        Args:
            own: the objective's own parameters, which are trained too.
            teacher: the teacher's, which are not.
        """
        return self.sums(model, params, batch, key=key, progress=progress, batch_sharding=batch_sharding)

    def param_info(self, model: ModelConfig) -> dict[str, ParamInfo]:
        """Descriptions of the objective's own parameters by name; most have none."""
        return {}

    def init(self, model: ModelConfig, key: jax.Array) -> Params:
        """The objective's own parameters before the first step, by the names of :meth:`param_info`."""
        return {}

    def taught(self, model: ModelConfig, teacher: TeacherConfig) -> Self:
        """The record with all that a run must remember of its teacher, whose digest and model are known by now.

        Raises:
            ConfigError: the two models do not go together.
        """
        return self

    def without_teacher(self) -> "ObjectiveConfig":
        """What a student without a teacher minimises."""
        return self

    @staticmethod
    def counted(model: ModelConfig, targets_BT: jax.Array) -> jax.Array:
        """The targets, none at tokens whose outputs do not count."""
        scored_T = model.scored_T(targets_BT.shape[1])
        return targets_BT if scored_T is None else jnp.where(scored_T, targets_BT, IGNORE)

    @property
    def description(self) -> str:
        """What a run says of it at its start; empty for nothing."""
        return ""
