"""The record of data of instructions. Importing this module loads no reader."""

import dataclasses
from typing import Literal

from mhc_jax.registry import register
from train.data.kind import SPLITS, TextConfig


@register("data", "instructions")
@dataclasses.dataclass(frozen=True)
class InstructionsConfig(TextConfig):
    """Instructions about contexts, with their responses: lines of JSON. The loss counts the responses alone.

    A record becomes the prompt of :func:`mhc_jax.rlm.session.prompt_of`, the response and an end token. Records are
    packed into windows in their order; the tokens of each see no others and count their positions from its first.

    Attributes:
        source: path of a file or folder of .jsonl, .json, .json.gz or .jsonl.zst, one object a line.
        context_field: field of the context, which may be missing.
        instruction_field, response_field: fields of the other two.
        validation_fraction: share of the contexts of a source without a validation split that serves for validation.
        tokenizer: see a corpus; it needs an end token.
        too_long: for a record longer than a window, ``"refuse"`` the data, or ``"cut"`` the end of its context.
        cache_dir: see a corpus.
    """

    of_a_host = ("cache_dir",)

    source: str = ""
    context_field: str = "context"
    instruction_field: str = "instruction"
    response_field: str = "response"
    validation_fraction: float = 0.05
    tokenizer: str = "gpt2"
    too_long: Literal["refuse", "cut"] = "refuse"
    cache_dir: str = ""

    def validate(self):
        super().validate()
        for name in ("context_field", "instruction_field", "response_field"):
            self.require(bool(getattr(self, name)), f"{name} must not be empty")
        self.require(
            0 < self.validation_fraction < 1,
            f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}",
        )

    @property
    def label(self):
        return self.source

    @property
    def identity(self):
        return "the records or their tokenizer"

    @property
    def unit(self):
        return f"{self.tokenizer} of responses"

    def arrays(self):
        known = super().arrays()
        return known | dict.fromkeys(("segments", "positions"), known["inputs"])

    def load(self, needed=SPLITS):
        from train.data.instruction_data import InstructionData

        return InstructionData(self, needed)
