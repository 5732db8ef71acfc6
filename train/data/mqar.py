"""Multi-query associative recall (Arora et al., arXiv 2312.04927), as TransformerScan draws it."""

import dataclasses

import numpy as np

from mhc_jax.registry import register
from train.data.generated import GeneratedConfig
from train.data.kind import IGNORE


@register("data", "mqar")
@dataclasses.dataclass(frozen=True)
class MQARConfig(GeneratedConfig):
    """Pairs of a key and a value, then each key once more: the target there, and nowhere else, is its value.

    The keys are distinct and from the lower half of the vocabulary without token 0, the values from the upper half. All
    other places hold uniform tokens, among which a key or a value may occur by chance. What follows the pairs is cut
    into slots of two tokens; a query stands at the first token of slot j with odds of ``j^(power - 1)``.

    Attributes:
        tokens: size of the vocabulary.
        pairs: pairs of key and value in a row.
        power: 1 spreads queries evenly, and small values draw them close to the pairs.
        gap: slots between pairs and queries that hold no query; the first after them counts as j = 1.
    """

    tokens: int = 8192
    pairs: int = 8
    power: float = 0.01
    gap: int = 0

    def validate(self):
        super().validate()
        self.require_counts(1, "tokens", "pairs")
        self.require_counts(0, "gap")
        self.require(self.power > 0, f"power must be positive, got {self.power}")
        n, m = self.seq_len, self.pairs
        self.require(n % 2 == 0, f"seq_len must be even, for slots of two tokens; got {n}")
        self.require(self.tokens > n, f"tokens {self.tokens} must be more than seq_len {n}")
        self.require(4 * m <= n, f"pairs {m} need a seq_len of {4 * m} at least, for pairs and queries; got {n}")
        self.require(self._slots >= m, f"gap {self.gap} leaves {self._slots} slots to {m} queries in seq_len {n}")

    @property
    def _slots(self) -> int:
        return (self.seq_len - 2 * self.pairs) // 2 - self.gap

    @property
    def label(self):
        return f"recall of {self.pairs} pairs" + (f", {self.gap} slots apart" if self.gap else "")

    def vocab_size(self):
        return self.tokens

    def draw(self, random, rows):
        m, half, shape = self.pairs, self.tokens // 2, (rows, self.seq_len)
        keys, values = _distinct(random, rows, m, 1, half), _distinct(random, rows, m, half, self.tokens)
        inputs, targets = np.zeros(shape, int), np.full(shape, IGNORE)
        inputs[:, 0 : 2 * m : 2], inputs[:, 1 : 2 * m : 2] = keys, values
        # The m largest of log odds with Gumbel noise: a draw without replacement.
        noisy = (self.power - 1) * np.log(np.arange(self._slots) + 1) + random.gumbel(size=(rows, self._slots))
        places = 2 * (m + self.gap + np.argsort(-noisy, axis=1)[:, :m])
        np.put_along_axis(inputs, places, keys, axis=1)
        np.put_along_axis(targets, places, values, axis=1)
        return {"inputs": np.where(inputs == 0, random.integers(self.tokens, size=shape), inputs), "targets": targets}


def _distinct(random: np.random.Generator, rows: int, count: int, first: int, end: int) -> np.ndarray:
    """(rows, count) of first .. end-1, no number twice in a row."""
    return random.permuted(np.tile(np.arange(first, end), (rows, 1)), axis=1)[:, :count]
