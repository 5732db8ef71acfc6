"""Text without meaning to hide things in: sentences of drawn words."""

import random

SUBJECTS = (
    "the baker", "a neighbour", "the old ferry", "my cousin", "the orchestra", "a grey heron", "the night train",
    "the librarian", "a small committee", "the gardener", "an unknown painter", "the lighthouse keeper", "our teacher",
    "a travelling circus", "the village council", "the clockmaker",
)  # fmt: skip
VERBS = (
    "waited for", "described", "repaired", "forgot about", "followed", "admired", "complained about", "painted",
    "walked past", "wrote to", "remembered", "searched for", "carried", "discussed", "measured", "returned to",
)  # fmt: skip
OBJECTS = (
    "the harbour", "a wooden bridge", "the market square", "an empty theatre", "the first snow", "a box of letters",
    "the river bank", "a broken radio", "the summer house", "a quiet street", "the apple trees", "an early train",
    "the museum steps", "a paper lantern", "the mountain road", "a bowl of soup",
)  # fmt: skip
ENDS = (
    "before sunrise", "in late autumn", "without a word", "for the second time", "on the way home", "after the storm",
    "as the bells rang", "with some hesitation", "in spite of the rain", "until evening", "when nobody looked",
    "on a Sunday",
)  # fmt: skip
NOUNS = (
    "anchor", "basket", "candle", "dolphin", "engine", "falcon", "garden", "hammer", "island", "jacket", "kettle",
    "ladder", "mirror", "needle", "orange", "pencil", "quarry", "ribbon", "saddle", "temple", "umbrella", "violin",
    "window", "yacht",
)  # fmt: skip


def sentence(draw: random.Random) -> str:
    """A sentence of about 60 characters."""
    words = f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)} {draw.choice(ENDS)}."
    return words[0].upper() + words[1:]


def sentences(draw: random.Random, length: int) -> list[str]:
    """Sentences of about ``length`` characters together, at least one."""
    found, size = [], 0
    while size < length or not found:
        found.append(sentence(draw))
        size += len(found[-1]) + 1
    return found


def scattered(draw: random.Random, filler: list[str], parts: list[str]) -> str:
    """The sentences with ``parts`` at drawn places among them, in their order, as one text of paragraphs."""
    places = sorted(draw.randrange(len(filler) + 1) for _ in parts)
    for place, part in reversed([*zip(places, parts, strict=True)]):
        filler.insert(place, part)
    return "\n".join(" ".join(filler[at : at + 8]) for at in range(0, len(filler), 8))
