"""Gated linear attention and Gated DeltaNet in all their choices, over one stream and over several."""

from collections.abc import Iterator

from mhc_jax.nn.channel import SwiGLUConfig
from mhc_jax.nn.mixers import GatedDeltaConfig, GLAConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.nn.value_residual import ValueResidualConfig
from parity_tests.systems.base import System
from parity_tests.systems.gpt import tiny_gpt

PLAIN = {"positions": "none", "norm": RMSNormConfig(), "mlp": SwiGLUConfig(hidden=7)}
GLA = GLAConfig(heads=2, gate_rank=3, chunk=4, norm_eps=0.02)
GROUPED_GLA = GLAConfig(
    heads=4,
    kv_heads=2,
    expand_k=1.5,
    gate_rank=2,
    gate_normalizer=2.0,
    gate_floor=-0.5,
    feature_map="relu",
    conv_kernel=3,
    output_gate="sigmoid",
    form="recurrent",
    chunk=3,
)
# Keys of three channels happen on gradients that no two correct forms agree on to four times PyTorch's rounding.
DELTA = GatedDeltaConfig(heads=2, head_width=4, expand_v=1.5, chunk=4, norm_eps=0.02)
GROUPED_DELTA = GatedDeltaConfig(
    heads=2,
    value_heads=4,
    head_width=2,
    expand_v=1.0,
    conv_kernel=None,
    output_gate=None,
    allow_neg_eigval=True,
    form="recurrent",
    chunk=3,
)


def systems() -> Iterator[System]:
    yield System("gla", tiny_gpt(mixer=GLA, **PLAIN))
    yield System(
        "gla over mhc, grouped heads, convolutions",
        tiny_gpt("mhc", mixer=GROUPED_GLA, value_residual=ValueResidualConfig(), **PLAIN),
        decoded=True,
    )
    yield System("gated_delta", tiny_gpt(mixer=DELTA, **PLAIN), decoded=True)
    yield System(
        "gated_delta over mhc, grouped heads, no convolutions",
        tiny_gpt("mhc", mixer=GROUPED_DELTA, value_residual=ValueResidualConfig(), **PLAIN),
    )
