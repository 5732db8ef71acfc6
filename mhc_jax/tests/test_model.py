"""Whole models: generated properties for every topology and mixer, execution modes, functional use."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mhc_jax
from mhc_jax import decode, registry
from mhc_jax.backend import compiling_for
from mhc_jax.functional import param_shapes
from mhc_jax.models import mhc_ssm, topologies, with_topology
from mhc_jax.nn.adapters import StreamAdaptersConfig
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.ends import DenseEndsConfig, IdentityEndsConfig
from mhc_jax.nn.init import Init
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import Norm, NormConfig, RMSNormConfig
from mhc_jax.nn.projections import SinkhornConfig
from mhc_jax.nn.residual import StaticMHCConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import UNROLLED, Execution
from mhc_jax.precision import policy
from mhc_jax.registry import register
from mhc_jax.tree import flatten

SMALL = {"vocab_size": 29, "max_len": 12, "width": 8, "layers": 3}
forward = jax.jit(mhc_jax.apply, static_argnames=("config", "taps"))
extend = jax.jit(decode.extend, static_argnums=0)
VARIANTS = list(itertools.product(("baseline", "mhc", "adapters"), ("default", "original")))


def small(variant="mhc", form="default", **changes):
    return mhc_ssm(variant, form, **{**SMALL, **changes})


@functools.cache
def perturbed(config):
    """Initial parameters moved away from their symmetric start."""
    leaves, tree = jax.tree.flatten(mhc_jax.init(config, jax.random.key(0)))
    noise = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [leaf + 0.3 * noise.standard_normal(leaf.shape, np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(7), (2, 12), 0, SMALL["vocab_size"])


# Attention in its other forms, one with the order of tokens from rotations alone, over plain and streamed topologies.
FORMS = {
    "rotary half": {"heads": 4, "kv_heads": 2, "rotary": "half", "qk_norm": RMSNormConfig()},
    "rotary interleaved": {"heads": 2, "kv_heads": 1, "head_width": 6, "rotary": "interleaved", "bias": False},
}


def cell(topology, mixer):
    """A tiny model of that topology and mixer; attention comes with an MLP in a second site of every block."""
    if mixer in FORMS:
        parts = {"mixer": AttentionConfig(**FORMS[mixer]), "positions": "none", "head": "dense", "outputs": 31}
    else:
        parts = {"mixer": registry.get("mixer", mixer)().small()}
    mlp = None if mixer.endswith("_ssm") else GeluMLPConfig(hidden=8)
    config = LMConfig(**SMALL, **parts, mlp=mlp)
    config = with_topology(config, topology)
    return config if config.adapters is None else config.replace(adapters=StreamAdaptersConfig(rank=3))


# Every topology with one mixer, and every mixer with a plain and a streamed topology.
CELLS = {(topology, "attention") for topology in registry.names("topology")}
CELLS |= {(topology, mixer) for topology in ("plain", "mhc") for mixer in registry.names("mixer")}
CELLS |= {(topology, form) for topology in ("plain", "multi_branch") for form in FORMS}
# A quick run has every mixer once, as a mixer sees one input and one output of its site whatever the topology, and
# streams.
QUICK = {("mhc", "diagonal_ssm")}
QUICK |= {("plain", mixer) for mixer in registry.names("mixer")}


@pytest.mark.parametrize(
    ("topology", "mixer"),
    [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.slow) for one in sorted(CELLS)],
)
class TestContract:
    def test_causal_bitwise(self, topology, mixer, tokens):
        config = cell(topology, mixer)
        params = perturbed(config)
        before = forward(config, params, tokens, taps=True).logits_BTV
        for t in (0, 5, 11):
            after = forward(config, params, tokens.at[:, t].add(1) % config.vocab_size, taps=True).logits_BTV
            np.testing.assert_array_equal(before[:, :t], after[:, :t])
            assert (before[:, t] != after[:, t]).any()

    def test_carry_has_a_fixed_shape(self, topology, mixer, tokens):
        config = cell(topology, mixer)
        taps = forward(config, perturbed(config), tokens, taps=True).taps
        assert taps["blocks.mixer.state"].shape[1:] == taps["expand"].shape

    def test_extending_equals_the_full_pass(self, topology, mixer, tokens):
        config = cell(topology, mixer)
        params = perturbed(config)
        full = forward(config, params, tokens, taps=True).logits_BTV
        for cut in (1, 5):
            cache = decode.init_cache(config, params, 2)
            logits, cache = extend(config, params, tokens[:, :cut], cache)
            np.testing.assert_allclose(logits, full[:, :cut], rtol=1e-4, atol=1e-4)
            for t in range(cut, 12):
                logits, cache = extend(config, params, tokens[:, t : t + 1], cache)
                np.testing.assert_allclose(logits[:, 0], full[:, t], rtol=1e-4, atol=1e-4)

    def test_segments_do_not_see_each_other(self, topology, mixer, tokens):
        """The rows are cut at different places: segments and positions of one cannot stand for the other's."""
        config = cell(topology, mixer)
        params = perturbed(config)
        middles = (5, 7)
        segments = jnp.stack([jnp.arange(12) >= middle for middle in middles]).astype(jnp.int32)
        positions = jnp.stack([jnp.r_[jnp.arange(middle), jnp.arange(12 - middle)] for middle in middles])
        packed = forward(config, params, tokens, segment_ids=segments, positions=positions).logits_BTV
        # What follows a part does not reach it, so that rows which begin with it need no program of their own.
        second = jnp.stack([jnp.roll(row, -middle) for row, middle in zip(tokens, middles)])
        first, second = (forward(config, params, rows, taps=True).logits_BTV for rows in (tokens, second))
        for row, middle in enumerate(middles):
            alone = jnp.concatenate([first[row, :middle], second[row, : 12 - middle]])
            np.testing.assert_allclose(packed[row], alone, rtol=1e-4, atol=1e-4)

    def test_starts_as_the_plain_network_if_it_says_so(self, topology, mixer, tokens):
        config = cell(topology, mixer)
        plain, key = cell("plain", mixer), jax.random.key(0)
        got = forward(config, mhc_jax.init(config, key), tokens, taps=True).logits_BTV
        want = forward(plain, mhc_jax.init(plain, key), tokens, taps=True).logits_BTV
        if topologies.topology(topology).starts_plain:
            np.testing.assert_allclose(got, want, atol=2e-6)
        else:
            assert jnp.abs(got - want).max() > 1e-5

    def test_one_stream_works_and_starts_as_the_plain_network(self, topology, mixer, tokens):
        found = topologies.topology(topology)
        if not (found.starts_plain and hasattr(found.residual, "streams")):
            return
        config, plain, key = (
            with_topology(cell(topology, mixer), topology, streams=1),
            cell("plain", mixer),
            jax.random.key(0),
        )
        got = forward(config, mhc_jax.init(config, key), tokens).logits_BTV
        np.testing.assert_allclose(got, forward(plain, mhc_jax.init(plain, key), tokens).logits_BTV, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", registry.names("channel"))
def test_channel_mixers_map_token_by_token(kind):
    part = registry.get("channel", kind)().small()
    u_BTD = jax.random.normal(jax.random.key(1), (2, 6, 8))

    graph, params = nnx.split(part.build(8, policy("float32"), Init(jax.random.key(0))))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), params)
    run = jax.jit(lambda u_BTD: nnx.merge(graph, params)(u_BTD, Scope.over(6)))
    before = run(u_BTD)
    assert before.shape == u_BTD.shape
    for t in (0, 3, 5):
        changed_BT = (run(u_BTD.at[1, t].add(1.0)) != before).any(-1)
        assert np.argwhere(changed_BT).tolist() == [[1, t]]


