"""A hundred training steps in float64."""

from parity_tests.cases.training import STEPS
from parity_tests.checks import check, of_tier


# The longest; one step of each of them is compared quickly, as the gradients of its model.
@of_tier("trajectory", slow=lambda name: name != "words of a group")
def test_trajectory(case):
    losses = case.torch("float64", 0)["loss of every step"]
    assert losses.shape == (STEPS,)
    assert losses[-1] < losses[0] - 0.01  # it learns, so the comparison is not one of constants
    check(case)
