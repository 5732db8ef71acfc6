"""State tracking and recall: the loss of a classifier on prefixes, and steps on words."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from parity_tests.cases.ops import B, D, draw, op
from parity_tests.cases.training import trajectory
from parity_tests.compare import Case
from parity_tests.systems import SYSTEMS
from train.config import OptimConfig, TrainConfig
from train.data.group_words import GroupWordsConfig

VOCAB, LENGTH = 6, 12


def cases() -> Iterator[Case]:
    targets = np.random.default_rng(11).integers(0, VOCAB, (B, LENGTH))
    targets[0, 8:] = -100  # words of an early stage
    for what, chunk, length in (("of chunks of 1", 1, LENGTH), ("of chunks of 3", 3, LENGTH), ("of one chunk", 3, 3)):
        inputs = draw(prefixes_BNCD=(B, length // chunk, chunk, D), head_VCD=(VOCAB, chunk, D))
        inputs |= {"targets_BT": targets[:, :length]}
        yield op("loss.prefix_cross_entropy", what, inputs, covers=frozenset({"objective:prefixes"}))
    system = SYSTEMS["baseline, ln, associative"]
    words = trajectory("words of a group", system, OptimConfig(lr=1e-2), TrainConfig(), GroupWordsConfig())
    # Batches of both kinds are tokens and targets alone.
    yield dataclasses.replace(words, covers=words.covers | {"data:mqar"})
