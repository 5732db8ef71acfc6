"""Every op against a plain NumPy loop in float64, and against itself in its other forms."""

import importlib
import inspect
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc_jax import ops
from mhc_jax.ops import attention, conv, diag_scan, diag_ssm, loss, norm, sinkhorn, streams
from mhc_jax.ops.streams import Streams

diagonal_scan = jax.jit(diag_scan.diagonal_scan, static_argnames=("form", "chunk"))
log_sinkhorn = jax.jit(sinkhorn.log_sinkhorn, static_argnames=("iters", "temperature"))
project = jax.jit(sinkhorn.sinkhorn_rows_then_columns, static_argnames=("iters", "temperature"))
FORMS = ("sequential", "associative", "chunked")


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _recurrence(a, x, s0):
    a, s, out = np.broadcast_to(a, x.shape).astype(np.float64), s0.astype(np.float64), []
    for t in range(x.shape[1]):
        s = a[:, t] * s + x[:, t]
        out.append(s)
    return np.stack(out, axis=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [1, 2, 7, 33])
@pytest.mark.parametrize("varying", [False, True])
def test_scan_forms_equal_the_recurrence(form, T, varying):
    x, s0 = _random(0, 2, T, 5), _random(1, 2, 5)
    a = jax.nn.sigmoid(_random(2, 2, T, 5) if varying else _random(2, 5))
    s = diagonal_scan(a, x, s0, form=form, chunk=8)
    np.testing.assert_allclose(s, _recurrence(np.asarray(a), x, s0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("varying", [False, True])
def test_scan_forms_have_equal_gradients(varying):
    x, s0 = _random(0, 2, 13, 3), _random(1, 2, 3)
    a = np.asarray(jax.nn.sigmoid(_random(2, 2, 13, 3) if varying else _random(2, 3)))
    weight = _random(3, 2, 13, 3)

    def total(form):
        return lambda a, x, s0: jnp.sum(weight * diag_scan.diagonal_scan(a, x, s0, form=form, chunk=4))

    def plain(a, x, s0):
        a, s, out = jnp.broadcast_to(a, x.shape), s0, 0.0
        for t in range(x.shape[1]):
            s = a[:, t] * s + x[:, t]
            out += jnp.sum(weight[:, t] * s)
        return out

    truth = jax.jit(jax.grad(plain, argnums=(0, 1, 2)))(a, x, s0)
    for form in FORMS:
        for mode in (jax.jacrev, jax.jacfwd):
            for got, want in zip(jax.jit(mode(total(form), argnums=(0, 1, 2)))(a, x, s0), truth, strict=True):
                np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_scan_has_second_derivatives():
    x = _random(0, 1, 6, 2)

    def energy(a):
        return jnp.sum(diag_scan.diagonal_scan(a, x, form="chunked", chunk=4) ** 2)

    def plain(a):
        s, out = jnp.zeros(2), 0.0
        for t in range(6):
            s = a * s + x[0, t]
            out += jnp.sum(s**2)
        return out

    a = jnp.array([0.3, 0.8])
    np.testing.assert_allclose(jax.jit(jax.hessian(energy))(a), jax.jit(jax.hessian(plain))(a), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("varying", [False, True])
def test_a_nan_stays_where_it_belongs(form, varying):
    """A NaN stays in its row and channel, and reaches later states only, and earlier gradients only."""
    x = _random(0, 2, 11, 3)
    a = jnp.full((2, 11, 3) if varying else 3, 0.5)
    spoilt = jnp.asarray(x).at[0, 6, 1].set(jnp.nan)
    later, earlier = (np.zeros(x.shape, bool) for _ in range(2))
    later[0, 6:, 1] = earlier[0, :7, 1] = True

    @jax.jit
    def run(x, ds):
        s, pull = jax.vjp(lambda x: diag_scan.diagonal_scan(a, x, form=form, chunk=4), x)
        return s, pull(ds)[0]

    np.testing.assert_array_equal(np.isnan(run(spoilt, x)[0]), later)
    np.testing.assert_array_equal(np.isnan(run(x, spoilt)[1]), earlier)


def test_scan_refuses_nonsense():
    with pytest.raises(ValueError, match="unknown scan form 'fft'; known: associative, chunked, sequential"):
        diag_scan.diagonal_scan(jnp.ones(2), jnp.ones((1, 3, 2)), form="fft")
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        diag_scan.diagonal_scan(jnp.ones(2), jnp.ones((1, 3, 2)), form="chunked", chunk=0)


def test_clipped_poles_get_no_gradient():
    logits = jnp.array([-20.0, -2, 0, 2, 8, 20])
    np.testing.assert_allclose(diag_ssm.pole(logits)[jnp.array([0, 5])], [1e-4, 0.9999], rtol=1e-6)
    slope = jax.vmap(jax.grad(diag_ssm.pole))(logits)
    assert slope[0] == 0
    assert slope[5] == 0
    assert (slope[1:5] > 0).all()


def test_reset_forgets_the_state():
    u, ssm = _random(0, 1, 6, 2), [_random(i, 2) for i in range(1, 5)]
    reset = jnp.array([[False, False, False, True, False, False]])
    y, _ = diag_ssm.diag_ssm(u, *ssm, reset_BT=reset)
    alone, _ = diag_ssm.diag_ssm(u[:, 3:], *ssm)
    np.testing.assert_allclose(y[:, 3:], alone, rtol=1e-6)


@pytest.mark.parametrize("K", [1, 2, 4])
def test_conv_is_a_causal_cross_correlation(K):
    u, taps, bias = _random(0, 2, 6, 3), _random(1, K, 3), _random(2, 3)
    want = np.zeros_like(u)
    for t in range(6):
        for k in range(K):
            if t - (K - 1) + k >= 0:
                want[:, t] += taps[k] * u[:, t - (K - 1) + k]
    np.testing.assert_allclose(conv.causal_depthwise_conv(u, taps, bias), want + bias, rtol=1e-5, atol=1e-6)
    tail = conv.causal_depthwise_conv(u[:, 3:], taps, bias, u[:, 3 - (K - 1) : 3])
    np.testing.assert_allclose(tail, (want + bias)[:, 3:], rtol=1e-5, atol=1e-6)


def test_conv_keeps_segments_apart():
    u, taps, bias = _random(0, 1, 6, 3), _random(1, 3, 3), _random(2, 3)
    y = conv.causal_depthwise_conv(u, taps, bias, segment_ids=jnp.array([[0, 0, 1, 1, 1, 2]]))
    for cut in (slice(0, 2), slice(2, 5), slice(5, 6)):
        np.testing.assert_allclose(y[:, cut], conv.causal_depthwise_conv(u[:, cut], taps, bias), rtol=1e-6)


def test_norms():
    x = _random(0, 2, 3, 7)
    wide = x.astype(np.float64)
    rms = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm.rms_norm(x, jnp.full(7, 2.0)), 2 * rms, rtol=1e-5)
    ln = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm.layer_norm(x, jnp.full(7, 2.0), jnp.ones(7)), 2 * ln + 1, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 5), st.integers(0, 1000), st.sampled_from([1.0, 100.0, 1e4]))
