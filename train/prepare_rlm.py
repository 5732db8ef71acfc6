"""Instructions about a text, with responses known by construction: ``python -m train.prepare_rlm --out FOLDER``."""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np

from mhc_jax.config import Config, ConfigError
from train.data import synthetic
from train.data.config import CorpusConfig
from train.data.files import replacing
from train.data.sources import Read, find_source
from train.storage.outputs import check_folder
from train.terminal import cli
from train.terminal.console import task

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Flags(Config):
    """Write records for --data instructions: train.jsonl and validation.jsonl.

    A third each ask what stands on certain lines or at certain characters (peek), where a phrase occurs (search), and
    for a fact that was put into the context (qa). No context of validation is one of training.

    Attributes:
        out: folder of both files.
        count: number of training records.
        validation: number of records of validation.
        characters: of a context, about.
        seed: of all draws; the same one writes the same files.
        source: text of the contexts: ``docstrings``, or path of a file or folder, as for --data.source.
        text_column: field or column that holds the text.
        validation_fraction: share of the text for contexts of validation, unless the source has such a split.
    """

    out: str
    count: int = 1000
    validation: int = 100
    characters: int = 400
    seed: int = 42
    source: str = CorpusConfig.source
    text_column: str = CorpusConfig.text_column
    validation_fraction: float = CorpusConfig.validation_fraction

    def validate(self):
        super().validate()
        self.require_counts(1, "count", "validation")
        self.require(self.characters >= 20, f"characters must be at least 20, got {self.characters}")
        self.require_counts(0, "seed")


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.prepare_rlm")
    flags.validate()
    out = check_folder("--out", flags.out, new=map(_file_name, SPLITS))
    corpus = CorpusConfig(
        source=flags.source, text_column=flags.text_column, validation_fraction=flags.validation_fraction
    )
    corpus.validate()
    with task("reading the text"):
        source = find_source(corpus, flags="--")
        texts = {split: synthetic.passages(_documents(source.splits[split]), flags.characters) for split in SPLITS}
    known = {*texts["train"]}
    texts["validation"] = [text for text in texts["validation"] if text not in known]
    for split in SPLITS:
        if not texts[split]:
            raise ConfigError(
                f"--source {flags.source} gives no {split} context of {flags.characters} characters; "
                "give more text, or fewer --characters"
            )
    out.mkdir(parents=True, exist_ok=True)
    for stream, (split, count) in enumerate(zip(SPLITS, (flags.count, flags.validation))):
        random = np.random.default_rng([flags.seed, stream])
        with replacing(out / _file_name(split)) as file:
            for record in synthetic.records(texts[split], count, random):
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        print(f"{out / _file_name(split)}: {count:,} records about {len(texts[split]):,} passages")


def _file_name(split: str) -> str:
    return f"{split}.jsonl"


def _documents(read: Read) -> Iterator[str]:
    """Whole documents of a split."""
    held: list[str] = []
    for piece in read(len):
        held.append(piece.text)
        if piece.ends:
            yield "".join(held)
            held = []


if __name__ == "__main__":
    cli.run(main)
