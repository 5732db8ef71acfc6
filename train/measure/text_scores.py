"""Scores of answers against references, as pure functions of texts."""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def bits_per_byte(nats: float, text: str) -> float:
    """Bits per UTF-8 byte of a text whose negative log-likelihood is ``nats``."""
    return nats / math.log(2) / len(text.encode())


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and double blanks, as in SQuAD."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """1 if the two are the same text once :func:`normalised`, else 0."""
    return float(normalised(prediction) == normalised(reference))


def f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words of a :func:`normalised` prediction, as in SQuAD."""
    words, wanted = normalised(prediction).split(), normalised(reference).split()
    if not words or not wanted:
        return float(words == wanted)
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted))


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus with one reference each, from 0 to 100: no smoothing, words split at blanks.

    The geometric mean of the precisions of 1- to 4-grams, clipped to their number in the reference, times the brevity
    penalty ``exp(1 - r / c)`` where the predictions have fewer words than the references, c < r.
    """
    hits, totals, c, r = [0] * ORDERS, [0] * ORDERS, 0, 0
    for prediction, reference in zip(predictions, references, strict=True):
        words, wanted = prediction.split(), reference.split()
        c, r = c + len(words), r + len(wanted)
        for n in range(1, ORDERS + 1):
            found = _grams(words, n)
            hits[n - 1] += sum((found & _grams(wanted, n)).values())
            totals[n - 1] += sum(found.values())
    if not all(hits):
        return 0.0
    precision = math.exp(sum(map(math.log, (hit / total for hit, total in zip(hits, totals)))) / ORDERS)
    return 100 * precision * min(1.0, math.exp(1 - r / c))


def _grams(words: Sequence[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
