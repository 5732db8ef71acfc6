import jax
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from train import sample
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
