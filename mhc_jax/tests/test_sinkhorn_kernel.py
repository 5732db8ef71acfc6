"""Sinkhorn's iterations in a kernel, interpreted: equal to the op, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.kernels import sinkhorn_gpu
from mhc_jax.kernels.sinkhorn import log_sinkhorn
from mhc_jax.nn.projections import SinkhornConfig
from mhc_jax.ops import sinkhorn
from mhc_jax.tests.own import slow_unless

OPS = {
    "columns_then_rows": sinkhorn.log_sinkhorn_columns_then_rows,
    "rows_then_columns": sinkhorn.log_sinkhorn,
}


def _hard(shape):
    """Logits, of which some entries vanish, and a cotangent."""
    B, T, N = shape
    rng = np.random.default_rng(0)
    logits = (4 * rng.standard_normal((B, T, N, N))).astype(np.float32)
    logits[:, :1] *= 100
    return logits, rng.standard_normal(logits.shape).astype(np.float32)


@pytest.mark.parametrize("order", slow_unless(["columns_then_rows"], OPS))
@pytest.mark.parametrize(
    ("shape", "iters"),
    [
        ((3, 347, 4), 5),  # more than one tile, the last not full
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [((2, 3, 4), 1), ((2, 3, 1), 3), ((1, 5, 2), 20), ((1, 1, 8), 20), ((0, 3, 4), 2)]
        ),
    ],
)
def test_equals_the_op(shape, iters, order):
    (logits, cotangent), N = _hard(shape), shape[-1]

    def run(project):
        @jax.jit
        def both(logits):
            p, pull = jax.vjp(project, logits)
            return p, *pull(cotangent)

        return both(logits)

    found = run(lambda z: SinkhornConfig(iters=iters, temperature=0.5, order=order).project_by_kernel(z, N, None))
    want = run(lambda z: OPS[order](z, iters=iters, temperature=0.5))
    for x, goal in zip(found, want, strict=True):
        np.testing.assert_allclose(x, goal, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("order", OPS)
@pytest.mark.parametrize(
    ("shape", "iters"),
    [((2, 70, 4), 5), ((2, 3, 4), 1), ((2, 3, 1), 3), ((1, 5, 2), 20), ((1, 1, 8), 20), ((0, 3, 4), 2)],
)
def test_the_kernel_of_gpus_equals_the_op(shape, iters, order):
    logits, cotangent = _hard(shape)
    goal, pull = jax.vjp(lambda z: OPS[order](z, iters=iters, temperature=1.0), logits)
    found = sinkhorn_gpu.project(logits, iters, sinkhorn.ORDERS[order])
    np.testing.assert_allclose(found, goal, rtol=1e-4, atol=2e-6)
    found = sinkhorn_gpu.pull(logits, cotangent, iters, sinkhorn.ORDERS[order])
    np.testing.assert_allclose(found, pull(cotangent)[0], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("size", [1e3, 1e7, 4e37])
@pytest.mark.parametrize(
    "project", [sinkhorn_gpu.project, lambda z, iters, _: OPS["columns_then_rows"](z, iters=iters)]
)
def test_rows_sum_to_one_however_large_the_logits(project, size):
    logits = jnp.array([[size, 0], [0, -size]], jnp.float32)[None, None]
    found = project(logits, 1, sinkhorn.ORDERS["columns_then_rows"])
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)


def test_projections_without_a_kernel_are_left_to_xla():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 3, 3)), jnp.float32)
    for config in (SinkhornConfig(gradient="implicit"), SinkhornConfig(domain="exp", order="rows_then_columns")):
        found = jax.make_jaxpr(lambda z, config=config: config.project_by_kernel(z, 3, None))(logits)
        assert "pallas" not in str(found)
    with pytest.raises(ValueError, match="kernels hold at most 40 iterations of 8 x 8 matrices, not 99; take"):
        log_sinkhorn(jnp.zeros((1, 1, 8, 8)), iters=99, order="columns_then_rows")
