"""Which parts of a text are near to a query, by the vectors of their tokens."""

from collections.abc import Callable, Sequence

import numpy as np

# The vector of a row of tokens.
Embed = Callable[[Sequence[int]], Sequence[float]]


class Nearest:
    """Parts of a text with their vectors.

    Args:
        embed: of tokens to a vector; called once for each part.
        parts: tokens of each.
    """

    def __init__(self, embed: Embed, parts: Sequence[Sequence[int]]):
        self._embed = embed
        self._vectors = [self._unit(part) for part in parts]

    def scores(self, query: Sequence[int]) -> list[float]:
        """Cosine of the query and each part; 0 for a vector of zeros."""
        vector = self._unit(query)
        return [float(part @ vector) for part in self._vectors]

    def _unit(self, tokens: Sequence[int]) -> np.ndarray:
        vector = np.asarray(self._embed(tokens), float)
        return vector / (np.linalg.norm(vector) or 1)


def order(scores: Sequence[float]) -> list[int]:
    """Places of the scores, the highest first, of equal ones the earlier."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def chosen(scores: Sequence[float], sizes: Sequence[int], room: int) -> list[int]:
    """Places of the highest scores whose sizes fit into ``room`` together, in rising order."""
    found = []
    for index in order(scores):
        if sizes[index] <= room:
            found.append(index)
            room -= sizes[index]
    return sorted(found)
