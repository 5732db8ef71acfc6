"""The configuration of a run from a file, written by a run or by hand, as JSON or TOML."""

import contextlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mhc_jax import registry
from mhc_jax.config import ConfigError, UnknownFieldError, read_json
from train.config import RunConfig, faults_of, recorded
from train.loop import named
from train.storage.folder import CONFIG_FILE
from train.terminal.flags import flags_of, instead_of_field


def read_config(path: str | Path) -> RunConfig:
    """The configuration in a file: a run's ``config.json``, or TOML with the same fields.

    Missing fields have the values of the configuration called ``name``, or their defaults if there is none. The
    configuration starts a new run, even if the file asks to resume.

    Raises:
        ConfigError: the file is missing, is neither JSON nor TOML, has no ``name``, or has a wrong field.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        advice = f"is a folder; give a file, such as {path / CONFIG_FILE}, or --resume a run" if path.is_dir() else ""
        raise ConfigError(f"--config {path}: {advice or 'no such file'}")
    given = _read_toml(path) if path.suffix == ".toml" else read_json(path)
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: expected fields with values, as in a run's {CONFIG_FILE}")
    name = given.get("name")
    known = isinstance(name, str) and name.partition("@")[0] in named.names()
    base = named.load(name) if known else RunConfig()
    with faults_of(path), _fields_of_any_record(path, base):
        config = RunConfig.from_dict(_merged(base.to_dict(), given))
    if name is None:
        raise ConfigError(
            f"{path} has no name, and so nothing says what it leaves out; known: {registry.listed(named.names())}"
        )
    return config.replace(train=config.train.replace(resume=False))


def read_run(folder: str | Path) -> RunConfig:
    """The configuration of the run in ``folder``, to be resumed there.

    Raises:
        ConfigError: the folder holds no run.
    """
    path = Path(folder).expanduser()
    file = path / CONFIG_FILE
    if not file.is_file() or (path / "model.safetensors").is_file():
        what = "holds no run" if path.is_dir() else "does not exist"
        runs = [str(near.parent) for near in sorted(path.absolute().parent.glob(f"*/{CONFIG_FILE}"))]
        runs = [run for run in runs if not Path(run, "model.safetensors").is_file()]
        names = [Path(run).name for run in runs]
        beside = f"; runs beside it: {registry.listed(names)}" if runs else ""
        raise ConfigError(f"--resume {folder}: {path} {what}{registry.did_you_mean(path.name, names)}{beside}")
    config = recorded(file)
    return config.replace(run_dir=str(folder), train=config.train.replace(resume=True))


@contextlib.contextmanager
def _fields_of_any_record(path: Path, base: RunConfig) -> Iterator[None]:
    """Inside, an unknown field that is like none of its record is answered with one of another, as flags are."""
    try:
        yield
    except UnknownFieldError as error:
        if error.near:
            raise
        flags = [flag for flag, _ in flags_of(base)]
        raise ConfigError(f"{path}: {instead_of_field((*error.path, error.name), flags)}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML (nested too deeply)") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from None


def _merged(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``given``; a part of another kind replaces the one of the base as a whole."""
    if given.get("kind", base.get("kind")) != base.get("kind"):
        return given
    both = {
        name: _merged(base[name], value)
        for name, value in given.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return {**base, **given, **both}
