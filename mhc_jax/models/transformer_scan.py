"""TransformerScan of the published sizes, and the network as it was in fact trained.

The published program differs from the paper: the aggregator's attention was causal, the first token of every chunk was
never predicted, positions were local in the tree and absolute for the reader, and its modes of training were three
different functions. The default has none of that.
"""

from typing import Any, Literal, get_args

from mhc_jax.config import check_changes, check_name
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.transformer_scan import TransformerScanConfig, gpt2_backbone

Size = Literal["tiny", "small", "standard", "morris_config", "base", "medium", "large"]
Form = Literal["default", "original"]

# Layers of the aggregator and of the reader, heads, width.
SIZES: dict[Size, tuple[int, int, int, int]] = {
    "tiny": (1, 1, 2, 64),
    "small": (3, 3, 4, 128),
    "standard": (6, 6, 8, 256),
    "morris_config": (6, 6, 12, 768),
    "base": (1, 12, 12, 768),
    "medium": (12, 12, 16, 1024),
    "large": (18, 18, 20, 1280),
}


def transformer_scan(
    size: Size = "base",
    form: Form = "default",
    *,
    aggregator_layers: int | None = None,
    reader_layers: int | None = None,
    **changes: Any,
) -> TransformerScanConfig:
    """TransformerScan of a published size, for up to 1,024 tokens.

    Args:
        size: of ``"base"`` the layers are those of the published comparison; of all others half of the layers of the
            GPT-2 of that name belong to either network, as in the published program unless told otherwise.
        form: ``"default"`` as described in the paper, every token predicted, positions local; ``"original"`` what the
            published program computes, with its initial values and its dropout of 0.1 everywhere.
        aggregator_layers, reader_layers: other numbers of layers.
        changes: fields of :class:`TransformerScanConfig` to replace.

    Raises:
        ConfigError: no such size or form; the message says which is nearest.
        TypeError: no such field; so does it.
    """
    check_name("size of transformer_scan", size, get_args(Size))
    check_name("form of transformer_scan", form, get_args(Form))
    check_changes(transformer_scan, TransformerScanConfig, changes)
    merging, reading, heads, width = SIZES[size]
    layers = aggregator_layers or merging, reader_layers or reading
    original, rate = form == "original", 0.1 if form == "original" else 0.0
    aggregator, reader = (
        gpt2_backbone(width, count, heads, causal=causal, dropout=rate)
        for count, causal in zip(layers, (original, True))
    )
    config = TransformerScanConfig(vocab_size=50257, max_len=1024, aggregator=aggregator, reader=reader)
    if original:
        # No initialiser of transformers ever runs there.
        mixer = AttentionConfig(heads=heads, scale_output=False, dropout=rate)
        unscaled = {"mixer": mixer, "mlp": GeluMLPConfig(activation="tanh", scale_output=False)}
        config = config.replace(
            aggregator=aggregator.replace(**unscaled),
            reader=reader.replace(**unscaled),
            positions="legacy_mixed",
            boundary="unscored",
            dropout=rate,
            output_dropout=rate,
            init="legacy",
        )
    return config.replace(**changes)
