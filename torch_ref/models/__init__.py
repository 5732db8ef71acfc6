"""Models that are no composition of the language model's parts."""

from torch_ref.models.shc_original import SHCOriginal

__all__ = ["SHCOriginal"]
