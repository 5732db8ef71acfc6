"""Faults seeded in Muon."""

from collections.abc import Iterator

from parity_tests.mutations import Mutation


def mutations() -> Iterator[Mutation]:
    place, tier = "train.update.muon", "optimizer"
    yield Mutation("Muon's inputs as outputs", f"{place}:shape_scale", _exchanged, tier, "muon, original scale")
    yield Mutation("Muon for adapters", f"{place}:APART", lambda apart: apart - {"rank"}, tier, "muon, wsd")


def _exchanged(healthy):
    return lambda config, inputs, outputs: healthy(config, outputs, inputs)