MODES = ("unroll", "none"), ("scan", "block"), ("unroll", "dots"), ("groups:2", "block"), ("groups:2", "dots")
# Quickly, a group of two layers, which is unrolled, in a scan, and computed again.
QUICK_MODE = "baseline", "default", MODES[-1:]


# The parity suite compares gradients in every mode of execution, too.
@pytest.mark.parametrize(
    ("variant", "form", "modes"),
    [QUICK_MODE, *(pytest.param(*one, MODES, marks=pytest.mark.slow) for one in VARIANTS)],
)
def test_execution_modes_agree(variant, form, modes, tokens):
    config = small(variant, form)
    params = perturbed(config)

    def loss(execution):
        run = config.replace(execution=execution)
        return lambda params: jnp.mean(jnp.sin(forward(run, params, tokens).logits_BTV))

    want, grads = jax.jit(jax.value_and_grad(loss(Execution(layers="scan"))))(params)
    for layers, remat in modes:
        got, other = jax.jit(jax.value_and_grad(loss(Execution(layers=layers, remat=remat))))(params)
        # A mean of numbers up to 1 that cancel.
        np.testing.assert_allclose(got, want, atol=1e-6)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


def test_accelerators_unroll_the_layers_of_networks_that_are_not_too_deep(tokens):
    config = small("baseline")
    config = config.replace(mixer=config.mixer.replace(form="associative"))  # so that only layers are in a loop
    params = perturbed(config)
    for platform, loops in (("cpu", 1), ("tpu", 0), ("gpu", 0)):
        with compiling_for(platform):
            program = jax.make_jaxpr(functools.partial(mhc_jax.apply, config))(params, tokens)
        assert str(program).count("scan[") == loops
    with compiling_for("tpu"):
        assert [Execution().walk(depth) for depth in (UNROLLED, UNROLLED + 1)] == ["unroll", "scan"]


