"""Kernels of streams, interpreted: equal to sums in float64, in a model to XLA's form, and sliced over devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import mhc_jax
from mhc_jax.backend import compiling_for
from mhc_jax.kernels import streams as kernels
from mhc_jax.kernels import tokens, tokens_gpu
from mhc_jax.models import with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.ops.norm import layer_norm
from mhc_jax.ops.streams import Streams
from mhc_jax.tests.own import slow_unless

# Relative to the largest entry: sums in float32, and one rounding of whatever has the streams' dtype.
ROUNDING = {jnp.float32: 2e-6, jnp.bfloat16: 2**-8}
WIDTH = 128


@pytest.fixture
def machine(request, monkeypatch):
    """Whose kernels are interpreted."""
    if request.param == "gpu":
        monkeypatch.setattr(tokens, "kernel_of", lambda target: tokens_gpu.by_token)


def site(h_BTND, y, pre, post, res):
    """What a site reads and what it makes of the streams, by the kernels; y may differ by stream, (B, T, N, D)."""
    u_BTD, mixed = kernels.read(Streams.unstack(h_BTND), pre, res)
    return u_BTD, kernels.Pending(mixed, Streams.unstack(y) if y.ndim == 4 else y, post).computed().stack()


def exact(h, y, pre, post, res, du, dafter):
    """Both results and all gradients in float64."""
    h, y, pre, post, du, dafter = (np.asarray(x, np.float64) for x in (h, y, pre, post, du, dafter))
    B, T, N, _ = h.shape
    matrix = np.eye(N) if res is None else np.asarray(res, np.float64)
    pre_, post_, matrix = (np.broadcast_to(x, (B, T, *x.shape[-k:])) for x, k in ((pre, 1), (post, 1), (matrix, 2)))
    ys = y if y.ndim == 4 else np.broadcast_to(y[:, :, None], h.shape)
    u = np.einsum("btn,btnd->btd", pre_, h)
    after = np.einsum("btij,btjd->btid", matrix, h) + post_[..., None] * ys
    dh = np.einsum("btij,btid->btjd", matrix, dafter) + pre_[..., None] * du[:, :, None]
    dys = post_[..., None] * dafter
    dpre = np.einsum("btd,btnd->btn", du, h)
    dpost = np.einsum("btnd,btnd->btn", dafter, ys)
    dres = np.einsum("btid,btjd->btij", dafter, h)

    def like(x, gradient):
        return gradient.sum((0, 1)) if x.ndim < 3 else gradient

    grads = [dh, dys if y.ndim == 4 else dys.sum(2), like(pre, dpre), like(post, dpost)]
    return [u, after, *grads, None if res is None else like(np.asarray(res), dres)]


@pytest.mark.parametrize("machine", ["tpu", "gpu"], indirect=True)
@pytest.mark.parametrize("dtype", slow_unless([jnp.float32], ROUNDING))
@pytest.mark.parametrize(
    ("N", "B", "T", "kinds", "wide_y"),
    [
        (4, 2, 37, "ttt", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (4, 3, 300, "sss", False),  # more than one tile, the last not full
                (1, 1, 37, "ss-", False),
                (2, 3, 16, "sss", False),
                (2, 2, 37, "tt-", False),
                (8, 1, 130, "sss", False),
                (8, 3, 37, "ttt", False),
                (4, 2, 300, "ttt", True),
                (4, 2, 37, "sst", False),
                (4, 2, 1, "ttt", False),  # too few tokens for a kernel
                (2, 3, 15, "sss", True),
            ]
        ),
    ],
)
def test_equals_sums_in_float64(N, B, T, kinds, wide_y, dtype, machine):
    """``kinds`` of the reads, the writes and the matrix: static, per token, or none."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    tokens = {"s": (), "t": (B, T)}
    pre, post = (draw(*tokens[kind], N) for kind in kinds[:2])
    res = None if kinds[2] == "-" else draw(*tokens[kinds[2]], N, N)
    h, y = draw(B, T, N, WIDTH).astype(dtype), draw(B, T, *[N] * wide_y, WIDTH).astype(dtype)
    cotangents = draw(B, T, WIDTH), draw(B, T, N, WIDTH).astype(dtype)

    @jax.jit
    def run(*arguments):
        results, pull = jax.vjp(site, *arguments)
        return *results, *pull(cotangents)

    arguments = h, y, pre, post, res
    found, want = run(*arguments), exact(*arguments, *cotangents)
    assert [x.dtype for x in found[:4]] == [jnp.float32, dtype, dtype, dtype]
    assert (found[-1] is None) == (res is None)
    for x, goal in zip(found, want, strict=True):
        if goal is not None:
            assert x.shape == goal.shape
            rounding = ROUNDING[jnp.float32 if x.dtype == jnp.float32 else dtype]
            size = max(np.abs(goal).max(), (h.size / N / goal.size) ** 0.5)  # a sum of so many products may cancel
            assert np.abs(np.asarray(x, np.float64) - goal).max() < rounding * size


