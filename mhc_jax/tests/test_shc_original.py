"""SHC as published: what leaks, what breaks, what learns nothing; and that the repaired form does not leak."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from benchmarks import random_bit
from mhc_jax.functional import parameter_count
from mhc_jax.models import SHCOriginalConfig
from mhc_jax.models.shc_original import RankSelector
from mhc_jax.nn.init import Init
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Execution
from mhc_jax.ops.loss import IGNORE, cross_entropy
from mhc_jax.precision import policy

SMALL = SHCOriginalConfig(vocab_size=13, max_len=9, width=8, layers=2, heads=2, hidden=7)
TOKENS = jax.random.randint(jax.random.key(7), (2, 9), 0, 13)
forward = jax.jit(mhc_jax.apply, static_argnums=0)


@functools.cache
def started(config):
    return mhc_jax.init(config, jax.random.key(0))


@functools.cache
def rotated(config):
    """Rotations and their weights from N(0, 1)."""
    params, key = started(config), jax.random.key(3)

    def drawn(path, x):
        return jax.random.normal(key, x.shape) if "routing" in jax.tree_util.keystr(path) else x

    return jax.tree_util.tree_map_with_path(drawn, params)


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 4])
def test_more_than_one_stream_sees_the_future(streams):
    config = SMALL.replace(streams=streams)
    params = rotated(config)
    whole = forward(config, params, TOKENS).logits_BTV
    changed = forward(config, params, TOKENS.at[:, -1].add(1) % 13).logits_BTV
    prefix = forward(config, params, TOKENS[:, :4]).logits_BTV
    if config.causal:
        np.testing.assert_array_equal(whole[:, :-1], changed[:, :-1])
        np.testing.assert_allclose(whole[:, :4], prefix, atol=1e-5)
    else:
        assert jnp.abs(whole[:, :-1] - changed[:, :-1]).max(axis=(0, 2)).min() > 1e-4
        assert jnp.abs(whole[:, :4] - prefix).max() > 1e-3


@pytest.mark.slow
def test_what_sees_the_future_is_neither_trained_nor_decoded_unless_asked_for():
    with pytest.raises(
        mhc_jax.ConfigError, match="take the topology 'shc', or ask for training all the same by see_fut"
    ):
        SMALL.check_next_token()
    asked = SMALL.replace(see_future=True)
    asked.check_next_token()
    with pytest.raises(mhc_jax.ConfigError, match="none of it can be kept"):
        mhc_jax.generate(asked, started(asked), TOKENS, max_new_tokens=1, temperature=0.0)
    with pytest.raises(mhc_jax.ConfigError, match="whose segments it cannot keep apart"):
        mhc_jax.apply(SMALL, started(SMALL), TOKENS, segment_ids=jnp.zeros_like(TOKENS))


@pytest.mark.slow
def test_one_stream_decodes_with_a_cache():
    config = SMALL.replace(streams=1)
    config.check_next_token()
    params = started(config)
    tokens = TOKENS[:, :4]
    for _ in range(3):
        new = jnp.argmax(forward(config, params, tokens).logits_BTV[:, -1:], axis=-1)
        tokens = jnp.concatenate([tokens, new], axis=1)
    generated = mhc_jax.generate(config, params, TOKENS[:, :4], max_new_tokens=3, temperature=0.0)
    np.testing.assert_array_equal(generated, tokens)


@pytest.mark.slow
def test_two_or_three_of_four_streams_give_no_number():
    """The published code raises an error of shapes; a compiled program cannot."""
    config = SMALL.replace(adaptive_rank=True)
    for rank in range(1, 5):
        params = jax.tree.map(lambda x: x, started(config))
        params["blocks"]["selector"]["layer_bias"] = jnp.tile(1e3 * jnp.eye(4)[rank - 1], (2, 1))
        logits = forward(config, params, TOKENS).logits_BTV
        assert jnp.isfinite(logits).all() if rank in (1, 4) else jnp.isnan(logits).all()


def test_ranks_in_training_are_those_of_the_published_code():
    """Uniform logits, four rows: the floor of the mean of four draws from 1 to 4."""
    selector = RankSelector(8, 4, policy("float32"), Init(jax.random.key(0)))
    selector.out_proj.kernel[...] = jnp.zeros((2, 4))
    x = jnp.ones((4, 5, 8))
    draw = jax.jit(jax.vmap(lambda key: selector(x, Scope.over(5, key=key))))
    ranks = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))
    np.testing.assert_allclose([(ranks == n).mean() for n in range(1, 5)], [0.133, 0.605, 0.258, 0.004], atol=0.03)


@pytest.mark.slow
def test_the_code_and_the_selector_learn_nothing_and_recomputation_changes_nothing():
    def slopes(remat):
        config = SMALL.replace(adaptive_rank=True, dropout=0.1, execution=Execution(remat=remat))
        params = jax.tree.map(lambda x: x, started(config))
        params["blocks"]["selector"]["layer_bias"] = jnp.tile(1e3 * jnp.eye(4)[3], (2, 1))

        def loss(params):
            return jnp.sum(jnp.sin(mhc_jax.apply(config, params, TOKENS, key=jax.random.key(2)).logits_BTV))

        return jax.jit(jax.grad(loss))(params)

    plain = slopes("none")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), plain, slopes("block"))
    for name, part in plain["blocks"].items():
        dead = name in ("code", "selector")
        assert all((leaf != 0).any() != dead for leaf in jax.tree.leaves(part)), name


@pytest.mark.slow
def test_sizes_and_lengths():
    whole, untied = (parameter_count(config) for config in (SMALL, SMALL.replace(tied=False)))
    assert untied - whole == 13 * 8
    with pytest.raises(mhc_jax.ConfigError, match="max_len must be at most 8192, got 8193"):
        SMALL.replace(max_len=8193).validate()
    with pytest.raises(mhc_jax.ConfigError, match="longer than max_len"):
        mhc_jax.apply(SMALL, started(SMALL), jnp.zeros((1, 10), int))
    assert math.isnan(
        float(
            jnp.divide(
                *cross_entropy(forward(SMALL, started(SMALL), TOKENS).logits_BTV, jnp.full(TOKENS.shape, IGNORE))
            )
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", random_bit.models())
def test_only_the_published_model_reads_a_random_bit_from_its_future(name):
    whole, alone = random_bit.first_losses(random_bit.models(width=16, layers=1)[name], steps=150)[-1]
    half = math.log(2) - 1e-6  # no guess of both bits has a smaller mean
    if name == "published SHC, 4 streams":
        assert whole < 0.2
        assert alone >= half
    else:
        assert half <= whole < 0.75
        assert whole == pytest.approx(alone, rel=1e-5)
