"""Questions about passages of text whose answers are known by construction: peek, search, qa.

The kinds of RLM-mHC. Each is drawn from a seeded generator, so that the same seed and passages give the same records.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

KINDS = ("peek", "search", "qa")
# Of an invented name or code. No word of a text is made of them by chance: see :func:`invented`.
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
FACTS = ("access code", "serial number", "locker number", "extension", "invoice number", "room number")
# Words of a phrase that is looked for.
PHRASE = 3

Record = dict[str, str]


def passages(documents: Iterable[str], size: int) -> list[str]:
    """Parts of consecutive lines, each of about ``size`` characters and of two lines at least; shorter rests are left
    out."""
    found = []
    for document in documents:
        lines: list[str] = []
        for line in document.splitlines():
            if line.strip():
                lines.append(line.rstrip())
            if sum(map(len, lines)) >= size and len(lines) > 1:
                found.append("\n".join(lines))
                lines = []
    return found


def records(texts: Sequence[str], count: int, random: np.random.Generator) -> Iterator[Record]:
    """``count`` records about the passages: ``context``, ``instruction``, ``response`` and ``task_type``, in turns."""
    makers = {"peek": _peek, "search": _search, "qa": _qa}
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        text = texts[int(random.integers(len(texts)))]
        context, instruction, response = makers[kind](text, random)
        yield {"context": context, "instruction": instruction, "response": response, "task_type": kind}


def _peek(text: str, random: np.random.Generator) -> tuple[str, str, str]:
    """What stands on lines, or at characters, a to b."""
    if random.integers(2):
        lines = text.split("\n")
        first = int(random.integers(len(lines)))
        last = min(first + int(random.integers(3)), len(lines) - 1)
        return (
            text,
            f"Print lines {first + 1} to {last + 1} of the context, counted from 1.",
            "\n".join(lines[first : last + 1]),
        )
    while True:
        start = int(random.integers(len(text) - 1))
        stop = min(start + int(random.integers(8, 41)), len(text))
        if text[start:stop].strip():
            return text, f"Print text[{start}:{stop}], where text is the context.", text[start:stop]


def _search(text: str, random: np.random.Generator) -> tuple[str, str, str]:
    """On which lines a phrase of the text stands."""
    lines = text.split("\n")
    words = lines[int(random.integers(len(lines)))].split(" ")
    start = int(random.integers(max(len(words) - PHRASE, 0) + 1))
    phrase = " ".join(words[start : start + PHRASE]).strip() or text.split()[0]
    found = [str(number) for number, line in enumerate(lines, start=1) if phrase in line]
    return text, f'On which lines, counted from 1, does "{phrase}" occur?', ", ".join(found)


def _qa(text: str, random: np.random.Generator) -> tuple[str, str, str]:
    """A fact about a person that was put into the text."""
    name, what = invented(text, random), FACTS[int(random.integers(len(FACTS)))]
    value = str(random.integers(10_000, 100_000))
    lines = text.split("\n")
    lines.insert(int(random.integers(len(lines) + 1)), f"The {what} of {name} is {value}.")
    return "\n".join(lines), f"What is the {what} of {name}?", value


def invented(text: str, random: np.random.Generator) -> str:
    """A name that the text does not hold."""
    while True:
        letters = [str(random.choice(list(letters))) for letters in (CONSONANTS, VOWELS) * 3]
        if (name := "".join(letters).capitalize()) not in text:
            return name
