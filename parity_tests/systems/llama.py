"""Scaled rotary positions, grouped and normalised heads, an output head of another size, bidirectional attention."""

from collections.abc import Iterator

from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig
from mhc_jax.nn.rotary import LinearScalingConfig, Llama3ScalingConfig, YarnScalingConfig
from mhc_jax.nn.value_residual import ValueResidualConfig
from parity_tests.systems.base import VOCAB, System
from parity_tests.systems.gpt import tiny_gpt

NORM = LayerNormConfig(eps=0.02)
LLAMA = AttentionConfig(
    heads=4,
    kv_heads=2,
    rotary="half",
    rotary_base=100.0,
    rotary_scaling=LinearScalingConfig(),
    qk_norm=RMSNormConfig(eps=0.1),
    bias=False,
)
# Of the two pairs of a head of width 4 the scaling slows down the second one, by about half of its factor.
YARN = YarnScalingConfig(factor=4.0, beta_fast=2.0, beta_slow=0.02, original_max_position_embeddings=16)
LLAMA3 = Llama3ScalingConfig(low_freq_factor=0.01, high_freq_factor=0.5, original_max_position_embeddings=16)
WIDE = AttentionConfig(heads=3, kv_heads=1, head_width=4, rotary="interleaved", rotary_scaling=YARN)
ENCODER = AttentionConfig(heads=2, rotary="half", rotary_base=100.0, rotary_scaling=LLAMA3, causal=False)


def systems() -> Iterator[System]:
    yield System("llama, grouped, normalised heads", _llama(LLAMA), decoded=True)
    wide = _llama(WIDE, "mhc", value_residual=ValueResidualConfig())
    yield System("wide heads over mhc, value residual", wide, decoded=True)
    yield System("encoder", _llama(ENCODER))


def _llama(mixer: AttentionConfig, topology: str = "plain", **changes) -> LMConfig:
    """No table of positions, and a separate output head of another size."""
    changes = {"mixer": mixer, "positions": "none", "head": "dense", "outputs": VOCAB + 2, "norm": NORM} | changes
    return tiny_gpt(topology, **changes)
