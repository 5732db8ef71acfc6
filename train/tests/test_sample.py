import functools
from unittest import mock

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm, nanogpt
from mhc_jax.sampling import Sampling
from train import sample
from train.config import RunConfig
from train.data import continuation as texts
from train.data import load_tokenizer
from train.tests import fuzz
from train.tests.tiny import tiny_export

SHORT = Sampling(max_new_tokens=12)


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
    drawn = [texts.sample(config.model, params, tokenizer, SHORT, prompt="a", seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].startswith("a")


def test_end_of_text_ends_the_sample(tiny, monkeypatch):
    config, params, _ = tiny
    tokenizer = load_tokenizer("bytes")
    answer = [[token] for token in [*tokenizer.encode("cd"), tokenizer.eos_id, 65]]
    monkeypatch.setattr(texts, "stream", lambda *args, **options: iter(answer))
    assert texts.sample(config.model, params, tokenizer, SHORT, prompt="ab") == "abcd"


@pytest.mark.slow
def test_a_batch_reads_as_each_prompt_alone(tiny, capsys):
    """Prompts of unequal length, drawn, past the longest sequence, with stops that end some sooner than others."""
    config, params, folder = tiny
    tokenizer, prompts, sampling = load_tokenizer("bytes"), ["the", "", "a longer start"], Sampling(max_new_tokens=40)
    alone = [texts.sample(config.model, params, tokenizer, sampling, prompt=prompt, seed=5) for prompt in prompts]
    flags = [word for prompt in prompts for word in ("--prompt", prompt)]
    sample.main([str(folder), *flags, "--tokens", "40", "--seed", "5"])
    assert capsys.readouterr().out == f"\n{sample.RULE}\n".join(alone) + "\n"
    stop = alone[0][5:7]
    rows = texts.texts(config.model, params, tokenizer, prompts, sampling, seed=5, stop=[stop])
    found = ["".join(row) for row in reversed(rows)][::-1]  # in any order
    assert [prompt + text for prompt, text in zip(prompts, found, strict=True)] == [
        prompt + whole[len(prompt) :].partition(stop)[0] for prompt, whole in zip(prompts, alone, strict=True)
    ]


@pytest.mark.parametrize(
    ("build", "seen"),
    [(mhc_ssm, "all are read"), (functools.partial(nanogpt, heads=2), "the first 4 are not seen")],
)
def test_a_prompt_that_is_too_long_is_not_cut_in_silence(build, seen, tiny, monkeypatch, capsys):
    config, _, folder = tiny
    model = build("baseline" if build is mhc_ssm else "plain", vocab_size=257, max_len=8, width=8, layers=1)
    params = mhc_jax.init(model, jax.random.key(0))
    monkeypatch.setattr(sample, "load_run", lambda _: (config.replace(model=model), params))
    sample.main([str(folder), "--prompt", "x" * 12, "--prompt", "short", "--tokens", "1"])
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert notes == [f"note: a prompt has 12 tokens, more than the 8 of the model; {seen}"]


def test_rows_end_apart_and_with_half_a_character(tiny, monkeypatch):
    config, params, _ = tiny
    tokenizer = load_tokenizer("bytes")
    half, whole = tokenizer.encode("a😀")[:-1], tokenizer.encode("ü")
    answer = [[*half, tokenizer.eos_id], [*whole, -1, -1, -1], [97] * 5]
    monkeypatch.setattr(texts, "stream", lambda *_, **options: zip(*answer, strict=True))
    first, second, third = texts.texts(config.model, params, tokenizer, ["", "", ""], SHORT)
    assert next(second) == "ü"
    assert ["".join(row) for row in (first, second, third)] == ["a\ufffd", "", "aaaaa"]


def test_samples_stops_and_prompts_one_after_another(tiny, monkeypatch, capsys):
    config, params, folder = tiny
    tokenizer = load_tokenizer("bytes")

    def text(prompt, seed):
        sampling = Sampling(max_new_tokens=50)  # max_len is 32
        return texts.sample(config.model, params, tokenizer, sampling, prompt=prompt, seed=seed)

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


@pytest.mark.slow
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
    sampling = Sampling(max_new_tokens=60, temperature=1e3)
    text = texts.sample(config.model, params, load_tokenizer("chars:abc"), sampling)
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
        ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"prompt": "x", "temperature": -1.0}, "temperature"),
        ({"prompt": "x", "top_p": 0.0}, "top_p"),
    ],
)
def test_impossible_requests_are_named(tiny, options, fault):
    config, params, _ = tiny
    sampling = Sampling(**{name: value for name, value in options.items() if name != "prompt"})
    with pytest.raises(ConfigError, match=fault):
        texts.sample(config.model, params, load_tokenizer("bytes"), sampling, prompt=options["prompt"])


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
    never_ending = mock.patch.object(texts, "stream", lambda *given, **_: _checked_stream(given[-1]))
    with never_ending, mock.patch.object(sample, "load_run", return_value=(config, params)):
        argv = [str(folder), f"--prompt={prompt}", f"--stop={stop}", f"--{name}={value}"]
        fuzz.command(sample.main, argv, folder)


def _checked_stream(sampling):
    sampling.validate()
    return iter([[65], [195], [169], [66]])


def test_prompt_of_no_tokens_is_named(tiny):
    config, params, _ = tiny
    with pytest.raises(ConfigError, match="makes no tokens"):
        texts.sample(config.model, params, Silent(), SHORT, prompt="x")


def test_ids_outside_the_vocabulary_are_named(tiny):
    config, params, _ = tiny
    with pytest.raises(ConfigError, match=r"tokens must lie in 0\.\.256"):
        texts.sample(config.model, params, load_tokenizer("gpt2"), SHORT, prompt="tokenisation")
