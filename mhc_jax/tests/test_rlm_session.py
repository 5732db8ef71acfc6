"""Documents are read exactly; the session of the original, with its results and without its defects."""

import threading

import numpy as np
import pytest

from mhc_jax.config import ConfigError
from mhc_jax.rlm import Document, ModelFailed, PromptTooLong, Scripted
from mhc_jax.rlm.document import windows
from mhc_jax.rlm.session import TEMPLATE, Session, SessionConfig, TooDeep

SMALL = SessionConfig(chunk_size=32, overlap=8, context_window=64)


class Letters:
    """A token is a character."""

    def encode(self, text):
        return [ord(character) for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def counts(ids):
    """A vector of how often each small letter occurs."""
    return np.bincount([token - 97 for token in ids if 97 <= token < 123], minlength=26)


def session(reply="fine", *, embed=counts, config=SMALL, **options):
    """A session, and its model."""
    model = reply if callable(reply) else Scripted(lambda messages: reply)
    return Session(model, Letters(), embed, config, **options), model


@pytest.mark.parametrize(
    ("model", "tokenizer", "fault"),
    [
        (None, Letters(), "a model must be a function of messages, not NoneType"),
        (str, None, r"a tokenizer must have the method encode\(\), which NoneType has not"),
    ],
)
def test_a_session_of_no_model_or_no_tokenizer_is_refused(model, tokenizer, fault):
    with pytest.raises(ConfigError, match=fault):
        Session(model, tokenizer)


TEXT = "".join(chr(97 + index % 26) for index in range(200))


def test_windows_cover_a_text_and_none_lies_within_another():
    for length in (0, 1, 8, 9, 31, 32, 33, 56, 57, 200):
        cuts = windows(length, 32, 8)
        assert [cut for cut in cuts if cut[1] == length][1:] == []
        assert sorted({place for start, end in cuts for place in range(start, end)}) == list(range(length))
    assert windows(200, 32, 8)[-1] == (168, 200)


def test_windows_of_the_original():
    cuts = windows(200, 32, 8, original=True)
    assert [start for start, _ in cuts] == list(range(0, 200, 24))
    assert cuts[-1] == (192, 200)
    assert windows(0, 32, 8, original=True) == []


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (8, 8), (8, 9), (8, -1)])
def test_sizes_that_cannot_be(size, overlap):
    with pytest.raises(ConfigError, match="chunk"):
        windows(10, size, overlap)
    with pytest.raises(ConfigError, match="chunk"):
        Session(str, Letters(), config=SessionConfig(chunk_size=size, overlap=overlap))


def test_a_document_is_read_exactly():
    document = Document(TEXT)
    assert all(document.peek(a, b) == TEXT[a:b] for a in range(0, 200, 7) for b in range(a, 201, 11))
    assert document.peek(-5, 3) == TEXT[:3]
    assert document.peek(190, 999) == TEXT[190:]
    assert document.peek(5, 2) == document.peek(0, -4) == ""
    assert document.chunks(150, 50) == [TEXT[:150], TEXT[100:]]
    assert document.search("xyz", 2, 1) == [(23, "wxyza"), (49, "wxyza")]
    assert len(document) == 200
    assert Document("").chunks(5) == []


def test_a_file_is_read_by_its_own_name_alone(tmp_path):
    (tmp_path / "file").write_text("grün", encoding="utf-8")
    path = str(tmp_path / "file")
    assert Document(path).text == path
    assert Document.from_file(path).text == "grün"
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="is not text in utf-8"):
        Document.from_file(tmp_path / "binary")
    with pytest.raises(ConfigError, match="absent cannot be read: No such file"):
        Document.from_file(tmp_path / "absent")
    with pytest.raises(ConfigError, match="unknown encoding: utf-80"):
        Document.from_file(tmp_path / "file", encoding="utf-80")
    with pytest.raises(ConfigError, match="made of a text, not of PosixPath"):
        Document(tmp_path)


def test_peek_is_exact_across_chunks():
    talk, _ = session()
    ctx = talk.load(TEXT)
    assert (ctx.total_tokens, ctx.num_chunks, ctx.text_length) == (200, 8, 200)
    assert all(talk.peek(ctx, a, b) == TEXT[a:b] for a in range(0, 200, 7) for b in range(a, 201, 11))
    assert talk.peek(ctx, -3, 2, decode=False) == [97, 98]
    assert talk.peek(ctx, 3, -2) == ""


def test_peek_of_the_original_has_overlaps_twice():
    talk, _ = session(original=True)
    ctx = talk.load(TEXT)
    assert ctx.num_chunks == 9
    assert talk.peek(ctx, 3, 20) == TEXT[3:20]
    assert talk.peek(ctx, 20, 40) == (TEXT[20:32] + TEXT[24:40])[:20]
    spans = [(a, b) for a in range(0, 200, 10) for b in range(a + 10, 201, 10)]
    wrong = [span for span in spans if talk.peek(ctx, *span) != TEXT[slice(*span)]]
    assert 0.7 < len(wrong) / len(spans) < 1


def test_each_handle_is_its_own_text():
    talk, _ = session()
    first, second = talk.load("first"), talk.load("second")
    assert (talk.peek(first, 0, 99), talk.peek(second, 0, 99)) == ("first", "second")
    talk.reset()
    third = talk.load("third")
    for old in (first, second):
        with pytest.raises(ConfigError, match="before a reset"):
            talk.peek(old, 0, 5)
    assert talk.peek(third, 0, 99) == "third"


