"""A trained model as plain files: ``python -m train.export RUN OUT``.

``OUT`` receives ``config.json`` and ``model.safetensors``, which :func:`mhc_jax.load` and ``torch_ref``
read, and ``run.json``, the whole run configuration: its ``data.tokenizer`` names the tokenizer. With
``--format huggingface`` the first two are as transformers writes them, for models that it knows (GPT-2, LLaMA,
Qwen3), and tokenizer and generation settings are added, so that ``pipeline("text-generation", OUT)`` works.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

import mhc_jax
from mhc_jax import interop
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from train.config import RunConfig
from train.storage.folder import RUN_FILE
from train.storage.outputs import check_folder
from train.storage.restore import load_run
from train.terminal import cli

Format = Literal["mhc_jax", "huggingface"]


def export(config: RunConfig, params: Params, out: Path, format: Format = "mhc_jax") -> None:
    """Writes the model to the new folder ``out``.

    Raises:
        ConfigError: ``out`` exists and is not an empty folder, the format cannot express the model, or its tokenizer is
            not available.
    """
    _check_new(out)
    files = {RUN_FILE: config.to_json()}
    if format == "huggingface":
        files |= _huggingface_files(config)
    save = mhc_jax.save if format == "mhc_jax" else interop.save_huggingface
    save(out, config.model, params)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")


def _huggingface_files(config: RunConfig) -> dict[str, str]:
    """The files that let transformers read and continue text: the tokenizer, and the end of generation."""
    from train.data.exchange import tokenizer_files

    tokenizer, model = config.data.tokenizer_of_text(), config.model
    unused = list(range(tokenizer.vocab_size, model.vocab_size))
    generation = {
        "bos_token_id": tokenizer.eos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id,
        "suppress_tokens": unused or None,
    }
    given = {name: value for name, value in generation.items() if value is not None}
    files = tokenizer_files(tokenizer, model.max_len)
    return files | {"generation_config.json": json.dumps(given, indent=2) + "\n"}


def _check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; export to a new folder")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Write a trained model as config.json and model.safetensors.

    Attributes:
        run: run directory or exported folder.
        out: folder to create.
        which: checkpoint of the run directory.
        format: the format of this project, or of Hugging Face transformers.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    which: Literal["best", "last"] = "best"
    format: Format = "mhc_jax"


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.export")
    out = check_folder("OUT", flags.out)
    _check_new(out)
    export(*load_run(flags.run, flags.which), out, flags.format)
    print(f"{out} written. Next: python -m parity_tests --checkpoint {out}")


if __name__ == "__main__":
    cli.run(main)
