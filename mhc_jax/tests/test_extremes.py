"""Projections at the ends of the number range: which stay finite, and that Newton's method ends everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax import registry
from mhc_jax.nn.projections import ClampedSinkhornConfig, SinkhornConfig
from mhc_jax.ops.projections import newton_birkhoff

LARGEST = float(np.finfo(np.float32).max)
REPAIRED = sorted(set(registry.names("projection")) - {"clamped_sinkhorn", "clipped_sinkhorn", "identity"})


def extremes(shape):
    """Finite float32 logits that over- or underflow, saturate, tie or vanish."""
    rng = np.random.default_rng(0)
    one_row = rng.standard_normal(shape)
    one_row[0] = 0
    found = [
        *(scale * rng.standard_normal(shape) for scale in (1e-30, 100, 1e3, 1e30)),
        *(rng.choice([-LARGEST, 0, 1, 1e-40, LARGEST], shape) for _ in range(3)),
        *(np.full(shape, value) for value in (0, LARGEST)),
        one_row,
    ]
    return jnp.asarray(np.stack(found), jnp.float32)


def value_and_slope(config, n):
    weight = np.arange(n * n, dtype=np.float32).reshape(n, n)

    def both(logits):
        h = config.project(logits, n)
        return h, jax.grad(lambda z: jnp.sum(weight * config.project(z, n)))(logits)

    return jax.jit(both)(extremes(config.shape(n)))


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("kind", REPAIRED)
def test_repaired_forms_are_finite_with_their_gradients(kind, n):
    configs = [registry.get("projection", kind)()]
    if kind == "sinkhorn":
        configs += [configs[0].replace(gradient="implicit"), configs[0].replace(order="rows_then_columns")]
    for config in configs:
        h, slope = value_and_slope(config, n)
        assert np.isfinite(h).all()
        assert np.isfinite(slope).all()
        if kind not in ("cayley", "deepseek_sinkhorn"):
            axis = -2 if getattr(config, "order", "") == "rows_then_columns" else -1
            np.testing.assert_allclose(h.sum(axis), 1, atol=2e-5)


@pytest.mark.parametrize(
    "config", [ClampedSinkhornConfig(), SinkhornConfig(domain="exp", order="rows_then_columns", iters=8)]
)
def test_published_exponentials_are_finite_in_value_alone(config):
    """What their documentation warns of."""
    h, slope = value_and_slope(config, 4)
    assert np.isfinite(h).all()
    assert not np.isfinite(slope).all()


newton = jax.jit(newton_birkhoff)


def test_newton_ends_where_weak_links_drown_in_rounding():
    h = newton(jnp.array([[-100.0, -100, 0], [100, -200, -100], [100, -200, 200]]))
    np.testing.assert_allclose(h, [[0, 1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 6])
def test_newton_is_doubly_stochastic_at_any_scale(n):
    draw = np.random.default_rng(0).standard_normal((50, n, n), np.float32)
    hard = np.concatenate([scale * draw for scale in (10, 100, 1e3, 1e6, 1e30)])
    ties = np.random.default_rng(1).choice([-LARGEST, 0, 1e9, LARGEST], (50, n, n)).astype(np.float32)
    h = newton(np.concatenate([hard, ties]))
    np.testing.assert_allclose(h.sum(-1), 1, atol=5e-7)
    np.testing.assert_allclose(h.sum(-2), 1, atol=2e-6)


@pytest.mark.slow
def test_newton_at_a_thousand_is_the_projection():
    """Float32 gives what float64 gives, and its derivative, where most entries vanish."""
    logits = 1e3 * np.random.default_rng(0).standard_normal((50, 4, 4))
    logits = logits.astype(np.float32)
    slope = jax.jit(jax.jacrev(lambda z: newton_birkhoff(z).sum(0)))
    ours = newton(logits), slope(logits)
    with jax.enable_x64(True):
        truth = newton(logits.astype(np.float64)), slope(logits.astype(np.float64))
    np.testing.assert_allclose(ours[0], truth[0], atol=2e-3)  # logits of a thousand are themselves rounded by 6e-5
    np.testing.assert_allclose(ours[1], truth[1], atol=2e-3)


def test_newton_of_nan_ends():
    assert np.isnan(newton(jnp.full((2, 2), jnp.nan))).all()


def test_newton_of_a_matrix_does_not_depend_on_its_batch():
    easy, hard = np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(np.float32)
    together = newton(np.concatenate([easy, 10 * hard]))
    np.testing.assert_array_equal(together[:1], newton(np.concatenate([easy, easy]))[:1])