@pytest.mark.slow
def test_bfloat16_stays_close_and_keeps_float32_logits(tokens):
    config = small("adapters")
    params = perturbed(config)
    exact = forward(config, params, tokens).logits_BTV
    rough = forward(config.replace(execution=Execution(policy="bfloat16")), params, tokens).logits_BTV
    assert rough.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact) < 0.05


def test_one_stream_is_the_plain_residual(tokens):
    config = small("baseline")
    params = perturbed(config)
    one = config.replace(residual=StaticMHCConfig(streams=1), ends=DenseEndsConfig())
    donor = mhc_jax.init(one, jax.random.key(0))
    donor["blocks"]["mixer"] = params["blocks"]["mixer"] | {"residual": donor["blocks"]["mixer"]["residual"]}
    donor |= {"embed": params["embed"], "final_norm": params["final_norm"]}
    got = forward(one, donor, tokens).logits_BTV
    np.testing.assert_allclose(got, forward(config, params, tokens).logits_BTV, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_original_starts_with_huge_tied_logits_and_the_default_does_not(tokens):
    for variant in ("baseline", "mhc", "adapters"):
        spread = {}
        for form in ("original", "default"):
            config = small(variant, form, width=256, vocab_size=5000)
            spread[form] = float(forward(config, mhc_jax.init(config, jax.random.key(0)), tokens).logits_BTV.std())
        assert 14 < spread["original"] < 18  # sqrt(256) = 16
        assert spread["default"] < 0.5


@pytest.mark.slow
def test_dropout_only_acts_with_a_key(tokens):
    config = small("adapters", dropout=0.5, adapters=StreamAdaptersConfig(rank=3, dropout=0.5))
    params = perturbed(config)
    plain = forward(config, params, tokens).logits_BTV
    silent = config.replace(dropout=0.0, adapters=StreamAdaptersConfig(rank=3))
    np.testing.assert_array_equal(plain, forward(silent, params, tokens).logits_BTV)
    noisy = [forward(config, params, tokens, key=jax.random.key(i)).logits_BTV for i in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert (noisy[0] != noisy[2]).any()
    assert (noisy[0] != plain).any()


def test_initial_values_depend_on_the_name_alone():
    plain, streamed = small("baseline"), small("mhc")
    a, b = mhc_jax.init(plain, jax.random.key(3)), mhc_jax.init(streamed, jax.random.key(3))
    np.testing.assert_array_equal(a["embed"]["tokens"], b["embed"]["tokens"])
    np.testing.assert_array_equal(
        a["blocks"]["mixer"]["branch"]["in_proj"]["kernel"], b["blocks"]["mixer"]["branch"]["in_proj"]["kernel"]
    )
    kernel = a["blocks"]["mixer"]["branch"]["in_proj"]["kernel"]
    assert (kernel[0] != kernel[1]).all()


def test_param_shapes_allocate_nothing_and_agree():
    config = small("adapters")
    made = mhc_jax.init(config, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), param_shapes(config)
    )


@pytest.mark.parametrize(
    ("variant", "count"), [("baseline", 32_203_776), ("mhc", 33_254_596), ("adapters", 33_791_684)]
)
def test_published_parameter_counts(variant, count):
    shapes = jax.tree.leaves(param_shapes(mhc_ssm(variant, "original")))
    assert sum(np.prod(leaf.shape) for leaf in shapes) == count


@pytest.mark.slow
def test_functional_transforms_work_on_whole_models(tokens):
    config = small("mhc", layers=1)
    inits = jax.vmap(lambda key: mhc_jax.init(config, key))(jax.random.split(jax.random.key(0), 3))
    ensemble = jax.vmap(lambda params: forward(config, params, tokens).logits_BTV)(inits)
    assert ensemble.shape == (3, 2, 12, 29)
    params = perturbed(config)

    def energy(scale):
        moved = params | {"final_norm": {"scale": scale}}
        return jnp.mean(forward(config, moved, tokens).logits_BTV ** 2)

    scale = params["final_norm"]["scale"]
    value, slope = jax.jvp(jax.jit(energy), (scale,), (jnp.ones_like(scale),))
    np.testing.assert_allclose(slope, jax.jit(jax.grad(energy))(scale).sum(), rtol=1e-4)
    # The energy is a quadratic form in the gain of the last norm.
    np.testing.assert_allclose(scale @ jax.jit(jax.hessian(energy))(scale) @ scale, 2 * value, rtol=1e-3)

    def whole(params):
        return jnp.sum(jnp.sin(forward(config, params, tokens).logits_BTV))

    _, linear = jax.linearize(whole, params)
    direction = jax.tree.map(jnp.ones_like, params)
    slope = sum(jnp.sum(g) for g in jax.tree.leaves(jax.jit(jax.grad(whole))(params)))
    np.testing.assert_allclose(linear(direction), slope, rtol=1e-3)


def test_probes_read_cotangents(tokens):
    config = small("mhc")
    params = perturbed(config)
    probes = {"blocks.mixer.u": jnp.zeros((3, 2, 12, 8)), "hidden": jnp.zeros((2, 12, 8))}

    def total(probes):
        return jnp.sum(forward(config, params, tokens, probes=probes).logits_BTV)

    grads = jax.jit(jax.grad(total))(probes)
    want = params["embed"]["tokens"].sum(0)
    np.testing.assert_allclose(grads["hidden"], jnp.broadcast_to(want, (2, 12, 8)), rtol=1e-4, atol=1e-5)
    assert (grads["blocks.mixer.u"] != 0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"norm": "rms"}, "norm must be a NormConfig, got 'rms'"),
        ({"norm": RMSNormConfig(eps=-1.0)}, "rms: eps must not be negative"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"ends": IdentityEndsConfig()}, "a residual of 4 streams needs ends that expand"),
        ({"residual": StaticMHCConfig(projection=SinkhornConfig(iters=0))}, "sinkhorn: iters must be at least 1"),
        ({"residual": StaticMHCConfig(projection=SinkhornConfig(temperature=0.0))}, "temperature must be positive"),
        ({"execution": Execution(layers="groups:0")}, "layers must be auto, scan, unroll or groups:K such as groups:4"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(mhc_jax.ConfigError, match=message):
        mhc_jax.init(small().replace(**change), jax.random.key(0))


@pytest.mark.slow
def test_a_norm_from_outside_serves_every_site(tokens, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class HalvedConfig(NormConfig):
        def build(self, width, init, channels="width"):
            return Halved()

    class Halved(Norm):
        def __call__(self, x):
            return x / 2

    monkeypatch.setattr(registry, "_REGISTRY", registry._REGISTRY | {"norm": dict(registry._REGISTRY["norm"])})
    register("norm", "halved")(HalvedConfig)
    config = small("adapters", norm=HalvedConfig())
    assert LMConfig.from_json(config.to_json()) == config
    params = perturbed(config)
    assert not [name for name in flatten(params) if "norm" in name]
    taps = forward(config, params, tokens, taps=True).taps
    np.testing.assert_array_equal(taps["hidden"], taps["collapse"] / 2)


def test_adapters_without_streams_are_refused():
    with pytest.raises(mhc_jax.ConfigError, match="adapters need a residual with streams and one branch, not 'plain'"):
        small("baseline", adapters=StreamAdaptersConfig()).validate()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (jnp.zeros((1, 13), jnp.int32), "a sequence of 13 tokens is longer than max_len 12"),
        (jnp.zeros(5, jnp.int32), r"\(batch, time\) array of integers"),
        (jnp.zeros((1, 5)), r"\(batch, time\) array of integers"),
        (jnp.zeros((1, 0), jnp.int32), "tokens are empty"),
    ],
)
def test_bad_tokens_are_refused(tokens, message):
    config = small()
    with pytest.raises(mhc_jax.ConfigError, match=message):
        mhc_jax.apply(config, mhc_jax.init(config, jax.random.key(0)), tokens)


@pytest.mark.slow
def test_float64_needs_64_bit_mode(tokens):
    config = small().replace(execution=Execution(policy="float64"))
    with pytest.raises(mhc_jax.ConfigError, match="jax_enable_x64"):
        mhc_jax.apply(config, mhc_jax.init(config, jax.random.key(0)), tokens)
