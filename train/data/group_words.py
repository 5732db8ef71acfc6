"""Words over a finite group, whose running product a model follows: the task of state tracking."""

import dataclasses
import functools
import itertools
from typing import Literal

import numpy as np

from mhc_jax.registry import register
from train.data.generated import GeneratedConfig
from train.data.kind import IGNORE, Batch

Group = Literal["s3", "a5", "s5"]


@register("data", "group_words")
@dataclasses.dataclass(frozen=True)
class GroupWordsConfig(GeneratedConfig):
    """Actions ``a_1 .. a_T`` of a group of permutations; the target at place t is ``s_t = a_1 o a_2 o .. o a_t``.

    ``(s o a)(j) = s(a(j))``, so the first target is the first action. A token is the rank of a permutation in
    lexicographic order, the identity is 0; the TransformerScan code has three special tokens before them, so its id is
    ours plus 3. Words are drawn as they are needed, uniformly.

    Training may begin with short words: their length grows in stages, which leave out the targets of later places.
    Evaluation has words of ``seq_len`` actions throughout.

    Attributes:
        group: ``"s3"`` and ``"s5"``, all permutations of 3 and 5, or ``"a5"``, the even ones of 5: 6, 120 and 60
            elements.
        generators: the actions, ``"all"`` elements, or ``"swaps"``: the transpositions and the identity.
        stage_steps: training steps of a stage; 0 for words of ``seq_len`` actions from the start.
        first_len: length of words in the first stage.
        len_step: growth of the length from stage to stage, up to ``seq_len``.
    """

    group: Group = "s3"
    generators: Literal["all", "swaps"] = "all"
    stage_steps: int = 0
    first_len: int = 2
    len_step: int = 1

    def validate(self):
        super().validate()
        self.require_counts(0, "stage_steps")
        self.require_counts(1, "first_len", "len_step")
        swaps = self.generators == "swaps"
        self.require(not (swaps and self.group == "a5"), "group 'a5' holds no swaps, which are odd; take 's5', or all")
        fits = not self.stage_steps or self.first_len <= self.seq_len
        self.require(fits, f"first_len {self.first_len} is longer than seq_len {self.seq_len}")

    @property
    def label(self):
        return f"words of {self.group}" + (", swaps" if self.generators == "swaps" else "")

    @property
    def unit(self):
        return "group elements"

    def vocab_size(self):
        return len(elements(self.group))

    @property
    def chance(self) -> float:
        """Share of wrong answers of a guess."""
        return 1 - 1 / self.vocab_size()

    @property
    def last_stage(self) -> int:
        """The first training step, counted from 0, whose words have their full length."""
        stages = -(-(self.seq_len - self.first_len) // self.len_step)
        return max(stages, 0) * self.stage_steps

    def draw(self, random, rows):
        actions = swaps(self.group) if self.generators == "swaps" else np.arange(self.vocab_size())
        inputs_BT = random.choice(actions, (rows, self.seq_len))
        table = products(self.group)
        states = itertools.accumulate(inputs_BT.T, lambda state_B, action_B: table[state_B, action_B])
        return {"inputs": inputs_BT, "targets": np.stack([*states], axis=1)}

    def staged(self, drawn: Batch, step: int) -> Batch:
        if step >= self.last_stage:
            return drawn
        length = self.first_len + self.len_step * (step // self.stage_steps)
        return drawn | {"targets": np.where(np.arange(self.seq_len) < length, drawn["targets"], IGNORE)}


@functools.cache
def elements(group: Group) -> np.ndarray:
    """(G, K) the permutations of 0 .. K-1 in the group, in lexicographic order."""
    found = np.array([*itertools.permutations(range(int(group[1:])))])
    inversions = np.triu(found[:, :, None] > found[:, None, :], 1).sum((1, 2))
    return found[inversions % 2 == 0] if group.startswith("a") else found


@functools.cache
def products(group: Group) -> np.ndarray:
    """(G, G) the rank of ``s o a`` by those of s and a."""
    found = elements(group)
    degree = found.shape[1]
    digits = degree ** np.arange(degree)[::-1]
    return np.searchsorted(found @ digits, found[:, found] @ digits)


def swaps(group: Group) -> np.ndarray:
    """Ranks of the identity and of the transpositions."""
    found = elements(group)
    return np.flatnonzero((found != np.arange(found.shape[1])).sum(1) <= 2)
