"""Decoding: what may be drawn, and how a text goes on past the longest sequence that the model was trained on."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import ConfigError, decode
from mhc_jax.decode import stream
from mhc_jax.models import mhc_ssm, nanogpt, transformer_scan
from mhc_jax.nn.mixers import AttentionConfig, LatentAttentionConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.sampling import sample_token
from mhc_jax.tests.own import slow_unless

LOGITS = jnp.array([1.0, 3.0, 2.0, 3.0, 0.0])
MODELS = {
    "positions are learned": nanogpt(heads=2, vocab_size=17, max_len=8, width=8, layers=1),
    "state of one size": mhc_ssm(vocab_size=17, max_len=8, width=8, layers=1),
}


def drawn(logits, **options):
    """The ids that a hundred draws give."""
    keys = jax.random.split(jax.random.key(0), 100)
    tokens = jax.vmap(lambda key: sample_token(jnp.asarray(logits)[None], key, **options)[0])(keys)
    return set(tokens.tolist())


@pytest.mark.parametrize(
    ("logits", "options", "ids"),
    [
        ([0.0] * 4, {"top_k": 1}, {0}),
        ([0.0] * 4, {"top_k": 3}, {0, 1, 2}),
        ([0.0] * 4, {"top_k": 9}, {0, 1, 2, 3}),
        (LOGITS, {"top_k": 1}, {1}),
        (LOGITS, {"top_k": 2}, {1, 3}),
        (LOGITS, {"top_k": 3}, {1, 2, 3}),
        ([0.0] * 4, {"top_p": 0.5}, {0, 1}),
        ([0.0] * 4, {"top_p": 0.51}, {0, 1, 2}),
        ([0.0] * 4, {"top_p": 1e-9}, {0}),
        (LOGITS, {"top_p": 0.6}, {1, 3}),
        ([0.0] * 4, {"top_k": 2, "top_p": 0.5}, {0}),
        (LOGITS, {}, {0, 1, 2, 3, 4}),
    ],
)
def test_exactly_k_and_the_fewest_that_reach_p_are_kept(logits, options, ids):
    assert drawn(logits, temperature=1.0, **options) == ids


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-45, 1e-38, 1e-30, 1e-9])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_a_tiny_temperature_takes_the_most_likely_token(temperature, options):
    assert drawn([1.0, 2.0, 3.0, -40.0], temperature=temperature, **options) == {2}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"temperature": float("nan")}, "temperature must be finite, got nan"),
        ({"temperature": float("inf")}, "temperature must be finite, got inf"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"temperature": "1"}, "temperature must be a number, got '1'"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_k": 2**31}, "top_k must be below"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": float("nan")}, "top_p must be finite"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 10**12}, r"max_new_tokens must be below 2\*\*31"),
    ],
)
def test_impossible_options_are_named(options, fault):
    model = MODELS["state of one size"]
    params = mhc_jax.init(model, jax.random.key(0))
    with pytest.raises(ConfigError, match=fault):
        mhc_jax.generate(
            model, params, jnp.ones((1, 2), int), **{"max_new_tokens": 2, "key": jax.random.key(0)} | options
        )


forward = jax.jit(mhc_jax.apply, static_argnums=0)
extend = jax.jit(decode.extend, static_argnums=0)


def logits_of_window(model, params, tokens):
    """Logits after the last token, from the last ``max_len``; one program for all lengths."""
    seen = tokens[:, -model.max_len :]
    padded = jnp.pad(seen, ((0, 0), (0, model.max_len - seen.shape[1])))
    return forward(model, params, padded).logits_BTV[:, seen.shape[1] - 1]


def continued_from_the_last_tokens(model, params, tokens, count):
    """As nanoGPT does it: the whole window anew for every token."""
    for _ in range(count):
        logits = logits_of_window(model, params, tokens)
        tokens = jnp.concatenate([tokens, jnp.argmax(logits, axis=-1)[:, None]], axis=1)
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("prompt", slow_unless({11}, [7, 11]))
def test_where_positions_fill_the_window_slides(prompt):
    model = MODELS["positions are learned"]
    params = mhc_jax.init(model.replace(embed_std=1.0), jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(2), (2, prompt), 0, 17)
    found = mhc_jax.generate(model, params, tokens, max_new_tokens=13, temperature=0.0)
    np.testing.assert_array_equal(found, continued_from_the_last_tokens(model, params, tokens, 13))


@pytest.mark.parametrize("prompt", [3, 11])
def test_a_state_of_one_size_goes_on(prompt):
    model = MODELS["state of one size"]
    params = mhc_jax.init(model.replace(embed_std=1.0), jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(2), (2, prompt), 0, 17)
    found = mhc_jax.generate(model, params, tokens, max_new_tokens=13, temperature=0.0)
    cache, pieces = decode.init_cache(model, params, 2), []
    for start in range(0, found.shape[1], model.max_len):
        logits, cache = extend(model, params, found[:, start : start + model.max_len], cache)
        pieces.append(logits)
    logits = jnp.concatenate(pieces, axis=1)
    np.testing.assert_array_equal(found[:, prompt:], jnp.argmax(logits, axis=-1)[:, prompt - 1 : -1])


@pytest.mark.parametrize("name", slow_unless({"state of one size"}, MODELS))
def test_a_stream_gives_the_tokens_of_generate_one_by_one(name):
    model = MODELS[name]
    params = mhc_jax.init(model, jax.random.key(1))
    prompt = jnp.asarray([[1, 2, 3], [4, 5, 6]])
    options = {"key": jax.random.key(3), "temperature": 2.0, "top_k": 9, "eos_id": 2, "max_new_tokens": 12}
    whole, lengths = decode.generate_with_lengths(model, params, prompt, **options)
    streamed = np.stack(list(stream(model, params, prompt, **options)), axis=1)
    assert streamed.shape[1] == max(lengths) - 3
    for found, row, length in zip(streamed, np.asarray(whole), lengths, strict=True):
        np.testing.assert_array_equal(found[: length - 3], row[3:length])
        assert (found[length - 3 :] == -1).all()
        assert (row[length:] == 2).all()


UNEQUAL = {
    **MODELS,
    "adapters": mhc_ssm("adapters", vocab_size=17, max_len=8, width=8, layers=2),
    "rotary, over mhc": MODELS["positions are learned"].replace(
        mixer=AttentionConfig(heads=4, kv_heads=2, rotary="half", qk_norm=RMSNormConfig()),
        positions="none",
        head="dense",
    ),
}


@pytest.mark.parametrize("name", slow_unless({"state of one size"}, UNEQUAL))
def test_prompts_of_unequal_length_give_what_each_gives_alone(name):
    """Also past the longest sequence, where a window slides over some rows sooner than over others."""
    model, lengths, new = UNEQUAL[name], [5, 1, 3], 9
    params = mhc_jax.init(model.replace(embed_std=1.0), jax.random.key(1))
    prompts = jax.random.randint(jax.random.key(2), (3, 5), 0, 17)
    options = {"max_new_tokens": new, "temperature": 0.0}
    found = mhc_jax.generate(model, params, prompts, lengths_B=lengths, **options)
    streamed = stream(model, params, prompts, lengths_B=jnp.asarray(lengths), temperature=0.0)
    streamed = np.stack(list(itertools.islice(streamed, new)), axis=1)
    for row, length in enumerate(lengths):
        alone = mhc_jax.generate(model, params, prompts[row : row + 1, :length], **options)[0]
        np.testing.assert_array_equal(found[row, : length + new], alone)
        np.testing.assert_array_equal(streamed[row], alone[length:])
        assert not found[row, length + new :].any()


@pytest.mark.parametrize("lengths", [[0, 1], [1], [1, 4], [1.0, 2.0], 3])
def test_lengths_that_are_none_are_refused(lengths):
    model = MODELS["state of one size"]
    params = mhc_jax.init(model, jax.random.key(0))
    with pytest.raises(ConfigError, match="lengths_B must be 2 whole numbers from 1 to 3"):
        mhc_jax.generate(model, params, jnp.ones((2, 3), int), lengths_B=lengths, max_new_tokens=1, temperature=0.0)


def test_a_cache_is_as_long_as_asked_and_refuses_more():
    model = MODELS["positions are learned"]
    params = mhc_jax.init(model, jax.random.key(0))
    cache = decode.init_cache(model, params, 1, max_len=3)
    assert {leaf.shape[-1] for leaf in jax.tree.leaves(cache["state"])} == {3}
    _, cache = decode.extend(model, params, jnp.ones((1, 2), int), cache)
    with pytest.raises(ConfigError, match="a cache of 3 tokens cannot hold 4"):
        decode.extend(model, params, jnp.ones((1, 2), int), cache)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"max_len": 0}, "max_len must be a whole number, at least 1, got 0"),
        ({"max_len": 2.5}, "max_len must be a whole number, at least 1, got 2.5"),
        ({"batch": -1}, "batch must be a whole number, at least 1, got -1"),
        ({"start_B": [0, 1, 2]}, r"start_B must be 2 whole numbers, got shape \(3,\)"),
        ({"start_B": [0.5, 1.0]}, "start_B must be 2 whole numbers, .* dtype float32"),
    ],
)
def test_a_cache_of_no_size_is_refused(options, fault):
    model = MODELS["positions are learned"]
    with pytest.raises(ConfigError, match=fault):
        decode.init_cache(model, mhc_jax.init(model, jax.random.key(0)), **{"batch": 2} | options)


@pytest.mark.parametrize(("rows", "tokens"), [(2, 4), (1, 1), (3, 1)])
def test_what_a_cache_can_never_hold_is_refused_while_compiling(rows, tokens):
    model = MODELS["positions are learned"]
    params = mhc_jax.init(model, jax.random.key(0))
    cache = decode.init_cache(model, params, 2, max_len=3)
    with pytest.raises(ConfigError, match=f"2 rows and 3 tokens cannot hold {rows} rows of {tokens}"):
        extend(model, params, jnp.ones((rows, tokens), int), cache)


@pytest.mark.parametrize("mixer", [AttentionConfig(heads=2), LatentAttentionConfig(heads=2)], ids=lambda x: x.kind)
def test_a_step_does_not_copy_the_cache(mixer):
    """All layers of a cache are one donated array, which a step writes in place."""
    model = nanogpt(heads=2, vocab_size=11, max_len=4096, width=8, layers=8).replace(mixer=mixer)
    params, token = mhc_jax.init(model, jax.random.key(0)), jnp.ones((1, 1), jnp.int32)
    cache = decode.init_cache(model, params, 1)
    extend = jax.jit(functools.partial(decode.extend, model), donate_argnums=2)
    memory = extend.lower(params, token, cache).compile().memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache["state"]))
    assert memory.alias_size_in_bytes >= held
    assert memory.temp_size_in_bytes < held / 2  # one layer at a time, and scores of as many columns


@pytest.mark.parametrize(
    "mixer",
    [AttentionConfig(heads=4, kv_heads=2), pytest.param(LatentAttentionConfig(heads=2), marks=pytest.mark.slow)],
    ids=lambda x: x.kind,
)
def test_a_cache_in_bfloat16_is_read(mixer):
    """By one token of several rows, whose products XLA for CPUs has not in every form."""
    model = nanogpt(heads=4, vocab_size=17, max_len=16, width=16, layers=1)
    model = model.replace(mixer=mixer, execution=Execution(policy="bfloat16"))
    params, tokens = mhc_jax.init(model.replace(embed_std=1.0), jax.random.key(1)), jnp.array([[3], [5]])
    logits, _ = extend(model, params, tokens, decode.init_cache(model, params, 2))
    np.testing.assert_allclose(logits, forward(model, params, tokens).logits_BTV, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("model", [MODELS["positions are learned"], transformer_scan("tiny", max_len=8, chunk=2)])
def test_a_cache_is_its_own_and_no_array_of_it_is_another(model):
    """So that it can be donated, which leaves the caller what is the caller's."""
    start_B = jnp.array([0, 1])
    cache = decode.init_cache(model, mhc_jax.init(model, jax.random.key(0)), 2, start_B=start_B)
    places = [leaf.unsafe_buffer_pointer() for leaf in [start_B, *jax.tree.leaves(cache)]]
    assert len({*places}) == len(places)


