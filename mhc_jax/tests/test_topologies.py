"""Named topologies: what the published forms cannot learn, that the repaired ones do, and that no part lacks a name."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mhc_jax
from mhc_jax import registry
from mhc_jax.config import Config, ConfigError
from mhc_jax.models import gpt2, nanogpt, topologies, with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig, DiagonalSSMConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.projections import PermutationsConfig
from mhc_jax.nn.residual import PlainConfig
from mhc_jax.tests.own import slow_unless

VOCAB = 64
BASE = LMConfig(
    vocab_size=VOCAB,
    max_len=16,
    width=16,
    layers=3,
    norm=LayerNormConfig(),
    mixer=AttentionConfig(heads=2),
    mlp=GeluMLPConfig(),
)


@functools.cache
def tokens():
    """Runs of equal tokens: something to learn."""
    return np.repeat(np.random.default_rng(0).integers(0, VOCAB, (4, 6)), 3, axis=1)[:, :17]


def loss(config, params):
    logits = mhc_jax.apply(config, params, tokens()[:, :-1]).logits_BTV
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens()[:, 1:]).mean()


def gradient(config, params):
    return jax.jit(jax.grad(functools.partial(loss, config)))(params)


@functools.cache
def trained(topology, steps=30):
    """Parameters before and after a few steps of AdamW."""
    config = with_topology(BASE, topology)
    adamw = optax.adamw(1e-2)
    start = mhc_jax.init(config, jax.random.key(0))

    def step(carry, _):
        params, state = carry
        updates, state = adamw.update(gradient(config, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (end, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, adamw.init(p)), None, length=steps))(start)
    return config, start, end


def mixing(config, params):
    """H_res of every site."""
    taps = jax.jit(lambda p: mhc_jax.apply(config, p, tokens()[:, :-1], taps=True).taps)(params)
    return {name: x for name, x in taps.items() if name.endswith("h_res")}


def residuals(tree):
    return [tree["blocks"][site]["residual"] for site in ("mixer", "mlp")]


@pytest.mark.slow
def test_published_mhc_cannot_learn_its_mixing_and_the_default_does():
    """Equal streams give no mixing a gradient, and a network that starts as the plain one starts with equal streams.

    (Reads that lean to each stream in turn and see the plain network's input leave no other choice.) The first update
    of the writes sets them apart.
    """
    config, start, end = trained("mhc_original")
    for params in (start, end):
        for site in residuals(gradient(config, params)):
            assert jnp.all(site["res_logits"] == 0)
            assert jnp.any(site["post_logits"] != 0)
    for before, after in zip(mixing(config, start).values(), mixing(config, end).values(), strict=True):
        np.testing.assert_array_equal(before, after)

    _, _, second = trained("mhc", 1)
    config, start, end = trained("mhc")
    for site in residuals(gradient(config, second)):
        assert jnp.linalg.norm(site["res_logits"]) > 1e-7
    moved = [jnp.abs(a - b).max() for a, b in zip(*(mixing(config, p).values() for p in (start, end)), strict=True)]
    assert min(moved) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology",
    slow_unless({"hc"}, ["dynamic_mhc", "hc", "mhc_orthostochastic", "mhc_identity_mix", "mhc_lite", "shc"]),
)
def test_mixing_of_the_defaults_learns(topology):
    config, start, end = trained(topology)
    before, after = mixing(config, start), mixing(config, end)
    moved = {name: float(jnp.abs(before[name] - after[name]).max()) for name in before}
    assert min(moved.values()) > 1e-5, moved


@pytest.mark.slow
def test_published_hc_never_uses_its_mixing_columns_and_the_paper_does():
    found = {}
    for topology in ("hc_published", "hc"):
        config = with_topology(BASE, topology)
        params = mhc_jax.init(config, jax.random.key(0))
        noisy = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
        found[topology] = residuals(gradient(config, noisy))
    for site in found["hc_published"]:
        assert jnp.all(site["static_alpha"][..., 1:] == 0)
        assert jnp.any(site["static_alpha"][..., :1] != 0)
    for site in found["hc"]:
        assert jnp.all(jnp.any(site["static_alpha"][..., 1:] != 0, axis=(1, 2)))


@pytest.mark.slow
def test_summing_normalised_streams_starts_with_logits_n_times_too_large():
    """The norm before the sum is why the published example starts far above ln V."""
    spread = {}
    for form in ("default", "original"):
        config = nanogpt("hc", form, vocab_size=VOCAB, max_len=16, width=48, layers=2)
        logits = jax.jit(mhc_jax.apply, static_argnums=0)(
            config, mhc_jax.init(config, jax.random.key(0)), tokens()[:, :-1]
        )
        spread[form] = float(logits.logits_BTV.std())
    assert spread["original"] / spread["default"] == pytest.approx(4, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology",
    [
        "mhc",
        "hc",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("dynamic_mhc", "gated", "ihc", "per_stream_mhc", "shc")
        ),
    ],
)
def test_streams_of_the_defaults_separate(topology):
    config, _, end = trained(topology)
    taps = jax.jit(lambda p: mhc_jax.apply(config, p, tokens()[:, :-1], taps=True).taps)(end)
    h_BTND = taps["blocks.mlp.state"][-1]
    apart = jnp.linalg.norm(h_BTND - h_BTND.mean(2, keepdims=True)) / jnp.linalg.norm(h_BTND)
    assert apart > 1e-3


def parts(config):
    """(axis, kind) of every record inside a configuration."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            if value.axis:
                yield value.axis, value.kind
            yield from parts(value)


@pytest.mark.parametrize("axis", ["residual", "ends", "projection"])
def test_every_part_belongs_to_a_named_topology(axis):
    """So the property tests and the parity matrix, which walk the named topologies, reach whatever is registered.

    A channel mixer may have parts of these axes, too; the parity systems reach those.
    """
    used = {part for name in registry.names("topology") for part in parts(with_topology(BASE, name))}
    used |= {part for kind in registry.names("channel") for part in parts(registry.get("channel", kind)())}
    missing = [kind for kind in registry.names(axis) if (axis, kind) not in used]
    assert not missing, f'no @register("topology", ...) uses {axis} {missing}; add one to mhc_jax/models/topologies.py'


def test_choice_of_streams():
    assert with_topology(BASE, "kromhc", streams=8).residual.streams == 8
    with pytest.raises(ConfigError, match="'plain' has no number of streams"):
        with_topology(BASE, "plain", streams=2)
    with pytest.raises(ConfigError, match="power of two|2, 4, 8"):
        with_topology(BASE, "kromhc", streams=6).validate()
    with pytest.raises(ConfigError, match=r"did you mean 'kromhc'\?"):
        with_topology(BASE, "kromch")


def test_three_views_reach_queries_keys_and_values_and_a_mean_reaches_other_mixers():
    config = with_topology(BASE, "hc_views")
    assert (config.residual.views, config.mixer.views) == (3, 3)
    other = with_topology(BASE.replace(mixer=DiagonalSSMConfig()), "hc_views")
    other.validate()
    with pytest.raises(ConfigError, match="set residual.views to 3, or mixer.views to 1"):
        config.replace(residual=PlainConfig(), ends=with_topology(BASE, "plain").ends).validate()


def test_carried_ends_need_carried_weights():
    carried = with_topology(BASE, "mhc").replace(ends=CopyEndsConfig(collapse="carried"))
    with pytest.raises(ConfigError, match="carried"):
        carried.validate()


def test_published_sizes():
    def count(config):
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(mhc_jax.functional.param_shapes(config)))

    assert count(gpt2()) == 124_439_808
    assert count(gpt2(max_len=512)) == 124_046_592
    assert count(gpt2("355M")) == 354_823_168
    assert gpt2(residual=topologies.topology("mhc_lite").residual).residual.projection == PermutationsConfig()
