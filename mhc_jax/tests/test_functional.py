"""The functional interface: what it refuses, and that its checks leave JAX's transformations alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import decode
from mhc_jax.functional import bind, hidden, param_shapes
from mhc_jax.models import gpt2, mhc_ssm, nanogpt
from mhc_jax.nn.stack import Execution
from mhc_jax.tests.own import slow_unless

CONFIG = mhc_ssm("mhc", vocab_size=11, max_len=7, width=4, layers=2)
TOKENS = np.arange(10).reshape(2, 5)


@pytest.fixture(scope="module")
def params():
    return mhc_jax.init(CONFIG, jax.random.key(0))


def changed(params, *path, leaf):
    """The parameters with one leaf replaced, or removed if it is None."""
    *outer, last = path
    copy = node = dict(params)
    for name in outer:
        node[name] = node = dict(node[name])
    node[last] = leaf
    if leaf is None:
        del node[last]
    return copy


WRONG = {
    "short table": (("embed", "tokens"), jnp.zeros((5, 4)), r"wrong shape \(1\): embed.tokens is \(5, 4\), expected"),
    "norm of one": (("final_norm", "scale"), jnp.ones(1), r"final_norm.scale is \(1,\), expected \(4,\)"),
    "missing": (("final_norm", "scale"), None, r"missing \(1\): final_norm.scale"),
    "unexpected": (("extra",), jnp.ones(1), r"unexpected \(1\): extra"),
    "integers": (("final_norm", "scale"), jnp.ones(4, int), "must be floating point: final_norm.scale is int32"),
    "a list": (("final_norm", "scale"), [1.0] * 4, "must be arrays, which these are not: final_norm.scale"),
}
CALLS = {
    "apply": lambda params: mhc_jax.apply(CONFIG, params, TOKENS),
    "traced": lambda params: jax.eval_shape(lambda: mhc_jax.apply(CONFIG, params, TOKENS)),
    "generate": lambda params: mhc_jax.generate(CONFIG, params, TOKENS, max_new_tokens=1, temperature=0),
    "init_cache": lambda params: decode.init_cache(CONFIG, params, 2),
    "bind": lambda params: bind(CONFIG, params),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("path", "leaf", "message"), WRONG.values(), ids=WRONG)
def test_parameters_of_another_model_are_refused(path, leaf, message, call, params):
    with pytest.raises(mhc_jax.ConfigError, match=message) as error:
        call(changed(params, *path, leaf=leaf))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [None, {}, "mhc", CONFIG.mixer])
@pytest.mark.parametrize(
    "call",
    [
        lambda config, params: mhc_jax.apply(config, params, TOKENS),
        lambda config, params: mhc_jax.init(config, jax.random.key(0)),
        lambda config, params: mhc_jax.summary(params),
        lambda config, params: mhc_jax.generate(config, params, TOKENS, max_new_tokens=1, temperature=0),
    ],
)
def test_what_is_no_model_is_refused(call, config, params):
    with pytest.raises(mhc_jax.ConfigError, match="the model must be a ModelConfig, as from mhc_jax.models, not "):
        call(config, params)


@pytest.mark.parametrize("key", [0, None, jnp.zeros(2)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(mhc_jax.ConfigError, match=r"init needs a key, such as jax.random.key\(0\), not "):
        mhc_jax.init(CONFIG, key)


def test_a_probe_that_names_nothing_is_refused(params):
    with pytest.raises(mhc_jax.ConfigError, match="no activation has the name of a probe: blocks.mixer.stat"):
        mhc_jax.apply(
            CONFIG, params, TOKENS, probes={"blocks.mixer.stat": jnp.zeros(CONFIG.layers), "embed": jnp.zeros(())}
        )


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("embed", (), (2, 5, 4)),
        ("embed", (2, 5, 3), (2, 5, 4)),
        ("hidden", (2, 1, 4), (2, 5, 4)),
        ("blocks.mixer.u", (3, 2, 5, 4), (2, 2, 5, 4)),
        ("blocks.mixer.u", (2, 5, 4), (2, 2, 5, 4)),
        ("blocks.mixer.u", (2, 2, 5, 1), (2, 2, 5, 4)),
    ],
)
def test_a_probe_of_another_shape_is_refused(name, shape, wanted, params):
    message = re.escape(f"the probe {name!r} is of shape {shape}, its activation of shape {wanted}")
    with pytest.raises(mhc_jax.ConfigError, match=message):
        mhc_jax.apply(CONFIG, params, TOKENS, probes={name: jnp.zeros(shape)})


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mhc_ssm("adapters", widht=8), r"mhc_ssm\(\) takes no 'widht'; did you mean 'width'\?"),
        (lambda: mhc_ssm(varient="mhc"), r"mhc_ssm\(\) takes no 'varient'; did you mean 'variant'\?"),
        (lambda: nanogpt("mhc", haeds=8), r"nanogpt\(\) takes no 'haeds'; did you mean 'heads'\?"),
        (lambda: gpt2(max_length=8), r"gpt2\(\) takes no 'max_length'; did you mean 'max_len'\?"),
        (lambda: gpt2(zzzz=8), r"gpt2\(\) takes no 'zzzz'$"),
        (lambda: CONFIG.replace(layrs=2), r"replace\(\) takes no 'layrs'; did you mean 'layers'\?"),
    ],
)
def test_a_mistyped_keyword_names_the_nearest(call, says):
    with pytest.raises(TypeError, match=says):
        call()


@pytest.mark.parametrize(
    ("params", "message"), [({}, r"missing \(20\): blocks.*bias and 15 more"), (None, "not NoneType")]
)
def test_no_parameters_are_refused(params, message):
    with pytest.raises(mhc_jax.ConfigError, match=message) as error:
        mhc_jax.apply(CONFIG, params, TOKENS)
    assert len(str(error.value)) < 400


BAD_TOKENS = {
    "beyond the vocabulary": ([[99]], r"tokens must lie in 0\.\.10, got 99"),
    "negative": (np.array([[3, -1]]), "got -1"),
    "on the device": (jnp.array([[11]]), "got 11"),
    "of 40 bits": ([[2**40 + 1]], f"got {2**40 + 1}"),
    "ragged": ([[1, 2], [3]], r"\(batch, time\) array of integers \(setting an array"),
    "words": ([["a"]], "array of integers"),
    "truths": ([[True]], "dtype bool"),
    "no rows": (np.zeros((0, 5), int), r"tokens are empty, of shape \(0, 5\)"),
    "one row": ([1, 2], r"\(batch, time\) array of integers, got shape \(2,\)"),
}


@pytest.mark.parametrize(("tokens", "message"), BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_tokens_that_mean_nothing_are_refused(tokens, message, params):
    for call in (
        lambda: mhc_jax.apply(CONFIG, params, tokens),
        lambda: mhc_jax.generate(CONFIG, params, tokens, max_new_tokens=1, temperature=0),
        lambda: jax.eval_shape(lambda: mhc_jax.apply(CONFIG, params, tokens)),  # constants of a compiled function
    ):
        with pytest.raises(mhc_jax.ConfigError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": np.full((2, 5), 7)}, r"positions must lie in 0\.\.6, got 7"),
        ({"positions": np.arange(5)[None]}, r"positions must have the shape \(2, 5\) of the tokens, got \(1, 5\)"),
        (
            {"positions": np.zeros((2, 5))},
            r"positions must be a \(batch, time\) array of integers, got shape .* float64",
        ),
        ({"segment_ids": np.zeros((2, 4), int)}, r"segment_ids must have the shape \(2, 5\)"),
    ],
)
def test_positions_and_segments_are_checked(options, message, params):
    with pytest.raises(mhc_jax.ConfigError, match=message):
        mhc_jax.apply(CONFIG, params, TOKENS, **options)


def test_lists_of_ids_are_tokens(params):
    same = mhc_jax.apply(CONFIG, params, TOKENS.tolist()).logits_BTV
    np.testing.assert_array_equal(same, mhc_jax.apply(CONFIG, params, TOKENS).logits_BTV)
    one = mhc_jax.generate(CONFIG, params, [[1, 2]], max_new_tokens=1, temperature=0)
    assert one.shape == (1, 3)


def test_transformations_see_no_values(params):
    """Traced, batched, differentiated: in each the parameters and tokens are checked by shape alone."""

    def logits(params, tokens):
        return mhc_jax.apply(CONFIG, params, tokens).logits_BTV

    ensemble = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    assert jax.eval_shape(jax.vmap(logits, in_axes=(0, None)), ensemble, TOKENS).shape == (2, 2, 5, 11)
    assert jax.eval_shape(jax.vmap(logits, in_axes=(None, 0)), params, np.stack([TOKENS] * 3)).shape == (3, 2, 5, 11)
    jax.eval_shape(lambda p, t: jax.jvp(lambda p: logits(p, TOKENS), (p,), (t,)), params, params)
    jax.eval_shape(lambda p: jax.linearize(lambda p: logits(p, TOKENS), p)[0], params)
    jax.eval_shape(
        jax.hessian(lambda scale: logits(changed(params, "final_norm", "scale", leaf=scale), TOKENS).sum()),
        params["final_norm"]["scale"],
    )
    # Ids out of range cannot be seen in a compiled function.
    jax.eval_shape(logits, params, jax.ShapeDtypeStruct((2, 5), jnp.int32))


def test_parameters_may_have_other_precisions(params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert mhc_jax.apply(CONFIG, half, TOKENS).logits_BTV.dtype == jnp.float32
    with jax.enable_x64(True):
        config = CONFIG.replace(execution=Execution(policy="float64"))
        double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        assert jax.eval_shape(lambda: mhc_jax.apply(config, double, TOKENS)).logits_BTV.dtype == jnp.float64


def test_shapes_stand_in_for_parameters_nowhere():
    with pytest.raises(mhc_jax.ConfigError, match="must be arrays"):
        bind(CONFIG, param_shapes(CONFIG))


@pytest.mark.slow
@pytest.mark.parametrize("layers", slow_unless({"scan"}, ["scan", "unroll"]))
def test_a_sharding_of_the_batch_changes_no_value_also_under_vmap_and_differentiation(layers, params):
    config = CONFIG.replace(execution=Execution(layers=layers, remat="block"))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def loss(params, batch_sharding):
        logits_BTV = mhc_jax.apply(config, params, TOKENS, batch_sharding=batch_sharding).logits_BTV
        return jnp.sum(jnp.square(logits_BTV))

    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    found, expected = (
        jax.jit(jax.vmap(jax.value_and_grad(lambda params, its=its: loss(params, its))))(two) for its in (rows, None)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), found, expected)


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_shared_values_go_with_any_sharding_of_the_batch(kind):
    """Also one that slices nothing, and that of a mesh whose axes are part of types."""
    config = nanogpt(value_residual="free", heads=2, vocab_size=11, max_len=8, width=8, layers=2)
    params, tokens = mhc_jax.init(config, jax.random.key(0)), np.arange(16).reshape(2, 8) % 11
    mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,), devices=jax.devices()[:1])
    for spec in (jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(None)):
        sharding = jax.sharding.NamedSharding(mesh, spec)
        found = jax.jit(lambda p, its=sharding: mhc_jax.apply(config, p, tokens, batch_sharding=its).logits_BTV)(params)
        np.testing.assert_allclose(found, mhc_jax.apply(config, params, tokens).logits_BTV, rtol=1e-5, atol=1e-6)


def test_activations_that_are_asked_for_by_name_are_all_that_is_kept(params):
    names = ("blocks.mixer.state", "hidden")
    every = jax.jit(lambda p: mhc_jax.apply(CONFIG, p, TOKENS, taps=True).taps)(params)
    some = jax.jit(lambda p: hidden(CONFIG, p, TOKENS, taps=names).taps)(params)
    assert some.keys() == {*names} < every.keys()
    for name in names:
        np.testing.assert_allclose(some[name], every[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(mhc_jax.ConfigError, match="^no activation is called mixer.state"):
        jax.eval_shape(lambda p: hidden(CONFIG, p, TOKENS, taps=("mixer.state",)), params)
