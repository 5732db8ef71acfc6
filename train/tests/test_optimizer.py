"""The optimizer against torch.optim.AdamW, its schedule and its mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import mhc_jax
from mhc_jax.models import mhc_ssm
from train.config import OptimConfig
from train.optimizer import decay_mask, make_optimizer, schedule

torch.set_num_threads(1)
CONSTANT = OptimConfig(lr=3e-3, decay="all", schedule="constant", warmup_steps=0)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_twenty_steps_equal_torch_in_float64(clip):
    config = CONSTANT.replace(clip=clip)
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape) for name, shape in {"kernel": (4, 3), "bias": (3,)}.items()}
    gradients = [{name: 3 * rng.standard_normal(value.shape) for name, value in start.items()} for _ in range(20)]

    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    adamw = torch.optim.AdamW(
        theirs.values(), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=0.1
    )
    for gradient in gradients:
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        adamw.step()

    with jax.enable_x64(True):
        optimizer = make_optimizer(config, 20)
        ours = jax.tree.map(jnp.asarray, start)
        state = optimizer.init(ours)
        update = jax.jit(optimizer.update)
        for gradient in gradients:
            updates, state = update(jax.tree.map(jnp.asarray, gradient), state, ours)
            ours = optax.apply_updates(ours, updates)
        for name in start:
            np.testing.assert_allclose(ours[name], theirs[name].detach().numpy(), rtol=1e-13, atol=1e-14)


def test_schedule_warms_up_linearly_then_follows_half_a_cosine():
    config = OptimConfig(lr=2.0, warmup_steps=4, final_lr=0.1)
    rate = schedule(config, 14)
    rates = [float(rate(step)) for step in range(15)]
    np.testing.assert_allclose(rates[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(rates[9], 2.0 * 0.55, rtol=1e-6)
    np.testing.assert_allclose(rates[14], 0.2, rtol=1e-6)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_cosine_may_end_before_the_run():
    config = OptimConfig(lr=2.0, warmup_steps=4)
    np.testing.assert_array_equal(schedule(config.replace(decay_steps=14), 50)(9), schedule(config, 14)(9))
    np.testing.assert_allclose(schedule(config.replace(decay_steps=14), 50)(30), 0.2, rtol=1e-6)


def test_value_and_stream_residuals_have_rates_of_their_own():
    params = {
        "values": {"lambdas": jnp.zeros(2)},
        "residual": {"adapter": {"kernel": jnp.zeros(2)}},
        "bias": jnp.zeros(2),
    }
    optimizer = make_optimizer(CONSTANT.replace(value_lr=1e-2, residual_lr=1e-4, weight_decay=0.0), 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["values"]["lambdas"], -1e-2, rtol=1e-5)
    np.testing.assert_allclose(updates["residual"]["adapter"]["kernel"], -1e-4, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -CONSTANT.lr, rtol=1e-5)


def test_constant_schedule_without_warmup_is_constant():
    rate = schedule(CONSTANT, 10)
    assert {float(rate(step)) for step in (0, 5, 50)} == {float(np.float32(CONSTANT.lr))}


def test_optimizer_applies_and_reports_the_scheduled_rate():
    config = OptimConfig(lr=1.0, warmup_steps=2, weight_decay=0.0, clip=0.0)
    optimizer = make_optimizer(config, 10)
    params = {"bias": jnp.zeros(1)}
    state = optimizer.init(params)
    for rate in (0.5, 1.0):
        updates, state = optimizer.update({"bias": jnp.ones(1)}, state, params)
        assert float(optax.tree.get(state, "learning_rate")) == rate
        np.testing.assert_allclose(updates["bias"], [-rate], rtol=1e-4)


def test_matrices_decay_and_nothing_else():
    config = mhc_ssm("adapters", vocab_size=11, max_len=4, width=8, layers=2)
    params = mhc_jax.init(config, jax.random.key(0))
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, keep in jax.tree_util.tree_leaves_with_path(decay_mask(OptimConfig(), params))
        if keep
    }
    assert decayed == {
        "ends.proj.kernel",
        "blocks.mixer.residual.down.kernel",
        "blocks.mixer.residual.up.kernel",
        "blocks.mixer.branch.in_proj.kernel",
        "blocks.mixer.branch.out_proj.kernel",
    }
    assert all(jax.tree.leaves(decay_mask(OptimConfig(decay="all"), params)))
