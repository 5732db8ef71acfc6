"""Kernels of streams and of recurrences compiled for an H100, which takes the gpu extra and no GPU."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

import configs
from mhc_jax.backend import compiling_for
from mhc_jax.kernels import coefficients
from mhc_jax.kernels import streams as kernels
from mhc_jax.kernels.gates import Gates
from mhc_jax.kernels.sinkhorn import log_sinkhorn
from mhc_jax.ops.delta_rule import gated_delta_rule
from mhc_jax.ops.diag_ssm import diag_ssm
from mhc_jax.ops.gla import gated_linear_attention
from mhc_jax.ops.norm import layer_norm
from mhc_jax.ops.sinkhorn import ORDERS
from mhc_jax.ops.streams import Streams
from train.devices import sharding
from train.loop.resolve import resolve
from train.measure import target

pytestmark = pytest.mark.aot

H100 = target.find("h100:1")


def calls(text):
    """Mosaic kernels in a program, of which loops count one trip."""
    return text.count('custom_call_target="mosaic_gpu')


def two_sites(h, ys, pre, post, res, params):
    state, read = Streams(h), []
    for y in ys:
        x, mixed = kernels.read(state, pre, res, norm=kernels.Normalised(layer_norm, params, y.dtype))
        state, read = kernels.Pending(mixed, y, post), [*read, x]
    return *read, *state.computed().parts


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tokens", [(), (3, 37)])
@pytest.mark.parametrize(("N", "width"), [(1, 128), (2, 2048), (4, 768), (8, 768)])
def test_a_boundary_of_any_number_of_streams(N, width, tokens, dtype):
    """A read, a boundary and a write, forward and backward; (3, 37) tokens do not fill the last block."""
    device = SingleDeviceSharding(target.devices(H100)[0])

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def run(*arguments):
        results, pull = jax.vjp(two_sites, *arguments)
        return results, pull(results)

    row = array(3, 37, width, dtype=dtype)
    coefficients = array(*tokens, N), array(*tokens, N), array(*tokens, N, N)
    with compiling_for("gpu"):
        lowered = jax.jit(run).lower((row,) * N, (row, row), *coefficients, (array(width), array()))
    assert calls(lowered.compile().as_text()) == 6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(("T", "channels"), [(16, 128), (530, 768)])
def test_the_diagonal_recurrence(T, channels, resets, dtype):
    """Two kernels forward and two backward."""
    device = SingleDeviceSharding(target.devices(H100)[0])

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def run(u, gains, s0, reset):
        def recur(u, gains, s0):
            return diag_ssm(u, *gains, s0, reset_BT=reset if resets else None, implementation="pallas")

        results, pull = jax.vjp(recur, u, gains, s0)
        return results, pull(results)

    arguments = array(3, T, channels, dtype=dtype), array(4, channels), array(3, channels), array(3, T, dtype=bool)
    with compiling_for("gpu"):
        lowered = jax.jit(run).lower(*arguments)
    assert calls(lowered.compile().as_text()) == 4


@pytest.mark.parametrize(
    ("op", "T", "K", "V", "dtype"),
    [
        (gated_linear_attention, 37, 8, 24, jnp.float32),
        (gated_linear_attention, 256, 64, 256, jnp.bfloat16),
        (gated_delta_rule, 37, 8, 24, jnp.float32),
        (gated_delta_rule, 256, 128, 256, jnp.bfloat16),
    ],
)
def test_recurrences_with_a_matrix_state(op, T, K, V, dtype):
    """The largest heads fill a processor's shared memory."""
    device = SingleDeviceSharding(target.devices(H100)[0])

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def run(s0, cotangents, *inputs):
        results, pull = jax.vjp(lambda s0, *xs: op(*xs, s0_BHKV=s0, implementation="pallas"), s0, *inputs)
        return results, pull(cotangents)

    qkv = [array(2, T, 3, size, dtype=dtype) for size in (K, K, V)]
    gates = [array(2, T, 3, K)] if op is gated_linear_attention else [array(2, T, 3)] * 2
    s0 = array(2, 3, K, V)
    with compiling_for("gpu"):
        lowered = jax.jit(run).lower(s0, (qkv[2], s0), *qkv, *gates)
    assert calls(lowered.compile().as_text()) == 2


