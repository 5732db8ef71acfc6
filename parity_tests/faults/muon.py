"""Faults seeded in Muon and in the stable schedule."""

from collections.abc import Iterator

from parity_tests.mutations import Mutation, Replace


def mutations() -> Iterator[Mutation]:
    case = "muon, original scale"
    yield Mutation("Muon's inputs as outputs", "train.update.muon:shape_scale", _exchanged, "optimizer", case)
    yield Mutation("Muon without the decay", "train.update.optimizer:muon", _changed(muon_weight_decay=0.0), *_AT)
    yield Mutation("Muon for adapters", "train.update.muon:APART", lambda apart: apart - {"rank"}, "optimizer", _WSD)
    yield Mutation("a decay that begins late", "train.update.optimizer:schedule", _changed(decay_fraction=0.4), *_AT)


_WSD = "muon, wsd"
_AT = "optimizer", _WSD


def _exchanged(healthy):
    return lambda config, inputs, outputs: healthy(config, outputs, inputs)


def _changed(**changes) -> Replace:
    return lambda healthy: lambda config, *rest: healthy(config.replace(**changes), *rest)
