"""Every seeded fault is caught, and is gone afterwards."""

import pytest

from mhc_jax.ops import norm
from parity_tests.cases import of_tier
from parity_tests.faults import mutations
from parity_tests.mutations import Mutation, line, run, seeded

MUTATIONS = list(mutations())


# A sample; all of them are among the slow tests, and in the report of `python -m parity_tests`.
@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, id=mutation.fault, marks=[] if number % 16 == 0 else pytest.mark.slow)
        for number, mutation in enumerate(MUTATIONS)
    ],
)
def test_fault_is_caught(mutation):
    outcome = run(mutation)
    assert outcome.caught, line(outcome)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.fault)
def test_every_fault_has_its_place_and_its_case(mutation):
    with seeded(mutation):
        assert mutation.case in of_tier(mutation.tier)


def test_what_changes_nothing_is_not_caught():
    harmless = Mutation("nothing", "mhc_jax.ops.norm:rms_norm", lambda healthy: healthy, "ops", "norm.rms_norm")
    assert not run(harmless).caught


def test_a_seeded_fault_is_removed():
    healthy = norm.rms_norm
    with seeded(next(mutation for mutation in MUTATIONS if mutation.target == "mhc_jax.ops.norm:rms_norm")):
        assert norm.rms_norm is not healthy
    assert norm.rms_norm is healthy
