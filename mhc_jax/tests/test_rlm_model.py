"""RLM-mHC: sizes, the linear mHC layer at its edges, and what the published code got wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.functional import parameter_count
from mhc_jax.models import rlm
from mhc_jax.models.rlm import SIZES, fold
from mhc_jax.nn.channel import LinearMHCConfig
from mhc_jax.nn.init import Init
from mhc_jax.nn.projections import ClippedSinkhornConfig, IdentityProjectionConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Execution
from mhc_jax.ops.loss import IGNORE, cross_entropy
from mhc_jax.ops.sinkhorn import CLIP, sinkhorn_clipped
from mhc_jax.precision import policy

forward = jax.jit(mhc_jax.apply, static_argnums=0)
TOKENS = jax.random.randint(jax.random.key(7), (2, 9), 0, 13)


def tiny(form="original", **changes):
    return rlm(
        "small", form, **{"heads": 2, "hidden": 7, "vocab_size": 13, "max_len": 9, "width": 8, "layers": 3, **changes}
    )


@functools.cache
def started(config):
    return mhc_jax.init(config, jax.random.key(0))


@pytest.mark.parametrize(
    ("size", "named", "original", "without"),
    [
        ("small", 125e6, 222_794_880, 109_529_856),
        ("base", 1.3e9, 2_884_258_560, 1_273_546_752),
        ("large", 7e9, 15_163_724_800, 6_573_527_040),
    ],
)
def test_the_names_of_the_sizes_are_true_and_the_originals_are_theirs(size, named, original, without):
    assert parameter_count(rlm(size)) == pytest.approx(named, rel=0.025)
    assert parameter_count(rlm(size, "original")) == parameter_count(rlm(size, "folded")) == original
    assert parameter_count(rlm(size, "original", before_mixer=None, before_mlp=None)) == without
    assert len(SIZES[size]) == 5


def test_the_description_names_the_linear_layers():
    layers = ("linear_mhc before the mixer", "linear_mhc before the MLP")
    assert rlm("small", "original").description[-2:] == layers
    assert not {*layers} & {*rlm("small").description}


@pytest.mark.parametrize("count", ["heads", "hidden"])
def test_none_of_a_part_is_not_the_usual_number(count):
    with pytest.raises(mhc_jax.ConfigError, match=f"{count} must be at least 1, got 0"):
        rlm("small", **{count: 0}).validate()


@pytest.mark.slow
@pytest.mark.parametrize("flows", [1, 2, 8])
@pytest.mark.parametrize("iters", [0, 3])
def test_one_linear_map_in_both_forms(flows, iters):
    """Additive and homogeneous, whatever the matrix; without iterations that is the bare exponential."""
    layer = LinearMHCConfig(flows=flows, projection=ClippedSinkhornConfig(iters=iters))
    outputs = {}
    for form in ("flows", "folded"):
        module = layer.replace(form=form).build(5, policy("float32"), Init(jax.random.key(0)))
        logits = np.random.default_rng(0).standard_normal((flows, flows))
        module.logits[...] = jnp.asarray(logits, jnp.float32)
        x, y = jax.random.normal(jax.random.key(1), (2, 2, 3, 5))
        outputs[form] = module(x, Scope.over(3))
        want = module(2 * x + y, Scope.over(3))
        np.testing.assert_allclose(2 * outputs[form] + module(y, Scope.over(3)), want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs["folded"], outputs["flows"], rtol=1e-4, atol=1e-6)


def test_a_projection_without_logits_leaves_the_flows_apart():
    module = LinearMHCConfig(flows=2, projection=IdentityProjectionConfig(), form="flows").build(
        4, policy("float32"), Init(jax.random.key(0))
    )
    assert module.logits is None
    x = jax.random.normal(jax.random.key(1), (1, 3, 4))
    want = x @ module.expand.kernel[...] @ module.contract.kernel[...]
    np.testing.assert_allclose(module(x, Scope.over(3)), want, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_flows_without_logits_fold():
    between = LinearMHCConfig(flows=2, projection=IdentityProjectionConfig())
    config = tiny(before_mixer=between, before_mlp=None)
    folded, fewer = fold(config, started(config))
    want = forward(config, started(config), TOKENS).logits_BTV
    np.testing.assert_allclose(forward(folded, fewer, TOKENS).logits_BTV, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [lambda params: None, lambda params: {}, lambda params: params | {"blocks": None}])
def test_only_parameters_of_the_model_fold(change):
    config = tiny()
    with pytest.raises(ConfigError, match="do not fit the model: missing .6.: blocks"):
        fold(config, change(started(config)))
    with pytest.raises(ConfigError, match="do not fit the model"):
        fold(tiny(width=16), started(config))


def test_clipped_logits_get_no_gradient():
    logits = jnp.asarray([[60.0, 0.3], [-0.2, -70.0]])
    slope = jax.grad(lambda z: jnp.sum(jnp.asarray([[1.0, 2.0], [3.0, 5.0]]) * sinkhorn_clipped(z, iters=0)))(logits)
    assert slope[0, 0] == slope[1, 1] == 0
    assert (slope[[0, 1], [1, 0]] != 0).all()
    clipped = jnp.clip(logits, -CLIP, CLIP)
    np.testing.assert_array_equal(sinkhorn_clipped(logits, iters=20), sinkhorn_clipped(clipped, iters=20))


def test_all_layers_mix_in_one_program():
    """The iterations of all layers and sites are one loop before the layers, not one in each of them."""
    config = tiny()
    text = str(jax.make_jaxpr(lambda params: mhc_jax.apply(config, params, TOKENS).logits_BTV)(started(config)))
    loops = [line for line in text.splitlines() if "length=20" in line]
    assert len(loops) == 1
    before, after = text.split("length=3", 1)
    assert "length=20" in before
    assert "length=20" not in after


@pytest.mark.slow
def test_recomputation_changes_nothing_though_it_drops():
    config, key = tiny(dropout=0.3, layers=2), jax.random.key(3)

    def slopes(remat):
        run = config.replace(execution=Execution(remat=remat))
        return jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(mhc_jax.apply(run, p, TOKENS, key=key).logits_BTV))))(
            started(config)
        )

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), slopes("none"), slopes("block"))


@pytest.mark.slow
def test_one_model_serves_in_bfloat16_then_in_float32_and_learns_after_it_generated():
    """The published one keeps tables of the first call's dtype, and cannot train once it has generated."""
    config = tiny()
    params = started(config)
    want = forward(config, params, TOKENS).logits_BTV
    forward(config.replace(execution=Execution(policy="bfloat16")), params, TOKENS)
    mhc_jax.generate(config, params, TOKENS[:, :2], max_new_tokens=3, temperature=0.0)
    np.testing.assert_array_equal(forward(config, params, TOKENS).logits_BTV, want)
    slopes = jax.grad(lambda p: jnp.sum(jnp.sin(forward(config, p, TOKENS).logits_BTV)))(params)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_a_sequence_may_be_as_long_as_the_model_and_no_longer():
    config = tiny()
    assert forward(config, started(config), TOKENS).logits_BTV.shape == (2, 9, 13)
    with pytest.raises(mhc_jax.ConfigError, match="longer than"):
        mhc_jax.apply(config, started(config), jnp.zeros((1, 10), int))


def test_labels_that_all_are_ignored_count_nothing():
    """A mean over none is not a number; here sum and count come apart, and a training step of none is refused."""
    logits = forward(tiny(), started(tiny()), TOKENS).logits_BTV
    total, count = cross_entropy(logits, jnp.full(TOKENS.shape, IGNORE))
    assert (float(total), float(count)) == (0, 0)
