"""Rotary positions: angles, layouts, and what a query and a key know of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.ops.rotary import rotate

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
