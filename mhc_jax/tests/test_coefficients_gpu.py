"""Coefficients of tokens from all their streams by the kernels of GPUs: equal to the ops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.kernels import boundary_gpu, coefficients, coefficients_gpu
from mhc_jax.kernels.gates import Gates
from mhc_jax.ops import sinkhorn
from mhc_jax.ops.hyper import flat_weights
from mhc_jax.ops.streams import Streams
from mhc_jax.tests.test_stream_kernels import by_kernels as by_all_kernels
from mhc_jax.tests.test_stream_kernels import loss, model, perturbed

OPS = {
    "columns_then_rows": sinkhorn.log_sinkhorn_columns_then_rows,
    "rows_then_columns": sinkhorn.log_sinkhorn,
}
EPS = 1e-2


def gated(N, numbers):
    """Reads, writes and, as they are, logits."""
    return [
        *(jax.nn.sigmoid(x) + 0.25 for x in numbers[:N]),
        *(2 * jax.nn.sigmoid(x) for x in numbers[N : 2 * N]),
        *(x / 0.5 for x in numbers[2 * N :]),
    ]


def drawn(N, D, shape):
    """Streams, of which one is much larger, parameters, and cotangents."""
    rng, K = np.random.default_rng(N * D), N * N + 2 * N
    h, dh = rng.standard_normal((2, N, *shape, D))
    h[0] *= 8
    phi, scale, bias = rng.standard_normal((K, N * D)) / np.sqrt(N * D), rng.uniform(1, 2, K), rng.standard_normal(K)
    params = [x.astype(np.float32) for x in (phi, scale, bias)]
    low = [[jnp.asarray(x, jnp.bfloat16) for x in xs] for xs in (h, dh)]
    return low[0], params, low[1], rng.standard_normal((*shape, K)).astype(np.float32)


def in_float64(N, iters, order, h, params, dh, cotangent):
    """Coefficients, and the cotangents of streams and parameters."""

    def run(h, phi, scale, bias):
        logits = scale * flat_weights(Streams(tuple(h)), phi, eps=EPS) + bias
        numbers = jnp.stack(gated(N, jnp.moveaxis(logits, -1, 0)), axis=-1)
        matrix = OPS[order](numbers[..., 2 * N :].reshape(*numbers.shape[:-1], N, N), iters=iters, temperature=1.0)
        return jnp.concatenate([numbers[..., : 2 * N], matrix.reshape(*numbers.shape[:-1], N * N)], axis=-1)

    with jax.enable_x64():
        h, params, dh, cotangent = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x, np.float64)), (h, params, dh, cotangent)
        )
        found, pull = jax.vjp(run, h, *params)
        dx, *dparams = pull(cotangent)
        return jax.tree.map(np.asarray, (found, [x + y for x, y in zip(dx, dh, strict=True)], dparams))


def by_kernels(N, iters, order, h, params, dh, cotangent):
    gates = Gates(functools.partial(gated, N), N, iters, sinkhorn.ORDERS[order])

    @jax.jit
    def run(h, params, dh, cotangent):
        kept, found = coefficients_gpu.forward(h, *params, gates, EPS)
        dx, *dparams = coefficients_gpu.backward(h, *params, kept, dh, cotangent, gates)
        return found, dx, dparams

    return run(h, params, dh, cotangent)


def off(found, want):
    """The largest difference, of the largest entry."""
    found = np.asarray(found, np.float64)
    return np.abs(found - want).max() / np.abs(want).max()


@pytest.mark.parametrize(
    ("N", "D", "shape", "iters", "order"),
    [
        (4, 128, (3, 37), 20, "columns_then_rows"),
        (1, 128, (1, 1), 1, "columns_then_rows"),
        (2, 256, (2, 64), 3, "rows_then_columns"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (4, 768, (3, 37), 1, "rows_then_columns"),
                (1, 128, (3, 37), 20, "rows_then_columns"),
                (2, 128, (1, 7), 20, "columns_then_rows"),
                (8, 128, (3, 37), 20, "columns_then_rows"),
                (8, 256, (1, 5), 1, "rows_then_columns"),
            ]
        ),
    ],
)
def test_equals_the_ops(N, D, shape, iters, order):
    given = drawn(N, D, shape)
    found, want = (run(N, iters, order, *given) for run in (by_kernels, in_float64))
    assert off(found[0], want[0]) < 2e-5
    for x, goal in zip(found[1], want[1], strict=True):
        assert x.dtype == jnp.bfloat16
        assert off(x, goal) < 2**-8
    for x, goal in zip(found[2], want[2], strict=True):
        assert off(x, goal) < 5e-5


def test_sums_of_a_stream_are_rounded_once():
    """Beside no other cotangent the projection's own are as exact as bfloat16 is, though tensor cores multiply it."""
    h, params, dh, cotangent = drawn(2, 128, (2, 9))
    nothing = [jnp.zeros_like(x) for x in dh]
    case = 2, 2, "columns_then_rows", h, params, nothing, cotangent
    found, want = by_kernels(*case)[1], in_float64(*case)[1]
    for x, goal in zip(found, want, strict=True):
        error = np.abs(np.asarray(x, np.float64) - goal)
        assert (error < 2**-8 * np.abs(goal) + 1e-4 * np.abs(goal).max()).all()


def test_no_tokens():
    h, params, dh, cotangent = drawn(2, 128, (0, 3))
    found, dx, dparams = by_kernels(2, 2, "columns_then_rows", h, params, dh, cotangent)
    assert found.shape == (0, 3, 8)
    assert [x.shape for x in dx] == [x.shape for x in h]
    assert [x.shape for x in dparams] == [x.shape for x in params]
    assert all(not x.any() for x in dparams)


@pytest.mark.parametrize(
    ("topology", "kernels"),
    [
        ("dynamic_mhc", boundary_gpu),
        pytest.param("mhc_lite", boundary_gpu, marks=pytest.mark.slow),
        pytest.param("single_pass_mhc", coefficients_gpu, marks=pytest.mark.slow),
    ],
)
def test_a_model_has_the_same_gradients(topology, kernels, monkeypatch):
    """Beside the same model by XLA; streams, branches and all products keep 16 bits."""
    used = []
    monkeypatch.setattr(coefficients, "target_backend", lambda: "gpu")
    monkeypatch.setattr(kernels, "forward", lambda *xs, run=kernels.forward: used.append(1) or run(*xs))
    config = model(topology, policy="bfloat16", layers="unroll")
    params = perturbed(config)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    ((value, _), grads), ((goal, _), goals) = (step(params, c) for c in (by_all_kernels(config), config))
    assert len(used) >= 4  # sites of two layers
    assert abs(value - goal) < 2**-8
    largest = max(jnp.abs(x).max() for x in jax.tree.leaves(goals))
    for x, want in zip(*map(jax.tree.leaves, (grads, goals)), strict=True):
        assert jnp.linalg.norm(x - want) < 0.05 * jnp.linalg.norm(want) + 2**-8 * largest
