"""The kernels of the head with its loss, interpreted: equal to float64, to XLA's form, and sliced over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax import ConfigError
from mhc_jax.backend import compiling_for
from mhc_jax.kernels import vocabulary_tpu
from mhc_jax.kernels.vocabulary import fault, normalisers
from mhc_jax.ops.loss import IGNORE, chunked_cross_entropy, chunked_cross_entropy_and_z_loss, cross_entropy
from mhc_jax.tests.devices import run_on_devices
from mhc_jax.tests.own import slow_unless

ROUNDED = 2**-7  # of factors of 16 bits, relative to the largest number


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that few rows take several."""
    monkeypatch.setattr(vocabulary_tpu, "_tile", lambda _: vocabulary_tpu.Tile(128, 128))


def draw(B, T, D, V, dtype=jnp.float32):
    """Inputs, targets of which some are ignored, and cotangents."""
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((B, T, D), (V, D)))
    targets, (a, b) = rng.integers(0, V, (B, T)), rng.standard_normal((2, B, T))
    targets.flat[1::5] = IGNORE
    return hidden, head, targets, (a, np.where(targets == IGNORE, 0, b))


def with_gradients(run, hidden, head, targets, cotangents):
    found, pull = jax.vjp(lambda *inputs: run(*inputs, targets), hidden, head)
    return *found, *pull(tuple(jnp.asarray(x, y.dtype) for x, y in zip(cotangents, found, strict=True)))


def by_jax(hidden, head, targets):
    logits = hidden @ head.T
    picked = jnp.take_along_axis(logits, jnp.where(targets == IGNORE, 0, targets)[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1), jnp.where(targets == IGNORE, jnp.nan, picked)


def exact(hidden, head, *others):
    with jax.enable_x64():
        wide = (jnp.asarray(np.asarray(x, np.float64)) for x in (hidden, head))
        return [np.asarray(x) for x in jax.jit(with_gradients, static_argnums=0)(by_jax, *wide, *others)]


CASES = {  # B, T, D, V
    "several tiles, the last not full": (2, 75, 24, 300),
    "tiles that are full": (2, 128, 16, 256),
    "one token and few words": (1, 1, 8, 5),
    "one word": (1, 3, 8, 1),
    "a head as wide as it is long": (1, 30, 130, 130),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", slow_unless(["several tiles, the last not full"], CASES))
def test_equals_float64(case, dtype):
    given = draw(*CASES[case], dtype)
    found = jax.jit(with_gradients, static_argnums=0)(normalisers, *given)
    for n, (x, goal) in enumerate(zip(found, exact(*given), strict=True)):
        assert x.shape == goal.shape
        assert x.dtype == (dtype if n > 1 else jnp.float32)
        error = ROUNDED if n > 1 and dtype == jnp.bfloat16 else 2e-6
        np.testing.assert_allclose(np.asarray(x, np.float64), goal, rtol=0, atol=error * np.nanmax(np.abs(goal)))


def test_the_gradient_of_a_likely_target_keeps_its_digits():
    """There the target's probability less one is small, and rounded as a number of its own, not as one near one."""
    hidden, head, targets, _ = draw(1, 40, 24, 300, jnp.bfloat16)
    targets = np.where(targets == IGNORE, 7, targets)
    hidden = head[targets]
    cotangents = np.ones(targets.shape), -np.ones(targets.shape)
    *_, dhidden, dhead = jax.jit(with_gradients, static_argnums=0)(normalisers, hidden, head, targets, cotangents)
    lse, picked, *goals = exact(hidden, head, targets, cotangents)
    assert np.median(picked - lse) > -1e-2
    for found, goal in ((dhidden, goals[0]), (dhead[np.unique(targets)], goals[1][np.unique(targets)])):
        error = np.linalg.norm(np.asarray(found, np.float64) - goal, axis=-1) / np.linalg.norm(goal, axis=-1)
        assert error.max() < 2 * ROUNDED


def losses(hidden, head, targets, implementation):
    options = {"chunk": 16, "implementation": implementation}
    total, *parts, count = chunked_cross_entropy_and_z_loss(hidden, head, targets, 0.3, **options)
    entropy, _ = chunked_cross_entropy(hidden, head, targets, **options)
    return (total, entropy), (*parts, count)


@pytest.mark.parametrize("targets_are", ["some ignored", "all ignored", "bytes"])
def test_losses_equal_those_of_xla(targets_are):
    hidden, head, targets, _ = draw(2, 20, 16, 256 if targets_are == "bytes" else 61)
    changed = {"all ignored": np.full_like(targets, IGNORE), "bytes": np.abs(targets).astype("uint8")}
    targets = jnp.asarray(changed.get(targets_are, targets))

    @jax.jit
    def both(hidden, head):
        found = []
        for implementation in ("xla", "pallas"):
            run = lambda *inputs, name=implementation: losses(*inputs, targets, name)  # noqa: E731
            sums, pull, parts = jax.vjp(run, hidden, head, has_aux=True)
            found.append((sums, parts, pull((2.0, 0.5))))
        return found

    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-4), *both(hidden, head))


