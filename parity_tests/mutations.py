"""Seeded faults on the JAX side, each of which the suite's own comparison must catch."""

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from parity_tests import cases
from parity_tests.compare import Row, failures, first_divergence, judge

Replace = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A fault, and the case that must notice it.

    Attributes:
        fault: description of the fault.
        target: ``"module:attribute"`` or ``"module:Class.attribute"`` to replace.
        replace: from the healthy object to the faulty one.
        tier, case: the case to run.
    """

    fault: str
    target: str
    replace: Replace
    tier: str
    case: str


def op(fault: str, path: str, replace: Replace, what: str = "") -> Mutation:
    """A fault in ``ops.<path>``, seen by a case of that op."""
    module, name = path.split(".")
    return Mutation(fault, f"mhc_jax.ops.{module}:{name}", replace, "ops", f"{path} {what}".strip())


def options(**fixed: Any) -> Replace:
    """The same function with some keyword arguments overridden."""
    return lambda healthy: lambda *args, **given: healthy(*args, **(given | fixed))


def argument(name: str, change: Callable[[Any], Any]) -> Replace:
    """The same function with one keyword argument changed."""
    return lambda healthy: lambda **arrays: healthy(**(arrays | {name: change(arrays[name])}))


@contextlib.contextmanager
def seeded(mutation: Mutation) -> Iterator[None]:
    """The fault is present inside the context."""
    module, _, path = mutation.target.partition(":")
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    healthy = vars(owner)[name]
    setattr(owner, name, mutation.replace(healthy))
    try:
        yield
    finally:
        setattr(owner, name, healthy)


@contextlib.contextmanager
def _traced_anew() -> Iterator[None]:
    """Nothing that was traced outside of the context serves inside of it, nor the other way round."""
    jax.clear_caches()
    try:
        yield
    finally:
        jax.clear_caches()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Whether a fault was caught, by how many tensors, and where it was first seen."""

    fault: str
    case: str
    caught: bool
    tensors: int
    first: str


def run(mutation: Mutation) -> Outcome:
    """Judges the mutation's case with the fault in place."""
    case = cases.of_tier(mutation.tier)[mutation.case]
    rows: list[Row] = []
    with seeded(mutation), _traced_anew():
        for dtype in case.dtypes:  # float64 first: a fault caught there need not run again
            rows = judge(case, (dtype,))
            if failures(rows):
                break
    first = first_divergence(rows)
    where = first.tap if first else "-"
    return Outcome(mutation.fault, f"{mutation.tier}: {mutation.case}", first is not None, len(failures(rows)), where)


HEADING = f"{'seeded fault':50} {'caught':7} {'tensors':>7}  first seen at"


def line(outcome: Outcome) -> str:
    """One fault, under :data:`HEADING`."""
    caught = "yes" if outcome.caught else "NO"
    return f"{outcome.fault:50} {caught:7} {outcome.tensors:7}  {outcome.first} ({outcome.case})"


def kill_rate(outcomes: Sequence[Outcome]) -> str:
    """The number of caught faults."""
    return f"kill rate: {sum(outcome.caught for outcome in outcomes)} of {len(outcomes)}"
