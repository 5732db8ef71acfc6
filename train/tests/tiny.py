"""A tiny exported model and its corpus, for the tests of the commands."""

from pathlib import Path

import jax

import mhc_jax
from mhc_jax.models import mhc_ssm
from train.config import RunConfig
from train.data.config import CorpusConfig
from train.export import export
from train.objectives.cross_entropy import CrossEntropyConfig

TEXT = "".join(f"line {i}: the quick brown fox jumps over the lazy dog\n" for i in range(60))


def tiny_config(folder: Path) -> RunConfig:
    """Two layers of width 8 over bytes; the corpus is a text file in ``folder``."""
    source = folder / "corpus.txt"
    source.write_text(TEXT)
    data = CorpusConfig(
        source=str(source), tokenizer="bytes", seq_len=16, batch_size=4, cache_dir=str(folder / "cache")
    )
    model = mhc_ssm(vocab_size=257, max_len=32, width=8, layers=2)
    return RunConfig(name="tiny", model=model, data=data, objective=CrossEntropyConfig(chunk=16))


def tiny_export(folder: Path) -> tuple[RunConfig, mhc_jax.functional.Params, Path]:
    """Configuration, fresh parameters and the folder they were exported to."""
    config = tiny_config(folder)
    params = mhc_jax.init(config.model, jax.random.key(0))
    export(config, params, folder / "export")
    return config, params, folder / "export"
