"""Models of other makes behind one signature; what each reports is what a run books."""

import types

import jax
import pytest
import tokenizers
import torch
import transformers

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models import gpt2
from mhc_jax.rlm import RLM, Limits, PromptTooLong, adapters
from mhc_jax.rlm.models import Scripted, fitted


class Bytes:
    """A tokenizer."""

    eos_id, vocab_size = 256, 257

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


@pytest.fixture(scope="module")
def tiny():
    config = gpt2(vocab_size=257, max_len=192, width=12, layers=1)
    return config, mhc_jax.init(config, jax.random.key(0))


def user(text):
    return [{"role": "user", "content": text}]


@pytest.mark.slow
def test_a_model_of_this_project_alone_and_in_a_batch(tiny):
    model = adapters.from_generate(*tiny, Bytes(), max_new_tokens=6, temperature=1.0, key=jax.random.key(3))
    prompts = [user("a"), user("a longer prompt"), user("x" * 190)]
    one, two, none = model.batch(prompts)
    assert isinstance(none, PromptTooLong)
    assert (one, two) == (model(prompts[0]), model(prompts[1]))
    assert one != two
    assert one.prompt_tokens == len("User: a\n\nAssistant:")
    assert 0 < one.completion_tokens <= 6
    with pytest.raises(PromptTooLong, match=r"tokens, and LMConfig takes 1 to 186"):
        model(prompts[2])


def test_the_text_of_a_reply_is_what_generate_gives_less_its_end(tiny):
    config, params = tiny
    prompt = Bytes().encode(adapters.chat(user("a")))
    ids = mhc_jax.generate(config, params, jax.numpy.asarray([prompt]), max_new_tokens=6, temperature=0.0)[0]
    new = [int(token) for token in ids[len(prompt) :]]
    model = adapters.from_generate(config, params, Bytes(), max_new_tokens=6, stop=())
    before = new[: new.index(256)] if 256 in new else new
    assert model(user("a")).text == Bytes().decode(before).strip()
    stops = Bytes()
    stops.eos_id = new[2]
    ended = adapters.from_generate(config, params, stops, max_new_tokens=6, stop=())(user("a"))
    assert ended.text == Bytes().decode(new[: new.index(new[2])]).strip()
    assert ended.completion_tokens == new.index(new[2]) + 1


def test_a_reply_ends_before_the_next_speaker(tiny):
    class Talks(Bytes):
        def decode(self, ids):
            return " yes\nUser: and"

    assert adapters.from_generate(*tiny, Talks(), max_new_tokens=2)(user("a")).text == "yes"


def test_options_that_cannot_be(tiny):
    with pytest.raises(ConfigError, match="leaves no room"):
        adapters.from_generate(*tiny, Bytes(), max_new_tokens=192)
    with pytest.raises(ConfigError, match="top_q"):
        adapters.from_generate(*tiny, Bytes(), max_new_tokens=9, top_q=1)


def test_a_trained_model_in_the_loop_fails_in_words(tiny):
    model = adapters.from_generate(*tiny, Bytes(), max_new_tokens=4)
    with pytest.raises(PromptTooLong, match="takes 188"):
        RLM(model).completion("text", "What?")
    result = RLM(model, limits=Limits(max_errors=1), system_prompt="Code.").completion("t", "?")
    assert result.status == "errors"
    assert not result.usage.estimated


def test_a_conversation_is_fitted_by_the_count_of_its_model(tiny):
    model = adapters.from_generate(*tiny, Bytes(), max_new_tokens=4)
    turns = [{"role": role, "content": role[0] * 20} for role in ["user", *["assistant", "user"] * 3]]
    sent, left_out = fitted(model, turns, 10_000)
    assert left_out == 2
    assert model.count_messages(sent) <= 188 < model.count_messages(turns)
    assert sent[0]["content"].startswith("u" * 20 + "\n\n[2 earlier turns")


def test_what_was_told_last_stays_when_no_turn_fits():
    turns = [{"role": role, "content": role[0] * 50} for role in ("system", "user", "assistant", "user")]
    turns[2]["content"] = "long" * 100
    sent, left_out = fitted(Scripted([]), turns, 300)
    assert left_out == 1
    assert [message["role"] for message in sent] == ["system", "user"]
    line = "[1 earlier turns are left out: the conversation no longer fits.]"
    assert sent[1]["content"] == "\n\n".join(["u" * 50, line, "u" * 50])
    with pytest.raises(PromptTooLong, match="max_prompt_chars is 200"):
        fitted(Scripted([]), turns, 200)


@pytest.fixture(scope="module")
def pipe():
    words = {word: index for index, word in enumerate(["<end>", "User", "Assistant", ":", "hello", "there"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=6, n_positions=32, n_embd=8, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0
    )
    return transformers.pipeline("text-generation", model=transformers.GPT2LMHeadModel(config), tokenizer=tokenizer)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }} {% endfor %}"])
def test_a_pipeline_of_transformers(pipe, template):
    pipe.tokenizer.chat_template = template
    model = adapters.from_pipeline(pipe, max_new_tokens=3, do_sample=False)
    reply = model(user("hello there"))
    assert isinstance(reply.text, str)
    assert reply.prompt_tokens == (2 if template else 6)
    assert model.context_length == 32
    assert model.max_completion_tokens == 3


def client(answer):
    """Of OpenAI's kind; it notes its calls."""
    seen = []

    def create(**options):
        seen.append(options)
        return answer

    completions = types.SimpleNamespace(create=create)
    return types.SimpleNamespace(chat=types.SimpleNamespace(completions=completions), seen=seen)


@pytest.mark.parametrize("usage", [None, types.SimpleNamespace(prompt_tokens=7, completion_tokens=3, cost=0.25)])
def test_a_client_of_openais_kind(usage):
    message = types.SimpleNamespace(content="FINAL(yes)")
    api = client(types.SimpleNamespace(choices=[types.SimpleNamespace(message=message)], usage=usage))
    result = RLM(adapters.from_openai(api, "big", temperature=0, max_tokens=50)).completion("text", "What?")
    assert result.answer == "yes"
    assert api.seen[0]["model"] == "big"
    assert (api.seen[0]["temperature"], api.seen[0]["max_tokens"]) == (0, 50)
    assert result.usage.estimated == (usage is None)
    assert result.usage.models == {"big": 1}
    if usage:
        assert (result.usage.tokens, result.usage.cost) == (10, 0.25)


def test_a_script_that_has_ended_says_so():
    model = Scripted(["one"])
    assert model(user("a")) == "one"
    with pytest.raises(IndexError, match="the script has ended"):
        model(user("b"))
    assert model.seen == [user("a"), user("b")]
