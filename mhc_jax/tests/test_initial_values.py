"""Where every parameter starts: the spread of every random one, the value of every other, by its name."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mhc_jax
from mhc_jax import registry
from mhc_jax.models import mhc_ssm, nanogpt, topologies, with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.init import Init, normal, uniform
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig, DiagonalSSMConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.residual import DynamicMHCConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.taps import Taps
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import policy
from mhc_jax.tests.own import own

FLOAT32 = policy("float32")
WIDTH, LAYERS, HIDDEN, N = 32, 3, 96, 4
BASE = LMConfig(
    vocab_size=200,
    max_len=40,
    width=WIDTH,
    layers=LAYERS,
    norm=LayerNormConfig(),
    mixer=AttentionConfig(heads=2),
    mlp=GeluMLPConfig(hidden=HIDDEN),
)
DEPTH_SCALED = 0.02 / math.sqrt(2 * LAYERS)


def bound(fan_in):
    """Standard deviation of U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return 1 / math.sqrt(3 * fan_in)


# (mean, standard deviation) by the end of the name, the longest that fits; a deviation of 0 is a constant.
ZERO, ONE = (0.0, 0.0), (1.0, 0.0)
STARTS = {
    "embed.tokens": (0.0, 0.02), "embed.positions": (0.0, 0.02), "norm.scale": ONE, "norm.bias": ZERO,
    "q_proj.kernel": (0.0, 0.02), "k_proj.kernel": (0.0, 0.02), "v_proj.kernel": (0.0, 0.02),
    "mixer.branch.out_proj.kernel": (0.0, DEPTH_SCALED), "up_proj.kernel": (0.0, 0.02),
    "down_proj.kernel": (0.0, DEPTH_SCALED), "q_proj.bias": ZERO, "k_proj.bias": ZERO, "v_proj.bias": ZERO,
    "out_proj.bias": ZERO, "up_proj.bias": ZERO, "down_proj.bias": ZERO,
    "phi": ZERO, "residual.alpha": (0.01, 0.0), "ends.alpha": (0.01, 0.0), "gamma": ZERO,
    "dynamic_alpha_fn": ZERO, "dynamic_beta_fn": ZERO, "alpha_fn": ZERO, "beta_fn": ZERO,
    "dynamic_alpha_scale": (0.01, 0.0), "dynamic_beta_scale": (0.01, 0.0), "static_beta": ONE, "beta_static": ZERO,
    "pre_scale": (0.01, 0.0), "res_scale": (0.01, 0.0), "post_scale": (0.01, 0.0), "post_logits": ZERO,
    "collapse_logits": ZERO, "ends.bias": (-math.log(3), 0.0), "residual.down": (0.0, 0.02), "residual.up": ZERO,
    "inject": ZERO, "ends.proj.bias": ZERO, "mix_logit": (math.log(0.01 / 0.99), 0.0), "lambdas": (0.5, 0.0),
    "stream_embed": ZERO, "write": ONE, "skew": ZERO,
}  # fmt: skip
OWN = {
    "deepseek_v4": {"residual.phi": (0.0, 0.02), "residual.alpha": ONE, "residual.bias": ZERO},
    "multi_branch": {"static_beta": (0.5, 0.0)},
    "shc": {"residual.phi": (0.0, 0.02)},
}
# Not one number: see the tests of what sites read, write and mix.
ELSEWHERE = {
    "pre_logits", "res_logits", "static_alpha", "alpha_static", "residual.bias", "gate_scale", "ends.proj.kernel",
    "residual.read",
}  # fmt: skip


def leaves(config):
    return named(mhc_jax.init(config, jax.random.key(0)))


