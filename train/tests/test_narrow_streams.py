"""What it costs a model to carry its streams in bfloat16: no more than another seed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.functional import param_info
from mhc_jax.models import gpt2, with_topology
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.stack import Execution
from train.config import OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.update.optimizer import make_optimizer
from train.update.step import init_state, make_train_step

STEPS, SEEDS, LAST = 300, 3, 50
VOCABULARY, LENGTH, BATCH = 11, 12, 8


def batches():
    """Sequences in which the next token is one of two, by a table of the last two: to be learnt, and never whole."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, VOCABULARY, (VOCABULARY, VOCABULARY, 2))
    tokens = rng.integers(0, VOCABULARY, (STEPS, BATCH, LENGTH + 1))
    for t in range(2, LENGTH + 1):
        tokens[..., t] = table[tokens[..., t - 2], tokens[..., t - 1], rng.integers(0, 2, (STEPS, BATCH))]
    tokens = tokens.astype(np.int32)
    return {"inputs": jnp.asarray(tokens[..., :-1]), "targets": jnp.asarray(tokens[..., 1:])}


def config_of(topology, policy):
    model = gpt2(vocab_size=VOCABULARY, max_len=LENGTH, width=16, layers=4, mixer=AttentionConfig(heads=2))
    model = with_topology(model.replace(execution=Execution(policy=policy)), topology)
    data = CorpusConfig(seq_len=LENGTH, batch_size=BATCH)
    optim = OptimConfig(lr=3e-3, warmup_steps=20)
    return RunConfig(model=model, data=data, optim=optim, train=TrainConfig(steps=STEPS))


def losses(topology, policy):
    """Of the last steps of a training run, their mean for each seed."""
    config = config_of(topology, policy)
    optimizer = make_optimizer(config.optim, STEPS, param_info(config.model))
    step = make_train_step(config, optimizer, total_steps=STEPS)
    run = jax.jit(functools.partial(jax.lax.scan, step))
    found = []
    for seed in range(SEEDS):
        start = init_state(config.replace(train=config.train.replace(seed=seed)), optimizer)
        found.append(float(jnp.mean(run(start, batches())[1]["loss"][-LAST:])))
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["mhc", "dynamic_mhc"])
def test_bfloat16_streams_train_as_float32_streams_do(topology):
    narrow, wide = losses(topology, "bfloat16"), losses(topology, "bfloat16_wide_streams")
    assert wide.max() < 0.9 * np.log(VOCABULARY)  # something has been learnt
    assert not np.array_equal(narrow, wide)
    assert np.abs(narrow - wide).max() < np.std(wide, ddof=1)