@pytest.mark.parametrize(("N", "iters"), [(1, 1), (2, 3), (4, 20), (8, 20)])
def test_sinkhorn_iterations(N, iters):
    device = SingleDeviceSharding(target.devices(H100)[0])
    logits = jax.ShapeDtypeStruct((3, 37, N, N), jnp.float32, sharding=device)

    def run(logits):
        matrices, pull = jax.vjp(lambda z: log_sinkhorn(z, iters=iters, order="columns_then_rows"), logits)
        return pull(matrices), matrices

    with compiling_for("gpu"):
        lowered = jax.jit(run).lower(logits)
    assert calls(lowered.compile().as_text()) == 2


def gated(N, numbers):
    return [*(jax.nn.sigmoid(x) for x in numbers[: 2 * N]), *numbers[2 * N :]]


SIZES = [(1, 768, 37), (2, 768, 64), (4, 768, 37), (4, 2048, 64), (5, 1280, 64), (8, 128, 37)]


def compiled_calls(N, width, tokens, run):
    """Of a function of streams, of what two sites write, and of phi, scale and bias, and of its derivative."""
    device = SingleDeviceSharding(target.devices(H100)[0])

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def both(*arguments):
        results, pull = jax.vjp(run, *arguments)
        return results, pull(results)

    row, K = array(3, tokens, width, dtype=jnp.bfloat16), 2 * N + N**2
    with compiling_for("gpu"):
        lowered = jax.jit(both).lower((row,) * N, (row,) * 2, array(K, N * width), array(K), array(K))
    return calls(lowered.compile().as_text())


@pytest.mark.parametrize(("N", "width", "tokens"), SIZES)
def test_a_boundary_with_coefficients_of_tokens(N, width, tokens):
    """One kernel forward and one backward for a read and for a boundary; of the last write, which XLA may do, one."""
    gates = Gates(functools.partial(gated, N), N, 20, ORDERS["columns_then_rows"])

    def run(h, ys, *params):
        state, found = Streams(h), []
        norm = kernels.Normalised(layer_norm, (jnp.ones(width), jnp.zeros(width)), jnp.bfloat16)
        for y in ys:
            u, mixed, post = coefficients.read(state, *params, gates, norm, eps=1e-6)
            state, found = kernels.Pending(mixed, y, post), [*found, u]
        return *found, *state.computed().parts

    assert compiled_calls(N, width, tokens, run) == 6


@pytest.mark.parametrize(("N", "width", "tokens"), SIZES)
def test_coefficients_of_tokens(N, width, tokens):
    """One kernel forward and one backward; 8 streams fill a processor's shared memory."""
    gates = Gates(functools.partial(gated, N), N, 20, ORDERS["columns_then_rows"])

    def run(h, ys, *params):
        return coefficients.project(Streams(h), *params, gates, eps=1e-6)

    assert compiled_calls(N, width, tokens, run) == 2


@pytest.mark.parametrize(
    ("topology", "found"),
    [
        ("mhc", 8),  # forward 3, backward 3, and again a read and a boundary
        ("dynamic_mhc", 8),
        # A write and a read for each boundary, again all but the last write, and for both sites coefficients thrice.
        ("single_pass_mhc", 11 + 6),
        ("shc", 11),
    ],
)
def test_a_training_step(topology, found):
    """The kernels of one layer, whose forward and backward passes are the loops over layers."""
    config = configs.load(f"gpt2@{topology}")
    mixer, residual = config.model.mixer.replace(heads=2), config.model.residual.replace(implementation="pallas")
    assert calls_of_a_step(config, mixer=mixer, residual=residual, vocab_size=50304) == found


@pytest.mark.parametrize("name", ["gla_170m_baseline", "gated_deltanet_170m_baseline_shortconv"])
def test_a_training_step_of_a_recurrence(name):
    """Beside a mesh, too, of which a program says more than without."""
    config = configs.load(name)
    mixer = config.model.mixer.replace(heads=2, implementation="pallas")
    assert calls_of_a_step(config, mixer=mixer) == 2


def calls_of_a_step(config, **changes):
    config = config.replace(
        model=config.model.replace(
            width=128, layers=6, execution=config.model.execution.replace(layers="scan"), **changes
        ),
        data=config.data.replace(seq_len=128, batch_size=8),
        train=config.train.replace(accumulate=1),
    )
    config = resolve(config)
    mesh = sharding.make_mesh(config.mesh, target.devices(H100))
    return calls(target.compile_step(config, H100, mesh)[1].as_text())
