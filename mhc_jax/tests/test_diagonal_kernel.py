"""The kernels of the diagonal recurrence, of TPUs and of GPUs, interpreted, beside the recurrence in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.kernels import diagonal, diagonal_gpu
from mhc_jax.ops.diag_ssm import diag_ssm, pole
from mhc_jax.tests.devices import run_on_devices
from mhc_jax.tests.own import slow_unless

KERNELS = ["tpu", "gpu"]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    if request.param == "gpu":
        monkeypatch.setattr(diagonal, "_forth", diagonal_gpu.forth)
        monkeypatch.setattr(diagonal, "_back", diagonal_gpu.back)


def draw(B, T, D):
    """Input, gains, first states, and the cotangents of output and last states; poles from one end to the other."""
    rng = np.random.default_rng(0)
    u, dy = rng.normal(size=(2, B, T, D))
    s0, ds = rng.normal(size=(2, B, D))
    logit_a, b, c, d = rng.normal(size=(4, D))
    return (u, 4 * logit_a, b, c, d, s0), (dy, ds)


def results(arguments, cotangents, resets, **options):
    B, T, _ = arguments[0].shape
    reset_BT = np.arange(T) % 23 == np.array([[0], [7], [22]])[:B] if resets else None

    @jax.jit
    def run(arguments, cotangents):
        found, pull = jax.vjp(lambda *xs: diag_ssm(*xs, reset_BT=reset_BT, **options), *arguments)
        return *found, *pull(cotangents)

    return run(arguments, cotangents)


def exact(arguments, cotangents, resets):
    with jax.enable_x64():
        wide = (tuple(jnp.asarray(x, np.float64) for x in arrays) for arrays in (arguments, cotangents))
        return [np.asarray(x) for x in results(*wide, resets)]


def narrow(arrays, dtype=jnp.float32, count=0):
    return tuple(jnp.asarray(x, dtype if i < count else jnp.float32) for i, x in enumerate(arrays))


CASES = {  # B, T, D
    "one chunk": (2, 16, 128),
    "tokens behind the last chunk": (2, 40, 128),
    "chunks of 256 and tokens behind them": (3, 530, 256),
    "channels that 1,024 does not hold": (1, 32, 1152),
}


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("case", slow_unless(["tokens behind the last chunk"], CASES))
def test_equals_the_recurrence_in_float64(kernel, case, resets):
    arguments, cotangents = draw(*CASES[case])
    found = results(narrow(arguments), narrow(cotangents), resets, implementation="pallas")
    plain = results(narrow(arguments), narrow(cotangents), resets)
    for x, other, goal in zip(found, plain, exact(arguments, cotangents, resets), strict=True):
        rounding = np.abs(other - goal).max()  # of poles near one, above all
        assert x.shape == goal.shape
        assert np.abs(x - goal).max() <= 2 * rounding + 1e-6 * np.abs(goal).max()


def test_narrow_inputs_are_summed_in_float32(kernel):
    """Only output and gradient of the input are rounded."""
    arguments, cotangents = (narrow(arrays, jnp.bfloat16, 1) for arrays in draw(2, 48, 128))
    found = results(arguments, cotangents, True, implementation="pallas")
    for n, (x, goal) in enumerate(zip(found, exact(arguments, cotangents, True), strict=True)):
        rounded = n in (0, 2)
        assert x.dtype == (jnp.bfloat16 if rounded else jnp.float32)
        assert np.abs(np.asarray(x, np.float64) - goal).max() < (2**-8 if rounded else 2e-5) * np.abs(goal).max()


def test_a_reset_forgets_whatever_came_before(kernel):
    """Also at the first token, and one whose state is huge."""
    (u, *gains, s0), _ = draw(1, 32, 128)
    reset_BT = np.isin(np.arange(32), [0, 17])[None]
    u[0, 16], s0 = 1e30, np.full_like(s0, 1e30)

    def output(s0):
        return diag_ssm(*narrow((u, *gains, s0)), reset_BT=reset_BT, implementation="pallas")[0]

    y = output(s0)
    np.testing.assert_array_equal(y[:, :16], output(0 * s0)[:, :16])
    alone = diag_ssm(*narrow((u[:, 17:], *gains)), implementation="pallas")[0]
    np.testing.assert_allclose(y[:, 17:], alone, rtol=1e-5, atol=1e-5)


def test_a_pole_at_either_end_has_finite_gradients(kernel):
    (u, _, *others), cotangents = draw(1, 64, 128)
    for logit in (-100.0, 100.0):
        assert pole(jnp.asarray(logit)) in (np.float32(1e-4), np.float32(1 - 1e-4))
        arguments = narrow((u, np.full(128, logit), *others))
        for x in results(arguments, narrow(cotangents), False, implementation="pallas"):
            assert jnp.isfinite(x).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_reaches_no_token_before_it(kernel, value):
    """In the output; and in the gradient of the input none behind it."""
    (u, *gains, _), (dy, _) = draw(1, 32, 128)
    u[0, 13], dy[0, 11] = value, value
    y, pull = jax.vjp(lambda u: diag_ssm(u, *narrow(gains), implementation="pallas")[0], *narrow([u]))
    np.testing.assert_array_equal(jnp.isfinite(y).all(-1)[0], np.arange(32) < 13)
    np.testing.assert_array_equal(jnp.isfinite(pull(*narrow([dy]))[0]).all(-1)[0], np.arange(32) > 11)


def test_only_some_tokens_behind_the_last_chunk_are_left_to_xla():
    for tokens in range(300):
        found = diagonal.whole(tokens)
        assert 0 <= tokens - found <= max(15, tokens // 8)
        assert found % 16 == 0
    assert [diagonal.whole(tokens) for tokens in (15, 16, 255, 256, 1000, 1024)] == [0, 16, 224, 256, 896, 1024]


def test_few_tokens_and_none_are_left_to_xla():
    for B, T in ((1, 1), (1, 15), (0, 32)):
        (u, *gains, s0), _ = draw(B, T, 128)
        traced = jax.make_jaxpr(lambda *xs: diag_ssm(*xs, implementation="pallas"))(*narrow((u, *gains, s0)))
        assert "pallas" not in str(traced)


MODEL = configs.load("mhc_ssm").model.replace(width=128, layers=2, vocab_size=13, max_len=22)
TOKENS = np.arange(44).reshape(2, 22) % 13


def by_kernel(config):
    return config.replace(mixer=config.mixer.replace(implementation="pallas"))


def test_a_model_has_the_same_loss_and_gradients(kernel):
    params = mhc_jax.init(MODEL, jax.random.key(0))
    segments = np.arange(22) // np.array([[9], [22]])

    def loss(params, config):
        return jnp.mean(jnp.sin(mhc_jax.apply(config, params, TOKENS, segment_ids=segments).logits_BTV))

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (value, grads), (goal, goal_grads) = run(params, by_kernel(MODEL)), run(params, MODEL)
    assert abs(value - goal) < 1e-6
    for x, want in zip(*map(jax.tree.leaves, (grads, goal_grads)), strict=True):
        assert jnp.abs(x - want).max() < 1e-5 * jnp.abs(want).max() + 1e-8


def test_derivatives_without_a_kernel_are_refused(kernel):
    (u, *gains, _), _ = draw(1, 16, 128)
    with pytest.raises(ConfigError, match="first derivatives in reverse mode only"):
        jax.hessian(lambda u: jnp.sum(diag_ssm(u, *narrow(gains), implementation="pallas")[0] ** 2))(*narrow([u]))


def test_what_has_no_kernel_is_refused():
    for model, message in (
        (
            MODEL.replace(width=64),
            "takes multiples of 128 channels, not 64; take such a width, or implementation 'xla'",
        ),
        (
            MODEL.replace(execution=MODEL.execution.replace(policy="float16")),
            "takes float32 or bfloat16, not float16; take such a policy, or implementation 'xla'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            by_kernel(model).validate()
    (u, *gains, s0), _ = draw(1, 16, 128)
    arguments = narrow((u, *gains, s0))
    with pytest.raises(ConfigError, match="multiples of 128 channels, not 64"):
        diag_ssm(*(x[..., :64] for x in arguments), implementation="pallas")
    with pytest.raises(ValueError, match="unknown implementation 'cuda'"):
        diag_ssm(*arguments, implementation="cuda")
    for options, message in (
        ({"form": "step"}, "unknown scan form 'step'"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            diag_ssm(*arguments, implementation="pallas", **options)


SLICED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mhc_jax.kernels import diagonal, diagonal_gpu
from mhc_jax.ops.diag_ssm import diag_ssm

rng = np.random.default_rng(0)
u, s0, reset = rng.normal(size=(4, 40, 256)), rng.normal(size=(4, 256)), rng.random((4, 40)) < 0.1
gains = rng.normal(size=(4, 256))
mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)

def both(u, gains, s0, **options):
    def total(u, gains, s0):
        y, s = diag_ssm(u, *gains, s0, reset_BT=reset, **options)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(s))
    return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(u, gains, s0)

def put(x, *spec):
    return jax.device_put(jnp.asarray(x, jnp.float32), NamedSharding(mesh, PartitionSpec(*spec)))

goal = both(*(jnp.asarray(x, jnp.float32) for x in (u, gains, s0)))
here = put(u, "data"), put(gains), put(s0, "data")
for forth, back in ((diagonal._forth, diagonal._back), (diagonal_gpu.forth, diagonal_gpu.back)):
    diagonal._forth, diagonal._back = forth, back
    found = both(*here, implementation="pallas", batch_sharding=NamedSharding(mesh, PartitionSpec("data")))
    for x, want in zip(jax.tree.leaves(found), jax.tree.leaves(goal), strict=True):
        np.testing.assert_allclose(x, want, rtol=1e-4, atol=1e-4 * float(jnp.abs(want).max()))
"""


@pytest.mark.slow
def test_devices_do_their_own_rows_and_channels():
    run_on_devices(SLICED, 4)
