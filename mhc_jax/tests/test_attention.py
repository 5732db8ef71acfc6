"""Softmax attention against a loop over queries in float64, whole and in the blocks of a CPU."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.backend import compiling_for
from mhc_jax.ops import attention
from mhc_jax.tests.test_dtypes import equations

SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], [0] * 11])


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def _oracle(q, k, v, keep, segments, causal):
    B, T, H, K = q.shape
    out = np.zeros((B, T, H, v.shape[-1]))
    for b, t, h in np.ndindex(B, T, H):
        g = h // (H // k.shape[2])
        seen = (np.arange(T) <= t if causal else np.ones(T, bool)) & (segments[b] == segments[b, t])
        weights = np.where(seen, np.exp(k[b, :, g] @ q[b, t, h] / np.sqrt(K)), 0)
        out[b, t, h] = weights / weights.sum() * keep[b, h, t] @ v[b, :, g]
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [3, 8, 11])  # blocks of 1, of 2, and of 3 whose last one is shorter
def test_attention_and_its_gradients_are_those_of_each_query_alone(monkeypatch, length, groups, causal):
    q, k = _random(0, 2, length, 4, 4), _random(1, 2, length, groups, 4)
    v, cotangent = _random(2, 2, length, groups, 5), _random(3, 2, length, 4, 5)
    keep, segments = _random(4, 2, 4, length, length), SEGMENTS[:, :length]

    def attend(q, k, v):
        return attention.causal_attention(
            q, k, v, keep_BHTS=jnp.asarray(keep), segment_ids=jnp.asarray(segments), causal=causal
        )

    with jax.enable_x64():
        whole, pull_whole = jax.vjp(attend, q, k, v)
        monkeypatch.setattr(attention, "CPU_ROWS", 2)
        got, pull = jax.vjp(attend, q, k, v)
        np.testing.assert_allclose(got, _oracle(q, k, v, keep, segments, causal), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got, whole, rtol=1e-12, atol=1e-12)
        for gradient, expected in zip(pull(jnp.asarray(cotangent)), pull_whole(jnp.asarray(cotangent)), strict=True):
            np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("platform", "length", "options", "numbers"),
    [
        ("cpu", 128, {}, 32 * (32 + 64 + 96 + 128)),
        ("cpu", 130, {}, 33 * (33 + 66 + 99) + 31 * 130),
        ("cpu", 127, {}, 127**2),
        ("cpu", 128, {"causal": False}, 128**2),
        ("cpu", 128, {"start": 0}, 128**2),
        ("tpu", 128, {}, 128**2),
    ],
)
def test_long_rows_of_scores_leave_out_what_no_query_sees_on_a_cpu(platform, length, options, numbers):
    x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
    with compiling_for(platform):
        program = jax.make_jaxpr(lambda q: attention.causal_attention(q, q, q, **options))(x)
    formed = [e.outvars[0].aval.size for e in equations(program.jaxpr) if e.primitive.name == "exp"]
    assert sum(formed) == numbers


@pytest.mark.parametrize("shape", [(1, 2, 1, 128), (1, 1, 128, 1), (128, 128)])
def test_blocks_take_a_keep_that_broadcasts(monkeypatch, shape):
    q, keep = jnp.asarray(_random(0, 1, 128, 2, 4), jnp.float32), jnp.asarray(_random(1, *shape), jnp.float32)
    blocks = attention.causal_attention(q, q, q, keep_BHTS=keep)
    monkeypatch.setattr(attention, "CPU_ROWS", 129)
    whole = attention.causal_attention(q, q, q, keep_BHTS=keep)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-5)


def test_a_length_may_be_a_symbol():
    (length,) = jax.export.symbolic_shape("t")
    x = jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32)
    exported = jax.export.export(jax.jit(attention.causal_attention))(x, x, x)
    q = jnp.asarray(_random(0, 1, 130, 2, 4), jnp.float32)
    np.testing.assert_allclose(exported.call(q, q, q), attention.causal_attention(q, q, q), rtol=1e-5, atol=1e-5)
