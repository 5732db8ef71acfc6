"""Forms that differ by platform follow the platform that is compiled for, and compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax.backend import compiling_for, target_backend
from mhc_jax.models import mhc_ssm

CONFIG = mhc_ssm("adapters", width=8, layers=2, vocab_size=11, max_len=16)


def loss(params, tokens):
    return jnp.sum(jnp.square(mhc_jax.apply(CONFIG, params, tokens).logits_BTV))


@pytest.fixture(scope="module")
def inputs():
    return mhc_jax.init(CONFIG, jax.random.key(0)), jax.random.randint(jax.random.key(1), (2, 16), 0, 11)


def test_target_is_where_jax_runs_unless_named():
    assert target_backend() == jax.default_backend()
    with compiling_for("tpu"):
        assert target_backend() == "tpu"
        with compiling_for("gpu"):
            assert target_backend() == "gpu"
        assert target_backend() == "tpu"
    assert target_backend() == jax.default_backend()


@pytest.mark.slow
def test_both_forms_have_the_same_value_and_gradient_from_one_jitted_function(inputs):
    function = jax.jit(jax.value_and_grad(loss))
    here = function(*inputs)
    with compiling_for("tpu"):
        there = function(*inputs)
    assert function._cache_size() == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), here, there)


@pytest.mark.slow
def test_caches_keep_programs_for_two_platforms_apart(inputs):
    function = jax.jit(jax.grad(loss))
    programs = {}
    for platform in ("cpu", "tpu", "cpu", "tpu"):
        with compiling_for(platform):
            text = function.lower(*inputs).as_text()
        assert programs.setdefault(platform, text) == text
    assert programs["cpu"] != programs["tpu"]
    assert programs["cpu"] == function.lower(*inputs).as_text()
