"""Sites with coefficients of tokens in one kernel, interpreted: equal to sums in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.backend import compiling_for
from mhc_jax.config import ConfigError
from mhc_jax.kernels import coefficients, streams, tiles
from mhc_jax.kernels.gates import Gates
from mhc_jax.nn.projections import PermutationsConfig
from mhc_jax.ops.hyper import flat_weights
from mhc_jax.ops.norm import layer_norm
from mhc_jax.ops.projections import permutation_mixture
from mhc_jax.ops.sinkhorn import ORDERS, log_sinkhorn, log_sinkhorn_columns_then_rows
from mhc_jax.ops.streams import Streams, mix, write
from mhc_jax.ops.streams import read as read_streams
from mhc_jax.tests.own import slow_after_one, slow_unless

# Relative to the largest entry, after two sites. In bfloat16 streams, phi and what multiplies it are rounded.
ROUNDING = {jnp.float32: 3e-6, jnp.bfloat16: 2**-5}
WIDTH, EPS = 128, 1e-6
OPS = {"columns_then_rows": log_sinkhorn_columns_then_rows, "rows_then_columns": log_sinkhorn}


def of(logits, streams):
    """Gates like those of dynamic mHC."""
    read, write, mixing = logits[:streams], logits[streams : 2 * streams], logits[2 * streams :]
    return [*map(jax.nn.sigmoid, read), *(2 * jax.nn.sigmoid(x) + 0.1 for x in write), *(x / 2 for x in mixing)]


def of_permutations(logits, streams):
    """The same with a mixture of permutations, which takes no iterations."""
    return [*of(logits, streams)[: 2 * streams], *PermutationsConfig().entrywise(streams).of(logits[2 * streams :])]


def by_kernels(h, ys, phi, scale, bias, params, *, iters, order):
    """What sites read, their writing weights, and the streams behind the last."""
    N = len(h)
    gates = Gates(functools.partial(of if iters else of_permutations, streams=N), N, iters, ORDERS.get(order))
    norm = streams.Normalised(layer_norm, params, h[0].dtype)
    state, found = Streams(h), []
    for y in ys:
        u_BTD, mixed, post_BTN = coefficients.read(state, phi, scale, bias, gates, norm, eps=EPS)
        state, found = streams.Pending(mixed, y, post_BTN), [*found, u_BTD, post_BTN]
    return *found, *state.computed().parts


def by_ops(h, ys, phi, scale, bias, params, *, iters, order):
    """The same without kernels."""
    N, state, found = len(h), Streams(h), []
    for y in ys:
        logits = scale * flat_weights(state, phi, eps=EPS) + bias
        gated = jnp.stack(of(list(jnp.moveaxis(logits, -1, 0)), N), axis=-1)
        post_BTN = gated[..., N : 2 * N]
        if order == "permutations":
            matrix = permutation_mixture(logits[..., 2 * N :], streams=N)
        else:
            matrix = OPS[order](gated[..., 2 * N :].reshape(*gated.shape[:-1], N, N), iters=iters)
        found += [layer_norm(read_streams(state, gated[..., :N]), *params), post_BTN]
        written = write(Streams(tuple(y)) if isinstance(y, tuple) else y, post_BTN)
        state = mix(state, matrix) + written
    return *found, *state.parts


def arguments(rng, N, B, T, width, sites, wide, logits=None):
    """Streams, what the sites write, phi, scale, bias, and gain and bias of the norm, in float64."""
    K = 2 * N + (logits or N * N)

    def draw(*shape):
        return rng.standard_normal(shape)

    def rows(count):
        return tuple(draw(B, T, width) for _ in range(count))

    ys = tuple(rows(N) if wide else draw(B, T, width) for _ in range(sites))
    return rows(N), ys, draw(K, N * width), draw(K) / width**0.5, draw(K), (1 + draw(width) / 4, draw(width))


def compared(shape, dtype, options, *, wide=False, sites=2):
    """Largest errors of all results and gradients, relative to the largest entry."""
    logits = math.factorial(shape[0]) if options["order"] == "permutations" else None
    exact = arguments(np.random.default_rng(0), *shape, WIDTH, sites, wide, logits)
    rounded = [jax.tree.map(lambda x: jnp.asarray(x, dtype), given) for given in exact[:2]]
    rounded += [jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), given) for given in exact[2:]]
    given = [jax.tree.map(lambda x: np.asarray(x, np.float64), x) for x in rounded]
    if wide:
        rounded[1] = tuple(map(Streams, rounded[1]))

    def run(function, inputs, cotangents):
        @jax.jit
        def both(inputs, cotangents):
            results, pull = jax.vjp(lambda *inputs: function(*inputs, **options), *inputs)
            return results, pull(tuple(x.astype(like.dtype) for x, like in zip(cotangents, results, strict=True)))

        return [np.asarray(x, np.float64) for x in jax.tree.leaves(both(inputs, cotangents))]

    rng = np.random.default_rng(1)
    cotangents = tuple(
        rng.standard_normal(x.shape).astype(dtype) for x in jax.eval_shape(lambda: by_kernels(*rounded, **options))
    )
    found = run(by_kernels, rounded, cotangents)
    with jax.enable_x64(True):
        want = run(by_ops, *jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (given, cotangents)))
    assert [x.shape for x in found] == [x.shape for x in want]
    return [np.abs(x - y).max() / np.abs(y).max() for x, y in zip(found, want, strict=True)]


@pytest.mark.parametrize("dtype", slow_unless([jnp.float32], ROUNDING))
@pytest.mark.parametrize(
    ("N", "B", "T", "iters", "order"),
    slow_after_one(
        (4, 2, 37, 3, "columns_then_rows"),  # a tile that is not full
        (4, 2, 300, 20, "columns_then_rows"),  # more than one tile, the last not full
        (4, 1, 256, 20, "rows_then_columns"),
        (1, 2, 37, 2, "columns_then_rows"),
        (2, 3, 16, 1, "rows_then_columns"),
        (3, 1, 130, 2, "columns_then_rows"),
        (8, 1, 140, 4, "columns_then_rows"),
        (2, 2, 37, 0, "permutations"),
        (4, 1, 256, 0, "permutations"),
    ),
)
def test_sites_equal_sums_in_float64(N, B, T, iters, order, dtype):
    errors = compared((N, B, T), dtype, {"iters": iters, "order": order})
    assert max(errors) < ROUNDING[dtype], errors


@pytest.mark.parametrize(
    ("N", "B", "T", "iters", "order"),
    slow_after_one(
        (2, 2, 37, 2, "columns_then_rows"),
        (4, 2, 37, 3, "columns_then_rows"),
        (1, 2, 37, 2, "columns_then_rows"),
        (2, 3, 16, 1, "rows_then_columns"),
        (8, 1, 140, 4, "columns_then_rows"),
        (4, 1, 64, 0, "permutations"),
    ),
)
def test_those_of_gpus_do_the_same(N, B, T, iters, order, monkeypatch):
    used = []
    run = coefficients.boundary_gpu.backward
    monkeypatch.setattr(coefficients, "target_backend", lambda: "gpu")
    monkeypatch.setattr(coefficients.boundary_gpu, "backward", lambda *given: used.append(1) or run(*given))
    errors = compared((N, B, T), jnp.bfloat16, {"iters": iters, "order": order})
    assert max(errors) < ROUNDING[jnp.bfloat16], errors
    assert len(used) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "dtype"), [("tpu", jnp.float32), ("gpu", jnp.bfloat16)])
def test_what_is_written_may_differ_by_stream(platform, dtype, monkeypatch):
    monkeypatch.setattr(coefficients, "target_backend", lambda: platform)
    errors = compared((4, 2, 37), dtype, {"iters": 3, "order": "columns_then_rows"}, wide=True)
    assert max(errors) < ROUNDING[dtype], errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5", "TPU v5 lite", None])
def test_all_kinds_of_cores_do_the_same(kind):
    """Of 600 tokens a core with more memory takes 512 at once; two cores have sums over tokens each."""
    with compiling_for("cpu", kind):
        errors = compared((4, 1, 600), jnp.float32, {"iters": 2, "order": "columns_then_rows"}, sites=2)
    assert max(errors) < ROUNDING[jnp.float32], errors


def test_a_core_with_more_memory_takes_larger_tiles():
    row = jax.ShapeDtypeStruct((8, 1024, 768), jnp.bfloat16)
    params = coefficients.Params(*(jax.ShapeDtypeStruct(x, jnp.float32) for x in ((24, 3072), (24, 1), (24, 1))), ())
    gates = Gates(list, 4, 20, ORDERS["columns_then_rows"])
    found = {}
    for kind in ("TPU v4", "TPU v5 lite", "TPU v5p", "TPU v6 lite", None):
        with compiling_for("tpu", kind):
            found[kind] = coefficients.coefficients_tpu.tile_of([row] * 4, [row], row, params, gates)
    assert found == {"TPU v4": 128, "TPU v5 lite": 512, "TPU v5p": 512, "TPU v6 lite": 512, None: 128}


@pytest.mark.parametrize(("T", "width"), [(tiles.GROUP - 1, 128), (64, 96), (0, 128)])
def test_streams_without_a_kernel_are_refused(T, width):
    h, K = (jnp.zeros((2, T, width)),) * 2, 8
    gates = Gates(functools.partial(of, streams=2), 2, 2, ORDERS["columns_then_rows"])
    with pytest.raises(ConfigError, match="no kernel computes the coefficients of such streams; take implementation"):
        coefficients.read(
            Streams(h), jnp.zeros((K, 2 * width)), jnp.ones(K), jnp.ones(K), gates, streams.AS_IT_IS, eps=EPS
        )
