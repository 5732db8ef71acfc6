"""Rotary positions: angles, layouts, and what a query and a key know of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.config import ConfigError
from mhc_jax.nn.init import Init
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.rotary import LinearScalingConfig, Llama3ScalingConfig, YarnScalingConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.ops.rotary import frequencies, linear, rotate
from mhc_jax.precision import policy

K, BASE = 6, 100.0


def test_every_pair_turns_by_its_own_angle():
    x = jnp.asarray([1.0, 0.0] * 3).reshape(1, 1, 1, K)
    turned = rotate(x, jnp.asarray([[2]]), base=BASE, layout="interleaved").ravel()
    angles = 2 * BASE ** (-np.arange(0, K, 2) / K)
    np.testing.assert_allclose(turned, np.stack([np.cos(angles), np.sin(angles)], -1).ravel(), rtol=1e-6)


def test_the_layouts_are_one_rotation_of_channels_in_another_order():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, K))
    positions = jax.random.randint(jax.random.key(1), (2, 5), 0, 50)
    order = np.arange(K).reshape(2, -1).T.ravel()  # 0, 3, 1, 4, 2, 5
    interleaved = rotate(x[..., order], positions, layout="interleaved")
    np.testing.assert_allclose(rotate(x, positions, layout="half")[..., order], interleaved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_only_the_distance_counts_and_lengths_stay(layout):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 4, 1, K))
    positions = jnp.asarray([[0, 3, 4, 9]])

    def scores(shift):
        turned = [rotate(x, positions + shift, layout=layout)[0, :, 0] for x in (q, k)]
        return turned[0] @ turned[1].T

    np.testing.assert_allclose(scores(0), scores(17), rtol=1e-4, atol=1e-5)
    assert not np.allclose(scores(0), q[0, :, 0] @ k[0, :, 0].T)
    turned = rotate(q, positions, layout=layout)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5)


def test_angles_are_not_rounded_to_bfloat16():
    x = jnp.ones((1, 2, 1, K), jnp.bfloat16)
    turned = rotate(x, jnp.asarray([[1000, 1001]]), base=BASE)
    assert turned.dtype == jnp.bfloat16
    assert (turned[:, 0] != turned[:, 1]).any()


def test_what_cannot_be_turned_is_refused():
    with pytest.raises(ValueError, match="pairs of channels, but a head has 5"):
        rotate(jnp.ones((1, 1, 1, 5)), jnp.zeros((1, 1), int))
    with pytest.raises(ValueError, match="layout of rotary positions"):
        rotate(jnp.ones((1, 1, 1, 4)), jnp.zeros((1, 1), int), layout="halves")


def test_scaling_slows_down_the_slow_pairs_alone():
    """One pair turns often in the original length, one seldom, one in between."""
    original = 100
    frequency = jnp.asarray(2 * np.pi * np.asarray([10, 2, 0.5]) / original)
    np.testing.assert_allclose(linear(frequency, factor=4.0), frequency / 4, rtol=1e-6)
    llama = Llama3ScalingConfig(factor=4.0, original_max_position_embeddings=original).scale(frequency, 10000.0)
    np.testing.assert_allclose(llama / frequency, [1, 1 / 3 + 2 / 3 / 4, 1 / 4], rtol=1e-5)


def test_yarn_is_linear_in_the_index_of_a_pair():
    frequency = frequencies(jnp.asarray(BASE), 8)
    turns = 1000 / (2 * np.pi) * np.asarray(frequency)  # in 1000 tokens
    options = {"factor": 3.0, "original_max_position_embeddings": 1000, "truncate": False}
    scaling = YarnScalingConfig(beta_fast=float(turns[0]), beta_slow=float(turns[2]), **options)
    np.testing.assert_allclose(scaling.scale(frequency, BASE) / frequency, [1, 2 / 3, 1 / 3, 1 / 3], rtol=1e-5)
    # The turns of pair 0.5, which is rounded to 0.
    between = scaling.replace(beta_fast=float(turns[:2].prod() ** 0.5))
    np.testing.assert_allclose(between.scale(frequency, BASE) / frequency, [1, 7 / 9, 1 / 3, 1 / 3], rtol=1e-5)
    rounded = between.replace(beta_slow=float(turns[1:3].prod() ** 0.5), truncate=True).scale(frequency, BASE)
    np.testing.assert_allclose(rounded / frequency, [1, 2 / 3, 1 / 3, 1 / 3], rtol=1e-5)


def test_yarn_lengthens_queries_and_keys():
    assert YarnScalingConfig(factor=np.e**2).gain == pytest.approx(1.2)
    assert YarnScalingConfig(attention_factor=0.5).gain == 0.5
    assert LinearScalingConfig().gain == Llama3ScalingConfig().gain == 1
    q = jax.random.normal(jax.random.key(0), (1, 2, 1, K))
    turned = rotate(q, jnp.asarray([[3, 4]]), gain=1.5)
    np.testing.assert_allclose(turned, 1.5 * rotate(q, jnp.asarray([[3, 4]])), rtol=1e-6)


def test_attention_turns_by_the_scaled_frequencies():
    """Positions divided by the factor of a linear scaling."""
    scaled = AttentionConfig(heads=2, rotary="half", rotary_scaling=LinearScalingConfig(factor=2.0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    outputs = [
        config.build(8, policy("float32"), Init(jax.random.key(1)))(x, None, Scope(positions))[0]
        for config, positions in (
            (scaled, jnp.arange(0, 10, 2)[None]),
            (scaled.replace(rotary_scaling=None), jnp.arange(5)[None]),
        )
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary": "none"}, "rotary_scaling scales rotary positions; set rotary to 'half'"),
        ({"rotary_base": 1.0}, "rotary_scaling needs a rotary_base above 1, got 1.0"),
        ({"rotary_scaling": Llama3ScalingConfig(low_freq_factor=4.0)}, "0 < low_freq_factor < high_freq_factor must"),
        ({"rotary_scaling": YarnScalingConfig(beta_fast=0.5)}, "0 < beta_slow <= beta_fast must hold"),
        ({"rotary_scaling": YarnScalingConfig(attention_factor=0.0)}, "attention_factor must be positive"),
    ],
)
def test_scalings_that_make_no_sense_are_refused(changes, message):
    config = AttentionConfig(rotary="half", rotary_scaling=LinearScalingConfig())
    config.validate()
    with pytest.raises(ConfigError, match=message):
        config.replace(**changes).validate()
