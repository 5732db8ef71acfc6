import jax
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from train import sample
from train.config import RunConfig
from train.data import load_tokenizer
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
    texts = [sample.sample(config, params, tokenizer, prompt="a", tokens=12, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("a")


def test_end_of_text_ends_the_sample(tiny, monkeypatch):
    config, params, _ = tiny
    tokenizer = load_tokenizer("bytes")
    answer = jax.numpy.asarray([[*tokenizer.encode("ab"), *tokenizer.encode("cd"), tokenizer.eos_id, 65]])
    monkeypatch.setattr(sample, "generate", lambda *args, **options: answer)
    assert sample.sample(config, params, tokenizer, prompt="ab") == "abcd"


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
    text = sample.sample(config, params, load_tokenizer("chars:abc"), tokens=60, temperature=1e3)
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
        ({"prompt": "x" * 40}, "max_len 32"),
        ({"prompt": "x", "tokens": 0}, "at least 1"),
        ({"prompt": "x", "temperature": -1.0}, "temperature"),
        ({"prompt": "x", "top_p": 0.0}, "top_p"),
    ],
)
def test_impossible_requests_are_named(tiny, options, fault):
    config, params, _ = tiny
    with pytest.raises(ConfigError, match=fault):
        sample.sample(config, params, load_tokenizer("bytes"), **options)


def test_prompt_of_no_tokens_is_named(tiny):
    config, params, _ = tiny
    with pytest.raises(ConfigError, match="makes no tokens"):
        sample.sample(config, params, Silent(), prompt="x")


def test_ids_outside_the_vocabulary_are_named(tiny):
    config, params, _ = tiny
    with pytest.raises(ConfigError, match=r"outside 0\.\.256"):
        sample.sample(config, params, load_tokenizer("gpt2"), prompt="tokenisation", tokens=4)
