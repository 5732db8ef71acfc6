"""Prompts of all lengths are read by the same few programs, to the same end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import decode
from mhc_jax.models import mhc_ssm, nanogpt
from mhc_jax.tests.own import slow_unless

SIZE = {"vocab_size": 11, "max_len": 40, "width": 4, "layers": 1, "embed_std": 1.0}
MODELS = {"state of one size": mhc_ssm("mhc", **SIZE), "cache": nanogpt("plain", heads=2, **SIZE)}
OPTIONS = {"temperature": 0.7, "top_k": 5, "eos_id": 2}
KEY = jax.random.key(3)


def text(length):
    return np.asarray(jax.random.randint(jax.random.key(2), (2, length), 0, 11))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_prompts_of_all_lengths_share_their_programs(name):
    model, prompt = MODELS[name], text(40)
    params = mhc_jax.init(model, jax.random.key(1))
    decode._after.clear_cache()
    decode._next.clear_cache()
    for length in (1, 2, 15, 16, 17, 31, 33, 40):
        next(decode.stream(model, params, prompt[:, :length], key=KEY, **OPTIONS))
    assert decode._after._cache_size() == decode._next._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", slow_unless({35}, [1, 16, 35]))
def test_what_follows_the_pieces_is_what_follows_the_whole(name, length):
    model, prompt = MODELS[name], text(length)
    params = mhc_jax.init(model, jax.random.key(1))
    sampling = decode.Sampling(**OPTIONS)
    found_B, *found = decode._first_by_pieces(model, params, prompt, None, KEY, sampling)
    wanted_B, *wanted = decode._first(model, params, jnp.asarray(prompt), None, KEY, model.max_len, sampling)
    np.testing.assert_array_equal(found_B, wanted_B)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), found, wanted)
    streamed = list(decode.stream(model, params, prompt, sampling, max_new_tokens=5, key=KEY))
    whole = mhc_jax.generate(model, params, prompt, sampling, max_new_tokens=5, key=KEY)
    streamed = np.stack(streamed, axis=1)
    np.testing.assert_array_equal(np.where(streamed < 0, 2, streamed), whole[:, length : length + streamed.shape[1]])


@pytest.mark.slow
def test_an_end_in_the_prompt_does_not_end_the_continuation():
    model = MODELS["state of one size"]
    params = mhc_jax.init(model, jax.random.key(1))
    prompt = np.array([[5, 2], [2, 2]])
    assert max(next(decode.stream(model, params, prompt, temperature=0.0, eos_id=2, vocab_size=2)).tolist()) < 2
