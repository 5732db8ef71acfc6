"""Shards of GPT-2 tokens from FineWeb, or from other text: ``python -m train.prepare_fineweb --out FOLDER``.

As in the shards that are published, every document follows an end token, documents run on from one shard into the next,
and the first shard is the validation split. ``shards.json`` records the digest of every shard and the start of the
next one, so that the same command continues after an interruption and produces the same bytes.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from mhc_jax.config import ConfigError
from train.data.documents import BEGINNING, Documents, Place, find_documents, token_pieces
from train.data.errors import DataError
from train.data.files import sha256_file
from train.data.fineweb import MANIFEST, NAME, Manifest, ShardRecord, shard_name
from train.data.layout import Wanted
from train.data.shards import read_shard, write_shard
from train.data.tokenizer import Tokenizer, load_tokenizer
from train.storage.outputs import check_folder
from train.terminal import cli, interrupt

Piece = tuple[Place, np.ndarray]
Position = dict[str, Any]
START: Position = {"state": BEGINNING, "skip": 0}
FINEWEB, FINEWEB_SUBSET = "HuggingFaceFW/fineweb", "sample-10BT"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Write FineWeb or other text as shards of GPT-2 tokens. The same command continues after an interruption.

    Attributes:
        out: folder of the shards.
        source: ``OWNER/NAME`` of a data set of the Hub, or path of a file or folder of .txt, .jsonl, .json.gz,
            .jsonl.zst or .parquet; if there are several splits, the training split is used.
        subset: subset of the data set, or a folder in it; empty for its default (for FineWeb, sample-10BT).
        text_column: field or column that holds the text.
        shard_tokens: number of tokens per shard.
        val_tokens: number of tokens of the first shard, for validation; 0 for as many as in the others.
        max_tokens: total number of tokens; 0 for all.
    """

    out: str
    source: str = FINEWEB
    subset: str = ""
    text_column: str = "text"
    shard_tokens: int = 100_000_000
    val_tokens: int = 0
    max_tokens: int = 0


def prepare(flags: Flags) -> None:
    """Writes the shards that are not there yet.

    Raises:
        ConfigError: flags out of range, documents that cannot be read or are too few, or a folder that holds other
            shards, or shards of other documents or sizes.
    """
    flags = dataclasses.replace(flags, val_tokens=flags.val_tokens or flags.shard_tokens)
    _check(flags)
    out, tokenizer = check_folder("--out", flags.out), load_tokenizer("gpt2")
    before = Manifest.read(out)
    subset = flags.subset or (FINEWEB_SUBSET if flags.source == FINEWEB else "")
    wanted = Wanted(flags.source, subset, flags.text_column, flags="--")
    documents = find_documents(wanted, before.settings.get("origin") if before else None)
    sizes = {name: getattr(flags, name) for name in ("shard_tokens", "val_tokens", "max_tokens")}
    settings = {"origin": documents.origin, "tokenizer": tokenizer.fingerprint, **sizes}
    manifest = _resumed(out, before, settings) if before and before.shards else _begun(out, before, settings)
    for left in (*out.glob(".fineweb_*.bin.*"), *out.glob(f".{MANIFEST}.*")):
        left.unlink()  # by a process that was killed while it wrote
    if not manifest.finished:
        _write_shards(flags, out, manifest, documents, tokenizer)
        dataclasses.replace(manifest, finished=True).write(out)
    print(
        f"{out} is finished: {len(manifest.shards)} shards, {manifest.total():,} tokens. "
        f"Next: python -m train NAME --data.source {NAME} --data.path {flags.out}"
    )


def _write_shards(flags: Flags, out: Path, manifest: Manifest, documents: Documents, tokenizer: Tokenizer) -> None:
    """Writes the shards that follow those of ``manifest``, and adds them to it.

    Raises:
        DataError: not even one shard to train on.
    """
    shards = manifest.shards
    position = shards[-1].next if shards else START
    with _progress() as bar:
        pieces = _watched(token_pieces(documents, tokenizer, position["state"]), bar, flags, manifest.total())
        sizes = itertools.islice(_sizes(flags), len(shards), None)
        for tokens, after in _cut(pieces, sizes, position["skip"]):
            if not shards and len(tokens) < flags.val_tokens:
                break
            path = out / shard_name("train" if shards else "validation", len(shards))
            write_shard(path, tokens)
            shards.append(ShardRecord(path.name, len(tokens), sha256_file(path), after))
            manifest.write(out)
            bar.console.print(f"{path}  {len(tokens):,} tokens", markup=False, highlight=False, soft_wrap=True)
    if len(shards) < 2:
        raise DataError(
            f"{flags.source} has no tokens to train on beside {flags.val_tokens} for validation; give more text or "
            "fewer --val-tokens"
        )