def test_options_that_do_not_exist_and_models_that_see_ahead_are_refused():
    model = MODELS["positions are learned"]
    params = mhc_jax.init(model, jax.random.key(0))
    with pytest.raises(ConfigError, match="temprature.*temperature"):
        mhc_jax.generate(model, params, jnp.ones((1, 2), int), max_new_tokens=1, temprature=0.0)
    both_ways = model.replace(mixer=model.mixer.replace(causal=False))
    with pytest.raises(ConfigError, match="neither learn nor continue a text"):
        mhc_jax.generate(both_ways, params, jnp.ones((1, 2), int), max_new_tokens=1, temperature=0.0)


@pytest.mark.parametrize(("share", "ids"), [(0.0, {0, 1, 2}), (0.2, {1, 2}), (0.5, {2}), (1.0, {2})])
def test_tokens_too_unlikely_beside_the_likeliest_are_dropped(share, ids):
    logits = jnp.log(jnp.asarray([0.1, 0.25, 0.65]))
    assert drawn(logits, temperature=1.0, min_p=share) == ids
    assert drawn(logits * 2, temperature=2.0, min_p=share) == ids


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless({"state of one size"}, MODELS))
def test_a_repetition_penalty_weighs_what_the_text_holds(name):
    """Written out with whole passes, row by row, also past the longest sequence."""
    model, lengths, new, penalty = UNEQUAL[name], [5, 2], 8, 3.0
    params = mhc_jax.init(model.replace(embed_std=1.0), jax.random.key(1))
    prompts = jax.random.randint(jax.random.key(2), (2, 5), 0, 17)
    options = {"temperature": 0.0, "repetition_penalty": penalty}
    found = mhc_jax.generate(model, params, prompts, lengths_B=lengths, max_new_tokens=new, **options)
    for row, length in enumerate(lengths):
        text, cache = prompts[row : row + 1, :length], decode.init_cache(model, params, 1)
        slides = "state" not in name and name != "adapters"
        logits, cache = extend(model, params, text, cache)
        logits = logits[:, -1]
        for _ in range(new):
            last = np.array(logits[0])
            held = np.unique(text)
            last[held] = np.where(last[held] > 0, last[held] / penalty, last[held] * penalty)
            text = jnp.concatenate([text, jnp.asarray([[last.argmax()]])], axis=1)
            if slides:
                logits = logits_of_window(model, params, text)
            else:
                logits, cache = extend(model, params, text[:, -1:], cache)
                logits = logits[:, -1]
        np.testing.assert_array_equal(found[row, : length + new], text[0])
    plain = mhc_jax.generate(model, params, prompts, lengths_B=lengths, max_new_tokens=new, temperature=0.0)
    assert (plain != found).any()


@pytest.mark.slow
def test_a_head_of_other_things_than_tokens_continues_no_text():
    model = MODELS["positions are learned"].replace(head="dense", outputs=23)
    params = mhc_jax.init(model, jax.random.key(0))
    with pytest.raises(ConfigError, match="outputs 23 are not the 17 tokens"):
        mhc_jax.generate(model, params, jnp.ones((1, 2), int), max_new_tokens=1, temperature=0.0)
