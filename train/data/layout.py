"""The files of each split in a folder or in a data set of the Hub, found as `datasets` finds them."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from mhc_jax.registry import did_you_mean
from train.data.errors import DataError
from train.data.text import KINDS, READABLE, kind_of

SPLITS = ("train", "validation", "test")
CARD = "README.md"

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORDS = {
    split: re.compile(f"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)") for split, words in _KEYWORDS.items()
}
_NO_TEXT = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "shards.json"}

Splits = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The user's request, and the spelling of its flags.

    Attributes:
        source: file, folder or data set.
        subset: one of those its card names, or a folder in it; empty for the only one, or the default.
        column: field that holds the text.
        flags: prefix of the flags.
    """

    source: str
    subset: str = ""
    column: str = "text"
    flags: str = "--data."

    def fault(self, text: str) -> DataError:
        """The error that says ``text`` of this source."""
        return DataError(f"{self.flags}source {self.source}: {text}")


def files_under(folder: Path) -> list[str]:
    """Paths inside ``folder`` of all files that are not hidden, sorted."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith((".", "__")) for part in path.parts))


def read_card(folder: Path) -> list[dict[str, Any]]:
    """The subsets that the card of a data set describes; none without a card.

    Raises:
        DataError: the card cannot be read.
    """
    from huggingface_hub.repocard import metadata_load

    card = folder / CARD
    if not card.is_file():
        return []
    try:
        found = metadata_load(card) or {}
    except Exception as error:  # any error that its YAML makes the parser raise
        raise DataError(f"{card} cannot be read ({str(error).splitlines()[0]})") from None
    subsets = found.get("configs")
    named = subsets if isinstance(subsets, list) else []
    return [entry for entry in named if isinstance(entry, dict) and isinstance(entry.get("config_name"), str)]


def find_splits(wanted: Wanted, names: Iterable[str], card: list[dict[str, Any]]) -> Splits:
    """The files of each split that there is, in order; all of one kind.

    Args:
        names: relative paths of all files.
        card: see :func:`read_card`.

    Raises:
        DataError: no such subset, several to choose from, a file in two splits, or none that can be read.
    """
    names = sorted(name for name in names if PurePosixPath(name).name not in _NO_TEXT)
    entry = _entry(wanted, names, card)
    if patterns := _patterns(wanted, entry):
        globs = {split: [_glob(pattern) for pattern in some] for split, some in patterns.items()}
        found = {split: [n for n in names if any(glob.fullmatch(n) for glob in some)] for split, some in globs.items()}
        splits = {split: some for split, some in found.items() if some}
    else:
        prefix = _prefix(wanted, entry)
        splits = _by_keyword(wanted, [name for name in names if name.startswith(prefix) and kind_of(name)], prefix)
    kinds = sorted({str(kind_of(name)) for some in splits.values() for name in some})
    if len(kinds) != 1 or kinds == ["None"]:
        suffixes = ", ".join(sorted({PurePosixPath(name).suffix for name in names}))[:200]
        found = " and ".join(kinds) if len(kinds) > 1 else suffixes or "nothing"
        raise wanted.fault(f"expected files of one kind, {READABLE}; found {found}")
    return splits


def wanted_patterns(wanted: Wanted, card: list[dict[str, Any]]) -> list[str]:
    """Patterns of `fnmatch` for at least the files that :func:`find_splits` will choose."""
    entry = _entry(wanted, None, card)
    patterns = [pattern for some in _patterns(wanted, entry).values() for pattern in some]
    if patterns:
        return sorted({form for pattern in patterns for form in (pattern, pattern.replace("**/", ""))})
    return [f"{_prefix(wanted, entry)}*{suffix}{end}" for suffix in KINDS for end in ("", ".gz", ".zst")]


def _entry(wanted: Wanted, names: list[str] | None, card: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The card's entry of the subset; None where files are found only by their names."""
    entries = {entry["config_name"]: entry for entry in card}
    known = ", ".join(entries)
    known = known if len(known) < 500 else f"{known[:500]} ..."
    if wanted.subset:
        if wanted.subset in entries:
            return entries[wanted.subset]
        if names is not None and not any(name.startswith(f"{wanted.subset.strip('/')}/") for name in names):
            raise wanted.fault(
                f"no subset {wanted.subset!r}{did_you_mean(wanted.subset, entries)}; "
                + (f"known: {known}" if entries else f"it has none; leave {wanted.flags}subset out")
            )
        return None
    default = next((entry for entry in card if entry.get("default") is True), entries.get("default"))
    if default is None and len(entries) > 1:
        raise wanted.fault(f"it has several subsets; choose one with {wanted.flags}subset: {known}")
    return default or next(iter(card), None)


def _prefix(wanted: Wanted, entry: dict[str, Any] | None) -> str:
    """The prefix of a subset's file names if no card gives patterns for it."""
    folder = str(entry.get("data_dir") or "") if entry else wanted.subset
    return f"{folder.strip('/')}/" if folder else ""


def _patterns(wanted: Wanted, entry: dict[str, Any] | None) -> dict[str, list[str]]:
    """Patterns of each split that an entry of a card names; none where it leaves that to the names of files."""
    files = (entry or {}).get("data_files")
    if not files:
        return {}
    pairs = [("train", files)]
    if isinstance(files, dict):
        pairs = list(files.items())
    elif isinstance(files, list) and all(isinstance(item, dict) for item in files):
        pairs = [(item.get("split"), item.get("path")) for item in files]
    found: dict[str, list[str]] = {}
    for split, paths in pairs:
        canonical = [name for name, words in _KEYWORDS.items() if split in words]
        some = [path for path in (paths if isinstance(paths, list) else [paths]) if isinstance(path, str)]
        if canonical and some:
            found.setdefault(canonical[0], []).extend(some)
    if not found:
        names = ", ".join(str(split) for split, _ in pairs)[:200]
        raise wanted.fault(f"none of its splits is named train, validation or test, but {names}")
    return found


_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _glob(pattern: str) -> re.Pattern[str]:
    """A glob pattern, whose ``**`` stands for any folders, as a regular expression."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(_WILD.get(part) or re.escape(part) for part in parts), re.DOTALL)


def _by_keyword(wanted: Wanted, names: list[str], prefix: str) -> Splits:
    """Splits by the words in the names of folders, else in those of files; all for training where no name has one."""
    for parts_of in (lambda path: path.parts[:-1], lambda path: path.parts[-1:]):
        splits: Splits = {}
        for name in names:
            parts = parts_of(PurePosixPath(name.removeprefix(prefix)))
            found = [split for split in SPLITS if any(_WORDS[split].search(part) for part in parts)]
            if len(found) > 1:
                raise wanted.fault(f"{name} names {' and '.join(found)}; rename it for one of them")
            if found:
                splits.setdefault(found[0], []).append(name)
        if splits:
            return splits
    return {"train": names} if names else {}
