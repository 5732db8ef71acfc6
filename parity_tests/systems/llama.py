"""Rotary positions, grouped and normalised heads, a separate output head of another size, bidirectional attention."""

from collections.abc import Iterator

from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig
from mhc_jax.nn.value_residual import ValueResidualConfig
from parity_tests.systems.base import VOCAB, System
from parity_tests.systems.gpt import tiny_gpt

NORM = LayerNormConfig(eps=0.02)
LLAMA = AttentionConfig(
    heads=4, kv_heads=2, rotary="half", rotary_base=100.0, qk_norm=RMSNormConfig(eps=0.1), bias=False
)
WIDE = AttentionConfig(heads=3, kv_heads=1, head_width=4, rotary="interleaved")


def systems() -> Iterator[System]:
    yield System("llama, grouped, normalised heads", _llama(LLAMA), decoded=True)
    wide = _llama(WIDE, "mhc", value_residual=ValueResidualConfig())
    yield System("wide heads over mhc, value residual", wide, decoded=True)
    yield System("encoder", _llama(AttentionConfig(heads=2, rotary="half", causal=False)))


def _llama(mixer: AttentionConfig, topology: str = "plain", **changes) -> LMConfig:
    """No table of positions, and a separate output head of another size."""
    changes = {"mixer": mixer, "positions": "none", "head": "dense", "outputs": VOCAB + 2, "norm": NORM} | changes
    return tiny_gpt(topology, **changes)
