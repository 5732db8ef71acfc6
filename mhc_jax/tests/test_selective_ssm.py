"""The selective state-space mixer: what it remembers at the start, and what its forms keep in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.nn.init import Init
from mhc_jax.nn.mixers import SelectiveSSMConfig
from mhc_jax.ops.selective_scan import selective_scan
from mhc_jax.precision import policy

WIDTH = 32


def decays(init):
    """exp(dt A) of every state before training, for an input of zeros."""
    unit = SelectiveSSMConfig(init=init).build(WIDTH, policy("float32"), Init(jax.random.key(0)))
    dt_E = jax.nn.softplus(unit.dt_proj.bias[...])
    return np.exp(-np.exp(unit.a_log[...]) * np.asarray(dt_E)[:, None])


def test_states_remember_at_the_start_and_those_of_the_original_forget():
    memory = 1 / -np.log(decays("time_scales"))
    assert 9 < memory[:, 0].min() < memory[:, 0].max() < 1001
    assert (1 / -np.log(decays("original"))).max() < 3


def inputs(T, E=8, N=5):
    keys = jax.random.split(jax.random.key(0), 6)
    sizes = {"u_BTE": (1, T, E), "dt_BTE": (1, T, E), "a_log_EN": (E, N)}
    sizes |= {"in_BTN": (1, T, N), "out_BTN": (1, T, N), "skip_E": (E,)}
    drawn = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, sizes.items(), strict=True)}
    return drawn | {"dt_BTE": jax.nn.softplus(drawn["dt_BTE"])}


@pytest.mark.slow
def test_states_between_chunks_alone_are_kept_for_the_backward_pass():
    """With one state for each token the scratch memory would be N times the input's, twice over."""
    T, E, N = 512, 8, 16
    arrays = inputs(T, E, N)

    def scratch(form):
        loss = jax.grad(lambda arrays: jnp.sum(selective_scan(**arrays, form=form, chunk=16)[0] ** 2))
        return jax.jit(loss).lower(arrays).compile().memory_analysis().temp_size_in_bytes

    states = T * E * N * 4
    assert scratch("associative") > states
    assert scratch("sequential") < states
    assert scratch("chunked") < states


@pytest.mark.parametrize("form", ["sequential", "associative", "chunked"])
def test_an_extreme_step_forgets_everything_and_none_keeps_everything(form):
    arrays = inputs(7)
    forgets = arrays | {"dt_BTE": jnp.full((1, 7, 8), 1e4)}
    y_BTE, s_BEN = selective_scan(**forgets, form=form, chunk=3)
    alone, state = selective_scan(**{k: x[:, -1:] if k.endswith(("TE", "TN")) else x for k, x in forgets.items()})
    np.testing.assert_allclose(y_BTE[:, -1:], alone, rtol=1e-6)
    np.testing.assert_allclose(s_BEN, state, rtol=1e-6)
    before = jnp.ones((1, 8, 5))
    _, kept = selective_scan(**arrays | {"dt_BTE": jnp.zeros((1, 7, 8))}, s0_BEN=before, form=form, chunk=3)
    np.testing.assert_array_equal(kept, before)


def test_unknown_forms_and_empty_chunks_are_refused():
    with pytest.raises(ValueError, match="unknown scan form 'sequental'; did you mean 'sequential'"):
        selective_scan(**inputs(3), form="sequental")
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        selective_scan(**inputs(3), chunk=0)
