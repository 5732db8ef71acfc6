"""The final configuration of a run, from the requested one, and the folder that it may write to."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhc_jax.config import ConfigError
from mhc_jax.functional import check_policy
from train.config import RunConfig, recorded
from train.storage import lock
from train.storage.folder import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, read_summary

if TYPE_CHECKING:
    from train.storage.checkpoint import Checkpoints


# Fields that a resumed run may change: its length, its devices and its reports.
# Everything else decides the numbers.
FREE_ON_RESUME = (
    "run_dir",
    "mesh",
    "log",
    "checkpoint",
    "model.execution.layers",
    "model.execution.remat",
    "train.steps",
    "train.epochs",
    "train.resume",
    "train.eval_every",
    "train.max_nonfinite",
    "objective.teacher.path",
)


# Settings that may differ between the processes of a run.
FREE_ON_A_HOST = ("log.progress",)


def must_agree(config: RunConfig) -> dict[str, Any]:
    """The settings that must be equal in all processes of a run, by flag."""
    fields = _flat(config.to_dict())
    free = {*FREE_ON_A_HOST, *(f"data.{name}" for name in config.data.of_a_host)}
    return {_flag(name): fields[name] for name in sorted({*fields} - free)}


def implementations(config: RunConfig) -> dict[str, str]:
    """How each part that has a choice is computed, by flag."""
    return {_flag(name): way for name, way in _flat(config.to_dict()).items() if name.endswith(".implementation")}


def run_folder(config: RunConfig) -> Path:
    """The folder of the run."""
    return Path(config.run_dir or Path("runs", config.name)).expanduser()


def refuse_overwrite(config: RunConfig) -> None:
    """Raises ConfigError if the run's folder cannot be written to, or holds something and the run is not to be resumed.

    A run that was stopped before its first step has left nothing to overwrite.
    """
    folder = run_folder(config)
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        # Orbax takes names that are text and no others.
        raise ConfigError(f"--run-dir {folder} has a name outside this locale's encoding; set PYTHONUTF8=1") from None
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another --run-dir")
    if not folder.is_dir() or all(path.name == lock.NAME for path in folder.iterdir()):
        return
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{folder} is not empty and holds no {CONFIG_FILE} of a run; choose another --run-dir")
    try:
        _recorded(folder)
    except ConfigError as error:
        raise ConfigError(f"{error}: not what a run has written; choose another --run-dir") from None
    if not config.train.resume and not _stopped_before_its_first_step(folder):
        raise ConfigError(
            f"{folder} already holds a run; continue it with --resume {folder}, or choose another --run-dir"
        )


def _stopped_before_its_first_step(folder: Path) -> bool:
    metrics = folder / METRICS_FILE
    traces = (folder / SUMMARY_FILE).exists() or (metrics.exists() and metrics.stat().st_size > 0)
    return not traces and not _checkpoints(folder).steps()


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with the data's vocabulary and length where the model leaves them open.

    The model's vocabulary may be larger than the data's, rounded up for speed: no text has its other ids, and sampling
    leaves them out.

    Raises:
        ConfigError: it contradicts itself, or the data's vocabulary is not available or does not fit the model.
    """
    config.validate()  # before any text is read
    config = config.replace(data=config.data.settled())
    vocab_size = config.data.vocab_size()
    config = config.sized(vocab_size)
    config.validate()
    check_policy(config.model)
    if config.model.vocab_size < vocab_size:
        raise ConfigError(
            f"--model.vocab-size {config.model.vocab_size} is smaller than the {vocab_size} tokens of the data "
            f"({config.data.unit}); None follows the data"
        )
    return config


def check_resumes(config: RunConfig) -> None:
    """Raises ConfigError if the run in the folder differs from ``config`` in a field that decides its numbers."""
    if found := changed(config):
        raise ConfigError(
            f"cannot resume {run_folder(config)}: {found}; give the run's own value, or choose another --run-dir"
        )


def changed(config: RunConfig, *also: str) -> str:
    """How the run in the folder differs from ``config`` in a field that decides its numbers; empty if it does not.

    One that was stopped before its first step has none.

    Args:
        also: fields that a resumed run may change, and here may not.

    Raises:
        ConfigError: it has learned from another teacher.
    """
    folder = run_folder(config)
    begun = _recorded(folder)
    if begun is None or _stopped_before_its_first_step(folder):
        return ""
    if config.objective.teacher and begun.objective.teacher:
        config.objective.teacher.check_begun(begun.objective.teacher)
    before, now = _flat(begun.to_dict()), _flat(config.to_dict())
    free = {*FREE_ON_RESUME, *(f"data.{name}" for name in (*config.data.of_a_host, *config.data.free_on_resume))}
    for name in sorted({*before, *now}):
        # Whichever part it is of, an implementation is another way to the same values.
        is_free = name.endswith(".implementation") or _repeats_iterations(name, before, now)
        fixed = not (is_free or any(name == field or name.startswith(f"{field}.") for field in free - {*also}))
        if fixed and before.get(name) != now.get(name):
            return f"{_flag(name)} was {before.get(name)!r} and is now {now.get(name)!r}"
    return ""


def finished(config: RunConfig, total_steps: int = 0) -> dict[str, Any] | None:
    """The summary of a run that is to be resumed and has nothing left to do; None if it has.

    Args:
        total_steps: number of steps; 0 while the length of an epoch is unknown.

    Raises:
        ConfigError: the run has done more steps than it is to have.
    """
    folder = run_folder(config)
    begun, summary = _recorded(folder), read_summary(folder) or {}
    if not config.train.resume or begun is None:
        return None
    done = _checkpoints(folder).latest_step() or 0
    total_steps = total_steps or config.train.steps
    if not total_steps and (begun.train.steps, begun.train.epochs) == (0, config.train.epochs):
        total_steps = summary.get("steps", 0)
    if 0 < total_steps < done:
        asked = f"--train.steps {config.train.steps}" if config.train.steps else f"--train.epochs {config.train.epochs}"
        raise ConfigError(
            f"{asked}: the run in {folder} has done {done:,} steps, more than {total_steps:,}; "
            "give at least as many, or choose another --run-dir"
        )
    return summary if done and done == total_steps == summary.get("steps") else None


def _checkpoints(folder: Path) -> "Checkpoints":
    from train.storage.checkpoint import Checkpoints

    return Checkpoints(folder, keep=1)


def _recorded(folder: Path) -> RunConfig | None:
    """The configuration that the run in the folder began with, or was last resumed with."""
    file = folder / CONFIG_FILE
    return recorded(file) if file.is_file() else None


def _repeats_iterations(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether all that changes is that one of both repeats Sinkhorn's iterations, to the same gradient."""
    return name.endswith(".gradient") and {before.get(name), now.get(name)} == {"unrolled", "recompute"}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim.lr": 0.1, ...}``."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
