"""Needles in a haystack: facts hidden in prose, and the n-th of many passages that look alike."""

import random

from mhc_jax.rlm.tasks import prose
from mhc_jax.rlm.tasks.task import Task

# Values of the multi-needle, and facts of the same form about other things.
VALUES, DISTRACTORS = 6, 12


def needle(draw: random.Random, length: int) -> Task:
    """One number for one key."""
    (key,) = draw.sample(prose.NOUNS, 1)
    value = draw.randrange(10**6, 10**7)
    context = prose.scattered(draw, prose.sentences(draw, length), [_fact(key, value)])
    question = f"What is the magic number of the {key}? Answer with the number alone."
    program = f"import re\nFINAL(re.search(r'magic number of the {key} is (\\d+)', context).group(1))"
    return Task("needle", context, question, (str(value),), "label", program)


def needles(draw: random.Random, length: int) -> Task:
    """Several numbers for one key, among those of other keys."""
    key, *others = draw.sample(prose.NOUNS, 1 + DISTRACTORS)
    values = [draw.randrange(10**6, 10**7) for _ in range(VALUES + DISTRACTORS)]
    facts = [_fact(key, value) for value in values[:VALUES]]
    facts += [_fact(other, value) for other, value in zip(others, values[VALUES:], strict=True)]
    draw.shuffle(facts)
    context = prose.scattered(draw, prose.sentences(draw, length), facts)
    question = f"What are all the magic numbers of the {key}? Answer with the numbers alone, separated by commas."
    program = f"import re\nFINAL(', '.join(re.findall(r'magic number of the {key} is (\\d+)', context)))"
    return Task("needles", context, question, tuple(map(str, values[:VALUES])), "f1", program)


def occurrence(draw: random.Random, length: int) -> Task:
    """The n-th of the passages about one thing, in a conversation where many are asked for (as MRCR)."""
    keys = draw.sample(prose.NOUNS, 4)
    turns, size = [], 0
    while size < length or len(turns) < 8:
        key = keys[len(turns) % 4] if len(turns) < 8 else draw.choice(keys)
        body = " ".join(prose.sentence(draw) for _ in range(draw.randrange(2, 5)))
        turns.append((key, f"{body} So much for the {key}."))
        size += len(_turn(*turns[-1])) + 2
    draw.shuffle(turns)
    key = draw.choice(keys)
    about = [body for other, body in turns if other == key]
    number = draw.randrange(1, len(about) + 1)
    context = "\n\n".join(_turn(*turn) for turn in turns)
    question = (
        f"Repeat passage number {number} about the {key}, counted from the beginning (the first is number 1), word for"
        " word and nothing else."
    )
    program = (
        f"parts = context.split('User: Write a passage about the {key}.\\nAssistant: ')\n"
        f"FINAL(parts[{number}].split('\\n\\n')[0])"
    )
    return Task("occurrence", context, question, (about[number - 1],), "text", program)


def _turn(key: str, body: str) -> str:
    return f"User: Write a passage about the {key}.\nAssistant: {body}"


def _fact(key: str, value: int) -> str:
    return f"The magic number of the {key} is {value}."
