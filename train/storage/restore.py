"""A trained model back from disk: from its run directory, or from an exported folder, ours or Hugging Face's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import mhc_jax
from mhc_jax import interop
from mhc_jax.config import ConfigError, within
from mhc_jax.functional import Params, param_shapes
from mhc_jax.nn.model import ModelConfig
from mhc_jax.registry import listed
from train.config import RunConfig, faults_of, recorded
from train.data.config import CorpusConfig
from train.storage.folder import CONFIG_FILE, RUN_FILE


def load_run(
    path: str | Path, which: Literal["best", "last"] | int = "best", *, ema: bool = False
) -> tuple[RunConfig, Params]:
    """Configuration and parameters, on the first local device.

    Args:
        path: a run directory, or a folder with ``config.json`` and ``model.safetensors`` (see :mod:`train.export`), or
            one that transformers wrote. Without its ``run.json``, all but the model is at its defaults, except the
            tokenizer if the folder holds one.
        which: checkpoint of a run directory, by its step if it is a number; an exported folder holds only one.
        ema: the moving average of the parameters, which a run with ``optim.ema`` keeps.

    Raises:
        ConfigError: no such folder, or neither of the two, or no average where one is asked for.
        CheckpointError: no good checkpoint, or one that does not fit ``config.json``.
    """
    path = Path(path)
    if ema and (interop.is_huggingface(path) or (path / "model.safetensors").is_file()):
        raise ConfigError(f"--ema: {path} is an exported folder, which holds one set of parameters; give a run")
    if interop.is_huggingface(path):
        return _exported(path, *interop.load_huggingface(path))
    if (path / "model.safetensors").is_file():
        return _exported(path, *mhc_jax.load(path))
    if not (path / CONFIG_FILE).is_file():
        found = "is a file" if path.is_file() else "does not exist"
        problem = "has neither a run's config.json nor a model.safetensors" if path.is_dir() else found
        raise ConfigError(f"{path} {problem}; give a run directory or an exported folder")
    from train.storage.checkpoint import Checkpoints

    config = _read_config(path / CONFIG_FILE)
    if ema and not config.optim.ema:
        raise ConfigError(f"--ema: {path} was trained without an average of its parameters; leave it out")
    checkpoints = Checkpoints(path, config.checkpoint.keep)
    return config, checkpoints.restore_params(param_shapes(config.model), which, "ema" if ema else "params")


def check_steps(path: str | Path, steps: Sequence[int]) -> None:
    """Raises ConfigError unless the folder is that of a run with checkpoints of these steps."""
    from train.storage.checkpoint import Checkpoints

    path = Path(path)
    if not (path / CONFIG_FILE).is_file() or (path / "model.safetensors").is_file():
        raise ConfigError(f"{path} is not a run directory, and so holds no checkpoints by step")
    kept = Checkpoints(path, keep=1).steps()
    if missing := [step for step in steps if step not in kept]:
        raise ConfigError(f"{path} has no checkpoint of step {missing[0]}; it has {listed(map(str, kept)) or 'none'}")


def _exported(path: Path, model: ModelConfig, params: Params) -> tuple[RunConfig, Params]:
    if (path / RUN_FILE).is_file():
        return _read_config(path / RUN_FILE).replace(model=model), params
    data = CorpusConfig(seq_len=model.max_len)
    if (path / "tokenizer.json").is_file():
        data = data.replace(tokenizer=str(path.absolute()))
    return RunConfig(name=path.absolute().name, model=model, data=data), params


def _read_config(file: Path) -> RunConfig:
    config = recorded(file)
    with faults_of(file):
        config.validate()
        with within("model"):
            config.model.validate()  # of a trained one, no size is open
    return config