@settings(max_examples=20, deadline=None)
def test_sinkhorn_is_stochastic_by_columns(n, seed, scale):
    logits = scale * _random(seed, n, n)
    p = log_sinkhorn(logits, iters=8)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-5)
    if scale == 1:
        np.testing.assert_allclose(p, project(logits, iters=8), rtol=1e-4, atol=1e-6)


def test_sinkhorn_golden_numbers_of_the_original():
    logits = np.random.RandomState(7).standard_normal((3, 3)).astype(np.float32)
    np.testing.assert_allclose(project(logits, iters=0)[0], [1.0, 0.115734, 0.190576], atol=1e-6)
    np.testing.assert_allclose(project(logits, iters=1)[0], [0.501299, 0.309749, 0.122914], atol=1e-6)
    cold = project(logits, iters=8, temperature=0.1)[0]
    np.testing.assert_allclose(cold, [0.938788, 0.001038, 2.748e-7], rtol=1e-3, atol=1e-6)


def test_sinkhorn_refuses_nonsense():
    with pytest.raises(ValueError, match="temperature must be positive"):
        sinkhorn.log_sinkhorn(jnp.eye(2), iters=3, temperature=0.0)
    with pytest.raises(ValueError, match="at least 1 iterations"):
        sinkhorn.log_sinkhorn(jnp.eye(2), iters=0)


