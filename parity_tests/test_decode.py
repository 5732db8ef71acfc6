"""Prefill and single steps equal the whole sequence, in both frameworks."""

from parity_tests import tolerances
from parity_tests.checks import check, of_tier
from parity_tests.compare import error


# That JAX extends a text as it reads the whole of it is tested for every mixer, and so is the mirror below.
@of_tier("decode", slow=lambda name: name != "latent attention")
def test_decode(case):
    check(case)


@of_tier("decode")
def test_the_mirror_decodes_what_it_computes_at_once(case):
    for name, logits in case.torch("float64", 0).items():
        assert error(logits, case.truth(0)[name]) <= tolerances.FLOAT64["decode"]