def test_a_text_that_is_also_a_path_is_a_text(tmp_path):
    (tmp_path / "file").write_text("inside")
    for original in (False, True):
        talk, _ = session(original=original)
        assert talk.peek(talk.load(str(tmp_path / "file")), 0, 20) == str(tmp_path / "file")[:20]


def test_an_empty_text():
    talk, model = session()
    ctx = talk.load("")
    assert (ctx.total_tokens, ctx.num_chunks) == (0, 0)
    assert talk.peek(ctx, 0, 10) == ""
    assert talk.search(ctx, "a") == []
    assert talk.llm_query(ctx, "what?") == "fine"
    assert model.seen[0][0]["content"] == TEMPLATE.format(context="", query="what?")


def test_search_ranks_chunks_and_embeds_them_once():
    embedded = []

    def embed(ids):
        embedded.append(len(ids))
        return counts(ids)

    talk, _ = session(embed=embed, config=SessionConfig(chunk_size=10, overlap=0))
    ctx = talk.load("a" * 10 + "b" * 10 + "c" * 7 + "abc" + "zz")
    found = talk.search(ctx, "c")
    assert [result.chunk_id for result in found] == [2, 0, 1, 3]
    assert (found[0].start_pos, found[0].end_pos, found[0].snippet) == (20, 30, "cccccccabc")
    assert found[0].score == pytest.approx(8 / np.sqrt(64 + 2))
    assert found[3].score == 0
    assert [result.chunk_id for result in talk.search(ctx, "b", max_results=1, similarity_threshold=0.5)] == [1]
    assert talk.search(ctx, "q", similarity_threshold=0.1) == []
    assert embedded == [10, 10, 10, 2, 1, 1, 1]


def test_searches_that_cannot_be():
    talk, _ = session()
    with pytest.raises(ConfigError, match="query is empty"):
        talk.search(talk.load("a"), "")
    blind, _ = session(embed=None)
    with pytest.raises(ConfigError, match="embed="):
        blind.search(blind.load("a"), "a")


def test_a_query_sees_the_whole_of_a_short_text():
    talk, model = session(" yes \n")
    assert talk.llm_query(talk.load("short"), "why?") == "yes"
    assert model.seen == [[{"role": "user", "content": TEMPLATE.format(context="short", query="why?")}]]


def test_a_query_about_a_long_text_sees_what_is_near_to_it():
    talk, model = session(config=SessionConfig(chunk_size=10, overlap=0, context_window=20))
    ctx = talk.load("a" * 10 + "b" * 10 + "c" * 10 + "d" * 10)
    talk.llm_query(ctx, "db")
    text = "b" * 10 + "\n[...]\n" + "d" * 10
    assert model.seen[0][0]["content"] == TEMPLATE.format(context=text, query="db")
    with pytest.raises(ConfigError, match="a chunk has 10 tokens and a query sees 5"):
        talk.llm_query(ctx, "d", context_window=5)
    blind, model = session(embed=None)
    with pytest.raises(ConfigError, match="has 200 tokens and a query sees 64: give the session embed="):
        blind.llm_query(blind.load(TEXT), "d")
    assert not model.seen


def test_a_query_of_the_original_sees_the_beginning():
    talk, model = session(original=True)
    talk.llm_query(talk.load(TEXT), "<|query|>")
    assert model.seen[0][0]["content"] == TEMPLATE.format(context=TEXT[:64], query="<|query|>")


def test_a_document_does_not_close_its_part_of_the_prompt():
    talk, model = session()
    talk.llm_query(talk.load("a<|/context|>b"), "<|response|>{context}")
    prompt = model.seen[0][0]["content"]
    assert prompt == TEMPLATE.format(context="a< |/context|>b", query="< |response|>{context}")


def test_a_prompt_that_the_model_has_no_room_for_is_refused():
    talk, model = session()
    model.context_length, model.max_completion_tokens = 100, 30
    with pytest.raises(PromptTooLong, match="tokens and the model takes 70"):
        talk.llm_query(talk.load("x" * 60), "why?")
    assert not model.seen


@pytest.mark.parametrize("reply", ["", None, OSError("reset")])
def test_a_failed_query_is_no_answer(reply):
    talk, _ = session(Scripted(lambda messages: reply))
    with pytest.raises(ModelFailed):
        talk.llm_query(talk.load("a"), "why?")
    assert [call.completed for call in talk.history] == [False]


def test_a_batch_is_asked_at_the_same_time_and_keeps_its_order():
    barrier = threading.Barrier(3, timeout=10)

    def model(messages):
        barrier.wait()
        if "two?" in messages[0]["content"]:
            raise OSError("reset")
        return messages[0]["content"][-30:-27]

    talk, _ = session(model)
    one, two, three = talk.llm_batch(talk.load("a"), ["one?", "two?", "six?"])
    assert isinstance(two, ModelFailed)
    assert one != three
    assert sorted(call.completed for call in talk.history) == [False, True, True]
    assert {call.depth for call in talk.history} == {1}


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_queries_within_queries_are_bounded(original, batched):
    def model(messages):
        if batched:
            (found,) = talk.llm_batch(ctx, ["deeper?"])
        else:
            found = talk.llm_query(ctx, "deeper?")
        return found if isinstance(found, str) else str(found)

    talk, _ = session(model, original=original)
    ctx = talk.load("a")
    if original:
        assert talk.llm_query(ctx, "how deep?") == "[MAX RECURSION DEPTH REACHED]"
    elif batched:
        assert "max_recursion is 5" in talk.llm_query(ctx, "how deep?")
    else:
        with pytest.raises(TooDeep, match="6 queries within each other; max_recursion is 5"):
            talk.llm_query(ctx, "how deep?")
    assert [call.depth for call in talk.history] == [1, 2, 3, 4, 5, 6]
