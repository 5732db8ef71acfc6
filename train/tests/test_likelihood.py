"""Log-probabilities and greedy continuations in batches, against whole logits and single rows."""

import itertools

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax.models.topologies import with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.sampling import Sampling
from train.checks.subject import awake
from train.measure import likelihood

VOCAB, MAX_LEN = 61, 48


@pytest.fixture(scope="module")
def model():
    config = mhc_jax.LMConfig(
        vocab_size=VOCAB, max_len=MAX_LEN, width=8, layers=2, mixer=AttentionConfig(heads=2), mlp=GeluMLPConfig()
    )
    config = with_topology(config, "mhc")
    params = awake(config, mhc_jax.init(config, jax.random.key(0)))
    return config, jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params)


def tokens(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(VOCAB, size=n).tolist() for n in sizes]


def plainly(config, params, context, continuation):
    """The definition, in float64, from whole logits of one row."""
    row = (context + continuation)[-(MAX_LEN + 1) :]
    padded = np.zeros((1, MAX_LEN), np.int32)
    padded[0, : len(row) - 1] = row[:-1]
    logits = np.asarray(forward(config, params, padded), np.float64)[0]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = range(max(len(row) - 1 - len(continuation), 0), len(row) - 1)
    return sum(log_p[t, row[t + 1]] for t in places), all(logits[t].argmax() == row[t + 1] for t in places)


forward = jax.jit(lambda config, params, ids: mhc_jax.apply(config, params, ids).logits_BTV, static_argnums=0)


def test_padded_lengths_waste_a_third_at_most():
    for limit in (1, 5, 32, 48, 100, 1024, 1000):
        sizes = likelihood.lengths(limit)
        assert sizes == sorted({*sizes})
        assert sizes[-1] == limit
        assert all(b <= 1.5 * a or b <= 64 for a, b in itertools.pairwise(sizes))
    assert likelihood.lengths(1024) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]


def test_log_likelihoods_are_those_of_whole_logits(model):
    """Continuations of one token and of many, answers to one question, and texts that are too long."""
    context, other, long = tokens(20, 5, 60)
    pairs = [(context, [answer]) for answer in range(5)]
    pairs += [(context, [7, answer]) for answer in range(3)]
    pairs += [(other, tokens(30)[0]), (long, [1, 2]), ([3], long), (other, [4]), (context[:1], context[1:])]
    likeliest = mhc_jax.generate(*model, [other], max_new_tokens=3, temperature=0)[0, len(other) :].tolist()
    pairs += [(other, likeliest), (other, [*likeliest[:2], (likeliest[2] + 1) % VOCAB])]
    done = []
    found = likelihood.log_likelihoods(*model, pairs, batch=3, progress=done.append)
    assert sum(done) == len(pairs)
    for (value, greedy), pair in zip(found, pairs, strict=True):
        expected, is_greedy = plainly(*model, *pair)
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert greedy == is_greedy
    assert found[-2][1]
    assert not found[-1][1]


def test_answers_that_differ_in_their_last_token_are_computed_once(model, monkeypatch):
    rows = []
    score = likelihood._scored
    monkeypatch.setattr(likelihood, "_scored", lambda *a: (rows.extend(a[2]), score(*a))[1])
    context, other = tokens(20, 21)
    likelihood.log_likelihoods(*model, [(c, [5, answer]) for c in (context, other) for answer in range(4)], batch=2)
    assert len(rows) == 2


def test_little_is_compiled(model):
    before = likelihood._score._cache_size()
    pairs = [(context, [1]) for context in tokens(*range(1, MAX_LEN))]
    likelihood.log_likelihoods(*model, pairs, batch=4)
    assert likelihood._score._cache_size() - before <= len(likelihood.lengths(MAX_LEN)) == 2


def test_nothing_is_asked(model):
    assert likelihood.log_likelihoods(*model, [], batch=4) == []


@pytest.mark.slow
def test_each_prompt_is_continued_as_if_alone(model):
    prompts = tokens(3, 1, 20)
    sampling = Sampling(max_new_tokens=8, temperature=0)
    found = likelihood.continuations(*model, prompts, sampling, batch=4)
    for prompt, new in zip(prompts, found, strict=True):
        alone = mhc_jax.generate(*model, [prompt], sampling)
        assert new == alone[0, len(prompt) :].tolist()


@pytest.mark.slow
def test_a_row_ends_at_its_end_and_all_when_they_are_done(model):
    prompts = tokens(3, 1, 20)
    sampling = Sampling(max_new_tokens=26, temperature=0)
    plain = likelihood.continuations(*model, prompts, sampling, batch=3)
    end = plain[0][2]
    ended = likelihood.continuations(*model, prompts, sampling.replace(eos_id=end), batch=3)
    assert ended == [row[: row.index(end) + 1] if end in row else row for row in plain]
    looks = []
    stopped = likelihood.continuations(*model, prompts, sampling, batch=3, done=lambda row: not looks.append(len(row)))
    assert stopped == [row[: likelihood.PIECE] for row in plain]
    assert looks == [likelihood.PIECE] * 3


@pytest.mark.slow
def test_a_full_prompt_leaves_room_for_what_is_new(model, monkeypatch):
    """Padding must not push the text beyond ``max_len``, where every token is computed anew."""
    monkeypatch.setattr("mhc_jax.decode._slid", None)
    (prompt,) = tokens(MAX_LEN - 8)
    sampling = Sampling(max_new_tokens=8, temperature=0)
    (found,) = likelihood.continuations(*model, [prompt], sampling, batch=1)
    assert found == mhc_jax.generate(*model, [prompt], sampling)[0, len(prompt) :].tolist()
