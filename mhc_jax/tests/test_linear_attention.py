"""Gated linear attention and Gated DeltaNet: sizes of the decoders, extreme gates, memory, what the options refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax import ConfigError
from mhc_jax.backend import compiling_for
from mhc_jax.functional import param_shapes
from mhc_jax.models import gated_deltanet, gla
from mhc_jax.nn.mixers import GatedDeltaConfig, GLAConfig
from mhc_jax.ops.chunks import Chunks, sums_between
from mhc_jax.ops.delta_rule import _unit_lower_inverse, gated_delta_rule
from mhc_jax.ops.gla import gated_linear_attention
from mhc_jax.tests.own import slow_unless

# All parameters, and those outside embedding and head, as published.
COUNTS = {
    (gla, "170M"): (162_375_168, 85_180_416),
    (gla, "170M_baseline"): (130_934_016, 92_336_640),
    (gla, "170M_baseline_shortconv"): (131_044_608, 92_447_232),
    (gated_deltanet, "170M"): (190_721_424, 113_526_672),
    (gated_deltanet, "170M_fixed"): (176_528_016, 99_333_264),
    (gated_deltanet, "170M_baseline"): (130_851_360, 92_253_984),
    (gated_deltanet, "170M_baseline_shortconv"): (130_961_952, 92_364_576),
    (gated_deltanet, "145M_baseline_shortconv"): (117_328_264, 81_947_336),
    (gated_deltanet, "200M_baseline_shortconv"): (152_757_944, 110_944_120),
}


@pytest.mark.parametrize(("model", "size"), COUNTS)
def test_decoders_have_the_published_numbers_of_parameters(model, size):
    config = model(size)
    shapes = param_shapes(config)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    tables = (1 if config.head == "tied" else 2) * config.vocab_size * config.width
    assert (total, total - tables) == COUNTS[model, size]


def test_sizes_and_fields_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="unknown size of gla '170m'; did you mean '170M'"):
        gla("170m")
    with pytest.raises(TypeError, match="takes no 'witdh'; did you mean 'width'"):
        gated_deltanet(witdh=8)


OPS = {"gla": gated_linear_attention, "delta": gated_delta_rule}


def inputs(op, T, H=2, K=8, V=6):
    """Arguments by position: queries, keys of length 1, values, gates, and strengths for the delta rule."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, T, H, K))
    v = jax.random.normal(jax.random.key(1), (1, T, H, V))
    gates = -jax.random.uniform(jax.random.key(2), (1, T, H, K))
    k /= jnp.linalg.norm(k, axis=-1, keepdims=True)
    if op == "gla":
        return q, k, v, gates
    return q, k, v, gates[..., 0], 2 * jax.random.uniform(jax.random.key(3), (1, T, H))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("gate", [0.0, -5.0, -1e3, -np.inf])
def test_extreme_gates_neither_overflow_nor_lose_digits(op, gate):
    """Every seventh token has a moderate gate: its digits must not drown among those of -1000."""
    T = 256
    q, k, v, gates, *beta = inputs(op, T)
    moderate = jnp.arange(T) % 7 == 3
    gates = jnp.where(moderate.reshape(T, *[1] * (gates.ndim - 2)), gates, gate)

    def run(form, *arguments):
        y, s = OPS[op](*arguments, *beta, form=form)
        return jnp.sum(jnp.sin(y)) + jnp.sum(s**2), (y, s)

    results = {
        form: jax.value_and_grad(lambda *x, form=form: run(form, *x), (0, 1, 2, 3), has_aux=True)(q, k, v, gates)
        for form in ("chunked", "recurrent")
    }
    for ours, reference in zip(*(jax.tree.leaves(results[form]) for form in ("chunked", "recurrent")), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, reference, rtol=2e-4, atol=3e-5 * np.abs(reference).max())


def test_blocks_as_accelerators_have_them_give_the_recurrence():
    """Two blocks of 64 tokens a chunk, with gates that forget beside small ones: outputs, states and all gradients."""
    *qkv, gates = inputs("gla", 130)
    arguments = *qkv, jnp.where(jnp.arange(130)[:, None, None] % 7 == 3, -1e3, gates)

    def loss(*arguments, form):
        y, s = gated_linear_attention(*arguments, form=form, chunk=128)
        return jnp.sum(jnp.sin(y)) + jnp.sum(s**2), (y, s)

    run = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True), static_argnames="form")
    with compiling_for("tpu"):
        blocks = run(*arguments, form="chunked")
    for ours, reference in zip(*(jax.tree.leaves(x) for x in (blocks, run(*arguments, form="recurrent"))), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=2e-4, atol=3e-5 * np.abs(reference).max())


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_every_pair_of_tokens_meets_at_one_border(size):
    met = sum((across for _, across in Chunks.borders(size)), np.zeros((size, size), int))
    np.testing.assert_array_equal(met, np.tri(size, k=-1))


