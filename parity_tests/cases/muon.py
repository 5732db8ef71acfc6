"""Muon beside AdamW, update by update, under a schedule that is stable, then decays."""

from collections.abc import Iterator

from parity_tests.cases.training import optimizer
from parity_tests.compare import Case
from parity_tests.systems import SYSTEMS
from train.config import OptimConfig

MUON = OptimConfig(name="muon", schedule="wsd", decay_fraction=0.6, warmup_steps=1)


def cases() -> Iterator[Case]:
    yield optimizer("muon, wsd", SYSTEMS["adapters 4, rms"], MUON)
    original = MUON.replace(muon_scale="original", muon_lr=0.02, muon_weight_decay=0.3, decay_shape="linear")
    yield optimizer("muon, original scale", SYSTEMS["gpt"], original)
