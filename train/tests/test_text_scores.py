import math

import pytest

from train.measure.text_scores import bits_per_byte, bleu, exact_match, f1

PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat today"),
    ("there is a dog in the garden", "a dog is in the garden there"),
    ("the the the the the", "the quick brown fox jumps over it"),
]


def test_bits_per_byte_counts_bytes_of_utf_8():
    assert bits_per_byte(math.log(2) * 12, "naïve") == pytest.approx(2)


def test_answers_match_whatever_their_case_articles_and_punctuation():
    assert exact_match("The  answer: 42.", "answer 42") == 1
    assert exact_match("answer 43", "answer 42") == 0
    assert exact_match("theory", "ory") == 0


def test_f1_counts_shared_words_as_often_as_both_have_them():
    assert f1("a cat and a cat", "cat cat dog") == pytest.approx(2 * 2 / (3 + 3))
    assert f1("nothing", "shared") == 0
    assert f1("", "the") == 1
    assert f1("", "word") == 0


def test_bleu_by_hand():
    """Precisions 1, 1, 1, 1 with 6 of 7 words; a text of no common 4-gram has none."""
    assert bleu(*zip(PAIRS[0])) == pytest.approx(100 * math.exp(1 - 7 / 6))
    assert bleu(["the cat sat on the mat today it"], ["the cat sat on the mat today"]) == pytest.approx(
        100 * math.exp(sum(math.log((7 - n) / (8 - n)) for n in range(4)) / 4)
    )
    assert bleu(*zip(PAIRS[2])) == 0
    assert bleu([""], ["word"]) == 0


def test_bleu_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions, references = map(list, zip(*PAIRS))
    found = sacrebleu.corpus_bleu(predictions, [references], smooth_method="none", tokenize="none", force=True)
    assert bleu(predictions, references) == pytest.approx(found.score)
