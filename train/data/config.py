"""The record of a corpus: its text, tokenizer and windows. Importing this module loads no reader."""

import dataclasses
from typing import Literal

from mhc_jax.registry import register
from train.data.kind import SPLITS, TextConfig


@register("data", "corpus")
@dataclasses.dataclass(frozen=True)
class CorpusConfig(TextConfig):
    """A text, tokenised and cut into windows.

    Attributes:
        source: ``"docstrings"`` (the embedded corpus), ``"wikitext-2-v1"``, ``"wikitext-2-raw-v1"``,
            ``"wikitext-103-v1"``, ``"wikitext-103-raw-v1"``, ``"fineweb10b"`` (shards of GPT-2 tokens), the path of a
            file or folder of .txt, .jsonl, .json.gz, .jsonl.zst or .parquet, or ``OWNER/NAME`` (or
            ``OWNER/NAME@REVISION``) of a data set of the Hugging Face Hub.
        subset: name of a subset of the data set, or of a folder in it.
        text_column: field or column that holds the text.
        path: local folder with the files or shards of the named source; empty to use the Hub.
        train_shards: largest number of training shards of ``"fineweb10b"``, 100M tokens each; 0 for all.
        validation_fraction: share of a source without a validation split that serves for validation: the last lines of
            a text file (exact to the character for ``"chars"``), or a share of the documents or docstring files.
        tokenizer: ``"gpt2"``, ``"bytes"``, ``"chars"`` (the characters of the text itself; a run records them), or the
            path or Hub name of another tokenizer.
        windows: ``"packed"`` cuts the training tokens into windows and visits all of them in every epoch, in a new
            order; ``"random"`` draws the start of every window.
        documents: ``"joined"`` treats a window as one sequence, across document boundaries; with ``"apart"`` every end
            token starts a separate document, whose tokens see no others and count their positions from it.
        max_train_tokens: number of tokens used of the training split; 0 for all.
        max_eval_tokens: number of tokens used of the validation split; 0 for all.
        cache_dir: folder of the token cache; empty for ``$XDG_CACHE_HOME/mhc_jax`` (``~/.cache/mhc_jax``).
        sample_tokens: length of the text sample at the end of a run; 0 for none.
    """

    of_a_host = ("path", "cache_dir")
    free_on_resume = ("sample_tokens",)

    source: str = "docstrings"
    subset: str = ""
    text_column: str = "text"
    path: str = ""
    train_shards: int = 9
    validation_fraction: float = 0.05
    tokenizer: str = "gpt2"
    windows: Literal["packed", "random"] = "packed"
    documents: Literal["joined", "apart"] = "joined"
    max_train_tokens: int = 0
    max_eval_tokens: int = 0
    cache_dir: str = ""
    sample_tokens: int = 64

    def validate(self):
        super().validate()
        for name in ("source", "text_column"):
            self.require(bool(getattr(self, name)), f"{name} must not be empty")
        self.require(
            0 < self.validation_fraction < 1,
            f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}",
        )
        self.require_counts(0, "train_shards", "sample_tokens")
        self.require_not_negative("max_train_tokens", "max_eval_tokens")

    def settled(self):
        from train.data.corpus import with_characters

        return with_characters(self)

    @property
    def label(self):
        return "/".join(filter(None, (self.source, self.subset)))

    @property
    def identity(self):
        return "the text or its tokenizer"

    @property
    def unit(self):
        return self.tokenizer.partition(":")[0]

    def arrays(self):
        known = super().arrays()
        return (
            known if self.documents == "joined" else known | dict.fromkeys(("segments", "positions"), known["inputs"])
        )

    def load(self, needed=SPLITS):
        from train.data.text_data import TextData

        return TextData(self, needed)
