"""Whole models: every cotangent and every parameter's gradient, in every mode of execution."""

from parity_tests.checks import check, of_tier

# Further options over streams and published forms, whose values the other tiers compare quickly, are slow, and so are
# modes of execution, which JAX's own tests compare with each other, and mixers whose gradients an oracle has.
SLOW = (
    "remat",
    "unrolled",
    "z-loss",
    "encoder",
    "channel moe",
    "rlm, linear",
    "rlm, plain",
    "rlm, folded",
    "model shc_original",
    "transformer_scan, labels",
    " over mhc,",
    ", original",
    "rlm, default",
    "transformer_scan over streams",
    "transformer_scan, auxiliary losses",
    "baseline, ln",
    "adapters 4",
    "transformer_scan, published",
    "gpt over deepseek_v4",
    "grouped, normalised heads",
    "mhc 2, ln, chunked",
)


ORACLES = "gpt", "gla", "gated_delta", "mamba", "latent attention"


def slow(name):
    return name in ORACLES or any(part in name for part in SLOW)


@of_tier("gradients", slow=slow)
def test_gradients(case):
    check(case)
