"""Records of instructions as tokens: read from lines of JSON, divided into splits, encoded and packed into windows."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mhc_jax.rlm.session import prompt_of
from train.data.cache import cache_folder, cached_arrays
from train.data.errors import DataError
from train.data.files import sha256_file, sha256_json
from train.data.instructions import InstructionsConfig
from train.data.kind import IGNORE, Batch
from train.data.layout import Wanted
from train.data.sources import held_out, local_place, splits_of
from train.data.text import json_objects, kind_of, string_field
from train.data.tokenizer import Tokenizer
from train.terminal.console import task

# Changes whenever the same records and tokenizer would give other arrays.
ENCODING_VERSION = 1


class Record(NamedTuple):
    """One line, and its place for messages."""

    context: str
    instruction: str
    response: str
    where: str


class Encoded(NamedTuple):
    """Records of a split, one after another.

    Attributes:
        tokens: ids, int32, 1-D; each record ends with an end token.
        ends: end of each record in them, int64.
        answers: place of the first token of each response in them, int64.
        record: JSON-compatible: how many ``records`` there are, how many of them are ``cut``, and the ``bytes`` of all
            responses.
    """

    tokens: np.ndarray
    ends: np.ndarray
    answers: np.ndarray
    record: dict[str, int]


def load_records(config: InstructionsConfig, tokenizer: Tokenizer, needed: Sequence[str]) -> dict[str, Encoded]:
    """The splits that are needed, out of the cache if it holds them.

    Raises:
        DataError: no source, field, response or split, or a record that does not fit into a window.
    """
    wanted = Wanted(config.source)
    if not config.source:
        raise DataError("--data.source must name the file or folder of the records")
    folder, names = splits_of(wanted, local_place(wanted))
    if strange := [name for some in names.values() for name in some if kind_of(name) != "JSON"]:
        raise wanted.fault(f"records are lines of JSON, which {strange[0]} does not hold")
    missing = [split for split in needed if split not in names]
    if missing and (missing != ["validation"] or "train" not in names):
        raise wanted.fault(f"it holds no {missing[0]} split, only {' and '.join(names)}; add its files")
    paths = {split: [folder / name for name in some] for split, some in names.items()}
    settings = {name: value for name, value in config.to_dict().items() if name not in _OF_NO_RECORD}
    digests = {split: [sha256_file(path) for path in some] for split, some in paths.items()}
    key = sha256_json([ENCODING_VERSION, settings, digests, tokenizer.fingerprint])
    return {split: _cached(config, tokenizer, paths, split, f"{key}-{split}") for split in needed}


# What does not change the tokens of the records.
_OF_NO_RECORD = ("source", "batch_size", "seed", "cache_dir")


def _cached(config, tokenizer, paths, split, key) -> Encoded:
    def make():
        with task(f"encoding the records of the {split} split", quiet=True):
            encoded = encode(_of_split(config, paths, split), tokenizer, config.seq_len, cut=config.too_long == "cut")
        if not len(encoded.ends):
            raise DataError(f"--data.source {config.source}: the {split} split holds no record")
        return {name: getattr(encoded, name) for name in ("tokens", "ends", "answers")}, encoded.record

    arrays, record = cached_arrays(cache_folder(config.cache_dir), key, make)
    return Encoded(**arrays, record=record)


def _of_split(config: InstructionsConfig, paths: dict[str, list[Path]], split: str) -> Iterator[Record]:
    """Its records; where there is no validation split, those of a share of the contexts are one."""
    if "validation" in paths or split not in ("train", "validation"):
        yield from _read(config, paths[split])
        return
    records = list(_read(config, paths["train"]))
    away = held_out((_key(record) for record in records), config.validation_fraction)
    if away.all():
        raise DataError(
            f"--data.source {config.source} needs at least two different contexts, to train on and to validate with"
        )
    yield from (record for record, is_away in zip(records, away) if is_away == (split == "validation"))


def _key(record: Record) -> bytes:
    """Equal for records that must stay in one split: those about one context, or of one instruction without any."""
    return hashlib.sha256((record.context or record.instruction).encode()).digest()


def _read(config: InstructionsConfig, paths: Iterable[Path]) -> Iterator[Record]:
    def text(found: Any, field: str, where: str) -> str:
        advice = f"another may be named with --data.{field.replace('_', '-')}"
        return string_field(found, getattr(config, field), where, advice)

    met = config.context_field == InstructionsConfig.context_field  # which may be missing in all records
    for path in paths:
        for where, found in json_objects(path):
            met |= isinstance(found, dict) and config.context_field in found
            has_context = isinstance(found, dict) and found.get(config.context_field) is not None
            context = text(found, "context_field", where) if has_context else ""
            instruction, response = (text(found, field, where) for field in ("instruction_field", "response_field"))
            if not response:
                raise DataError(f"{where} has an empty response, from which nothing can be learned; leave it out")
            yield Record(context, instruction, response, where)
    if not met:
        raise DataError(f"--data.context-field {config.context_field}: no record has such a field")


def encode(records: Iterable[Record], tokenizer: Tokenizer, room: int, *, cut: bool) -> Encoded:
    """The tokens of records.

    Args:
        room: tokens of a window; a record with its end token may have one more, as its last is no input.
        cut: whether the context of a longer one loses its end.

    Raises:
        DataError: a record is longer.
    """
    parts, ends, answers, end, cuts, n_bytes = [], [], [], 0, 0, 0
    for record in records:
        prompt, response = tokenizer.encode(prompt_of(record.context, record.instruction)), _response(record, tokenizer)
        if len(prompt) + len(response) > room + 1:
            if not cut:
                raise DataError(
                    f"{record.where} has {len(prompt) + len(response):,} tokens, and a window holds {room + 1:,}; "
                    "give a larger --data.seq-len, or --data.too-long cut to shorten contexts"
                )
            prompt, cuts = _shortened(record, tokenizer, room + 1, len(response)), cuts + 1
        parts.append(np.array(prompt + response, np.int32))
        answers.append(end + len(prompt))
        end += len(parts[-1])
        ends.append(end)
        n_bytes += len(record.response.encode())
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    counts = {"records": len(ends), "cut": cuts, "bytes": n_bytes}
    return Encoded(tokens, np.array(ends, np.int64), np.array(answers, np.int64), counts)


def _response(record: Record, tokenizer: Tokenizer) -> list[int]:
    assert tokenizer.eos_id is not None  # refused when the data are opened
    return [*tokenizer.encode(record.response), tokenizer.eos_id]


def _shortened(record: Record, tokenizer: Tokenizer, window: int, response: int) -> list[int]:
    """The prompt with so much less of its context that it fits into a window beside a response of so many tokens.

    Raises:
        DataError: even without a context it has more.
    """
    kept, room = tokenizer.encode(record.context), window - response
    prompt = tokenizer.encode(prompt_of(record.context, record.instruction))
    while len(prompt) > room:
        if not kept:
            raise DataError(
                f"{record.where} is too long even without its context: it has {len(prompt):,} tokens before its "
                f"response and {response:,} in it, and a window holds {window:,}; give --data.seq-len "
                f"{len(prompt) + response - 1} or more"
            )
        kept = kept[: max(len(kept) - (len(prompt) - room), 0)]
        # A character torn at the cut is no text.
        context = tokenizer.decode(kept).removesuffix("\ufffd")
        prompt = tokenizer.encode(prompt_of(context, record.instruction))
    return prompt


def starts_of_windows(lengths: np.ndarray, room: int) -> np.ndarray:
    """The first record of each window, and the number of records: a window takes records while they fit."""
    starts, left = [], -1
    for index, length in enumerate(lengths.tolist()):
        if length > left:
            starts.append(index)
            left = room
        left -= length
    return np.array([*starts, len(lengths)])


class PackedRecords:
    """Random access to windows of ``room`` tokens, each of whole records, as arrays (T,) of int32.

    ``targets`` are the next tokens of ``inputs`` where those belong to a response or end it, and :data:`IGNORE`
    elsewhere. ``segments`` number the records, and after them the empty rest; ``positions`` count from the first token.
    """

    def __init__(self, encoded: Encoded, room: int):
        self._encoded, self._room = encoded, room
        self._begins = np.concatenate([[0], encoded.ends[:-1]])
        self._starts = starts_of_windows(encoded.ends - self._begins - 1, room)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Batch:
        window = {name: np.zeros(self._room, np.int32) for name in ("inputs", "targets", "segments", "positions")}
        window["targets"][:] = IGNORE
        at, first, last = 0, self._starts[index], self._starts[index + 1]
        for number, record in enumerate(range(first, last)):
            begin, answer, end = self._begins[record], self._encoded.answers[record], self._encoded.ends[record]
            tokens = self._encoded.tokens[begin:end]
            places = slice(at, at + len(tokens) - 1)
            window["inputs"][places] = tokens[:-1]
            window["targets"][places.start + answer - begin - 1 : places.stop] = tokens[answer - begin :]
            window["segments"][places] = number
            window["positions"][places] = np.arange(len(tokens) - 1)
            at = places.stop
        window["segments"][at:] = last - first
        return window
