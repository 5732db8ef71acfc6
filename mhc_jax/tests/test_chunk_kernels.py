"""The kernels of chunks, interpreted: equal to the recurrence in float64, in a model to XLA's form, and sliced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import ConfigError
from mhc_jax.backend import compiling_for
from mhc_jax.kernels import chunks, chunks_gpu, tile_gpu
from mhc_jax.models import gated_deltanet, gla
from mhc_jax.nn.mixers import GatedDeltaConfig, GLAConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.ops.delta_rule import gated_delta_rule
from mhc_jax.ops.gla import gated_linear_attention
from mhc_jax.tests.devices import run_on_devices
from mhc_jax.tests.own import slow_unless

OPS = {"gla": gated_linear_attention, "delta": gated_delta_rule}


def on_a_gpu(inside, factor, chunk, *arguments):
    return chunks_gpu.run(inside, *arguments)


@pytest.fixture(params=["tpu", "gpu"])
def kernel(request, monkeypatch):
    if request.param == "gpu":
        monkeypatch.setattr(chunks, "_on_one_device", on_a_gpu)
    return request.param


@pytest.fixture
def exact_factors(monkeypatch):
    """Products of a GPU's tensor cores as if their factors were not rounded."""
    monkeypatch.setattr(tile_gpu, "FACTOR", jnp.float32)
    monkeypatch.setattr(chunks_gpu, "FACTOR", jnp.float32)


def draw(op, B, T, H, K, V):
    """Arguments by position with states last, and cotangents; gates of 0, of -1000, of -infinity and between."""
    rng = np.random.default_rng(0)
    q, k, gates = rng.standard_normal((3, B, T, H, K))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, dy = rng.standard_normal((2, B, T, H, V))
    s0, ds = rng.standard_normal((2, B, H, K, V))
    gates = -np.abs(gates) / 3
    gates[0, 1::9, 0], gates[0, 2::9], gates[-1, 3::11] = -1000, 0, -np.inf
    given = [q, k, v, gates]
    if op == "delta":
        given[3] = gates[..., 0]
        given.append(rng.uniform(0, 2, (B, T, H)))
    return [np.asarray(x, np.float32) for x in (*given, s0)], [np.asarray(x, np.float32) for x in (dy, ds)]


def results(op, arguments, cotangents, **options):
    """Output, last states, and the gradients of all arguments."""
    reset_BT = np.arange(arguments[0].shape[1]) % 23 == np.array([[7], [22]])[: len(arguments[0])]

    @jax.jit
    def run(arguments, cotangents):
        def recur(*arguments):
            *rest, s0 = arguments
            return OPS[op](*rest, s0_BHKV=s0, reset_BT=reset_BT, **options)

        found, pull = jax.vjp(recur, *arguments)
        return *found, *pull(tuple(cotangents))

    return run(arguments, cotangents)


def exact(op, arguments, cotangents):
    with jax.enable_x64():
        wide = ([jnp.asarray(x, np.float64) for x in arrays] for arrays in (arguments, cotangents))
        return [np.asarray(x) for x in results(op, *wide, form="recurrent")]


CASES = {  # T, H, K, V, chunk
    "last chunk not full": (37, 2, 8, 6, 16),
    "wide values": (33, 2, 4, 8, 32),
    "heads two by two, an odd number of them": (20, 5, 64, 64, 16),
    "one head fills its lanes": (20, 2, 128, 256, 16),
    "one chunk of an odd size": (9, 3, 8, 8, 5),
    "larger chunks": (70, 1, 8, 8, 64),
}


@pytest.mark.parametrize("case", slow_unless(["last chunk not full"], CASES))
@pytest.mark.parametrize("op", OPS)
def test_equals_the_recurrence_in_float64(kernel, exact_factors, op, case):
    T, H, K, V, chunk = CASES[case]
    arguments, cotangents = draw(op, 2, T, H, K, V)
    found = results(op, arguments, cotangents, chunk=chunk, implementation="pallas")
    for x, goal in zip(found, exact(op, arguments, cotangents), strict=True):
        assert x.shape == goal.shape
        assert np.abs(x - goal).max() < 1e-5 * np.abs(goal).max()


