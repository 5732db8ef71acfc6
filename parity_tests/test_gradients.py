"""Whole models: every cotangent and every parameter's gradient, in every mode of execution."""

from parity_tests.checks import check, of_tier

# Further options over streams and published forms, whose values the other tiers compare quickly, are slow, and so are
# modes of execution, which JAX's own tests compare with each other.
SLOW = (
    "remat",
    "unrolled",
    "z-loss",
    "encoder",
    "channel moe",
    "rlm, linear",
    "rlm, plain",
    "model shc_original",
    "transformer_scan, labels",
    " over mhc,",
    ", original",
    "rlm, default",
    "transformer_scan over streams",
    "transformer_scan, auxiliary losses",
    "baseline, ln",
    "transformer_scan, published",
    "gpt over deepseek_v4",
)


def slow(name):
    return any(part in name for part in SLOW)


@of_tier("gradients", slow=slow)
def test_gradients(case):
    check(case)
