"""What the files of configurations share."""

from collections.abc import Callable
from typing import Any

from mhc_jax.nn.model import ModelConfig
from mhc_jax.registry import register
from train.config import CheckpointConfig, LogConfig, OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.objectives.cross_entropy import CrossEntropyConfig


def offer(name: str, description: str, build: Callable[..., RunConfig], *arguments: Any) -> None:
    """Registers ``build(name, *arguments)``."""

    def config() -> RunConfig:
        return build(name, *arguments)

    config.__doc__ = description
    config.__qualname__ = name
    register("config", name)(config)


def fineweb10b(name: str, model: ModelConfig, batch: int, updates: int, rate: float, warmup: int) -> RunConfig:
    """A model of up to 7B parameters on all shards, in sequences of 4,096 tokens."""
    return RunConfig(
        name=name,
        model=model,
        data=CorpusConfig(
            source="fineweb10b",
            train_shards=0,
            seq_len=4096,
            batch_size=batch,
            windows="random",
            max_eval_tokens=3_276_800,
        ),
        objective=CrossEntropyConfig(chunk=1024),
        optim=OptimConfig(lr=rate, beta2=0.95, warmup_steps=warmup),
        train=TrainConfig(steps=updates, eval_every=1000, eval_batches=20),
        checkpoint=CheckpointConfig(every=1000, keep=5),
        log=LogConfig(every=10),
    )
