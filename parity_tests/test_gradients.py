"""Whole models: every cotangent and every parameter's gradient, in every mode of execution."""

from parity_tests.checks import check, of_tier

# Further options over streams and published forms, whose values the other tiers compare quickly, are slow.
SLOW = (
    " over mhc,",
    ", original",
    "rlm, default",
    "transformer_scan over streams",
    "transformer_scan, auxiliary losses",
    "transformer_scan, published",
    "gpt over deepseek_v4",
)


@of_tier("gradients", slow=lambda name: any(part in name for part in SLOW))
def test_gradients(case):
    check(case)