def test_sums_keep_small_numbers_beside_large_ones():
    x_CK = jnp.array([-1e3, -1e-3, -1e4, -2e-3, -3e-3])[:, None]
    sums_CC = sums_between(x_CK)[..., 0]
    assert sums_CC[4, 2] == jnp.float32(-2e-3) + jnp.float32(-3e-3)
    assert sums_CC[1, 0] == jnp.float32(-1e-3)
    np.testing.assert_array_equal(jnp.triu(sums_CC), 0)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_states_between_chunks_alone_are_kept_for_the_backward_pass(op):
    """One state for each token would take T K V numbers."""
    T, H, K, V = 512, 1, 16, 16
    arguments = inputs(op, T, H, K, V)

    def scratch(form, chunk):
        loss = jax.grad(lambda *x: jnp.sum(OPS[op](*x, form=form, chunk=chunk)[0] ** 2), argnums=(0, 1, 2))
        return jax.jit(loss).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    states = T * H * K * V * 4
    assert scratch("recurrent", T) > states
    assert scratch("recurrent", 32) < states
    assert scratch("chunked", 32) < states


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_bfloat16_inputs_are_summed_in_float32(op):
    arguments = [x.astype(jnp.bfloat16) for x in inputs(op, 37)]
    y, s = OPS[op](*arguments)
    assert (y.dtype, s.dtype) == (jnp.bfloat16, jnp.float32)
    exact, state = OPS[op](*(x.astype(jnp.float32) for x in arguments), form="recurrent")
    np.testing.assert_allclose(s, state, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.abs(y - exact) <= 2**-8 * np.abs(exact) + 1e-5, True)


@pytest.mark.parametrize("T", slow_unless({65}, [1, 5, 63, 64, 65, 130, 200]))
@pytest.mark.parametrize("op", OPS)
def test_lengths_beside_the_chunk_give_the_recurrence(op, T):
    """Chunks of 64 tokens, after a state: outputs, states and all gradients."""
    arguments = (*inputs(op, T), jax.random.normal(jax.random.key(4), (1, 2, 8, 6)))

    def loss(arguments, form):
        *rest, s0 = arguments
        y, s = OPS[op](*rest, s0_BHKV=s0, form=form)
        return jnp.sum(jnp.sin(y)) + jnp.sum(s**2), (y, s)

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    for ours, reference in zip(*(jax.tree.leaves(run(arguments, form)) for form in ("chunked", "recurrent"))):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5 * max(1, np.abs(reference).max()))


@pytest.mark.parametrize("op", OPS)
def test_chunks_of_any_size_give_the_recurrence(op):
    arguments = inputs(op, 11)
    for ours, reference in zip(OPS[op](*arguments, chunk=3), OPS[op](*arguments, form="recurrent"), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
@pytest.mark.parametrize("op", OPS)
def test_no_tokens_leave_the_states_as_they_are(op, form):
    s0 = jax.random.normal(jax.random.key(4), (1, 2, 8, 6))
    y, s = OPS[op](*(x[:, :0] for x in inputs(op, 3)), s0_BHKV=s0, form=form)
    assert y.shape[1] == 0
    np.testing.assert_array_equal(s, s0)


def test_unknown_forms_and_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown form 'chunkd'; did you mean 'chunked'"):
        gated_delta_rule(*inputs("delta", 3), form="chunkd")
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        gated_delta_rule(*inputs("delta", 3), chunk=0)


@pytest.mark.parametrize(
    ("mixer", "width", "fault"),
    [
        (GatedDeltaConfig(value_heads=9), 64, "value_heads 9 must be a multiple of heads 6"),
        (GatedDeltaConfig(heads=5), 64, "heads 5 must divide 3/4 of the width 64; otherwise set head_width"),
        (GatedDeltaConfig(heads=4, expand_v=1.7), 64, "expand_v 1.7 of a head of 12 is no whole number"),
        (GLAConfig(kv_heads=3), 64, "kv_heads 3 must divide heads 4"),
        (GLAConfig(heads=5), 64, "heads 5 must divide expand_k 0.5 times the width 64"),
        (GLAConfig(gate_floor=1.0), 64, "gate_floor must not be above 0, got 1.0"),
    ],
)
def test_heads_that_do_not_fit_are_refused(mixer, width, fault):
    with pytest.raises(ConfigError, match=fault):
        gla("170M", mixer=mixer, width=width).validate()


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_unit_lower_triangles_are_inverted(size):
    """Also where powers of the triangle would reach 1e30 and its inverse has entries of 2: equal keys, strength 2."""
    lower = np.random.default_rng(size).normal(0, 0.3, (3, size, size)).astype(np.float32)
    lower[0] = 2
    found = jax.jit(_unit_lower_inverse)(lower)
    want = np.linalg.inv(np.eye(size) + np.tril(lower.astype(np.float64), -1))
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max())
