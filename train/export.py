"""A trained model as plain files: ``python -m train.export RUN OUT``.

``OUT`` receives ``config.json`` and ``model.safetensors``, which :func:`mhc_jax.load` and ``torch_ref``
read, and ``run.json``, the whole run configuration: its ``data.tokenizer`` names the tokenizer. With
``--format huggingface`` the first two are as transformers writes them, for models that it knows (GPT-2, LLaMA,
Qwen3, Mamba); for any other the folder carries its own code, which ``trust_remote_code=True`` runs. Tokenizer and
generation settings are added, so that ``pipeline("text-generation", OUT)`` works.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

import mhc_jax
from mhc_jax import interop
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from mhc_jax.interop.huggingface import native_type
from mhc_jax.nn.model import ModelConfig
from train.config import RunConfig
from train.storage.folder import RUN_FILE
from train.storage.outputs import check_folder
from train.storage.remote_code import save_remote_code
from train.storage.restore import load_run
from train.terminal import cli

if TYPE_CHECKING:
    from train.data.tokenizer import Tokenizer

Format = Literal["mhc_jax", "huggingface"]


def export(config: RunConfig, params: Params, out: Path, format: Format = "mhc_jax") -> str:
    """Writes the model to the new folder ``out``, and says how it is loaded.

    Raises:
        ConfigError: ``out`` exists and is not an empty folder, the format cannot express the model, or its tokenizer is
            not available.
    """
    _check_new(out)
    files, how = {RUN_FILE: config.to_json()}, ""
    if format == "mhc_jax":
        mhc_jax.save(out, config.model, params)
    else:
        tokenizer = config.data.tokenizer_of_text()
        files |= _huggingface_files(config.model, tokenizer)
        how = _save_huggingface(config.model, params, out, tokenizer)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    return how


def _save_huggingface(model: ModelConfig, params: Params, out: Path, tokenizer: "Tokenizer") -> str:
    native, refused = native_type(model)
    if native:
        interop.save_huggingface(out, model, params)
        return f"transformers loads it as {native}"
    save_remote_code(out, model, params, _special_ids(tokenizer))
    reasons = "".join(f"\n  {reason}" for reason in refused.split("; "))
    return f"transformers has no architecture for it, load it with trust_remote_code=True:{reasons}"


def _huggingface_files(model: ModelConfig, tokenizer: "Tokenizer") -> dict[str, str]:
    """The files that let transformers read and continue text: the tokenizer, and the end of generation."""
    from train.data.exchange import tokenizer_files

    unused = list(range(tokenizer.vocab_size, model.vocab_size))
    generation = _special_ids(tokenizer) | ({"suppress_tokens": unused} if unused else {})
    files = tokenizer_files(tokenizer, model.max_len)
    return files | {"generation_config.json": json.dumps(generation, indent=2) + "\n"}


def _special_ids(tokenizer: "Tokenizer") -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {} if tokenizer.eos_id is None else dict.fromkeys(names, tokenizer.eos_id)


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
        ema: the moving average of the parameters instead, of a run with --optim.ema.
        format: the format of this project, or of Hugging Face transformers, with the model's code where need be.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    which: Literal["best", "last"] = "best"
    ema: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    format: Format = "mhc_jax"


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.export")
    out = check_folder("OUT", flags.out)
    _check_new(out)
    how = export(*load_run(flags.run, flags.which, ema=flags.ema), out, flags.format)
    print(*filter(None, (f"{out} written", how, f"next: python -m parity_tests --checkpoint {out}")), sep="\n")


if __name__ == "__main__":
    cli.run(main)
