"""Data of evaluation tasks in local files, named as their authors released them, anywhere inside one folder."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mhc_jax.config import ConfigError

Row = dict[str, Any]
Reader = Callable[[Path, str], Iterator[Row]]


def _mmlu(path: Path, subject: str) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        for question, a, b, c, d, answer in csv.reader(file):
            yield {"question": question, "subject": subject, "choices": [a, b, c, d], "answer": [*"ABCD"].index(answer)}


def _bbh(path: Path, name: str) -> Iterator[Row]:
    for example in json.loads(path.read_bytes())["examples"]:
        yield {"input": example["input"], "target": example["target"]}


def _lines(path: Path, name: str) -> Iterator[Row]:
    for line in path.read_bytes().splitlines():
        if line.strip():
            yield json.loads(line)


def _arc(path: Path, name: str) -> Iterator[Row]:
    for row in _lines(path, name):
        question, choices = row["question"]["stem"], row["question"]["choices"]
        columns = {column: [choice[column] for choice in choices] for column in ("text", "label")}
        yield {"id": row["id"], "question": question, "choices": columns, "answerKey": row["answerKey"]}


def _wikitext(path: Path, name: str) -> Iterator[Row]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        lines = pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist()
    else:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for page in pages(lines):
        yield {"page": page}


def pages(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's articles: one begins at each line ``" = Title = "``."""
    page: list[str] = []
    for line in lines:
        if re.fullmatch(r" = [^=].*[^=] = \n?", line) and any(map(str.strip, page)):
            yield "".join(page)
            page = []
        page.append(line)
    if any(map(str.strip, page)):
        yield "".join(page)


# By the name of a data set on the Hub: how its files are read, and the ends of their paths by split, with the name of
# the subset in braces. Of several patterns the first that finds a file counts.
SOURCES: dict[str, tuple[Reader, dict[str, tuple[str, ...]]]] = {
    "mmlu": (_mmlu, {"dev": ("dev/{}_dev.csv",), "validation": ("val/{}_val.csv",), "test": ("test/{}_test.csv",)}),
    "bbh": (_bbh, {"test": ("bbh/{}.json",)}),
    "gsm8k": (_lines, {"train": ("gsm8k/train.jsonl",), "test": ("gsm8k/test.jsonl",)}),
    "hellaswag": (_lines, {"train": ("hellaswag_train.jsonl",), "validation": ("hellaswag_val.jsonl",)}),
    "lambada_openai": (_lines, {"test": ("lambada_test.jsonl", "lambada_test_en.jsonl")}),
    "ai2_arc": (_arc, {"train": ("{}-Train.jsonl",), "validation": ("{}-Dev.jsonl",), "test": ("{}-Test.jsonl",)}),
    "wikitext_document_level": (
        _wikitext,
        {split: (f"{{}}/{split}-*.parquet", f"wiki.{split}.raw") for split in ("train", "validation", "test")},
    ),
}


class LocalData:
    """The files in a folder.

    Raises:
        ConfigError: it is no folder.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise ConfigError(f"--data {folder} is no folder; give the one that holds the files of the tasks")
        self.folder = folder
        self._files = sorted(path for path in folder.rglob("*") if path.is_file())

    def load(self, data_set: str, subset: str | None) -> dict[str, list[Row]]:
        """Rows by split, with the columns of the Hub's data set; splits without a file are left out.

        Args:
            data_set: ``OWNER/NAME`` on the Hub.
            subset: of it.

        Raises:
            ConfigError: no file of any split, files that are damaged, or a data set whose files are not known here.
        """
        name = data_set.rpartition("/")[2]
        if name not in SOURCES:
            raise ConfigError(
                f"--data: files of the data set {data_set} are not known here, only those of {', '.join(SOURCES)}; "
                "without --data it comes from the Hub"
            )
        reader, patterns = SOURCES[name]
        found = {}
        for split, ends in patterns.items():
            path = self._find([end.format(subset) for end in ends])
            if path is not None:
                try:
                    found[split] = list(reader(path, str(subset)))
                except (ValueError, KeyError, TypeError, OSError, csv.Error) as error:
                    raise ConfigError(f"--data: {path} is not a file of {data_set} ({error})") from None
                if not found[split]:
                    raise ConfigError(f"--data: {path} is empty")
        if not found:
            wanted = " or ".join(end.format(subset) for ends in patterns.values() for end in ends)
            raise ConfigError(f"--data {self.folder} holds no {wanted}, the data of {data_set}")
        return found

    def _find(self, ends: Iterable[str]) -> Path | None:
        return next((path for end in ends for path in self._files if path.match(end)), None)
