"""From the configuration that was asked for to the one that runs, and the folder it may write to."""

from pathlib import Path
from typing import Any

from mhc_jax.config import ConfigError
from train.config import RunConfig
from train.data import load_tokenizer, with_characters

CONFIG_FILE = "config.json"

# What a run may change when it is resumed: how long it goes on, where it runs and what it reports.
# Everything else decides the numbers.
FREE_ON_RESUME = (
    "run_dir",
    "mesh",
    "log",
    "checkpoint",
    "model.execution.layers",
    "model.execution.remat",
    "data.path",
    "data.cache_dir",
    "train.steps",
    "train.epochs",
    "train.resume",
    "train.eval_every",
    "train.eval_batches",
    "train.max_nonfinite",
    "train.sample_tokens",
)


def run_folder(config: RunConfig) -> Path:
    """Where the run writes."""
    return Path(config.run_dir or Path("runs", config.name)).expanduser()


def refuse_overwrite(config: RunConfig) -> None:
    """Raises ConfigError if the run's folder already holds something and the run is not to be resumed."""
    folder = run_folder(config)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another --run-dir")
    if not config.train.resume and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} already holds a run; continue it with --train.resume True, or choose another --run-dir"
        )
    if config.train.resume and folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{folder} holds no {CONFIG_FILE}, so there is no run to resume; choose another --run-dir")


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with the tokenizer's vocabulary and the data's length where the model leaves them open.

    The model's vocabulary may be larger than the tokenizer's, rounded up for speed: no text has its other ids, and
    sampling leaves them out.

    Raises:
        ConfigError: it contradicts itself, or the tokenizer cannot be loaded or does not fit the model.
    """
    data = with_characters(config.data)
    tokenizer = load_tokenizer(data.tokenizer)
    model = config.model
    config = config.replace(
        data=data,
        model=model.replace(
            vocab_size=model.vocab_size or tokenizer.vocab_size,
            max_len=model.max_len or config.data.seq_len,
        ),
    )
    config.validate()
    if config.model.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size {config.model.vocab_size} is smaller than the {tokenizer.vocab_size} tokens of "
            f"data.tokenizer {tokenizer.name!r}; leave it at 0 to follow the tokenizer"
        )
    return config


def check_resumes(config: RunConfig) -> None:
    """Raises ConfigError if the run in the folder differs from ``config`` in a field that decides its numbers."""
    file = run_folder(config) / CONFIG_FILE
    if not config.train.resume or not file.is_file():
        return
    before, now = (
        _flat(record.to_dict()) for record in (RunConfig.from_json(file.read_text(encoding="utf-8")), config)
    )
    for name in sorted({*before, *now}):
        free = any(name == field or name.startswith(f"{field}.") for field in FREE_ON_RESUME)
        if not free and before.get(name) != now.get(name):
            raise ConfigError(
                f"cannot resume {file.parent}: {name} was {before.get(name)!r} and is now {now.get(name)!r}; "
                "give the run's own value, or choose another --run-dir"
            )


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim.lr": 0.1, ...}``."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
