"""Multi-head latent attention with and without latents of queries and rotary positions, over one or more streams."""

from collections.abc import Iterator

from mhc_jax.nn.mixers import LatentAttentionConfig
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig
from mhc_jax.nn.value_residual import ValueResidualConfig
from parity_tests.systems.base import System
from parity_tests.systems.gpt import tiny_gpt
from parity_tests.systems.llama import YARN

# Of these widths a prompt of three tokens forms keys and values, and a single token meets the latents.
DEEPSEEK = LatentAttentionConfig(
    heads=3,
    latent_width=6,
    query_latent_width=5,
    head_width=2,
    value_head_width=3,
    rotary="interleaved",
    rotary_width=4,
    rotary_scaling=YARN.replace(attention_factor=0.8),
    mscale_all_dim=1.5,
    latent_norm=RMSNormConfig(eps=0.1),
    bias=True,
)


def systems() -> Iterator[System]:
    yield System("latent attention", tiny_gpt(mixer=DEEPSEEK, positions="none", norm=RMSNormConfig()), decoded=True)
    learned = LatentAttentionConfig(heads=2, rotary="none", latent_norm=LayerNormConfig())
    over = tiny_gpt("mhc", mixer=learned, value_residual=ValueResidualConfig())
    yield System("latent attention over mhc, value residual, learned positions", over, decoded=True)
    encoder = LatentAttentionConfig(heads=2, rotary_base=100.0, causal=False)
    yield System("latent attention, encoder", tiny_gpt(mixer=encoder, positions="none"))
