"""Which number has which dtype in a bfloat16 model, for every topology and mixer, read from the traced program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import mhc_jax
from mhc_jax import decode, registry
from mhc_jax.functional import param_shapes
from mhc_jax.models import with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.columns import Columns
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.ops.attention import causal_attention
from mhc_jax.ops.loss import chunked_cross_entropy
from mhc_jax.ops.norm import layer_norm, rms_norm, unit_rms_norm
from mhc_jax.precision import policy
from mhc_jax.tests.own import own, quickly

BFLOAT16, FLOAT32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
# Every tap by the end of its name: branches compute in bfloat16 and parallel streams are carried in it; coefficients,
# norms, logits and a single stream are float32.
TAPS = {
    "embed": FLOAT32, "expand": FLOAT32, "u": FLOAT32, "y": BFLOAT16, "h_pre": FLOAT32,
    "h_post": FLOAT32, "h_res": FLOAT32, "rank": FLOAT32, "y_streams": FLOAT32, "attended": BFLOAT16,
    "conv": BFLOAT16, "ssm": FLOAT32, "hidden": FLOAT32, "collapse": FLOAT32, "normalised": FLOAT32, "logits": FLOAT32,
    "dt": FLOAT32, "latent": BFLOAT16, "qkv": BFLOAT16, "log_decay": FLOAT32, "beta": FLOAT32, "read": FLOAT32,
    "mlp.branch.hidden": BFLOAT16, "alpha_pre": FLOAT32, "alpha_post": FLOAT32, "alpha_res": FLOAT32,
}  # fmt: skip
CACHE = {
    "k": BFLOAT16, "v": BFLOAT16, "latent": BFLOAT16, "k_rope": BFLOAT16, "inputs": BFLOAT16, "ssm": FLOAT32,
    "matrix": FLOAT32,
}  # fmt: skip
# What may be done to a parameter before it is cast.
MOVES = {
    "convert_element_type", "slice", "squeeze", "reshape", "transpose", "gather", "scan", "jit", "pjit", "copy",
    "broadcast_in_dim", "dynamic_slice", "checkpoint", "remat2", "custom_jvp_call", "concatenate", "stack",
}  # fmt: skip
CELLS = [quickly(name, "attention", topology=name) for name in registry.names("topology")]
CELLS += [
    (topology, mixer) for topology in ("plain", "mhc") for mixer in registry.names("mixer") if mixer != "attention"
]
TOKENS = jax.ShapeDtypeStruct((2, 12), jnp.int32)


@functools.cache
def cell(topology, mixer):
    config = LMConfig(
        vocab_size=29,
        max_len=12,
        width=8,
        layers=2,
        mixer=registry.get("mixer", mixer)().small(),
        mlp=GeluMLPConfig(),
        execution=Execution(policy="bfloat16"),
    )
    return with_topology(config, topology)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def operands(program, *shapes):
    """(primitive, dtype of an operand) of everything a function computes."""
    traced = equations(jax.make_jaxpr(program)(*shapes).jaxpr)
    return [(equation.primitive.name, x.aval.dtype) for equation in traced for x in equation.invars]


@pytest.mark.parametrize(("topology", "mixer"), CELLS)
def test_every_activation_has_the_dtype_of_its_kind(topology, mixer):
    config = cell(topology, mixer)
    carried = FLOAT32 if config.residual.stream_count is None else BFLOAT16
    params = param_shapes(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {FLOAT32}

    def forward(params, tokens):
        return mhc_jax.apply(config, params, tokens, taps=True)

    traced = jax.make_jaxpr(forward, return_shape=True)
    program, output = traced(params, TOKENS)
    for name, tap in output.taps.items():
        kind = "mlp.branch.hidden" if name.endswith("mlp.branch.hidden") else name.split(".")[-1]
        assert tap.dtype == (carried if kind in ("state", "adapted") else TAPS[kind]), name
    assert {x.dtype for x in output.penalties.values()} <= {FLOAT32}
    # Exponentials, roots and statistics lose most in bfloat16.
    delicate = {"exp", "log", "sqrt", "rsqrt", "log1p", "reduce_max", "cumsum", "argmax"}
    rough = {
        equation.primitive.name
        for equation in equations(program.jaxpr)
        if equation.primitive.name in delicate and equation.invars[0].aval.dtype == BFLOAT16
    }
    assert not rough


@pytest.mark.parametrize(("topology", "mixer"), CELLS)
def test_parameters_of_another_dtype_are_cast_before_anything_is_computed(topology, mixer):
    """Weights kept in bfloat16, as exports may be, in a float32 model: nothing runs in bfloat16."""
    config = cell(topology, mixer).replace(execution=Execution())
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), param_shapes(config))
    seen = operands(lambda params, tokens: mhc_jax.apply(config, params, tokens).logits_BTV, params, TOKENS)
    assert {name for name, dtype in seen if dtype == BFLOAT16} <= MOVES


@pytest.mark.parametrize("mixer", own("mixer"))
def test_what_decoding_keeps_has_the_dtype_of_its_kind(mixer):
    config = cell("mhc", mixer)
    cache = jax.eval_shape(lambda params: decode.init_cache(config, params, 2), param_shapes(config))
    cache = jax.tree.map(lambda x: getattr(x, "array", x), cache, is_leaf=lambda x: isinstance(x, Columns))
    found = {path[-1].key: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(cache)}
    assert found.pop("column") == found.pop("capacity") == jnp.int32
    assert found == {name: CACHE[name] for name in found}


def test_attention_scores_and_their_softmax_are_float32():
    shape = jax.ShapeDtypeStruct((1, 4, 2, 8), jnp.bfloat16)
    program = jax.make_jaxpr(causal_attention)(shape, shape, shape).jaxpr
    scores, mixed = (x for x in equations(program) if x.primitive.name == "dot_general")
    assert scores.outvars[0].aval.dtype == FLOAT32
    assert {x.aval.dtype for x in mixed.invars} == {BFLOAT16}  # the probabilities are rounded for the second product
    seen = {dtype for name, dtype in operands(causal_attention, shape, shape, shape) if name in ("exp", "reduce_max")}
    assert seen == {FLOAT32}
    # Scores of 256 and 257 are one number in bfloat16.
    q = jnp.array([[0.0, 0.0], [256.0, 1.0]], jnp.bfloat16)[None, :, None]
    k = jnp.array([[1.0, 0.0], [1.0, 1.0]], jnp.bfloat16)[None, :, None]
    v = jnp.array([[0.0, 0.0], [1.0, 1.0]], jnp.bfloat16)[None, :, None]
    got = causal_attention(q, k, v)[0, 1, 0, 0]
    np.testing.assert_allclose(float(got), 1 / (1 + np.exp(-(2**-0.5))), rtol=1e-2)


def test_the_loss_of_bfloat16_inputs_is_summed_in_float32():
    hidden, head = jax.ShapeDtypeStruct((2, 8, 4), jnp.bfloat16), jax.ShapeDtypeStruct((11, 4), jnp.bfloat16)
    targets = jax.ShapeDtypeStruct((2, 8), jnp.int32)

    def total(hidden, head, targets):
        return chunked_cross_entropy(hidden, head, targets, chunk=4)

    assert [x.dtype for x in jax.eval_shape(total, hidden, head, targets)] == [FLOAT32, FLOAT32]
    gradient = jax.grad(lambda *args: total(*args)[0], argnums=(0, 1))
    assert [x.dtype for x in jax.eval_shape(gradient, hidden, head, targets)] == [BFLOAT16, BFLOAT16]
    seen = {dtype for name, dtype in operands(gradient, hidden, head, targets) if name in ("exp", "log", "reduce_sum")}
    assert BFLOAT16 not in seen


def test_norms_keep_the_dtype_they_are_given():
    x, scale = jnp.ones((3, 4), jnp.bfloat16), jnp.ones(4, jnp.bfloat16)
    assert rms_norm(x, scale).dtype == layer_norm(x, scale, scale).dtype == unit_rms_norm(x, scale).dtype == BFLOAT16


@pytest.mark.parametrize(
    ("name", "compute", "accumulate", "precision"),
    [
        ("float32", "float32", "float32", "highest"),
        ("bfloat16", "bfloat16", "float32", None),
        ("float64", "float64", "float64", "highest"),
    ],
)
def test_policies(name, compute, accumulate, precision):
    found = policy(name)
    assert (jnp.dtype(found.compute), jnp.dtype(found.accumulate), found.precision) == (compute, accumulate, precision)


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_a_probe_of_a_wider_dtype_leaves_the_carried_one(layers):
    config = cell("mhc_ssm_adapters", "attention")
    config = config.replace(execution=config.execution.replace(layers=layers))
    params, tokens = mhc_jax.init(config, jax.random.key(0)), jnp.arange(24).reshape(2, 12)
    forward = jax.jit(functools.partial(mhc_jax.apply, config, taps=True))
    plain = forward(params, tokens)
    names = ("blocks.mixer.state", "blocks.mixer.residual.adapted")
    probes = {name: jnp.zeros(plain.taps[name].shape) for name in names}
    probed = forward(params, tokens, probes=probes)
    assert {probed.taps[name].dtype for name in names} == {BFLOAT16}
    np.testing.assert_array_equal(probed.logits_BTV, plain.logits_BTV)
