"""The configuration of a training run, which ``python -m train NAME --flags`` resolves to."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from mhc_jax.config import Config, ConfigError, FieldError, UnknownKindError, read_json, within
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.model import ModelConfig
from train.data.config import CorpusConfig
from train.data.kind import DataConfig
from train.objectives import distillation, prefixes  # noqa: F401  registers the kinds
from train.objectives.cross_entropy import CrossEntropyConfig
from train.objectives.kind import ObjectiveConfig
from train.terminal.flags import ELSEWHERE

# Of float32, in which everything is trained, and what rounds to 1 in it.
SMALLEST, ONE = 1.2e-38, 1 - 2**-25


@dataclasses.dataclass(frozen=True)
class OptimConfig(Config):
    """AdamW or Muon, their schedule and their weight decay, and an average of the parameters.

    Attributes:
        name: ``"adamw"`` for all, or ``"muon"`` for the matrices of hidden layers and AdamW for all else.
        lr: peak learning rate.
        beta1, beta2, eps: decay rates of Adam's moments, and the constant in its denominator.
        weight_decay: coefficient of the decoupled weight decay.
        decay: ``"matrices"`` decays dense kernels and the matrices of dynamic topologies; ``"kernels"`` only dense
            kernels, as nanoGPT does; ``"all"`` also embeddings, gains, biases, poles and mixing logits, as the
            original mHC-SSM does.
        clip: largest global gradient norm, enforced by a factor of ``clip / (norm + 1e-6)`` as in PyTorch; 0 for none.
        schedule: after a linear warm-up, ``"cosine"`` decays to ``final_lr * lr``; ``"cosine_floored"`` and
            ``"linear_floored"`` decay to 0, but stop at ``final_lr * lr``, as in RLM-mHC; ``"constant"`` stays;
            ``"wsd"`` (warm-up, stable, decay: MiniCPM, arXiv 2404.06395) stays, and decays to ``final_lr * lr`` at the
            end alone.
        warmup_steps: optimizer steps of linear warm-up.
        warmup_end: the first step with the full rate: the ``"last"`` of the warm-up; the one ``"after"`` it, as in
            nanoGPT; or ``"after_zero"``, the same with a first step at rate 0, as in RLM-mHC.
        decay_steps: optimizer steps until the end of the decay, including the warm-up; 0 for the whole run.
        decay_fraction: share of these steps over which ``"wsd"`` decays.
        decay_shape: what is left of the rate after a share ``p`` of that decay: ``"1-sqrt"`` (arXiv 2405.18392) for
            ``1 - sqrt(p)``, ``"linear"`` for ``1 - p``, ``"cosine"`` for half a cosine.
        final_lr: fraction of ``lr`` at the end of the decay.
        value_lr: peak learning rate of the value-residual weights, scheduled like ``lr``; 0 for ``lr`` itself.
        residual_lr: the same for all parameters that read, mix and write residual streams.
        ema: share of an exponential moving average of the parameters that a step keeps; 0 for no average.
        muon_lr, muon_weight_decay: those of Muon's matrices, scheduled like ``lr``; a rate of 0 for ``lr`` itself.
        muon_momentum: decay rate of its momentum, which is Nesterov's.
        muon_scale: factor of an orthogonalised matrix: ``"match_rms_adamw"`` (arXiv 2502.16982), ``0.2 sqrt(max(inputs,
            outputs))``, suits a rate of AdamW's; ``"original"`` is ``sqrt(max(1, outputs / inputs))``, for rates about
            0.02. The names are PyTorch's.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Literal["matrices", "kernels", "all"] = "matrices"
    clip: float = 1.0
    schedule: Literal["cosine", "cosine_floored", "linear_floored", "constant", "wsd"] = "cosine"
    warmup_steps: int = 100
    warmup_end: Literal["last", "after", "after_zero"] = "last"
    decay_steps: int = 0
    decay_fraction: float = 0.2
    decay_shape: Literal["1-sqrt", "linear", "cosine"] = "1-sqrt"
    final_lr: float = 0.1
    value_lr: float = 0.0
    residual_lr: float = 0.0
    ema: float = 0.0
    muon_lr: float = 0.0
    muon_weight_decay: float = 0.1
    muon_momentum: float = 0.95
    muon_scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"

    def validate(self):
        super().validate()
        self.require(self.lr > 0, f"lr must be positive, got {self.lr}")
        self.require(self.lr >= SMALLEST, f"lr must be at least {SMALLEST}, or it is 0 in float32; got {self.lr}")
        for name in ("beta1", "beta2", "muon_momentum", "ema"):
            self.require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), got {getattr(self, name)}")
            self.require(getattr(self, name) < ONE, f"{name} is 1 in float32; got {getattr(self, name)}")
        self.require(self.eps >= SMALLEST, f"eps must be at least {SMALLEST}, or it is 0 in float32; got {self.eps}")
        self.require_counts(0, "warmup_steps", "decay_steps")
        self.require_not_negative("weight_decay", "muon_weight_decay", "clip", "value_lr", "residual_lr", "muon_lr")
        self.require(0 < self.decay_fraction <= 1, f"decay_fraction must lie in (0, 1], got {self.decay_fraction}")
        self.require(0 <= self.final_lr <= 1, f"final_lr must lie in [0, 1], got {self.final_lr}")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config):
    """Length, evaluation and seed of training.

    Attributes:
        epochs: passes over the training windows; ignored if ``steps`` is given.
        steps: number of optimizer steps; 0 to follow ``epochs``.
        accumulate: micro-batches per optimizer step, weighted by their number of targets.
        eval_every: optimizer steps between evaluations; 0 to evaluate only at the end.
        eval_batches: batches per evaluation when choosing the best checkpoint; 0 for the whole validation split, on
            which the final model is always evaluated.
        max_nonfinite: number of consecutive steps with a NaN or Inf gradient, which are skipped, before training stops;
            under the policy float16, an overflow that a smaller loss scale may mend does not count.
        seed: seed of initial parameters and dropout.
        resume: whether to continue the run in the run directory.
    """

    epochs: int = 1
    steps: int = 0
    accumulate: int = 1
    eval_every: int = 500
    eval_batches: int = 0
    max_nonfinite: int = 10
    seed: int = 1337
    resume: bool = False

    def validate(self):
        super().validate()
        self.require_counts(1, "epochs", "accumulate", "max_nonfinite")
        self.require_counts(0, "steps", "eval_every", "eval_batches")
        # Keys of JAX have 32 bits of seed: one more, and another seed would give the same run.
        self.require(0 <= self.seed < 2**32, f"seed must lie in 0 .. {2**32 - 1}, got {self.seed}")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Config):
    """Numbers of devices along each axis of the mesh.

    Attributes:
        data: copies of the parameters, each with a slice of the batch; 0 for all remaining devices.
        fsdp: slices of parameters and optimizer state; the batch is sliced along this axis too.
        tensor: slices of the widths of matrix products.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def validate(self):
        super().validate()
        self.require_counts(0, "data")
        self.require_counts(1, "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Config):
    """Frequency of checkpoints, and the number to keep.

    Attributes:
        every: optimizer steps between checkpoints; 0 to write one only at the end.
        keep: number of latest checkpoints to keep, in addition to the best one.
    """

    every: int = 1000
    keep: int = 2

    def validate(self):
        super().validate()
        self.require_counts(0, "every")
        self.require_counts(1, "keep")


@dataclasses.dataclass(frozen=True)
class LogConfig(Config):
    """Metrics, progress and profiles of a run.

    Attributes:
        every: optimizer steps between lines of ``metrics.jsonl``.
        tensorboard: whether to write TensorBoard events as well (needs the ``tracking`` extra).
        wandb: Weights & Biases project to log to (needs the ``tracking`` extra); empty for none.
        progress: whether to show a progress bar when standard output is a terminal.
        streams_every: optimizer steps between statistics of the residual streams; 0 for none.
        profile: ``"FROM:TO"``, the steps whose trace is written to ``RUN/profile``, for Perfetto or TensorBoard.
    """

    every: int = 10
    tensorboard: bool = False
    wandb: str = ""
    progress: bool = True
    streams_every: int = 0
    profile: str = ""

    def validate(self):
        super().validate()
        self.require_counts(1, "every")
        self.require_counts(0, "streams_every")
        steps = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", self.profile)
        fits = not self.profile or (steps is not None and int(steps[1]) <= int(steps[2]))
        self.require(fits, f"profile must be FROM:TO, two steps in order as in 10:12, got {self.profile!r}")


@dataclasses.dataclass(frozen=True)
class RunConfig(Config):
    """A whole run. In ``model``, a ``vocab_size`` of None means the data's and a ``max_len`` of None ``data.seq_len``.

    Attributes:
        name: name of the configuration that the run started from.
        run_dir: folder of all output; empty for ``runs/NAME``.
    """

    name: str = "mhc_ssm"
    run_dir: str = ""
    model: ModelConfig = mhc_ssm(vocab_size=None, max_len=None)
    data: DataConfig = CorpusConfig()
    objective: ObjectiveConfig = CrossEntropyConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def from_dict(cls, data):
        return super().from_dict(_renamed(data))

    def sized(self, vocab_size: int) -> Self:
        """The run with the open sizes of its model filled in.

        Args:
            vocab_size: vocabulary size of the data.
        """
        sizes = {"vocab_size": vocab_size, "max_len": self.data.seq_len}
        return self.replace(model=self.model.replace(**{name: sizes[name] for name in self.model.open_sizes}))

    def validate(self):
        # The data first: the model's open sizes follow from it, and with them its faults.
        with within("data"):
            self.data.validate()
        if self.model.open_sizes:
            self.sized(1).validate()
            return
        super().validate()
        with within("model"):
            self.objective.check(self.model)
            if "segments" in self.data.arrays():
                self.model.check_segments()
        with within("objective"):
            self.objective.check_kernels(self.model)
        self.require(
            self.model.max_len >= self.data.seq_len,
            f"model.max_len {self.model.max_len} is shorter than data.seq_len {self.data.seq_len}",
        )
        self.require(
            self.data.batch_size % self.train.accumulate == 0,
            f"data.batch_size {self.data.batch_size} is not a multiple of train.accumulate {self.train.accumulate}",
        )


def recorded(file: Path) -> RunConfig:
    """The configuration that a run has written to ``file``.

    Raises:
        ConfigError: the file holds no valid configuration; the message names the file and the field as written there.
    """
    with faults_of(file):
        return RunConfig.from_dict(read_json(file))


# New places of the fields of older runs, and the kinds of records that had none.
MOVED = {
    ("train", "stream_diversity"): ("model", "stream_diversity"),
    ("train", "loss_chunk"): ("objective", "chunk"),
    ("train", "sample_tokens"): ("data", "sample_tokens"),
}
FIRST_KINDS = {"data": "corpus", "objective": "cross_entropy"}


def _renamed(data: Any) -> Any:
    """The fields of an older run under their present names."""
    if not isinstance(data, dict):
        return data
    data = {name: dict(value) if isinstance(value, dict) else value for name, value in data.items()}
    for (record, field), (new_record, new_field) in MOVED.items():
        old, new = data.get(record), data.get(new_record, {})
        if isinstance(old, dict) and isinstance(new, dict) and field in old:
            data[new_record] = new | {new_field: old.pop(field)}
    for record, kind in FIRST_KINDS.items():
        if isinstance(data.get(record), dict):
            data[record] = {"kind": kind} | data[record]
    return data


@contextlib.contextmanager
def faults_of(file: Path) -> Iterator[None]:
    """A context in which errors about fields name the file that holds them."""
    try:
        yield
    except FieldError as error:
        outside = ELSEWHERE if isinstance(error, UnknownKindError) else ""
        raise ConfigError(f"{file}: {'.'.join(error.path)}{': ' if error.path else ''}{error.fault}{outside}") from None
