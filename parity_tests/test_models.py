"""Whole models: every activation, the penalties and the logits."""

from parity_tests import cases
from parity_tests.cases.models import forward
from parity_tests.checks import check, of_tier
from parity_tests.compare import first_divergence, judge
from parity_tests.systems import SYSTEMS
from parity_tests.test_gradients import slow
from torch_ref.nn.scope import Scope


def met_elsewhere(name):
    """Whether it is compared quickly with its gradients, or its parts are, in other models."""
    return (name in cases.of_tier("gradients") and not slow(name)) or " over " in name or "auxiliary" in name


@of_tier("models", slow=met_elsewhere)
def test_models(case):
    check(case)


def test_a_penalty_that_the_twin_does_not_record_comes_before_its_loss(monkeypatch):
    monkeypatch.setattr(Scope, "penalise", lambda *_: None)
    first = first_divergence(judge(forward(SYSTEMS["mhc 4, original, rms"]), ("float64",)))
    assert first is not None
    assert (first.tap, first.fault) == ("forward penalty stream_diversity", "only JAX has it, the twin does not")
