"""Text as it comes: whole characters, and nothing of what ends it."""

import pytest

from train.data import load_tokenizer
from train.data.continuation import decoded, until

TEXT = "naïve 😀 日本語, done"


@pytest.mark.parametrize("name", ["bytes", "gpt2", "chars:" + "".join(sorted(set(TEXT)))])
def test_characters_come_whole_and_as_soon_as_they_are(name):
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode(TEXT)
    pieces = list(decoded(tokenizer, ids))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 7
    used = []

    def watched():
        for token in ids:
            used.append(token)
            yield token

    assert next(decoded(tokenizer, watched())) == tokenizer.decode(ids[:1])
    assert len(used) == 1


def test_half_a_character_at_the_end_is_not_lost():
    tokenizer = load_tokenizer("bytes")
    assert list(decoded(tokenizer, tokenizer.encode("a😀")[:-1])) == ["a", "\ufffd"]


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        (["ab", "cd"], [], "abcd"),
        (["ab", "cd", "ef"], ["d"], "abc"),
        (["ab", "cd", "ef"], ["bcde"], "a"),
        (["ab", "cd", "ef"], ["bcx"], "abcdef"),
        (["ab", "cd", "ef"], ["ef", "c"], "ab"),
        (["abcdef"], ["ef", "c", "d"], "ab"),
        (["a", "a", "a", "b"], ["aab"], "a"),
        (["xx", "\n", "\n", "y"], ["\n\n"], "xx"),
    ],
)
def test_the_text_ends_before_what_stops_it(pieces, stops, text):
    assert "".join(until(pieces, stops)) == text


def test_what_may_begin_a_stop_is_held_back():
    given = until(iter(["abEN", "x", "EN", "D"]), ["END"])
    assert [next(given), next(given)] == ["ab", "ENx"]
    assert list(given) == ["", ""]