def test_mix_reads_sources_by_column():
    h = _random(0, 2, 3, 4, 5)
    asymmetric = np.arange(16, dtype=np.float32).reshape(4, 4)
    mixed = streams.mix(Streams.unstack(h), asymmetric)
    np.testing.assert_allclose(mixed.stack(), np.einsum("ij,btjd->btid", asymmetric, h), rtol=1e-5)
    per_token = _random(1, 2, 3, 4, 4)
    mixed = streams.mix(Streams.unstack(h), per_token)
    np.testing.assert_allclose(mixed.stack(), np.einsum("btij,btjd->btid", per_token, h), rtol=1e-4)


def test_diversity_of_known_streams():
    one_hot, equal = Streams.unstack(jnp.eye(4)[None, None]), Streams.copies(jnp.ones((1, 2, 3)), 4)
    np.testing.assert_allclose(streams.diversity(one_hot), 0, atol=1e-7)
    np.testing.assert_allclose(streams.diversity(equal), 0.75, rtol=1e-6)
    nothing = jax.grad(streams.diversity)(Streams.unstack(jnp.zeros((1, 2, 4, 3))))
    assert np.isfinite(nothing.stack()).all()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_chunked_loss_equals_the_whole_one(chunk):
    hidden, head = _random(0, 2, 8, 5), _random(1, 11, 5)
    targets = np.random.default_rng(2).integers(0, 11, (2, 8))
    targets[0, :3] = loss.IGNORE

    def whole(hidden, head):
        return loss.cross_entropy(hidden @ head.T, targets)[0]

    def chunked(hidden, head):
        return loss.chunked_cross_entropy(hidden, head, targets, chunk=chunk)[0]

    assert loss.chunked_cross_entropy(hidden, head, targets, chunk=chunk)[1] == 13
    np.testing.assert_allclose(chunked(hidden, head), whole(hidden, head), rtol=1e-6)
    for got, want in zip(jax.grad(chunked, (0, 1))(hidden, head), jax.grad(whole, (0, 1))(hidden, head), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    tangent = (_random(3, 2, 8, 5), _random(4, 11, 5))
    forward = jax.jvp(chunked, (hidden, head), tangent)[1]
    np.testing.assert_allclose(forward, jax.jvp(whole, (hidden, head), tangent)[1], rtol=1e-4)


@pytest.mark.parametrize(("dtype", "factor"), [("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f32")])
def test_gradients_of_logits_enter_products_in_the_dtype_of_the_head(dtype, factor):
    """But not in float16, which has no small probabilities; and nothing is scattered over the logits."""
    hidden, head = jnp.ones((2, 8, 5), dtype), jnp.ones((11, 5), dtype)

    def chunked(hidden, head):
        return loss.chunked_cross_entropy(hidden, head, jnp.zeros((2, 8), int), chunk=4)[0]

    text = jax.jit(jax.grad(chunked, (0, 1))).lower(hidden, head).as_text()
    products = re.findall(r"dot_general.*: \(tensor<(\S+)>, tensor<(\S+)>\)", text)
    assert [shape for pair in products for shape in pair if "11" in shape.split("x")[2:3]] == [f"2x4x11x{factor}"] * 2
    assert "scatter" not in text


def test_mean_loss_of_nothing_is_nan():
    total, count = loss.cross_entropy(jnp.zeros((1, 2, 3)), jnp.full((1, 2), loss.IGNORE))
    assert np.isnan(total / count)


MASKS = {"scale": None, "start": None, "start_B": None, "causal": True, "segment_ids": None, "keep_BHTS": None}
KERNELS = {"implementation": "xla", "batch_sharding": None}
RECURRENT = {"s0_BHKV": None, "reset_BT": None, "form": "chunked", "chunk": 64} | KERNELS
OMITTED = {
    "attention.absorbed_latent_attention": MASKS,
    "attention.causal_attention": MASKS | KERNELS,
    "attention.latent_attention": MASKS | KERNELS,
    "conv.causal_depthwise_conv": {"history_BJD": None, "segment_ids": None},
    "delta_rule.gated_delta_rule": RECURRENT,
    "diag_scan.diagonal_scan": {"s0_BD": None, "form": "sequential", "chunk": 64},
    "diag_ssm.diag_ssm": {"s0_BD": None, "reset_BT": None, "form": "sequential", "chunk": 64} | KERNELS,
    "gla.gated_linear_attention": RECURRENT,
    "hyper.dynamic_weights": {"gamma_D": None},
    "loss.cross_entropy": {"ignore": -100},
    "loss.chunked_cross_entropy": {"logits_dtype": jnp.float32} | KERNELS,
    "loss.chunked_cross_entropy_and_z_loss": {"logits_dtype": jnp.float32} | KERNELS,
    "loss.chunked_distillation": {"logits_dtype": jnp.float32, "temperature": 1.0},
    "loss.kl_divergence": {"temperature": 1.0},
    "loss.prefix_cross_entropy": {"logits_dtype": None},
    "loss.published_distillation": {"temperature": 2.0, "weights": (1.0, 0.5, 0.1)},
    "prefix_scan.prefixes": {"form": "parallel"},
    "routing.straight_through": {"noise_N": None},
    "selective_scan.selective_scan": {"s0_BEN": None, "reset_BT": None, "form": "sequential", "chunk": 32},
    "norm.rms_norm": {"eps": 1e-6},
    "norm.layer_norm": {"scale_D": 1.0, "bias_D": 0.0, "eps": 1e-5},
    "projections.orthostochastic": {"eps": 1e-7, "normalise": False},
    "projections.cayley": {"alpha": 0.1, "steps": 2},
    "projections.newton_birkhoff": {"iters": 64},
    "sinkhorn.sinkhorn_rows_then_columns": {"temperature": 1.0, "eps": 1e-8},
    "sinkhorn.log_sinkhorn": {"temperature": 1.0},
    "sinkhorn.log_sinkhorn_columns_then_rows": {"temperature": 1.0},
    "sinkhorn.sinkhorn_clipped": {"eps": 1e-8},
    "sinkhorn.sinkhorn_deepseek": {"eps": 1e-6},
    "sinkhorn.implicit_sinkhorn": {"temperature": 1.0},
    "sinkhorn.solve_laplacian": {"floor": 1e-30},
    "rotary.rotate": {"base": 10000.0, "layout": "half", "frequency_P": None, "gain": 1.0},
}


def test_options_left_out_have_the_published_values():
    """Few callers leave them out, so few results depend on them."""
    found = {}
    for _, module, _ in pkgutil.iter_modules(ops.__path__):
        for name, function in inspect.getmembers(importlib.import_module(f"mhc_jax.ops.{module}"), inspect.isfunction):
            if function.__module__ == f"mhc_jax.ops.{module}" and not name.startswith("_"):
                parameters = inspect.signature(function).parameters.items()
                if options := {option: p.default for option, p in parameters if p.default is not p.empty}:
                    found[f"{module}.{name}"] = options
    assert found == OMITTED


def test_attention_of_other_lengths_asks_where_the_queries_stand():
    q, k = _random(0, 1, 2, 2, 4), _random(1, 1, 5, 2, 4)
    with pytest.raises(ValueError, match="2 queries and 5 keys: give the position of the first query as start"):
        attention.causal_attention(q, k, k)
    assert attention.causal_attention(q, k, k, start=3).shape == q.shape
