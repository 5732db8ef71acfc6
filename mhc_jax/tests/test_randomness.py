"""What dropout draws: at which rate, with which key, and that what is kept is scaled up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax.models import with_topology
from mhc_jax.nn.adapters import StreamAdaptersConfig
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.init import Init
from mhc_jax.nn.layers import dropout
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Execution
from mhc_jax.ops.attention import causal_attention
from mhc_jax.precision import policy

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.8])
def test_dropout_drops_its_rate_and_scales_what_it_keeps(rate):
    x = 1 + jax.random.uniform(KEY, (100, 100))
    y = dropout(x, rate, KEY)
    kept = y != 0
    np.testing.assert_allclose(kept.mean(), 1 - rate, atol=0.02)  # four standard errors at the most
    np.testing.assert_allclose(y[kept], (x / (1 - rate))[kept], rtol=1e-6)
    assert (kept != (dropout(x, rate, jax.random.key(1)) != 0)).any()


def test_dropout_is_off_without_a_key_or_a_rate():
    x = jnp.arange(6.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, KEY) is x


@pytest.mark.parametrize("rate", [0.1, 0.75])
def test_attention_drops_probabilities_and_keeps_their_expectation(rate):
    config = AttentionConfig(heads=2, dropout=rate)
    attention = config.build(8, policy("float32"), Init(KEY))
    q = jnp.zeros((50, 16, 2, 4))
    keep = attention._keep(q, q, KEY)
    assert keep.shape == (50, 2, 16, 16)
    np.testing.assert_allclose((keep > 0).mean(), 1 - rate, atol=0.02)
    np.testing.assert_allclose(jnp.unique(keep), [0, 1 / (1 - rate)], rtol=1e-6)
    assert attention._keep(q, q, None) is None
    # Every query sees 16 equal keys whose values are 1: on average dropout changes nothing.
    ones = jnp.ones((50, 16, 2, 4))
    last = causal_attention(q, ones, ones, keep_BHTS=keep)[:, -1]
    np.testing.assert_allclose(last.mean(), 1, atol=0.1)
    assert last.std() > 0.05
    # The module hands the mask on.
    u = jax.random.normal(KEY, (2, 16, 8))
    noisy, silent = (attention(u, None, Scope.over(16, key=key))[0] for key in (KEY, None))
    assert not np.allclose(noisy, silent)


CONFIG = LMConfig(
    vocab_size=11,
    max_len=6,
    width=8,
    layers=2,
    dropout=0.125,
    norm=LayerNormConfig(),
    mixer=AttentionConfig(heads=2, dropout=0.25),
    mlp=GeluMLPConfig(hidden=4),
    execution=Execution(layers="unroll"),
)
TOKENS = jnp.zeros((2, 6), jnp.int32)


@functools.cache
def drawn(topology):
    """(key, share kept) of everything that a whole model draws with dropout everywhere."""
    config = with_topology(CONFIG, topology)
    if config.adapters:
        config = config.replace(adapters=StreamAdaptersConfig(rank=2, dropout=0.5))
    params, draws, healthy = mhc_jax.init(config, KEY), [], jax.random.bernoulli

    def record(key, p, shape):
        draws.append((tuple(np.asarray(jax.random.key_data(key)).tolist()), p))
        return healthy(key, p, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "bernoulli", record)
        mhc_jax.apply(config, params, TOKENS, key=KEY)
    return draws


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "adapters"), [("plain", False), ("mhc_ssm_adapters", True)])
def test_every_draw_of_a_model_has_a_key_and_a_rate_of_its_own(topology, adapters):
    """The embedding; in both layers attention's probabilities and two branches; four streams' adapters at both ends."""
    keys, kept = zip(*drawn(topology), strict=True)
    assert len(set(keys)) == len(keys)
    assert sorted(kept) == sorted([0.875] * 5 + [0.75] * 2 + [0.5] * (8 * 4 if adapters else 0))


def test_masks_differ_by_layer_site_and_row():
    """In the compiled scan over layers too; a dropped activation is exactly 0."""
    config = CONFIG.replace(execution=Execution(layers="scan"), mixer=AttentionConfig(heads=2), dropout=0.4)
    params = mhc_jax.init(config, KEY)
    forward = jax.jit(lambda key: mhc_jax.apply(config, params, TOKENS, key=key, taps=True).taps)
    taps = forward(KEY)
    branches = [taps[f"blocks.{site}.y"][layer] for site in ("mixer", "mlp") for layer in range(2)]
    masks = [x == 0 for x in (taps["embed"], *branches)]
    rows = [np.asarray(mask[row]).ravel() for mask in masks for row in (0, 1)]
    for index, row in enumerate(rows):
        assert 0.1 < row.mean() < 0.7
        assert all((row != other).any() for other in rows[:index])
    other = forward(jax.random.key(1))
    assert all((taps[name] == 0).tolist() != (other[name] == 0).tolist() for name in ("embed", "blocks.mixer.y"))
