"""Prefill and single steps equal the whole sequence, in both frameworks."""

from parity_tests import tolerances
from parity_tests.checks import check, of_tier
from parity_tests.compare import error


# A mixer over streams decodes as it does without them, and each mixer and mHC do so in other cases.
@of_tier("decode", slow=lambda name: " over " in name or name.startswith(("rlm", "adapters", "baseline")))
def test_decode(case):
    check(case)


@of_tier("decode")
def test_the_mirror_decodes_what_it_computes_at_once(case):
    for name, logits in case.torch("float64", 0).items():
        assert error(logits, case.truth(0)[name]) <= tolerances.FLOAT64["decode"]
