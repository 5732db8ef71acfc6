"""Models that are no composition of the language model's parts."""

from torch_ref.models.shc_original import SHCOriginal
from torch_ref.models.transformer_scan import TransformerScan

__all__ = ["SHCOriginal", "TransformerScan"]