@pytest.mark.parametrize("op", OPS)
def test_factors_of_16_bits_cost_a_gpu_no_more_than_that(op, monkeypatch):
    """Also where later tokens build on corrections of many earlier ones, and states remember all."""
    monkeypatch.setattr(chunks, "_on_one_device", on_a_gpu)
    arguments, (dy, ds) = draw(op, 2, 130, 2, 32, 64)
    arguments[3][:, 50:] /= 100
    narrow = [x.astype(jnp.bfloat16) if n < 3 else x for n, x in enumerate(arguments)]
    dy = dy.astype(jnp.bfloat16)
    for x, goal in zip(
        results(op, narrow, [dy, ds], implementation="pallas"), exact(op, narrow, [dy, ds]), strict=True
    ):
        assert np.abs(np.asarray(x, np.float64) - goal).max() < 2**-6 * np.abs(goal).max()


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_narrow_inputs_are_rounded_and_summed_as_they_are(op):
    """Queries, keys and values in bfloat16: the same sums, and only output and gradients rounded."""
    arguments, (dy, ds) = draw(op, 2, 20, 2, 8, 8)
    narrow = [x.astype(jnp.bfloat16) if n < 3 else x for n, x in enumerate(arguments)]
    cotangents = [dy.astype(jnp.bfloat16), ds]
    found = results(op, narrow, cotangents, chunk=16, implementation="pallas")
    for n, (x, goal) in enumerate(zip(found, exact(op, narrow, cotangents), strict=True)):
        rounded = n in (0, 2, 3, 4)
        assert x.dtype == (jnp.bfloat16 if rounded else jnp.float32)
        assert np.abs(np.asarray(x, np.float64) - goal).max() < (2**-8 if rounded else 1e-5) * np.abs(goal).max()


TOKENS = np.arange(44).reshape(2, 22) % 13
MODELS = {
    "gla": gla("170M", width=16, layers=2, vocab_size=13, max_len=22, mixer=GLAConfig(heads=2, chunk=16)),
    "delta": gated_deltanet(
        "170M", width=16, layers=2, vocab_size=13, max_len=22, mixer=GatedDeltaConfig(heads=2, chunk=16)
    ),
}


def by_kernel(config):
    return config.replace(mixer=config.mixer.replace(implementation="pallas"))


@pytest.mark.slow
@pytest.mark.parametrize("op", MODELS)
def test_a_model_has_the_same_loss_and_gradients(op):
    config = MODELS[op]
    params = mhc_jax.init(config, jax.random.key(0))
    segments = np.arange(22) // np.array([[9], [22]])

    def loss(params, config):
        out = mhc_jax.apply(config, params, TOKENS, segment_ids=segments)
        return jnp.mean(jnp.sin(out.logits_BTV))

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (value, grads), (goal, goal_grads) = run(params, by_kernel(config)), run(params, config)
    assert abs(value - goal) < 1e-6
    for x, want in zip(*map(jax.tree.leaves, (grads, goal_grads)), strict=True):
        assert jnp.abs(x - want).max() < 1e-5 * jnp.abs(want).max() + 1e-9


@pytest.mark.parametrize("op", OPS)
def test_single_tokens_and_none_are_left_to_xla(op):
    (*arguments, s0), _ = draw(op, 1, 2, 2, 8, 8)
    for B, T in ((1, 0), (1, 1), (0, 2)):
        traced = jax.make_jaxpr(lambda s0, *xs: OPS[op](*xs, s0_BHKV=s0, implementation="pallas"))
        assert "pallas" not in str(traced(s0[:B], *(x[:B, :T] for x in arguments)))


@pytest.mark.parametrize("op", OPS)
def test_derivatives_without_a_kernel_are_refused(kernel, op):
    (*arguments, _), _ = draw(op, 1, 32, 1, 8, 8)

    def product(*arguments):
        def total(*arguments):
            return jnp.sum(OPS[op](*arguments, form="chunked", implementation="pallas")[0])

        return jax.jvp(jax.grad(total), arguments, arguments)

    with pytest.raises(ConfigError, match="first derivatives in reverse mode only"):
        jax.eval_shape(product, *arguments)


