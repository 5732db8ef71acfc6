"""SHC: a LLaMA-style transformer over streams mixed by sparse mixtures of orthogonal matrices, and the published one.

The published sizes called 500M, 1B, 3B and 7B have 543M, 2.1B, 4.3B and 11B parameters, two thirds more than the same
networks without streams. In the other forms here the names are true: a topology adds well under 1 % to them.
"""

from typing import Any, Literal, get_args

from mhc_jax.config import check_changes, check_name
from mhc_jax.models import topologies
from mhc_jax.models.shc_original import SHCOriginalConfig
from mhc_jax.nn.channel import SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.norms import RMSNormConfig

Size = Literal["500m", "1b", "3b", "7b"]
Form = Literal["default", "plain", "original"]

# Layers here, layers as published, width, heads.
SIZES: dict[Size, tuple[int, int, int, int]] = {
    "500m": (36, 24, 1024, 16),
    "1b": (18, 24, 2048, 16),
    "3b": (36, 32, 2560, 32),
    "7b": (34, 32, 4096, 32),
}


def shc(size: Size = "500m", form: Form = "default", **changes: Any) -> ModelConfig:
    """SHC of a published size, for sequences of up to 4,096 tokens.

    The published form has 32,000 token ids, the others those of GPT-2 (50,304).

    Args:
        size: ``"500m"``, ``"1b"``, ``"3b"`` or ``"7b"``: about so many parameters, except in the published form.
        form: ``"default"``, streams through depth by the topology ``shc``; ``"plain"``, the same without streams, a
            LLaMA; ``"original"``, the published network, which sees later tokens and must not be trained on text.
        changes: fields to replace, of :class:`LMConfig` or of :class:`SHCOriginalConfig`.

    Raises:
        ConfigError: no such size or form; the message says which is nearest.
        TypeError: no such field; so does it.
    """
    check_name("size of shc", size, get_args(Size))
    check_name("form of shc", form, get_args(Form))
    check_changes(shc, SHCOriginalConfig if form == "original" else LMConfig, changes)
    layers, published_layers, width, heads = SIZES[size]
    if form == "original":
        sizes = {"vocab_size": 32000, "max_len": 4096, "width": width, "layers": published_layers, "heads": heads}
        return SHCOriginalConfig(**sizes, adaptive_rank=True).replace(**changes)
    config = LMConfig(
        vocab_size=50304,
        max_len=4096,
        width=width,
        layers=layers,
        positions="none",
        norm=RMSNormConfig(),
        mixer=AttentionConfig(heads=heads, rotary="half", bias=False),
        mlp=SwiGLUConfig(),
    )
    return topologies.with_topology(config, "plain" if form == "plain" else "shc").replace(**changes)
