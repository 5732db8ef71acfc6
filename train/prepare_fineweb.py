"""Shards of GPT-2 tokens from FineWeb, or from other text: ``python -m train.prepare_fineweb --out FOLDER``.

As in the shards that are published, every document follows an end token, documents run on from one shard into the next,
and the first shard is the validation split. ``shards.json`` beside them records the digest of every shard and where the
next one begins, so that the same command goes on after an interruption and ends with the same bytes.
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
from train import cli
from train.data.documents import Documents, find_documents, token_batches
from train.data.errors import DataError
from train.data.files import sha256_file
from train.data.fineweb import MANIFEST, NAME, Manifest, ShardRecord, shard_name
from train.data.shards import read_shard, write_shard
from train.data.tokenizer import Tokenizer, load_tokenizer

Batch = tuple[dict[str, Any] | None, np.ndarray]
Position = dict[str, Any]
START: Position = {"state": None, "skip": 0}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Write FineWeb, or other text, as shards of GPT-2 tokens. The same command goes on after an interruption.

    Attributes:
        out: folder of the shards.
        source: data set of the Hub, or path of a .jsonl or .parquet file with a field "text", of a .txt file (one
            document), or of a folder of such files.
        subset: of the Hub's data set.
        shard_tokens: tokens of a shard.
        val_tokens: tokens of the first shard, for validation; 0 for as many as of the others.
        max_tokens: tokens of all shards; 0 for all there are.
    """

    out: str
    source: str = "HuggingFaceFW/fineweb"
    subset: str = "sample-10BT"
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
    out, tokenizer = Path(flags.out).expanduser(), load_tokenizer("gpt2")
    before = Manifest.read(out)
    documents = find_documents(flags.source, flags.subset, before.settings["origin"] if before else None)
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
        batches = _watched(token_batches(documents, tokenizer, position["state"]), bar, flags, manifest.total())
        sizes = itertools.islice(_sizes(flags), len(shards), None)
        for tokens, after in _cut(batches, sizes, position["skip"]):
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
    return Manifest(settings, whole, finished=before.finished and len(whole) == len(before.shards))


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


def _cut(batches: Iterable[Batch], sizes: Iterator[int], skip: int) -> Iterator[tuple[np.ndarray, Position]]:
    """Shards of ``sizes`` from all tokens but the first ``skip``, each with the position behind it.

    The last shard is shorter where the tokens end before the sizes do.
    """
    parts, after, missing = [], START, next(sizes, 0)
    for state, tokens in batches:
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


def _watched(batches: Iterable[Batch], bar: Progress, flags: Flags, done: int) -> Iterator[Batch]:
    """The batches, each counted by the bar once it is used."""
    task = bar.add_task("", total=flags.max_tokens or None, completed=done)
    for state, tokens in batches:
        yield state, tokens
        bar.advance(task, len(tokens))


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.prepare_fineweb")
    try:
        prepare(flags)
    except KeyboardInterrupt:
        raise DataError("interrupted; the same command goes on from here") from None


if __name__ == "__main__":
    cli.run(main)
