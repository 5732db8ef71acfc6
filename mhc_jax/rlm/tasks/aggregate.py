"""Aggregation over many records, in the manner of OOLONG.

A record is a line ``date | user | sentence``. What kind of thing a sentence is about is not written in it: it has to be
understood, and then counted, compared or joined over all records. Kinds are drawn, and sentences written from them.
"""

import datetime
import itertools
import random
from collections import Counter

from mhc_jax.rlm.tasks.task import Task

# Sentences of each kind; `{}` is filled from the words beside them.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "food": (
        ("What goes well with {} for dinner?", "My {} burnt in the oven again.", "I never tire of eating {}."),
        ("lentil soup", "fresh bread", "grilled fish", "pumpkin pie", "rice pudding", "roast potatoes"),
    ),
    "travel": (
        ("How long does the journey to {} take?", "We missed our flight to {}.", "Is a visa needed for {}?"),
        ("Lisbon", "Nairobi", "Kyoto", "Oslo", "Quito", "Marrakesh"),
    ),
    "health": (
        ("The doctor says my {} will heal by spring.", "What helps against a sore {}?", "Since Monday my {} hurts."),
        ("knee", "throat", "shoulder", "ankle", "wrist", "elbow"),
    ),
    "music": (
        ("She practises the {} every evening.", "Who tunes a {} around here?", "A duet for {} was played twice."),
        ("cello", "trumpet", "harp", "clarinet", "accordion", "oboe"),
    ),
    "weather": (
        ("They expect {} from tomorrow on.", "Will there be {} over the weekend?", "After the {} the sky cleared."),
        ("heavy rain", "dense fog", "hail", "a thunderstorm", "light snow", "strong wind"),
    ),
    "money": (
        ("How can I pay less for my {}?", "The bank has refused the {}.", "Her {} went up by a tenth."),
        ("mortgage", "loan", "insurance", "pension", "rent", "tax bill"),
    ),
}  # fmt: skip
OF_SENTENCE = {
    form.format(word): kind for kind, (forms, words) in KINDS.items() for form, word in itertools.product(forms, words)
}
FIRST_DAY, DAYS = datetime.date(2024, 1, 1), 366
LABEL = "Label each line with one of"

# Reads the records, has a model label them in at most 40 calls, and leaves (date, user, label) in rows.
READ = f"""
lines = [line for line in context.split("\\n") if line.count(" | ") == 2]
size = max(100, len(lines) // 40 + 1)
parts = [lines[at : at + size] for at in range(0, len(lines), size)]
ask = "{LABEL} {", ".join(KINDS)}. Reply with the labels alone, one on each line.\\n"
labels = []
for reply in llm_query_batched([ask + "\\n".join(part) for part in parts]):
    labels += reply.split("\\n")
rows = [(line.split(" | ")[0], line.split(" | ")[1], label) for line, label in zip(lines, labels)]
numbers = {{kind: 0 for kind in {[*KINDS]}}}
"""
COUNT = "for date, user, label in rows:\n    numbers[label] += {condition}\n"

Row = tuple[datetime.date, int, str]


def count(draw: random.Random, length: int) -> Task:
    """How many records are of a kind."""
    rows, context = _records(draw, length)
    kind = draw.choice([*KINDS])
    truth = sum(row[2] == kind for row in rows)
    program = f"{READ}{COUNT.format(condition='1')}FINAL(numbers[{kind!r}])"
    return _task("count", context, f"How many lines are about {kind}? Answer with the number.", truth, "count", program)


def most_common(draw: random.Random, length: int) -> Task:
    """Which kind is the most, or the least, common."""
    most = draw.random() < 0.5
    context, numbers = _untied(draw, length)
    truth = (max if most else min)(numbers, key=lambda kind: numbers[kind])
    word, pick = ("most", "max") if most else ("least", "min")
    program = (
        f"{READ}{COUNT.format(condition='1')}"
        f"FINAL([kind for kind in numbers if numbers[kind] == {pick}(numbers.values())][0])"
    )
    return _task("most_common", context, f"Which kind of line is the {word} common?", truth, "label", program)


def compare(draw: random.Random, length: int) -> Task:
    """Whether one kind is more or less common than another, or as common."""
    rows, context = _records(draw, length)
    first, second = draw.sample([*KINDS], 2)
    numbers = Counter(row[2] for row in rows)
    truth = _compared(numbers[first], numbers[second])
    question = (
        f"Are lines about {first} more common than, less common than, or as common as lines about {second}? Answer"
        " 'more common', 'less common' or 'as common'."
    )
    return _task(
        "compare", context, question, truth, "label", _comparing(f"numbers[{first!r}]", f"numbers[{second!r}]")
    )