def named(tree):
    """Leaves by dotted name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def longest(name, table):
    fitting = [end for end in table if name == end or name.endswith(("." + end, "_" + end))]
    return max(fitting, key=len, default=None)


def check(name, x, mean, std):
    """Each layer on its own, within five standard errors."""
    for layer in x.reshape(LAYERS, -1) if name.startswith("blocks.") else x.reshape(1, -1):
        if std == 0:
            np.testing.assert_allclose(layer, mean, rtol=1e-5, atol=1e-7, err_msg=name)
        else:
            np.testing.assert_allclose(layer.std(), std, rtol=5 / math.sqrt(2 * layer.size), err_msg=name)
            np.testing.assert_allclose(layer.mean(), mean, atol=5 * std / math.sqrt(layer.size), err_msg=name)


def checked(found, own):
    """Names of the parameters that are random, once all are seen to start as the tables say."""
    random = []
    for path, x in found.items():
        table = own if longest(path, own) else STARTS
        if table is STARTS and longest(path, ELSEWHERE):
            continue
        end = longest(path, table)
        assert end, f"say in STARTS how {path} begins"
        check(path, x, *table[end])
        if table[end][1]:
            random.append(path)
    return random


@pytest.mark.parametrize("name", own("topology"))
def test_every_parameter_of_a_site_and_of_the_ends_starts_as_documented(name):
    config = with_topology(BASE, name)

    @jax.jit
    def start():
        init = Init(jax.random.key(0), index=1, sites=2 * LAYERS)
        parts = {
            "residual": config.residual.build(WIDTH, FLOAT32, init),
            "ends": config.ends.build(WIDTH, config.residual.stream_count, FLOAT32, init),
        }
        return {part: nnx.to_pure_dict(nnx.state(module, nnx.Param)) for part, module in parts.items()}

    checked(named(start()), OWN.get(name, {}))


def test_every_parameter_of_a_model_starts_with_its_spread_and_is_a_draw_of_its_own():
    """The output projections are scaled by the depth of the model."""
    found = leaves(BASE)
    random = checked(found, {})
    draws = {path: found[path].reshape(LAYERS if path.startswith("blocks.") else 1, -1)[:, :64] for path in random}
    units = [layer / layer.std() for layers in draws.values() for layer in layers]
    assert len(units) == 2 + 6 * LAYERS
    assert len({tuple(unit.round(4)) for unit in units}) == len(units)


@pytest.mark.slow
def test_the_output_projection_is_scaled_by_all_sites_of_the_model():
    for layers, mlp, sites in ((2, GeluMLPConfig(), 4), (5, None, 5)):
        found = leaves(BASE.replace(layers=layers, mlp=mlp))["blocks.mixer.branch.out_proj.kernel"]
        np.testing.assert_allclose(found.std(), 0.02 / math.sqrt(sites), rtol=0.06)


@pytest.mark.parametrize(("form", "embed", "zero_init"), [("default", 0.02, True), ("original", 1.0, False)])
def test_both_forms_of_mhc_ssm_start_as_documented(form, embed, zero_init):
    config = mhc_ssm("adapters", form, vocab_size=200, max_len=40, width=WIDTH, layers=LAYERS)
    found, kernel = leaves(config), bound(WIDTH)
    rank = config.adapters.rank
    expected = {
        "embed.tokens": (0.0, embed), "embed.positions": (0.0, embed),
        "blocks.mixer.branch.in_proj.kernel": (0.0, kernel), "blocks.mixer.branch.in_proj.bias": (0.0, kernel),
        "blocks.mixer.branch.out_proj.kernel": (0.0, kernel), "blocks.mixer.branch.out_proj.bias": (0.0, kernel),
        "blocks.mixer.branch.conv.filter": (0.0, bound(3)), "blocks.mixer.branch.conv.bias": (0.0, bound(3)),
        "blocks.mixer.residual.adapters.down.kernel": (0.0, kernel),
        "blocks.mixer.residual.adapters.up.kernel": ZERO if zero_init else (0.0, bound(rank)),
        "blocks.mixer.residual.adapters.up.bias": ZERO if zero_init else (0.0, bound(rank)),
        "blocks.mixer.residual.adapters.gamma_pre": (1.0, 0.5) if zero_init else ONE,
        "blocks.mixer.residual.adapters.gamma_post": (1.0, 0.5) if zero_init else ONE,
    }  # fmt: skip
    if form == "original":
        expected |= {f"blocks.mixer.branch.ssm.{name}": (0.0, 0.02) for name in ("logit_a", "b", "c")}
        expected |= {"blocks.mixer.branch.ssm.d": ZERO, "ends.proj.kernel": (0.0, kernel)}
        expected |= {"blocks.mixer.residual.inner.res_logits": (0.0, 0.02)}
    for name, (mean, std) in expected.items():
        check(name, found[name.replace("residual.adapters.", "residual.")], mean, std)
    if form == "default":
        np.testing.assert_array_equal(found["ends.proj.kernel"], np.tile(np.eye(WIDTH), (1, N)))
        spread = found["blocks.mixer.residual.inner.res_logits"] - 4 * np.eye(N)
        np.testing.assert_allclose(spread.std(), 0.02, rtol=0.4)


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "diagonal", "other"), [("mhc", 8.0, 0.0), ("mhc_orthostochastic", 0.0, -8.0)])
def test_published_static_mhc_starts_from_logits_of_eight(topology, diagonal, other):
    found = leaves(nanogpt(topology, "original", vocab_size=11, max_len=4, width=12, layers=2))
    for site in ("mixer", "mlp"):
        logits = found[f"blocks.{site}.residual.res_logits"]
        np.testing.assert_array_equal(logits, np.tile(other + (diagonal - other) * np.eye(N), (2, 1, 1)))
    np.testing.assert_array_equal(found["blocks.mlp.residual.pre_logits"], 8 * np.eye(N)[[1, 3]])


def test_poles_spread_over_memories_of_two_to_a_thousand_tokens():
    ssm = DiagonalSSMConfig().build(9, FLOAT32, Init(jax.random.key(0))).ssm
    a = np.asarray(jax.nn.sigmoid(ssm.logit_a[...]))
    np.testing.assert_allclose(1 / (1 - a), np.geomspace(2, 1000, 9), rtol=1e-3)
    np.testing.assert_allclose(np.square(a) + np.square(ssm.b[...]), 1, rtol=1e-5)  # unit variance of the state
    np.testing.assert_array_equal([ssm.c[...], ssm.d[...]], np.ones((2, 9)))


# At site 1 of four streams: weight of the stream it reads most, of the others, of a write, and H_res on and off the
# diagonal; None where streams do not meet so.
near = 1 / (1 + 3 * math.exp(-4))
CIRCULANT = (0.5 + 0.5 * near, 0.5 * (1 - near) / 3)
COEFFICIENTS = {
    "mhc": (math.e / (math.e + 3), 1 / (math.e + 3), 1.0, near, (1 - near) / 3),
    "mhc_ssm": (math.e / (math.e + 3), 1 / (math.e + 3), 1.0, near, (1 - near) / 3),
    "mhc_identity_mix": (math.e / (math.e + 3), 1 / (math.e + 3), 1.0, 0.99 + 0.01 * near, 0.01 * (1 - near) / 3),
    "mhc_orthostochastic": (math.e / (math.e + 3), 1 / (math.e + 3), 1.0, 0.948, 0.0173),
    "mhc_original": (0.99899, 0.000335, 0.25, 1.0, 0.0),
    "hc": (1.0, 0.0, 1.0, 1.0, 0.0),
    "hc_static": (1.0, 0.0, 1.0, 1.0, 0.0),
    "hc_published": (1.0, 0.0, 1.0, None, None),
    "dynamic_mhc": (0.7, 0.1, 1.0, near, (1 - near) / 3),
    "per_stream_mhc": (0.7, 0.1, 1.0, near, (1 - near) / 3),
    "mhc_newton": (0.7, 0.1, 1.0, near, (1 - near) / 3),
    "mhc_lite": (0.7, 0.1, 1.0, None, None),
    "kromhc": (0.7, 0.1, 1.0, None, None),
    "circulant_mhc": (0.7, 0.1, 1.0, *CIRCULANT),
    "spectral_sphere": (0.7, 0.1, 1.0, None, None),
    "cayley": (0.7, 0.1, 1.0, 1.0, 0.0),
    "ihc": (0.7, 0.1, 1.0, None, None),
    "deepseek_v4": (0.5, 0.5, 1.0, 0.25, 0.25),
    "single_pass_mhc": (0.25, 0.25, 1.0, near, (1 - near) / 3),
    "gated": (None, None, 1.0, None, None),
    "multi_branch": (None, None, 0.5, 1.0, 0.0),
    "shc": (None, None, 1.0, None, None),
}


@functools.cache
def taps_of(name, streams):
    residual = topologies.topology(name).residual

    @jax.jit
    def run():
        module = residual.build(WIDTH, FLOAT32, Init(jax.random.key(0), index=1, sites=6))
        scope = Scope.over(1, taps=Taps(values={}))
        module.pre(residual.begin(Streams.unstack(jnp.zeros((1, 1, streams, WIDTH)))), scope)
        return scope.taps.values

    taps = run()
    # All are of one token, whatever leading axes they have.
    shapes = {tap: x.shape[-2:] if tap == "h_res" or name == "multi_branch" else -1 for tap, x in taps.items()}
    return {tap: np.asarray(x).reshape(shapes[tap]) for tap, x in taps.items()}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_sites_start_with_the_weights_that_are_documented(name):
    taps = taps_of(name, N)
    own, other, write, diagonal, off = COEFFICIENTS[name]
    tight = {"rtol": 2e-3, "atol": 1e-2 if name in ("mhc_ssm", "mhc_orthostochastic") else 1e-5}
    if own is not None:
        np.testing.assert_allclose(taps["h_pre"], [other, own, other, other], **tight)
    np.testing.assert_allclose(taps["h_post"], np.full_like(taps["h_post"], write), **tight)
    if diagonal is not None:
        np.testing.assert_allclose(taps["h_res"], off + (diagonal - off) * np.eye(N), **tight)


def test_every_streamed_topology_has_its_weights_in_the_table():
    streamed = {name for name in registry.names("topology") if topologies.topology(name).residual.stream_count}
    # Views and fractions have more rows; adapters change nothing about a site's weights.
    assert streamed - set(COEFFICIENTS) == {"hc_views", "hc_fractions", "mhc_ssm_adapters"}


@pytest.mark.slow
def test_sites_take_turns_in_reading_the_streams():
    """Mixer and MLP of layer l are sites 2 l and 2 l + 1; where a layer has one site, it is site l."""
    for mlp, names in ((GeluMLPConfig(hidden=4), ("mixer", "mlp")), (None, ("mixer",))):
        config = with_topology(BASE.replace(mlp=mlp), "mhc")
        params = leaves(config)
        reads = [np.argmax(params[f"blocks.{name}.residual.pre_logits"], axis=-1) for name in names]
        assert np.stack(reads, axis=1).ravel().tolist() == [site % N for site in range(3 * len(names))]


def test_draws_depend_on_key_path_and_name():
    start = Init(jax.random.key(0), "a")
    first = np.asarray(start("w", normal(1.0), 8)[...])
    others = [
        Init(jax.random.key(1), "a")("w", normal(1.0), 8),
        Init(jax.random.key(0), "b")("w", normal(1.0), 8),
        start("v", normal(1.0), 8),
        (start / "b")("w", normal(1.0), 8),
    ]
    assert all((np.asarray(other[...]) != first).all() for other in others)
    np.testing.assert_array_equal(start.at(3)("w", normal(1.0), 8)[...], first)
    moved = (start / "b").at(3)
    assert (moved.path, moved.index, moved.sites) == ("a/b", 3, 1)


def test_initialisers():
    draw = np.asarray(uniform(16)(jax.random.key(0), (4000,)))
    assert 0.24 < draw.max() <= 0.25
    assert -0.25 <= draw.min() < -0.24
    np.testing.assert_allclose(draw.std(), bound(16), rtol=0.05)
    draw = np.asarray(normal(0.5, mean=2.0)(jax.random.key(0), (4000,)))
    np.testing.assert_allclose([draw.mean(), draw.std()], [2.0, 0.5], rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("constrained", "weights"), [(False, [0.5, 0.5]), (True, [0.99966, 0.00034])])
def test_values_start_half_and_half_or_nearly_alone(constrained, weights):
    config = nanogpt(
        value_residual="constrained" if constrained else "free", vocab_size=11, max_len=4, width=12, layers=2
    )
    lambdas = mhc_jax.init(config, jax.random.key(0))["blocks"]["values"]["lambdas"]
    acting = jax.nn.softmax(lambdas) if constrained else lambdas
    np.testing.assert_allclose(acting, [weights] * 2, atol=1e-5)


def test_random_phi_has_the_spread_of_its_configuration():
    site = DynamicMHCConfig(phi_std=0.006).build(WIDTH, FLOAT32, Init(jax.random.key(0)))
    np.testing.assert_allclose(site.phi[...].std(), 0.006, rtol=0.05)
