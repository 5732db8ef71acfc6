"""FineWeb as shards of GPT-2 tokens: their location, their integrity, and the bytes of text that they represent."""

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from train.data.cache import cache_folder, cached_arrays
from train.data.config import CorpusConfig
from train.data.errors import DataError
from train.data.files import replacing, sha256_file, sha256_json
from train.data.hub import hub_folder
from train.data.shards import read_shard
from train.data.tokenizer import Tokenizer, gpt2_token_bytes
from train.data.tokens import ShardedTokens, Split, check_ids, token_counts

log = logging.getLogger(__name__)

NAME = "fineweb10b"
REPOSITORY = "kjj0/fineweb10B-gpt2"
MANIFEST = "shards.json"
ADVICE = "make shards with python -m train.prepare_fineweb, or copy some, and give their folder: --data.path FOLDER"

# The name and number of the first shard of each split.
FIRST = {"validation": ("val", 0), "train": ("train", 1)}


def shard_name(split: str, number: int) -> str:
    """The file name of a shard: training shards count from 1, the validation shard is 0."""
    return f"fineweb_{FIRST[split][0]}_{number:06d}.bin"


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """A shard as it was written, and the start of the next one (see :mod:`train.prepare_fineweb`)."""

    name: str
    tokens: int
    sha256: str
    next: dict[str, Any]


@dataclasses.dataclass
class Manifest:
    """The record of a folder by :mod:`train.prepare_fineweb`.

    Attributes:
        settings: JSON-compatible; decide every byte of the shards.
        shards: those that are written, in order.
        finished: whether they are all.
    """

    settings: dict[str, Any]
    shards: list[ShardRecord]
    finished: bool = False

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The manifest of ``folder``; None if it has none, because its shards come from elsewhere.

        Raises:
            DataError: it cannot be read.
        """
        file = folder / MANIFEST
        try:
            found = json.loads(file.read_bytes())
            return cls(**{**found, "shards": [ShardRecord(**shard) for shard in found["shards"]]})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} cannot be read ({error}); prepare the shards again in another folder") from None

    def write(self, folder: Path) -> None:
        """Replaces the manifest of ``folder``."""
        with replacing(folder / MANIFEST) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=1).encode())

    def total(self) -> int:
        """Tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)


def load_splits(
    config: CorpusConfig, tokenizer: Tokenizer, needed: Sequence[str]
) -> tuple[dict[str, Split], dict[str, Any]]:
    """The needed splits, as memory maps, and a JSON-compatible record of their shards.

    A shard is read as a whole only the first time: how often each id occurs in it, which tells that all are GPT-2's and
    how many bytes of text they stand for, and its digest, are then kept in the token cache for as long as its size and
    time of change stay the same.

    Raises:
        DataError: another tokenizer; shards that are missing, damaged, unfinished or cannot be had; ids that are
            not GPT-2's.
    """
    if tokenizer.name != "gpt2":
        raise DataError(f"--data.source {NAME} holds tokens of gpt2, which {tokenizer.name} cannot read; give gpt2")
    if config.subset or config.text_column != "text":
        raise DataError(f"--data.source {NAME} holds tokens; leave --data.subset and --data.text-column out")
    for split in needed:
        if split not in FIRST:
            raise DataError(f"--data.source {NAME} has no {split} split, only {' and '.join(FIRST)}")
    folder = _folder(config, needed)
    written = _written(folder)
    limits = {"train": config.max_train_tokens, "validation": config.max_eval_tokens}
    token_bytes = gpt2_token_bytes()
    # All are found before one of them is read.
    paths = {split: _paths(folder, split, written, config.train_shards if split == "train" else 0) for split in needed}
    splits, record = {}, {}
    for split in needed:
        opened = (_open(path, cache_folder(config.cache_dir), written, len(token_bytes)) for path in paths[split])
        shards = list(_first_tokens(opened, limits[split]))
        digests = [shard.digest for shard in shards]
        tokens = ShardedTokens([shard.tokens for shard in shards], sum(shard.counts for shard in shards))
        splits[split] = Split(tokens, int(tokens.counts @ token_bytes), sha256_json([digests, len(tokens)]))
        record[split] = {"sha256": digests, "tokens": len(tokens), "bytes": splits[split].n_bytes}
    return splits, {"splits": record}


def _folder(config: CorpusConfig, needed: Sequence[str]) -> Path:
    if config.path:
        folder = Path(config.path).expanduser()
        if not folder.is_dir():
            raise DataError(f"--data.path {config.path}: no such folder; {ADVICE}")
        return folder
    some = [shard_name("train", number) for number in range(1, config.train_shards + 1)]
    wanted = {"validation": ["fineweb_val_*.bin"], "train": some or ["fineweb_train_*.bin"]}
    return hub_folder(REPOSITORY, "dataset", [name for split in needed for name in wanted[split]], ADVICE)


def _written(folder: Path) -> dict[str, str]:
    """Digests of the shards that must be in the folder, by name."""
    manifest = Manifest.read(folder)
    if manifest is None:
        return {}
    if not manifest.finished:
        raise DataError(f"{folder} is not finished; repeat the train.prepare_fineweb command that began it")
    return {shard.name: shard.sha256 for shard in manifest.shards}


def _paths(folder: Path, split: str, written: dict[str, str], limit: int) -> list[Path]:
    """The first ``limit`` shards of a split, or all of them if that is 0."""
    word, first = FIRST[split]
    found = {path.name for path in folder.glob(f"fineweb_{word}_*.bin")}
    found |= {name for name in written if name.startswith(f"fineweb_{word}_")}
    if not found:
        raise DataError(f"{folder} holds no fineweb_{word}_*.bin; {ADVICE}")
    count = min(len(found), limit or len(found))
    paths = [folder / shard_name(split, number) for number in range(first, first + count)]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is missing; {ADVICE}")
    return paths


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Tokens of a shard, how often each id occurs among them (V,), and the digest of the whole file."""

    tokens: np.ndarray
    counts: np.ndarray
    digest: str


def _open(path: Path, cache: Path, written: dict[str, str], vocab_size: int) -> _Shard:
    """The shard in a file; what is not in the header is from the cache if the file has not changed."""
    tokens, status = read_shard(path), path.stat()

    def inspect():
        log.info("checking %s, once", path)
        check_ids(tokens, vocab_size, str(path))
        return {"counts": token_counts(tokens, vocab_size)}, {"sha256": sha256_file(path)}

    key = sha256_json([str(path.resolve()), status.st_size, status.st_mtime_ns])
    arrays, record = cached_arrays(cache, key, inspect)
    digest = record["sha256"]
    if digest != written.get(path.name, digest):
        raise DataError(f"{path} is damaged: not what {MANIFEST} says was written; remove it and prepare it again")
    return _Shard(tokens, arrays["counts"], digest)


def _first_tokens(shards: Iterable[_Shard], limit: int) -> Iterator[_Shard]:
    """The first ``limit`` tokens, or all of them if that is 0; no shard behind them is opened."""
    for shard in shards:
        if 0 < limit <= len(shard.tokens):
            tokens = shard.tokens[:limit]
            yield _Shard(tokens, token_counts(tokens, len(shard.counts)), shard.digest)
            return
        yield shard
        limit -= len(shard.tokens)