def boundary(h_BTND, ys, pres, posts, ress, params):
    """What two sites read, normalised, and the streams after them; the second reads what the first left to write."""
    state, read = Streams.unstack(h_BTND), []
    norm = kernels.Normalised(layer_norm, params, h_BTND.dtype)
    for y_BTD, pre_N, post_N, res_NN in zip(ys, pres, posts, ress, strict=True):
        x_BTD, mixed = kernels.read(state, pre_N, res_NN, norm=norm)
        state, read = kernels.Pending(mixed, y_BTD, post_N), [*read, x_BTD]
    return *read, state.computed().stack()


def summed(h_BTND, ys, pres, posts, ress, params):
    """The same without kernels, in the dtype of its arguments."""
    read = []
    for y_BTD, pre_N, post_N, res_NN in zip(ys, pres, posts, ress, strict=True):
        read.append(layer_norm(jnp.einsum("...n,...nd->...d", pre_N, h_BTND), *params))
        mixed = h_BTND if res_NN is None else jnp.einsum("...ij,...jd->...id", res_NN, h_BTND)
        h_BTND = mixed + post_N[..., None] * y_BTD[..., None, :]
    return *read, h_BTND


@pytest.mark.parametrize("machine", ["tpu", "gpu"], indirect=True)
@pytest.mark.parametrize("dtype", slow_unless([jnp.float32], ROUNDING))
@pytest.mark.parametrize(
    ("N", "B", "T", "kinds"),
    [
        (4, 2, 300, "ss"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (1, 1, 37, "s-"),
                (2, 3, 37, "tt"),
                (8, 1, 130, "ss"),
                (3, 2, 37, "st"),
                (2, 2, 37, "t-"),
                (4, 2, 5, "ss"),  # too few tokens for a kernel
            ]
        ),
    ],
)
def test_a_boundary_equals_sums_in_float64(N, B, T, kinds, dtype, machine):
    """``kinds`` of reads and writes, and of matrices: static, per token, or none; some of another site are static."""
    rng = np.random.default_rng(1)
    vectors, matrix = ((B, T) if kind == "t" else () for kind in kinds)

    def draw(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    arguments = (
        draw(B, T, N, WIDTH, dtype=dtype),
        tuple(draw(B, T, WIDTH, dtype=dtype) for _ in range(2)),
        (draw(N), draw(*vectors, N)),
        (draw(*vectors, N), draw(N)),
        (draw(N, N), None if kinds[1] == "-" else draw(*matrix, N, N)),
        (draw(WIDTH), draw()),
    )
    cotangents = *(draw(B, T, WIDTH, dtype=dtype) for _ in range(2)), draw(B, T, N, WIDTH, dtype=dtype)

    def run(of, arguments, cotangents):
        results, pull = jax.vjp(of, *arguments)
        return results, pull(cotangents)

    found = jax.jit(functools.partial(run, boundary))(arguments, cotangents)
    with jax.enable_x64(True):
        exactly = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), (arguments, cotangents))
        want = jax.tree.map(np.asarray, run(summed, *exactly))
    assert jax.tree.structure(found) == jax.tree.structure(want)
    for x, goal in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        # Two roundings lie between the first site and the last; sums over all tokens may cancel.
        size = max(np.abs(goal).max(), 0 if x.ndim > 2 else math.sqrt(B * T * WIDTH))
        assert np.abs(np.asarray(x, np.float64) - goal).max() < 4 * ROUNDING[dtype] * size


