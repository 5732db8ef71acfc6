"""Channel mixers, one per file: they map every token's (B, T, D) alone; built as ``Mixer(config, width, sites)``."""

from torch_ref.nn.channel.gelu_mlp import GeluMLP

__all__ = ["GeluMLP"]
