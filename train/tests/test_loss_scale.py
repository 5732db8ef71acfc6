"""Training in float16: gradients that survive, overflows that cost a step, and a scale that a checkpoint keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.functional import param_info
from mhc_jax.models import rlm
from mhc_jax.nn.stack import Execution
from train.config import OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.objectives.cross_entropy import CrossEntropyConfig
from train.storage.checkpoint import Checkpoints
from train.update.loss_scale import LARGEST, LEAST, PATIENCE, LossScale
from train.update.optimizer import make_optimizer
from train.update.step import init_state, make_train_step

MODEL = rlm("small", heads=2, vocab_size=31, max_len=12, width=8, layers=1)
CONFIG = RunConfig(
    model=MODEL.replace(execution=Execution(policy="float16")),
    data=CorpusConfig(seq_len=12, batch_size=8),
    optim=OptimConfig(lr=1e-2, warmup_steps=0),
    objective=CrossEntropyConfig(chunk=12),
    train=TrainConfig(accumulate=2),
)
OPTIMIZER = make_optimizer(CONFIG.optim, 100, param_info(CONFIG.model))


@pytest.fixture(scope="module")
def start():
    return init_state(CONFIG, OPTIMIZER)


@pytest.fixture(scope="module")
def step():
    run = jax.jit(make_train_step(CONFIG, OPTIMIZER))
    ids = np.random.default_rng(0).integers(0, 31, (8, 13)).astype(np.int32)
    return lambda state: run(state, {"inputs": ids[:, :-1], "targets": ids[:, 1:]})


def scaled(state, scale):
    return dataclasses.replace(state, loss_scale=LossScale(jnp.float32(scale), jnp.int32(0)))


def test_the_scale_halves_at_once_and_doubles_with_patience():
    scale = LossScale.start(48)
    assert float(scale.scale) == 512  # 2**15 / 48 as a power of two, for a sum of 48 losses
    assert [float(LossScale.start(targets).scale) for targets in (0.2, 1, 4)] == [2**15, 2**15, 2**13]
    halved = scale.after(jnp.asarray(False))
    assert (float(halved.scale), int(halved.steps)) == (256, 0)
    for _ in range(PATIENCE - 1):
        halved = halved.after(np.True_)
    assert float(halved.scale) == 256
    doubled = halved.after(jnp.asarray(True))
    assert (float(doubled.scale), int(doubled.steps)) == (512, 0)
    for value, finite in ((LEAST, False), (LARGEST, True)):
        assert float(LossScale(jnp.float32(value), jnp.int32(PATIENCE)).after(jnp.asarray(finite)).scale) == value
        assert bool(LossScale(jnp.float32(value), jnp.int32(0)).can_fall) == (value > LEAST)


@pytest.mark.slow
def test_a_step_is_near_that_of_float32_and_learns(start, step):
    exact = CONFIG.replace(model=CONFIG.model.replace(execution=Execution()))
    ids = np.random.default_rng(0).integers(0, 31, (8, 13)).astype(np.int32)
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:]}
    _, want = jax.jit(make_train_step(exact, OPTIMIZER))(init_state(exact, OPTIMIZER), batch)
    state, found = step(start)
    for name in ("loss", "grad_norm", "param_norm"):
        np.testing.assert_allclose(found[name], want[name], rtol=3e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    losses = [float(found["loss"])]
    for _ in range(12):
        state, found = step(state)
        losses.append(float(found["loss"]))
    assert losses[-1] < losses[0] - 0.3
    assert int(state.skipped) == 0


@pytest.mark.slow
def test_an_overflow_skips_the_step_and_halves_the_scale(start, step):
    before = scaled(start, LARGEST)
    after, metrics = step(before)
    assert int(after.skipped) == 1
    assert float(metrics["loss_scale"]) == LARGEST
    assert float(after.loss_scale.scale) == LARGEST / 2
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert np.isfinite(float(metrics["loss"]))
    assert int(metrics["consecutive_skipped"]) == 0  # expected of a scale that is still to be found


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale(start, step):
    broken = jax.tree.map(lambda x: x * jnp.nan, start.params)
    _, metrics = step(dataclasses.replace(start, params=broken))
    assert (int(metrics["skipped"]), int(metrics["consecutive_skipped"])) == (1, 1)


def test_the_first_scale_counts_targets_alone():
    whole, few = (init_state(CONFIG, OPTIMIZER, share).loss_scale for share in (1.0, 0.1))
    assert (float(whole.scale), float(few.scale)) == (512, 4096)


@pytest.mark.slow
def test_without_a_scale_gradients_vanish(start, step):
    _, metrics = step(start)
    _, tiny = step(scaled(start, LEAST))
    assert float(tiny["grad_norm"]) < 0.9 * float(metrics["grad_norm"])


@pytest.mark.slow
def test_a_checkpoint_keeps_the_scale(start, step, tmp_path):
    state, _ = step(scaled(start, 2.0))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {}, {}, metric=None)
        checkpoints.wait()
        restored, *_ = checkpoints.restore(jax.eval_shape(lambda: state))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert int(restored.loss_scale.steps) == 1
