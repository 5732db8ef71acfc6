"""A question about a long context with a known answer, and how replies to it are scored."""

import contextlib
import dataclasses
import datetime
import difflib
import re
import string
from collections.abc import Callable, Sequence

# Share of the score that a count keeps for each by which it is wrong, as in OOLONG.
COUNT_BASE = 0.75
# What a comparison of two numbers may be called.
COMPARISONS = {"more common": ">", "less common": "<", "as common": "=", "same frequency": "="}
DATES = ("%Y-%m-%d", "%m/%d/%Y", "%B %d, %Y", "%b %d, %Y", "%d %B %Y", "%d %b %Y")


@dataclasses.dataclass(frozen=True)
class Task:
    """A question about a context.

    Attributes:
        kind: of :data:`mhc_jax.rlm.tasks.KINDS`, or the name of a data set.
        context: text to read.
        question: says in which form the answer is wanted.
        truth: the answer; several where a set, or any one of them, is asked for.
        scoring: of :data:`SCORINGS`.
        program: code that finds the answer in an environment, for the scripted model; empty where there is none.
    """

    kind: str
    context: str
    question: str
    truth: tuple[str, ...]
    scoring: str
    program: str = ""

    def score(self, answer: str | None) -> float:
        """Between 0 and 1; 0 for no answer."""
        return 0.0 if answer is None else SCORINGS[self.scoring](answer, self.truth)


def label(answer: str, truth: Sequence[str]) -> float:
    """1 if the answer is one of ``truth``, whatever stands around it on its line before a colon."""
    said = {_plain(answer), _plain(answer.rsplit(":", 1)[-1])}
    return float(any(_plain(one) in said for one in truth))


def comparison(answer: str, truth: Sequence[str]) -> float:
    """1 if the last of :data:`COMPARISONS` in the answer is that of the truth."""
    return float(_compared(answer) is not None and _compared(answer) == _compared(truth[0]))


def date(answer: str, truth: Sequence[str]) -> float:
    """1 if the answer, or what follows its last colon, is the date of the truth, which is in ISO's form."""
    said = answer.rsplit(":", 1)[-1].strip(string.punctuation + string.whitespace)
    for form in DATES:
        with contextlib.suppress(ValueError):
            return float(datetime.datetime.strptime(said, form).date().isoformat() == truth[0])
    return 0.0


def count(answer: str, truth: Sequence[str]) -> float:
    """``0.75 ** |error|`` of the last whole number of the answer."""
    found = re.findall(r"-?\d{1,18}", answer.replace(",", ""))
    return COUNT_BASE ** min(abs(int(found[-1]) - int(truth[0])), 1000) if found else 0.0


def f1(answer: str, truth: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the parts of the answer, which stand between commas or on lines."""
    return _harmonic({part for part in map(_plain, re.split(r"[,;\n]", answer)) if part}, set(map(_plain, truth)))


def pairs(answer: str, truth: Sequence[str]) -> float:
    """The same of pairs of numbers, in either order, as in ``(12, 34)``."""
    found = [re.findall(r"\((\d+)\s*,\s*(\d+)\)", text) for text in (answer, " ".join(truth))]
    said, right = ({tuple(sorted(pair)) for pair in one} for one in found)
    return _harmonic(said, right)


def words(answer: str, truth: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall of words, as in question answering over documents."""
    return max(_harmonic(_bag(answer), _bag(one)) for one in truth)


def text(answer: str, truth: Sequence[str]) -> float:
    """How far the answer is the wanted text, word for word: the ratio of :class:`difflib.SequenceMatcher`."""
    wanted = truth[0].split()
    said = answer.split()[: 4 * len(wanted)]
    return difflib.SequenceMatcher(None, said, wanted, autojunk=False).ratio()


SCORINGS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "label": label, "comparison": comparison, "date": date, "count": count, "f1": f1, "pairs": pairs, "words": words,
    "text": text,
}  # fmt: skip


def _compared(text: str) -> str | None:
    found = max((text.lower().rfind(phrase), phrase) for phrase in COMPARISONS)
    return COMPARISONS[found[1]] if found[0] >= 0 else None


def _plain(text: str) -> str:
    """In lower case, without quotes, brackets and punctuation around it."""
    return text.strip().strip(string.punctuation + string.whitespace).lower()


def _bag(text: str) -> set[tuple[str, int]]:
    """Words without punctuation and articles, each with its number among the same."""
    cleaned = "".join(" " if character in string.punctuation else character for character in text.lower())
    seen: dict[str, int] = {}
    bag = set()
    for word in cleaned.split():
        if word not in ("a", "an", "the"):
            seen[word] = seen.get(word, 0) + 1
            bag.add((word, seen[word]))
    return bag


def _harmonic(said: set, right: set) -> float:
    common = len(said & right)
    return 2 * common / (len(said) + len(right)) if common else float(not said and not right)