def test_what_there_is_no_kernel_for_is_refused():
    arguments, _ = draw("gla", 1, 3, 2, 8, 8)

    def check(mixer, execution=Execution(policy="bfloat16")):
        gla("170M", mixer=mixer, width=768, execution=execution).validate()

    check(GLAConfig(implementation="pallas"))
    check(GatedDeltaConfig(implementation="pallas"))
    with pytest.raises(
        ConfigError, match="gla: implementation 'pallas' has no form 'recurrent'; use form 'chunked', or"
    ):
        check(GLAConfig(implementation="pallas", form="recurrent"))
    with pytest.raises(
        ConfigError, match="gla: implementation 'pallas': 2 heads of 192 by 384 in chunks of 256 are too"
    ):
        check(GLAConfig(implementation="pallas", heads=2, chunk=256))
    with (
        jax.enable_x64(),
        pytest.raises(ConfigError, match="gla: .* takes float32 or bfloat16, not float64"),
    ):
        gla("170M", mixer=GLAConfig(implementation="pallas"), execution=Execution(policy="float64")).validate()
    *rest, s0 = (x.astype(jnp.float16) for x in arguments)
    with pytest.raises(ConfigError, match="the kernel of chunks takes float32 or bfloat16, not float16; take such a"):
        gated_linear_attention(*rest, s0_BHKV=s0, implementation="pallas")
    with compiling_for("gpu"):
        with pytest.raises(
            ConfigError, match="gla: .* at most 64 channels of keys of a head on a GPU, not 96; take narrower"
        ):
            check(GLAConfig(implementation="pallas"))
        with pytest.raises(
            ConfigError, match="gated_delta: .* at most 128 channels of keys of a head on a GPU, not 256"
        ):
            check(GatedDeltaConfig(implementation="pallas", head_width=256))
        with pytest.raises(ConfigError, match="multiplies in bfloat16 on a GPU; take --model.execution.policy b"):
            check(GLAConfig(implementation="pallas", heads=12), Execution(policy="float32"))
        check(GLAConfig(implementation="pallas", heads=12))
        check(GatedDeltaConfig(implementation="pallas", head_width=64, chunk=256))
        with (
            jax.default_matmul_precision("highest"),
            pytest.raises(ConfigError, match="multiplies in bfloat16 on a GPU"),
        ):
            gated_linear_attention(*arguments[:-1], s0_BHKV=arguments[-1], implementation="pallas")
    with pytest.raises(ValueError, match="implementation 'pallas' has no form 'recurrent'"):
        gated_linear_attention(*rest, form="recurrent", implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation 'palas'; did you mean 'pallas'"):
        gated_linear_attention(*rest, implementation="palas")


SLICED = """
import jax, jax.numpy as jnp, numpy as np, re
from jax.sharding import NamedSharding, PartitionSpec as P
from mhc_jax.tests.test_chunk_kernels import OPS, draw

mesh = jax.make_mesh((2, 2), ("rows", "heads"))
rows = NamedSharding(mesh, P("rows"))
for op in OPS:
    (*arguments, s0), _ = draw(op, 2, 20, 2, 8, 8)

    def loss(s0, *arguments, **options):
        y, s = OPS[op](*arguments, s0_BHKV=s0, chunk=16, **options)
        return jnp.sum(jnp.sin(y)) + jnp.sum(s**2)

    every = tuple(range(1 + len(arguments)))
    want = jax.jit(jax.grad(loss, every))(s0, *arguments)
    run = jax.jit(jax.grad(lambda *xs: loss(*xs, implementation="pallas", batch_sharding=rows), every))
    placed = [jax.device_put(s0, NamedSharding(mesh, P("rows", "heads")))]
    placed += [jax.device_put(x, NamedSharding(mesh, P("rows", None, "heads"))) for x in arguments]
    found = run(*placed)
    assert found[1].addressable_shards[0].data.shape[:3] == (1, 20, 1)
    for x, goal in zip(found, want):
        np.testing.assert_allclose(x, goal, rtol=1e-4, atol=1e-5 * float(jnp.abs(goal).max()))
    assert not re.search("all-gather|all-to-all|collective-permute", run.lower(*placed).compile().as_text())
"""


@pytest.mark.slow
def test_devices_do_their_own_rows_and_heads():
    run_on_devices(SLICED, 4)
