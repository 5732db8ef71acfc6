"""The kinds of this repository, and one topology of each kind."""

import pytest

from mhc_jax import registry
from mhc_jax.models import topologies

PACKAGES = {"configs", "mhc_jax", "train"}


def own(axis):
    """Names registered on an axis by the repository itself: tables of documented values must hold them all."""
    return [name for name in registry.names(axis) if registry.get(axis, name).__module__.split(".")[0] in PACKAGES]


ONE_OF_EACH_KIND = {topologies.topology(name).residual.kind: name for name in registry.names("topology")}.values()


def slow_unless(quick, values):
    """Parameters of a test that is slow but for those values that ``quick`` holds."""
    return [pytest.param(value, marks=[] if value in quick else pytest.mark.slow) for value in values]


def quickly(*values, topology):
    """Parameters of a test that is slow unless its topology is the one of its kind."""
    return pytest.param(*values, marks=[] if topology in ONE_OF_EACH_KIND else pytest.mark.slow)


def slow_after_one(first, *others):
    """Cases of several values, of which all but the first are slow."""
    return [first, *(pytest.param(*case, marks=pytest.mark.slow) for case in others)]
