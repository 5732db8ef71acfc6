"""The teacher of a run: read once, checked against the student and its data, and laid out over the devices."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from mhc_jax.interop.store import tensors_digest
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.tree import flatten
from train.config import RunConfig
from train.data.tokenizer import same_tokens
from train.devices import peers, sharding
from train.objectives.kind import TeacherConfig
from train.storage.folder import CONFIG_FILE, RUN_FILE
from train.storage.restore import load_run
from train.terminal.console import say, task

TEACHER = "--objective.teacher.path"


def with_teacher(config: RunConfig) -> tuple[RunConfig, Params | None]:
    """The run with all that it must remember of its teacher, and the teacher's parameters in the host's memory.

    Args:
        config: with the model's vocabulary and length resolved.

    Raises:
        ConfigError: no teacher, one of other tokens or of shorter texts, or another one than the run began with.
    """
    asked = config.objective.teacher
    if asked is None:
        return config, None
    if not asked.path:
        raise ConfigError(f"{TEACHER} is missing: run directory, exported folder or Hugging Face folder of the teacher")
    with task("reading the teacher", quiet=True):
        run, params = _read(asked)
    _check_tokens(run, config, asked.path)
    _check_model(run, config, asked.path)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    found = TeacherConfig(asked.path, tensors_digest(flatten(params)), _evaluated(run, config))
    peers.agree("teacher", {"the digest of the teacher": found.digest})
    found.check_begun(asked)
    return config.replace(objective=config.objective.taught(config.model, found)), params


def _read(asked: TeacherConfig) -> tuple[RunConfig, Params]:
    try:
        return load_run(Path(asked.path).expanduser())
    except ConfigError as error:
        moved = f"; if it has moved, give {TEACHER}" if asked.digest else ""
        raise ConfigError(f"the teacher {error}{moved}") from None


def place(params: Params, teacher: TeacherConfig, mesh: Mesh) -> Params:
    """The parameters on the devices, sliced as a model's are."""
    return jax.tree.map(
        lambda x, its: jax.make_array_from_callback(x.shape, its, lambda index: x[index]),
        params,
        sharding.teacher_shardings(teacher, mesh),
    )


def _evaluated(run: RunConfig, config: RunConfig) -> ModelConfig:
    """The model of the teacher, which no step differentiates, under the student's numeric policy."""
    return run.model.replace(execution=Execution(policy=config.model.execution.policy))


def _check_tokens(run: RunConfig, config: RunConfig, path: str) -> None:
    """Raises ConfigError unless an id means the same to both, as far as the teacher's folder tells."""
    data = config.data
    if not data.is_text or not run.data.is_text:
        if run.data.unit != data.unit or data.is_text != run.data.is_text:
            raise ConfigError(
                f"the teacher {path} was trained on {run.data.label} ({run.data.unit}), and the data are {data.label} "
                f"({data.unit}); give the teacher's kind of --data"
            )
    elif not _names_tokenizer(Path(path).expanduser()):
        say(f"note: {path} holds no tokenizer; its ids are taken for those of {data.unit}")
    elif not same_tokens(run.data.tokenizer_of_text(), data.tokenizer_of_text()):
        raise ConfigError(
            f"the teacher {path} reads tokens of {run.data.unit}, the data are tokens of {data.unit}; "
            f"give --data.tokenizer {run.data.unit}, or another teacher"
        )


def _names_tokenizer(folder: Path) -> bool:
    """Whether a run's record or a tokenizer says what the ids of the model in the folder mean."""
    exported = (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file()
    told = (RUN_FILE, "tokenizer.json") if exported else (CONFIG_FILE,)
    return any((folder / name).is_file() for name in told)


def _check_model(run: RunConfig, config: RunConfig, path: str) -> None:
    """Raises ConfigError unless the teacher gives a distribution over the student's tokens at every place."""
    teacher, student, length = run.model, config.model, config.data.seq_len
    try:
        teacher.check_next_token()
        if "segments" in config.data.arrays():
            teacher.check_segments()
    except ConfigError as error:
        raise ConfigError(f"the teacher {path}: {error}") from None
    if teacher.vocab_size != student.vocab_size:
        raise ConfigError(
            f"the teacher {path} has a vocabulary of {teacher.vocab_size}, the student of {student.vocab_size}; "
            f"give --model.vocab-size {teacher.vocab_size}"
        )
    if teacher.max_len < length:
        raise ConfigError(
            f"the teacher {path} takes {teacher.max_len} tokens at most, --data.seq-len is {length}; "
            f"give --data.seq-len {teacher.max_len} or less"
        )