def per_user(draw: random.Random, length: int) -> Task:
    """Which user has written the most records of a kind."""
    leaders: list[tuple[int, int]] = []
    while not leaders or leaders[0][1] == leaders[-1][1]:
        rows, context = _records(draw, length)
        kind = draw.choice([*KINDS])
        leaders = [*Counter(row[1] for row in rows if row[2] == kind).most_common(2), (0, 0)][:2]
    program = (
        f"{READ}users = {{}}\nfor date, user, label in rows:\n    if label == {kind!r}:\n"
        "        users[user] = users.get(user, 0) + 1\n"
        "FINAL([user for user in users if users[user] == max(users.values())][0])"
    )
    question = f"Which user has written the most lines about {kind}? Answer with the user's number."
    return _task("per_user", context, question, leaders[0][0], "label", program)


def by_date(draw: random.Random, length: int) -> Task:
    """Whether a kind is more common before a date than from then on."""
    rows, context = _records(draw, length)
    kind, day = draw.choice([*KINDS]), FIRST_DAY + datetime.timedelta(draw.randrange(DAYS // 4, 3 * DAYS // 4))
    before, after = (sum(row[2] == kind and (row[0] < day) == early for row in rows) for early in (True, False))
    question = (
        f"Are lines about {kind} more common before {day} than from then on, less common, or as common? Answer 'more"
        " common', 'less common' or 'as common'."
    )
    tests = (f"label == {kind!r} and (date < '{day}') == {early}" for early in (True, False))
    first, second = (f"len([1 for date, user, label in rows if {test}])" for test in tests)
    return _task("by_date", context, question, _compared(before, after), "comparison", _comparing(first, second))


def pairs(draw: random.Random, length: int) -> Task:
    """All pairs of users who have both written at least so many records of a kind (as OOLONG-Pairs)."""
    written: Counter[int] = Counter()
    while len(written) < 2:
        rows, context = _records(draw, length)
        kind = draw.choice([*KINDS])
        written = Counter(row[1] for row in rows if row[2] == kind)
    # What at most eight users have written, if not only one.
    least = next(n for n in itertools.count(1) if sum(value >= n for value in written.values()) <= 8)
    least = min(least, written.most_common(2)[1][1])
    users = sorted(user for user, number in written.items() if number >= least)
    truth = [f"({first}, {second})" for first, second in itertools.combinations(users, 2)]
    program = (
        f"{READ}users = {{}}\nfor date, user, label in rows:\n    if label == {kind!r}:\n"
        "        users[user] = users.get(user, 0) + 1\n"
        f"kept = sorted([int(user) for user in users if users[user] >= {least}])\n"
        "FINAL(', '.join([f'({a}, {b})' for a in kept for b in kept if a < b]))"
    )
    question = (
        f"Which pairs of users have both written at least {least} lines about {kind}? Answer with all pairs of numbers,"
        " as in (12, 34), (12, 56)."
    )
    return Task("pairs", f"{_head()}\n{context}", question, tuple(truth), "pairs", program)


def labels(prompt: str) -> str:
    """The right reply to a prompt of :data:`READ`."""
    lines = [line.rsplit(" | ", 1) for line in prompt.splitlines()]
    return "\n".join(OF_SENTENCE.get(line[1], "unknown") for line in lines if len(line) == 2)


def _records(draw: random.Random, length: int) -> tuple[list[Row], str]:
    """Records of about ``length`` characters, and their text; kinds and users are of uneven frequency."""
    kinds = [*KINDS]
    draw.shuffle(kinds)
    weights = [draw.uniform(0.5, 2) for _ in kinds]
    users = draw.sample(range(10000, 100000), max(4, min(60, length // 1500)))
    rows, lines, size = [], [], 0
    while size < length or len(rows) < 2 * len(kinds):
        day = FIRST_DAY + datetime.timedelta(draw.randrange(DAYS))
        kind, user = draw.choices(kinds, weights)[0], users[int(len(users) * draw.random() ** 1.5)]
        forms, words = KINDS[kind]
        lines.append(f"{day} | {user} | {draw.choice(forms).format(draw.choice(words))}")
        rows.append((day, user, kind))
        size += len(lines[-1]) + 1
    return rows, "\n".join(lines)


def _untied(draw: random.Random, length: int) -> tuple[str, dict[str, int]]:
    """Records in which one kind is the most and one the least common."""
    while True:
        rows, context = _records(draw, length)
        numbers = {kind: sum(row[2] == kind for row in rows) for kind in KINDS}
        ordered = sorted(numbers.values())
        if ordered[0] < ordered[1] and ordered[-1] > ordered[-2]:
            return context, numbers


def _compared(first: int, second: int) -> str:
    return "as common" if first == second else "more common" if first > second else "less common"


def _comparing(first: str, second: str) -> str:
    return (
        f"{READ}{COUNT.format(condition='1')}first, second = {first}, {second}\n"
        "FINAL('as common' if first == second else 'more common' if first > second else 'less common')"
    )


def _head() -> str:
    return (
        "Each line below is a date, the number of a user, and what the user wrote. Every line is about one of these"
        f" kinds of things: {', '.join(KINDS)}."
    )


def _task(kind: str, context: str, question: str, truth: object, scoring: str, program: str) -> Task:
    return Task(kind, f"{_head()}\n{context}", question, (str(truth),), scoring, program)
