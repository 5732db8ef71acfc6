"""The configuration of a training run: what ``python -m train NAME --flags`` resolves to."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mhc_jax.config import Config, ConfigError, FieldError, read_json, within
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.model import ModelConfig

# Of float32, in which everything is trained.
SMALLEST, LARGEST = 1.2e-38, 3.4e38


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Where the tokens come from.

    Attributes:
        source: ``"docstrings"`` (the embedded corpus), ``"wikitext-2-v1"``, ``"wikitext-2-raw-v1"``,
            ``"wikitext-103-v1"``, ``"wikitext-103-raw-v1"``, ``"fineweb10b"`` (shards of GPT-2 tokens), the path of a
            file or folder of .txt, .jsonl, .json.gz, .jsonl.zst or .parquet, or ``OWNER/NAME`` (or
            ``OWNER/NAME@REVISION``) of a data set of the Hugging Face Hub.
        subset: of a data set of several, or a folder in it.
        text_column: field or column that holds the text.
        path: local folder that holds the named source's files or shards; empty to ask the Hub.
        train_shards: use at most so many training shards of ``"fineweb10b"``, 100M tokens each; 0 for all.
        validation_fraction: how much of a source without a validation split is for validation: the last lines of a
            text file (for ``"chars"`` to the character), a share of its documents or of the files of docstrings.
        tokenizer: ``"gpt2"``, ``"bytes"``, ``"chars"`` (the characters of the text itself; a run records them), or the
            path or Hub name of another tokenizer.
        seq_len: tokens in a training window, and the model's ``max_len`` unless that is given.
        batch_size: windows in one optimizer step, over all devices and accumulation steps.
        windows: ``"packed"`` cuts the training tokens into windows and visits them all in every epoch, in another
            order; ``"random"`` starts every window at a position drawn anew.
        max_train_tokens: use only so many tokens of the training split; 0 for all.
        max_eval_tokens: use only so many tokens of the validation split; 0 for all.
        cache_dir: token cache; empty for ``$XDG_CACHE_HOME/mhc_jax`` (``~/.cache/mhc_jax``).
        seed: order, or places, of the training windows.
    """

    source: str = "docstrings"
    subset: str = ""
    text_column: str = "text"
    path: str = ""
    train_shards: int = 9
    validation_fraction: float = 0.05
    tokenizer: str = "gpt2"
    seq_len: int = 256
    batch_size: int = 16
    windows: Literal["packed", "random"] = "packed"
    max_train_tokens: int = 0
    max_eval_tokens: int = 0
    cache_dir: str = ""
    seed: int = 1337

    def validate(self):
        super().validate()
        for name in ("source", "text_column"):
            self.require(bool(getattr(self, name)), f"{name} must not be empty")
        self.require(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        self.require_counts(1, "seq_len", "batch_size")
        self.require(
            0 < self.validation_fraction < 1,
            f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}",
        )
        self.require_counts(0, "train_shards")
        for name in ("max_train_tokens", "max_eval_tokens"):
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class OptimConfig(Config):
    """AdamW, its schedule and what it decays.

    Attributes:
        lr: peak learning rate.
        beta1, beta2, eps: Adam's moments.
        weight_decay: decoupled (AdamW).
        decay: ``"matrices"`` decays dense kernels and the matrices of dynamic topologies; ``"kernels"`` dense kernels
            alone, as nanoGPT does; ``"all"`` also embeddings, gains, biases, poles and mixing logits, as the original
            mHC-SSM does.
        clip: global gradient norm; 0 for none. Scales by ``clip / (norm + 1e-6)`` as PyTorch does.
        schedule: ``"cosine"`` decays to ``final_lr * lr`` after a linear warm-up; ``"constant"`` only warms up.
        warmup_steps: optimizer steps of linear warm-up.
        warmup_end: whether the full rate comes first with the ``"last"`` step of the warm-up, or with the one
            ``"after"`` it, as in nanoGPT.
        decay_steps: optimizer steps until the cosine has reached its end, warm-up included; 0 for the whole run.
        final_lr: fraction of ``lr`` at the end of the cosine.
        value_lr: learning rate of the weights of the value residual, scheduled like ``lr``; 0 for ``lr`` itself.
        residual_lr: the same, of all parameters that read, mix and write residual streams.
    """

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Literal["matrices", "kernels", "all"] = "matrices"
    clip: float = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 100
    warmup_end: Literal["last", "after"] = "last"
    decay_steps: int = 0
    final_lr: float = 0.1
    value_lr: float = 0.0
    residual_lr: float = 0.0

    def validate(self):
        super().validate()
        self.require(self.lr > 0, f"lr must be positive, got {self.lr}")
        self.require(self.lr >= SMALLEST, f"lr must be at least {SMALLEST}, or it is 0 in float32; got {self.lr}")
        for name in ("beta1", "beta2"):
            self.require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), got {getattr(self, name)}")
        self.require(self.eps >= SMALLEST, f"eps must be at least {SMALLEST}, or it is 0 in float32; got {self.eps}")
        self.require_counts(0, "warmup_steps", "decay_steps")
        for name in ("weight_decay", "clip", "value_lr", "residual_lr"):
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "value_lr", "residual_lr", "weight_decay", "clip"):
            self.require(getattr(self, name) <= LARGEST, f"{name} must be at most {LARGEST}, got {getattr(self, name)}")
        self.require(0 <= self.final_lr <= 1, f"final_lr must lie in [0, 1], got {self.final_lr}")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config):
    """The loop.

    Attributes:
        epochs: passes over the training windows; ignored if ``steps`` is given.
        steps: optimizer steps; 0 to follow ``epochs``.
        accumulate: micro-batches per optimizer step, weighted by their number of targets.
        loss_chunk: tokens of each sequence whose logits exist at once.
        eval_every: optimizer steps between evaluations; 0 for only at the end.
        eval_batches: batches of the evaluations by which the best checkpoint is chosen; 0 for the whole validation
            split, which is measured at the end in any case.
        max_nonfinite: stop after so many consecutive steps with a NaN or Inf gradient (each is skipped).
        seed: initial parameters and dropout.
        resume: continue the run in the run directory.
        sample_tokens: length of the text sample at the end; 0 for none.
    """

    epochs: int = 1
    steps: int = 0
    accumulate: int = 1
    loss_chunk: int = 128
    eval_every: int = 500
    eval_batches: int = 0
    max_nonfinite: int = 10
    seed: int = 1337
    resume: bool = False
    sample_tokens: int = 64

    def validate(self):
        super().validate()
        self.require_counts(1, "epochs", "accumulate", "loss_chunk", "max_nonfinite")
        self.require_counts(0, "steps", "eval_every", "eval_batches", "sample_tokens")
        # Keys of JAX have 32 bits of seed: one more, and another seed would give the same run.
        self.require(0 <= self.seed < 2**32, f"seed must lie in 0 .. {2**32 - 1}, got {self.seed}")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Config):
    """Devices along each axis of the mesh.

    Attributes:
        data: copies of the parameters, each with a slice of the batch; 0 for all devices the other axes leave.
        fsdp: slices of parameters and optimizer state; the batch is sliced along it too.
        tensor: slices of the width of matrix products.
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
    """What is saved and how much of it is kept.

    Attributes:
        every: optimizer steps between checkpoints; 0 for only at the end.
        keep: latest checkpoints kept; the best one is kept besides.
    """

    every: int = 1000
    keep: int = 2

    def validate(self):
        super().validate()
        self.require_counts(0, "every")
        self.require_counts(1, "keep")


@dataclasses.dataclass(frozen=True)
class LogConfig(Config):
    """What is reported.

    Attributes:
        every: optimizer steps between lines of ``metrics.jsonl``.
        tensorboard: also write TensorBoard events (needs the ``tracking`` extra).
        wandb: also log to this Weights & Biases project (needs the ``tracking`` extra); empty for none.
        progress: show a progress bar when standard output is a terminal.
        streams_every: optimizer steps between statistics of the residual streams; 0 for none.
        profile: ``"FROM:TO"``: steps whose trace is written to ``RUN/profile``, for Perfetto or TensorBoard.
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
    """A whole run. In ``model``, ``vocab_size = 0`` means the tokenizer's and ``max_len = 0`` means ``data.seq_len``.

    Attributes:
        name: of the configuration it started from.
        run_dir: where everything is written; empty for ``runs/NAME``.
    """

    name: str = "mhc_ssm"
    run_dir: str = ""
    model: ModelConfig = mhc_ssm(vocab_size=0, max_len=0)
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def from_dict(cls, data):
        return super().from_dict(_renamed(data))

    def validate(self):
        # The data first: the model's open sizes follow from it, and with them its faults.
        with within("data"):
            self.data.validate()
        super().validate()
        with within("model"):
            self.model.check_next_token()
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
        ConfigError: it is none; the message names the file, and the field as it stands there.
    """
    with faults_of(file):
        return RunConfig.from_dict(read_json(file))


def _renamed(data: Any) -> Any:
    """The fields of an older run under the names that they have now."""
    train = data.get("train") if isinstance(data, dict) else None
    if not isinstance(train, dict) or "stream_diversity" not in train:
        return data
    moved = {"stream_diversity": train["stream_diversity"]}
    train = {name: value for name, value in train.items() if name not in moved}
    return data | {"model": data.get("model", {}) | moved, "train": train}


@contextlib.contextmanager
def faults_of(file: Path) -> Iterator[None]:
    """Inside, faults of fields name the file that holds them."""
    try:
        yield
    except FieldError as error:
        raise ConfigError(f"{file}: {'.'.join(error.path)}{': ' if error.path else ''}{error.fault}") from None
