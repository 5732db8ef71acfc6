import dataclasses
from unittest import mock

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from mhc_jax.sampling import Sampling
from train import sample
from train.config import RunConfig
from train.data import continuation as texts
from train.data import load_tokenizer
from train.tests import fuzz
from train.tests.tiny import tiny_export


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("tiny"))


def test_greedy_text_is_what_generate_gives(tiny, capsys):
    config, params, folder = tiny
    tokenizer = load_tokenizer("bytes")
    ids = jax.numpy.asarray([tokenizer.encode("the ")])
    expected = mhc_jax.generate(config.model, params, ids, max_new_tokens=8, temperature=0.0)[0].tolist()
    sample.main([str(folder), "--prompt", "the ", "--tokens", "8", "--temperature", "0"])
    assert capsys.readouterr().out == tokenizer.decode(expected) + "\n"


def test_seed_decides(tiny):
    config, params, _ = tiny
    tokenizer = load_tokenizer("bytes")
    drawn = [texts.sample(config.model, params, tokenizer, prompt="a", tokens=12, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].startswith("a")


def test_end_of_text_ends_the_sample(tiny, monkeypatch):
    config, params, _ = tiny
    tokenizer = load_tokenizer("bytes")
    answer = [[token] for token in [*tokenizer.encode("cd"), tokenizer.eos_id, 65]]
    monkeypatch.setattr(texts, "stream", lambda *args, **options: iter(answer))
    assert texts.sample(config.model, params, tokenizer, prompt="ab") == "abcd"


def test_samples_stops_and_prompts_one_after_another(tiny, monkeypatch, capsys):
    config, params, folder = tiny
    tokenizer = load_tokenizer("bytes")

    def text(prompt, seed):
        return texts.sample(config.model, params, tokenizer, prompt=prompt, tokens=50, seed=seed)  # max_len is 32

    def printed(*flags):
        sample.main([str(folder), "--tokens", "50", *flags])
        return capsys.readouterr().out

    assert (
        printed("--prompt", "a", "--seed", "3", "--num-samples", "2")
        == f"{text('a', 3)}\n{sample.RULE}\n{text('a', 4)}\n"
    )
    whole = text("a", 3)
    assert printed("--prompt", "a", "--seed", "3", "--stop", whole[5:7], "--stop", "never said") == whole[:5] + "\n"
    lines = iter(["b", "ü"])

    def typed(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert printed("--interactive") == f"{text('b', 0)}\n{text('ü', 0)}\n\n"


def test_ids_that_the_tokenizer_lacks_are_never_drawn():
    model = mhc_ssm("baseline", vocab_size=5000, max_len=64, width=8, layers=1)
    params = mhc_jax.init(model, jax.random.key(0))
    prompt = jax.numpy.asarray([[1]])
    options = {"max_new_tokens": 60, "temperature": 1e3, "key": jax.random.key(1)}
    assert mhc_jax.generate(model, params, prompt, **options).max() >= 257
    assert mhc_jax.generate(model, params, prompt, **options, vocab_size=257).max() < 257
    with pytest.raises(ConfigError, match="vocab_size must be at least 1"):
        mhc_jax.generate(model, params, prompt, **options, vocab_size=0)
    # Characters have no end token either, so the text is as long as was asked for.
    config = RunConfig(model=model)
    text = texts.sample(config.model, params, load_tokenizer("chars:abc"), tokens=60, temperature=1e3)
    assert len(text) == 60
    assert set(text) == set("abc")


class Silent:
    """A tokenizer that makes nothing of any text."""

    name, vocab_size, eos_id = "silent", 257, 256

    def encode(self, text):
        return []


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"prompt": "x\ud800"}, "the prompt is not Unicode text: character 1"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature must be finite"),
        ({"prompt": "x", "tokens": 0}, "at least 1"),
        ({"prompt": "x", "temperature": -1.0}, "temperature"),
        ({"prompt": "x", "top_p": 0.0}, "top_p"),
    ],
)
def test_impossible_requests_are_named(tiny, options, fault):
    config, params, _ = tiny
    with pytest.raises(ConfigError, match=fault):
        texts.sample(config.model, params, load_tokenizer("bytes"), **options)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--temperature", "nan"], "--temperature must be finite, got nan"),
        (["--top-p", "2"], "--top-p must lie in (0, 1], got 2.0"),
        (["--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["--num-samples", str(2**31)], "--num-samples must be below 2**31"),
        (["--seed", "-1"], "--seed must lie in 0 .. 4294967295, got -1"),
        (["--stop", ""], "--stop must not be empty"),
        (["--prompt", "a\udcff"], "--prompt is not UTF-8 text"),
        (["--max_new_tokens", "3"], "unknown flag --max_new_tokens: use --tokens"),
    ],
)
def test_faults_of_the_command_name_the_flag(tiny, flags, says):
    status, error = fuzz.command(sample.main, [str(tiny[2]), *flags], tiny[2])
    assert (status, says in error) == (2, True), error


@fuzz.FEW
@given(st.data())
def test_any_prompt_is_continued_or_refused(tiny, data):
    config, params, folder = tiny
    prompt, stop = data.draw(fuzz.TEXTS), data.draw(fuzz.TEXTS)
    name = data.draw(st.sampled_from(["temperature", "top-k", "top-p", "seed", "tokens"]))
    value = data.draw(fuzz.INTEGERS.filter(lambda n: abs(n) < 10**30) | fuzz.FLOATS)
    never_ending = mock.patch.object(texts, "stream", lambda *_, **options: _checked_stream(options))
    with never_ending, mock.patch.object(sample, "load_run", return_value=(config, params)):
        argv = [str(folder), f"--prompt={prompt}", f"--stop={stop}", f"--{name}={value}"]
        fuzz.command(sample.main, argv, folder)


def _checked_stream(options):
    Sampling(**{field.name: options[field.name] for field in dataclasses.fields(Sampling)}).validate()
    return iter([[65], [195], [169], [66]])


def test_prompt_of_no_tokens_is_named(tiny):
    config, params, _ = tiny
    with pytest.raises(ConfigError, match="makes no tokens"):
        texts.sample(config.model, params, Silent(), prompt="x")


def test_ids_outside_the_vocabulary_are_named(tiny):
    config, params, _ = tiny
    with pytest.raises(ConfigError, match=r"tokens must lie in 0\.\.256"):
        texts.sample(config.model, params, load_tokenizer("gpt2"), prompt="tokenisation", tokens=4)
