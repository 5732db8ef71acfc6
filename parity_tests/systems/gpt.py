"""Attention and a channel mixer in separate sites, over one stream and over several."""

from collections.abc import Iterator

from mhc_jax.models import with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.value_residual import ValueResidualConfig
from parity_tests.systems.base import LAYERS, POSITIONS, VOCAB, System


def systems() -> Iterator[System]:
    yield System("gpt", tiny_gpt())
    constrained = ValueResidualConfig(constrained=True)
    changes = {"bias": False, "activation": "erf", "value_residual": constrained, "stream_diversity": 0.1}
    yield System("gpt over mhc, constrained value residual", tiny_gpt("mhc_original", **changes))
    deepseek = tiny_gpt("deepseek_v4", value_residual=ValueResidualConfig())
    yield System("gpt over deepseek_v4, value residual", deepseek, decoded=True)


def tiny_gpt(topology: str = "plain", *, bias: bool = True, activation="tanh", **changes) -> LMConfig:
    """Attention with two heads and an MLP, in separate sites."""
    config = LMConfig(
        vocab_size=VOCAB,
        max_len=POSITIONS,
        width=8,
        layers=LAYERS,
        norm=LayerNormConfig(bias=bias),
        mixer=AttentionConfig(heads=2, bias=bias),
        mlp=GeluMLPConfig(hidden=7, bias=bias, activation=activation),
    )
    return with_topology(config, topology).replace(**changes)
