"""Multi-head latent attention: two forms of one function, a small cache, and sizes that follow from the model's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import decode
from mhc_jax.config import ConfigError
from mhc_jax.models import gpt2, mhc_ssm, nanogpt, rlm, shc
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig, LatentAttentionConfig
from mhc_jax.nn.rotary import LinearScalingConfig, YarnScalingConfig
from mhc_jax.ops.attention import absorbed_latent_attention, latent_attention
from mhc_jax.tests.test_dtypes import equations

B, T, S, H, K, P, R, V = 2, 3, 9, 2, 4, 2, 6, 3
MODELS = {
    **{f"gpt2 {size}": functools.partial(gpt2, size) for size in ("124M", "355M", "774M", "1558M")},
    **{f"shc {size}": functools.partial(shc, size, "plain") for size in ("500m", "1b", "3b", "7b")},
    **{f"rlm {size}": functools.partial(rlm, size, "plain") for size in ("small", "base", "large")},
    "nanogpt": functools.partial(nanogpt, "plain"),
    "mhc_ssm": functools.partial(mhc_ssm, "baseline"),
}


def arrays(queries=T):
    shapes = {"q": (B, queries, H, K), "q_rope": (B, queries, H, P), "latent": (B, S, R), "k_rope": (B, S, P)}
    shapes |= {"k_up": (R, H, K), "v_up": (R, H, V)}
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes.values())]


def model(**options):
    sizes = {"vocab_size": 31, "max_len": 64, "width": 16, "layers": 2, "positions": "none"}
    return LMConfig(mixer=LatentAttentionConfig(heads=2, **options), mlp=GeluMLPConfig(), **sizes)


def drawn(config):
    params = mhc_jax.init(config, jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.mark.parametrize(
    "options",
    [
        {"start": S - T},
        {"start": 4, "start_B": jnp.array([0, 5]), "scale": 0.3},
        {"causal": False, "start": 0, "keep_BHTS": jax.random.bernoulli(jax.random.key(7), 0.5, (B, H, T, S)) * 2.0},
    ],
)
def test_both_forms_are_one_function(options):
    def gradients(form):
        def total(*inputs):
            return jnp.sum(jnp.sin(form(*inputs, **options)))

        return jax.jit(jax.value_and_grad(total, range(6)))(*arrays())

    left, right = (jax.tree.leaves(gradients(form)) for form in (latent_attention, absorbed_latent_attention))
    for found, want in zip(left, right, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_both_forms_ask_where_the_queries_stand():
    for form in (latent_attention, absorbed_latent_attention):
        with pytest.raises(ValueError, match="3 queries and 9 keys: give the position of the first query as start"):
            form(*arrays())


@pytest.mark.parametrize("name", MODELS)
def test_its_cache_is_less_than_a_third_of_that_of_attention_in_every_named_model(name):
    config = MODELS[name]()
    heads = getattr(config.mixer, "heads", 8)
    plain = mhc_jax.summary(config.replace(mixer=AttentionConfig(heads=heads, head_width=config.width // heads)))
    for latent in (LatentAttentionConfig(heads=heads), LatentAttentionConfig(heads=heads, rotary="none")):
        assert plain.cache_bytes >= 3.3 * mhc_jax.summary(config.replace(mixer=latent)).cache_bytes


@pytest.mark.slow
@pytest.mark.parametrize("rotary", ["half", "none"])
def test_pieces_of_any_length_equal_the_full_pass(rotary):
    """Long pieces form keys and values of what is cached, short ones do not."""
    config, pieces = model(rotary=rotary), (1, 20, 1)
    params, tokens = drawn(config), jax.random.randint(jax.random.key(1), (2, sum(pieces)), 0, 31)
    full = jax.jit(mhc_jax.apply, static_argnums=0)(config, params, tokens).logits_BTV
    extend, cache, start = jax.jit(decode.extend, static_argnums=0), decode.init_cache(config, params, 2), 0
    for length in pieces:
        logits, cache = extend(config, params, tokens[:, start : start + length], cache)
        np.testing.assert_allclose(logits, full[:, start : start + length], rtol=1e-4, atol=1e-4)
        start += length


@pytest.mark.parametrize(("length", "forms"), [(1, False), (40, True)])
def test_a_single_token_forms_no_keys_of_the_past(length, forms):
    config = model(latent_width=8, head_width=5, value_head_width=7)
    params = mhc_jax.init(config, jax.random.key(0))
    step = functools.partial(decode.extend, config)
    program = jax.make_jaxpr(step)(params, jnp.zeros((3, length), jnp.int32), decode.init_cache(config, params, 3))
    shapes = {x.aval.shape for equation in equations(program.jaxpr) for x in equation.outvars}
    assert ((3, 64, 2, 5) in shapes, (3, 64, 2, 7) in shapes) == (forms, forms)


def test_widths_left_out_follow_from_the_model():
    config = LatentAttentionConfig(heads=4)
    assert (config.width_of_head(66), config.width_of_value(66), config.width_of_rotary(66)) == (16, 16, 8)
    assert config.value_width(66) == 39 - 8
    assert config.replace(rotary="none").value_width(66) == 39


def test_the_scores_grow_under_yarn_as_those_of_deepseek():
    yarn = YarnScalingConfig(factor=40.0, attention_factor=1.0)
    config = LatentAttentionConfig(head_width=128, rotary_width=64, rotary_scaling=yarn, mscale_all_dim=1.0)
    assert config.scale(7168) == pytest.approx(192**-0.5 * (0.1 * np.log(40) + 1) ** 2)
    assert config.replace(mscale_all_dim=0.0).scale(7168) == pytest.approx(192**-0.5)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"rotary": "none", "rotary_width": 4}, "rotary_width 4 needs rotary 'half'"),
        ({"rotary_width": 3}, "rotary positions need an even rotary_width, got 3"),
        ({"rotary": "none", "rotary_scaling": LinearScalingConfig()}, "set rotary to 'half'"),
        ({"mscale_all_dim": 1.0, "rotary_scaling": LinearScalingConfig()}, "needs a rotary_scaling of kind 'yarn'"),
        ({"latent_width": 0}, "latent_width must be at least 1, got 0"),
        ({"heads": 17}, "heads 17 are more than the width 16; set fewer, or head_width"),
        ({"rotary_width": 10}, "rotary_width 10 leaves no latent at width 16; set latent_width"),
        ({"dropout": 0.1, "implementation": "cudnn"}, "use 'xla' or dropout 0"),
    ],
)
def test_what_cannot_be_is_named(options, fault):
    config = model().replace(mixer=LatentAttentionConfig(**{"heads": 2} | options))
    with pytest.raises(ConfigError, match=fault):
        config.validate()
