"""The configuration of a language model for Hugging Face transformers."""

from typing import Any

from transformers import PreTrainedConfig


class MHCConfig(PreTrainedConfig):
    """``mhc`` is the record that :func:`torch_ref.build` takes; the other fields are for generic tools."""

    model_type = "mhc"

    def __init__(self, mhc: dict[str, Any] | None = None, **fields: Any):
        self.mhc = mhc or {}
        fields.setdefault("tie_word_embeddings", False)  # a tied head is one tensor under one name
        super().__init__(**fields)