def _check(flags: Flags) -> None:
    for name in ("shard_tokens", "val_tokens"):
        if not 0 < getattr(flags, name) < 2**31:
            raise ConfigError(f"{name} must be at least 1 and below 2^31, got {getattr(flags, name)}")
    if 0 != flags.max_tokens <= flags.val_tokens:
        raise ConfigError(f"max_tokens {flags.max_tokens} leaves none to train on beside val_tokens {flags.val_tokens}")


def _begun(out: Path, before: Manifest | None, settings: dict[str, Any]) -> Manifest:
    """The manifest of a folder without shards, written before the first, which is thereby known as this command's."""
    if before is None and out.exists() and (not out.is_dir() or any(out.glob("fineweb_*.bin"))):
        raise ConfigError(f"{out} holds what this command has not written; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(settings, shards=[])
    manifest.write(out)
    return manifest


def _resumed(out: Path, before: Manifest, settings: dict[str, Any]) -> Manifest:
    """The manifest of a folder as it is now: without the shards from the first missing one on."""
    for name, value in settings.items():
        if (was := before.settings.get(name)) != value:
            change = f"{name} {was}, not {value}" if isinstance(value, int) else f"another {name}"
            raise ConfigError(f"{out} was begun with {change}; give the same, or another --out")
    whole = list(itertools.takewhile(lambda shard: _is_whole(out / shard.name, shard.tokens), before.shards))
    finished = before.finished and len(whole) == len(before.shards)
    if whole and not finished and (whole[-1].next["state"] or {}).keys() != BEGINNING.keys():
        raise ConfigError(f"{out} was begun by an earlier version, which read text in another way; give another --out")
    return Manifest(settings, whole, finished)


def _is_whole(path: Path, tokens: int) -> bool:
    try:
        return len(read_shard(path)) == tokens
    except DataError:
        return False


def _sizes(flags: Flags) -> Iterator[int]:
    """Tokens of each shard, if the documents do not end before."""
    left = flags.max_tokens or sys.maxsize
    for size in itertools.chain([flags.val_tokens], itertools.repeat(flags.shard_tokens)):
        if left <= 0:
            return
        yield min(size, left)
        left -= size


def _cut(pieces: Iterable[Piece], sizes: Iterator[int], skip: int) -> Iterator[tuple[np.ndarray, Position]]:
    """Shards of ``sizes`` from all tokens but the first ``skip``, each with the position behind it.

    The last shard is shorter where the tokens end before the sizes do.
    """
    parts, after, missing = [], START, next(sizes, 0)
    for state, tokens in pieces:
        while missing and skip < len(tokens):
            part = tokens[skip : skip + missing]
            parts.append(part)
            skip, missing = skip + len(part), missing - len(part)
            after = {"state": state, "skip": skip}
            if not missing:
                yield np.concatenate(parts), after
                parts, missing = [], next(sizes, 0)
        if not missing:
            return
        skip -= len(tokens)
    if parts:
        yield np.concatenate(parts), after


def _progress() -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    columns = (BarColumn(12), MofNCompleteColumn(), "tokens", TimeElapsedColumn(), "ETA", TimeRemainingColumn())
    return Progress(*columns, console=Console(file=sys.stdout), disable=not sys.stdout.isatty())


def _watched(pieces: Iterable[Piece], bar: Progress, flags: Flags, done: int) -> Iterator[Piece]:
    """The pieces, each counted by the bar once it is used."""
    task = bar.add_task("", total=flags.max_tokens or None, completed=done)
    for state, tokens in pieces:
        yield state, tokens
        bar.advance(task, len(tokens))


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.prepare_fineweb")
    with interrupt.advising("interrupted; the same command continues from here"):
        prepare(flags)


if __name__ == "__main__":
    cli.run(main)