@pytest.mark.slow
def test_two_cores_have_sums_each():
    with compiling_for("cpu", "TPU v5"):
        test_a_boundary_equals_sums_in_float64(4, 2, 300, "ss", jnp.float32, None)


TOKENS = np.arange(40).reshape(2, 20) % 13


def model(topology, **execution):
    small = LMConfig(
        vocab_size=13,
        max_len=20,
        width=WIDTH,
        layers=2,
        mixer=AttentionConfig(heads=2),
        mlp=GeluMLPConfig(hidden=16),
        execution=Execution(**execution),
    )
    return with_topology(small, topology, streams=2)


def by_kernels(config):
    return config.replace(residual=config.residual.replace(implementation="pallas"))


def perturbed(config):
    rng = np.random.default_rng(0)
    params = mhc_jax.init(config, jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(x.dtype), params)


def loss(params, config, taps=False):
    out = mhc_jax.apply(config, params, TOKENS, taps=taps)
    return jnp.mean(jnp.sin(out.logits_BTV.astype(jnp.float32))), out.taps


@pytest.mark.parametrize("machine", slow_unless(["tpu"], ["tpu", "gpu"]), indirect=True)
@pytest.mark.parametrize(
    ("topology", "execution"),
    [
        ("mhc", {"remat": "dots"}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("mhc", {"layers": "unroll", "remat": "block"}),
                ("dynamic_mhc", {"layers": "unroll", "remat": "dots"}),
                ("dynamic_mhc", {}),
                ("mhc_lite", {}),
                ("ihc", {}),
                ("per_stream_mhc", {}),
                ("single_pass_mhc", {"remat": "block"}),
                ("shc", {}),
                ("mhc_ssm_adapters", {}),
            ]
        ),
    ],
)
def test_a_model_has_the_same_activations_and_gradients(topology, execution, machine):
    config = model(topology, **execution)
    params = perturbed(config)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=(1, 2))
    (value, taps), grads = run(params, by_kernels(config), not execution)
    (goal, goal_taps), goal_grads = run(params, config, not execution)
    assert abs(value - goal) < 1e-6
    largest = max(jnp.abs(x).max() for x in jax.tree.leaves(goal_grads))
    for x, want in zip(*map(jax.tree.leaves, (grads, goal_grads)), strict=True):
        assert jnp.abs(x - want).max() < 1e-5 * jnp.abs(want).max() + 1e-7 * largest
    assert [*taps] == [*goal_taps]
    for name, x in taps.items():
        np.testing.assert_allclose(x, goal_taps[name], rtol=1e-4, atol=1e-5)


def kernel_calls(jaxpr):
    """Kernels in a traced program, of which loops count one trip."""
    found = sum(eqn.primitive.name == "pallas_call" for eqn in jaxpr.eqns)
    return found + sum(kernel_calls(inner) for eqn in jaxpr.eqns for inner in jaxprs_in_params(eqn.params))


@pytest.mark.parametrize("topology", ["mhc", "dynamic_mhc"])
@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("dots", 2)])
def test_a_layer_runs_no_more_kernels_than_it_must(remat, again, topology):
    """The first read, the boundary of both sites, the last write; again for the branches' inputs run the former two."""
    config = by_kernels(model(topology, remat=remat))
    shapes = jax.eval_shape(lambda: mhc_jax.init(config, jax.random.key(0)))
    traced = jax.make_jaxpr(jax.grad(lambda params: loss(params, config)[0]))(shapes)
    assert kernel_calls(traced.jaxpr) == 3 + again + 3


def test_a_group_of_layers_keeps_the_streams_of_its_first_alone():
    """Beside the products, which every layer keeps (mHC, 2512.24880, section 4.3.2)."""
    config = model("mhc").replace(layers=4)
    params, streams = perturbed(config), 2 * TOKENS.size * WIDTH * 4

    def kept(layers):
        run = config.replace(execution=Execution(layers=layers, remat="dots"))
        return sum(x.nbytes for x in jax.tree.leaves(jax.vjp(lambda params: loss(params, run)[0], params)[1]))

    assert kept("scan") - kept("groups:2") == 2 * streams
    assert kept("scan") - kept("groups:4") == 3 * streams
