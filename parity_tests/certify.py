"""Certifies a trained model: its own weights in both frameworks, judged like every other case."""

import functools
import os
from collections.abc import Iterator

import numpy as np

from mhc_jax import interop
from mhc_jax.functional import Params
from mhc_jax.nn.backbone import BackboneConfig
from mhc_jax.nn.model import ModelConfig
from parity_tests.cases.decode import decoding
from parity_tests.compare import Case
from parity_tests.taps import run_jax, run_torch
from train.storage.restore import load_run

TOKENS = 64


def certify(path: str | os.PathLike[str]) -> Iterator[Case]:
    """Activations, loss, cotangents, gradients and decoding of the model in a run directory or exported folder.

    Raises:
        ConfigError: nothing that can be loaded.
    """
    run, params = load_run(path)
    return checkpoint_cases(run.model, params)


def checkpoint_cases(config: ModelConfig, params: Params) -> Iterator[Case]:
    """The cases of a model, on one sequence of at most 64 tokens."""
    config = config.replace(execution=config.execution.replace(policy="float32"))
    weights = {name: x.astype(np.float32) for name, x in interop.to_torch(config, params).items()}
    tokens = _tokens(config)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    if isinstance(config, BackboneConfig) and config.residual.stream_count is not None:
        config = config.replace(stream_diversity=0.1)
    yield Case(
        tier="checkpoint",
        name="forward and backward",
        jax=functools.partial(run_jax, config, weights, batch),
        torch=functools.partial(run_torch, config, weights, batch),
    )
    yield decoding("checkpoint", "decoding", config, weights, batch["tokens"])


def _tokens(config: ModelConfig) -> np.ndarray:
    """Ids with the frequencies of text: the k-th most frequent occurs in proportion to 1 / k."""
    frequency = 1 / np.arange(1, config.vocab_size + 1)
    time = min(TOKENS, config.max_len)
    return np.random.default_rng(6).choice(config.vocab_size, (1, time + 1), p=frequency / frequency.sum())
