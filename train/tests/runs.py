"""A tiny run over a text file, for the tests of the loop and of the command."""

import random
from pathlib import Path

from mhc_jax.models import mhc_ssm
from train.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig, RunConfig, TrainConfig

WORDS = ["streams", "carry", "state", "through", "depth", "and", "tokens", "exchange", "information", "in", "time"]


def tiny_run(folder: Path) -> RunConfig:
    """Bytes of sentences of twelve words; 8 x 16 tokens a step; one layer of width 16."""
    rng = random.Random(0)
    corpus = folder / "corpus.txt"
    corpus.write_text("".join(" ".join(rng.choices(WORDS, k=6)) + ".\n" for _ in range(400)))
    return RunConfig(
        name="tiny",
        run_dir=str(folder / "run"),
        model=mhc_ssm("baseline", vocab_size=0, max_len=0, width=16, layers=1),
        data=DataConfig(
            source=str(corpus),
            tokenizer="bytes",
            seq_len=16,
            batch_size=8,
            cache_dir=str(folder / "cache"),
            max_eval_tokens=400,
        ),
        optim=OptimConfig(lr=3e-2, warmup_steps=5),
        train=TrainConfig(steps=150, loss_chunk=8, eval_every=60, eval_batches=3, sample_tokens=8),
        checkpoint=CheckpointConfig(every=50),
        log=LogConfig(every=1, progress=False),
    )
