"""Tiny models that together meet every variant, form, norm, number of streams and scan form; one family a file."""

import sys

from parity_tests import discover
from parity_tests.systems.base import (
    BATCH,
    LAYERS,
    POSITIONS,
    TIME,
    VOCAB,
    WIDTH,
    System,
    Weights,
    batch,
    kinds_of,
    split,
)

SYSTEMS = {
    system.name: system
    for module in discover.modules(sys.modules[__name__])
    if hasattr(module, "systems")
    for system in module.systems()
}

__all__ = [
    "BATCH",
    "LAYERS",
    "POSITIONS",
    "SYSTEMS",
    "TIME",
    "VOCAB",
    "WIDTH",
    "System",
    "batch",
    "kinds_of",
    "split",
    "Weights",
]
