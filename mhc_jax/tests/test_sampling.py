"""Draws of the next token: their distribution under every option, their keys, and where a text ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import ConfigError, decode
from mhc_jax.models import mhc_ssm
from mhc_jax.sampling import sample_token
from mhc_jax.tests.own import slow_unless

SHARES = np.array([0.05, 0.4, 0.25, 0.3])
CONFIG = mhc_ssm("baseline", width=4, layers=1, vocab_size=7, max_len=24)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SHARES),
        ({"temperature": 2.0}, SHARES**0.5),
        ({"temperature": 0.5}, SHARES**2),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 3}, [0, 0.4, 0.25, 0.3]),
        ({"top_k": 9}, SHARES),
        ({"top_p": 0.39}, [0, 1, 0, 0]),
        ({"top_p": 0.69}, [0, 0.4, 0, 0.3]),
        ({"top_p": 0.71}, [0, 0.4, 0.25, 0.3]),
        ({"top_p": 0.99}, SHARES),
        # The nucleus is that of what top_k and the temperature have left: 0.4 of 0.7 is more than a half.
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),
        ({"temperature": 0.5, "top_p": 0.75}, [0, 0.4**2, 0, 0.3**2]),
    ],
)
def test_tokens_are_drawn_by_their_shares(options, expected):
    drawn = sample_token(jnp.tile(jnp.log(SHARES), (4000, 1)), jax.random.key(0), **options)
    expected = np.asarray(expected) / np.sum(expected)
    found = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(found, expected, atol=0.035)  # more than four standard errors
    assert not found[expected == 0].any()


def generate(key=0, **options):
    """Eight continuations by a model for which all tokens are alike."""
    params = jax.tree.map(jnp.zeros_like, mhc_jax.init(CONFIG, jax.random.key(0)))
    prompt = jnp.zeros((8, 2), jnp.int32)
    return np.asarray(mhc_jax.generate(CONFIG, params, prompt, key=jax.random.key(key), max_new_tokens=20, **options))


@pytest.mark.slow
def test_every_row_and_position_has_a_draw_of_its_own():
    first, again, other = generate(0), generate(0), generate(1)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (8, 22)
    np.testing.assert_array_equal(first[:, :2], 0)
    new = first[:, 2:]
    assert (new != other[:, 2:]).mean() > 0.6
    assert len({tuple(row) for row in new}) == 8
    assert len({tuple(column) for column in new.T}) == 20
    assert set(new.ravel()) == set(range(7))


def test_only_ids_of_the_tokenizer_are_drawn():
    assert set(generate(vocab_size=3)[:, 2:].ravel()) == {0, 1, 2}


def test_a_row_that_has_ended_repeats_its_end():
    new = generate(eos_id=5)[:, 2:]
    plain = generate()[:, 2:]
    for row, free in zip(new, plain, strict=True):
        end = int(np.argmax(free == 5)) if (free == 5).any() else 20
        np.testing.assert_array_equal(row[: end + 1], free[: end + 1])
        assert (row[end:] == 5).all()
    assert (new == 5).any()


@pytest.mark.slow
def test_the_likeliest_token_needs_no_key():
    params = mhc_jax.init(CONFIG, jax.random.key(3))
    prompt = jnp.array([[1, 2, 3], [4, 5, 6]])
    found = mhc_jax.generate(CONFIG, params, prompt, max_new_tokens=5, temperature=0)
    text = prompt
    for _ in range(5):
        logits = mhc_jax.apply(CONFIG, params, text).logits_BTV
        text = jnp.concatenate([text, jnp.argmax(logits[:, -1], -1)[:, None]], axis=1)
    np.testing.assert_array_equal(found, text)
    assert found.dtype == prompt.dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 10**12}, r"max_new_tokens must be below 2\*\*31"),
        ({"temperature": -0.1}, "temperature must not be negative"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_p": 1.01}, "top_p must lie in"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
        ({"vocab_size": 8}, r"vocab_size must lie in 1\.\.7"),
        ({"eos_id": 7}, r"eos_id must lie in 0\.\.6"),
        ({"eos_id": -1}, r"eos_id must lie in 0\.\.6"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, got True"),
        ({"stop": 3}, "stop must be a list"),
        ({"stop": [3]}, "stop must be a list"),
        ({"stop": [[1.5]]}, "stop must be a whole number"),
        ({"stop": [[]]}, "stop must not hold an empty sequence"),
        ({"stop": [[1], [2, 7]]}, r"stop must lie in 0\.\.6, got 7"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "key must be one key, or one for each of 1 prompts"),
        ({"key": None}, "sampling needs a key"),
        ({"prompt": [[0, 7]]}, r"tokens must lie in 0\.\.6"),
        ({"prompt": [[-1, 0]]}, r"tokens must lie in 0\.\.6"),
    ],
)
def test_nonsense_is_refused(options, message):
    options = {"prompt": [[0, 6]], "key": jax.random.key(0), "max_new_tokens": 1} | options
    prompt = jnp.asarray(options.pop("prompt"))
    with pytest.raises(ConfigError, match=message):
        mhc_jax.generate(CONFIG, mhc_jax.init(CONFIG, jax.random.key(0)), prompt, **options)


STOPS = [((3,),), ((2, 4), (6,)), ((1, 1, 5), (0, 2))]


@pytest.mark.parametrize("eos_id", slow_unless({6}, [None, 6]))
@pytest.mark.parametrize("stop", slow_unless(STOPS[1:2], STOPS))
def test_a_row_that_stops_is_the_free_one_up_to_there(stop, eos_id):
    """With prompts of unequal length, whose own tokens stop nothing."""
    params = jax.tree.map(jnp.zeros_like, mhc_jax.init(CONFIG, jax.random.key(0)))
    prompts, lengths = jnp.full((8, 3), stop[0][-1]), [3, 1, 2, 3, 1, 2, 3, 3]
    options = {"lengths_B": lengths, "key": jax.random.key(4), "max_new_tokens": 30}
    free = np.asarray(mhc_jax.generate(CONFIG, params, prompts, **options))
    found, counts = decode.generate_with_lengths(CONFIG, params, prompts, **options, stop=stop, eos_id=eos_id)
    ends = [*stop, *([] if eos_id is None else [(eos_id,)])]
    stopped = 0
    for row, given, length, count in zip(np.asarray(found), free, lengths, counts, strict=True):
        new = given[length : length + 30].tolist()
        cut = next((n for n in range(1, 31) if any(tuple(new[:n])[-len(end) :] == tuple(end) for end in ends)), 30)
        stopped += cut < 30
        assert count == length + cut
        np.testing.assert_array_equal(row[:count], given[:count])
        assert (row[count : length + 30] == (eos_id or 0)).all()
        assert not row[length + 30 :].any()
    assert stopped
    streamed = np.stack(list(decode.stream(CONFIG, params, prompts, **options, stop=stop, eos_id=eos_id)), axis=1)
    assert streamed.shape[1] == max(counts - jnp.asarray(lengths))
    np.testing.assert_array_equal((streamed >= 0).sum(1), counts - jnp.asarray(lengths))


def test_decoding_ends_once_all_rows_have(monkeypatch):
    """Told by how often the model runs, where every token stops."""
    params, steps = mhc_jax.init(CONFIG, jax.random.key(0)), []
    healthy = decode.draw

    def counted(logits_BV, past, key, index, sampling):
        jax.debug.callback(lambda index: steps.append(int(index)), index)
        return healthy(logits_BV, past, key, index, sampling)

    monkeypatch.setattr(decode, "draw", counted)
    options = {"max_new_tokens": 11, "temperature": 0.0}
    mhc_jax.generate(CONFIG, params, [[1, 2]], **options)
    jax.effects_barrier()
    assert len(steps) == 11
    steps.clear()
    mhc_jax.generate(CONFIG, params, [[1, 2]], **options, stop=[[token] for token in range(7)])
    jax.effects_barrier()
    assert steps == [0]


@pytest.mark.slow
def test_a_row_with_a_key_of_its_own_draws_what_it_draws_alone():
    params = mhc_jax.init(CONFIG, jax.random.key(3))
    prompts, keys = jnp.array([[1, 2, 3], [4, 5, 6]]), jax.random.split(jax.random.key(1))
    found = mhc_jax.generate(CONFIG, params, prompts, key=keys, max_new_tokens=9)
    for row, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
        alone = mhc_jax.generate(CONFIG, params, prompt[None], key=key, max_new_tokens=9)
        np.testing.assert_array_equal(found[row], alone[0])
    older = jax.random.PRNGKey(5), jax.random.key(5)
    first, second = (mhc_jax.generate(CONFIG, params, prompts, key=key, max_new_tokens=3) for key in older)
    np.testing.assert_array_equal(first, second)