def test_logits_that_are_no_numbers_and_targets_that_are_no_words_give_no_number():
    hidden, head, targets, _ = draw(1, 20, 16, 61)
    targets = np.where(targets == IGNORE, IGNORE, 60)

    def loss(hidden, head, targets):
        return chunked_cross_entropy(hidden, head, targets, chunk=4, implementation="pallas")[0]

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    assert jnp.isfinite(run(hidden, head, targets)[0])
    value, gradients = run(hidden, head.at[3, 2].set(jnp.nan), targets)
    assert jnp.isnan(value)
    assert all(jnp.isnan(x).any() for x in gradients)
    assert jnp.isnan(run(hidden, head, np.where(np.arange(20) == 9, 61, targets))[0])
    # Large logits, all below zero too, are no trouble.
    for x in (hidden * 1e4, -jnp.abs(hidden) * 1e4):
        value, gradients = run(x, jnp.abs(head), targets)
        np.testing.assert_allclose(value, cross_entropy(x @ jnp.abs(head).T, jnp.asarray(targets))[0], rtol=1e-5)
        assert all(jnp.isfinite(x).all() for x in gradients)


def test_no_tokens_have_no_loss():
    hidden, head, targets, _ = draw(1, 20, 16, 61)
    value, count = chunked_cross_entropy(hidden[:0], head, targets[:0], chunk=4, implementation="pallas")
    assert value == count == 0


def test_inputs_of_two_dtypes_are_taken_to_the_wider():
    hidden, head, targets, _ = draw(1, 20, 16, 61)
    hidden = hidden.astype(jnp.bfloat16)
    found, goal = (normalisers(x, head, jnp.asarray(targets)) for x in (hidden, hidden.astype(jnp.float32)))
    np.testing.assert_array_equal(found, goal)


def test_what_there_is_no_kernel_for_is_refused():
    hidden, head, targets, _ = draw(1, 20, 16, 61)

    def loss(hidden, head, implementation="pallas"):
        return chunked_cross_entropy(hidden, head, targets, chunk=4, implementation=implementation)[0]

    with pytest.raises(ConfigError, match="take float32 or bfloat16, not float16; take such a policy, or impl"):
        loss(*(x.astype(jnp.float16) for x in (hidden, head)))
    with compiling_for("gpu"), pytest.raises(ConfigError, match="are for TPUs; take implementation 'xla'"):
        loss(hidden, head)
    with pytest.raises(ConfigError, match="first derivatives in reverse mode only"):
        jax.hessian(loss)(hidden, head)
    with pytest.raises(ValueError, match="implementation 'palas'.*did you mean 'pallas'"):
        loss(hidden, head, "palas")
    assert fault(jnp.bfloat16, None) is fault(jnp.float32, "tpu") is None


def test_tiles_fit_and_heads_too_wide_have_none(monkeypatch):
    of = vocabulary_tpu.Tile.of
    large = 40 * 2**20
    assert of(768, jnp.bfloat16, large) == (512, 2048)
    assert of(2048, jnp.bfloat16, large) == (512, 1024)
    assert of(2048, jnp.bfloat16, 12 * 2**20) == (256, 256)
    assert of(10**5, jnp.bfloat16, large) is None
    monkeypatch.undo()
    shapes = [jax.ShapeDtypeStruct((*rows, 10**5), jnp.bfloat16) for rows in ((1, 2), (9,))]
    with pytest.raises(ConfigError, match="a head of width 100000 is too wide for its kernels; take implementation"):
        jax.eval_shape(lambda *inputs: normalisers(*inputs, jnp.zeros((1, 2), int)), *shapes)


SLICED = """
import jax, jax.numpy as jnp, numpy as np, re
from jax.sharding import NamedSharding, PartitionSpec as P
from mhc_jax.ops.loss import chunked_cross_entropy_and_z_loss

mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"))
rows = NamedSharding(mesh, P(("data", "fsdp")))
rng = np.random.default_rng(0)


def loss(hidden, head, targets, **options):
    return chunked_cross_entropy_and_z_loss(hidden, head, targets, 0.1, chunk=8, **options)[0]


for V in (300, 61):  # whole on every device if two do not divide it
    hidden, head = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((4, 20, 16), (V, 16)))
    targets = jnp.asarray(rng.integers(0, V, (4, 20))).at[1, 3].set(-100)
    want = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head, targets)
    place = NamedSharding(mesh, P("tensor" if V % 2 == 0 else None))
    given = jax.device_put((hidden, head, targets), (rows, place, rows))
    step = jax.jit(lambda *xs: jax.value_and_grad(loss, (0, 1))(*xs, implementation="pallas", batch_sharding=rows))
    value, gradients = step(*given)
    for x, goal in zip((value, *gradients), jax.tree.leaves(want)):
        np.testing.assert_allclose(x, goal, rtol=1e-5, atol=1e-5 * float(jnp.abs(goal).max()))
    assert gradients[0].addressable_shards[0].data.shape[0] == 2
    assert gradients[1].addressable_shards[0].data.shape[0] == (V // 2 if V % 2 == 0 else V)
    assert not re.search("all-gather|all-to-all|collective-permute", step.lower(*given).compile().as_text())
"""


@pytest.mark.slow
def test_devices_do_their_own_rows_and_words():
    run_on_devices(SLICED, 4)
