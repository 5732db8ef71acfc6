"""Tiny models that together meet every variant, form, norm, number of streams and scan form."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mhc_jax.interop.names import torch_shapes
from mhc_jax.models import mhc_ssm, with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.value_residual import ValueResidualConfig

VOCAB, POSITIONS, WIDTH, LAYERS, BATCH, TIME = 13, 9, 5, 2, 2, 7

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class System:
    """A model under a name."""

    name: str
    config: ModelConfig

    @property
    def covers(self) -> frozenset[str]:
        """The registered parts of the model."""
        return frozenset(f"{part.axis}:{part.kind}" for part in self.config.parts() if part.axis and part.kind)


def tiny(variant, form, norm, *, streams=4, conv=3, scan="auto", **changes) -> LMConfig:
    """A model of odd sizes."""
    sizes = {"vocab_size": VOCAB, "max_len": POSITIONS, "width": WIDTH, "layers": LAYERS}
    config = mhc_ssm(variant, form, norm=norm, **sizes, **changes)
    config = config.replace(mixer=config.mixer.replace(conv_kernel=conv, form=scan, chunk=3))
    if variant != "baseline":
        config = config.replace(residual=config.residual.replace(streams=streams))
    if config.adapters is not None:
        config = config.replace(adapters=config.adapters.replace(rank=3))
    return config


def tiny_gpt(topology: str = "plain", *, bias: bool = True, activation="tanh", **changes) -> LMConfig:
    """Attention of two heads and an MLP, each in a site of its own."""
    config = LMConfig(
        vocab_size=VOCAB,
        max_len=POSITIONS,
        width=8,
        layers=LAYERS,
        norm="ln",
        norm_bias=bias,
        mixer=AttentionConfig(heads=2, bias=bias),
        mlp=GeluMLPConfig(hidden=7, bias=bias, activation=activation),
    )
    return with_topology(config, topology).replace(**changes)


LLAMA = AttentionConfig(
    heads=4, kv_heads=2, rotary="half", rotary_base=100.0, qk_norm=True, qk_norm_eps=0.1, bias=False
)
WIDE = AttentionConfig(heads=3, kv_heads=1, head_width=4, rotary="interleaved")


def _llama(mixer: AttentionConfig, topology: str = "plain", **changes) -> LMConfig:
    """No table of positions, and a head of its own and of another size."""
    changes = {"mixer": mixer, "positions": "none", "head": "dense", "outputs": VOCAB + 2, "norm_eps": 0.02} | changes
    return tiny_gpt(topology, **changes)


SYSTEMS = {
    system.name: system
    for system in (
        System("baseline, original, rms", tiny("baseline", "original", "rms")),
        System("baseline, ln, associative", tiny("baseline", "default", "ln", conv=4, scan="associative")),
        System("mhc 4, original, rms", tiny("mhc", "original", "rms", stream_diversity=0.1)),
        System("mhc 1, original, ln", tiny("mhc", "original", "ln", streams=1, conv=1)),
        System("mhc 2, ln, chunked", tiny("mhc", "default", "ln", streams=2, conv=1, scan="chunked")),
        System("adapters 2, original, ln", tiny("adapters", "original", "ln", streams=2, stream_diversity=0.1)),
        System("adapters 4, rms", tiny("adapters", "default", "rms")),
        System("gpt", tiny_gpt()),
        System(
            "gpt over mhc, constrained value residual",
            tiny_gpt(
                "mhc_original",
                bias=False,
                activation="erf",
                value_residual=ValueResidualConfig(constrained=True),
                stream_diversity=0.1,
            ),
        ),
        System("llama, grouped, normalised heads", _llama(LLAMA)),
        System("wide heads over mhc, value residual", _llama(WIDE, "mhc", value_residual=ValueResidualConfig())),
        System("encoder", _llama(AttentionConfig(heads=2, rotary="half", causal=False))),
        System("gpt over deepseek_v4, value residual", tiny_gpt("deepseek_v4", value_residual=ValueResidualConfig())),
    )
}


def weights(config: ModelConfig) -> Arrays:
    """Random values everywhere, so that no part is inert, symmetric or an identity; by the mirror's names."""
    rng = np.random.default_rng(1)
    return {name: _draw(rng, name, shape) for name, shape in torch_shapes(config).items()}


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    gain = name.endswith("norm.weight") or ".gamma_" in name
    scale = 1.0 if name.endswith(("_logits", "logit_a")) else 0.4
    return np.asarray(float(gain) + scale * rng.standard_normal(shape), np.float32)


def batch(config: ModelConfig, time: int = TIME) -> Arrays:
    """Random tokens and targets, some of which do not count."""
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(0, config.vocab_size, (2, BATCH, time))
    targets[0, :2] = -100
    return {"tokens": tokens, "targets": targets}


def split(values: Mapping[str, np.ndarray], *groups: str) -> Arrays:
    """The values whose name begins with one of the groups."""
    return {name: value for name, value in values.items() if name.split(" ", 1)[0] in groups}
