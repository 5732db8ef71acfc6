"""Tasks of data sets that are on disk, as JSON lines: OOLONG and both versions of LongBench."""

import ast
import datetime
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mhc_jax.config import ConfigError
from mhc_jax.rlm.tasks.task import Task

Record = Mapping[str, Any]
CHOICES = "ABCD"


def read(path: Path, limit: int | None = None) -> Iterator[Task]:
    """The tasks of a file of JSON lines, or of all such files of a folder, in the order of their names.

    Args:
        path: file, or folder with ``*.jsonl``.
        limit: largest number of tasks of each file.

    Raises:
        ConfigError: nothing to read, or a line that is no task; the message names file and line.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"{path} is neither a file nor a folder of JSON lines (*.jsonl)")
    for file in files:
        with file.open(encoding="utf-8") as lines:
            numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
            for (number, line), _ in zip(numbered, range(limit) if limit else iter(int, 1)):
                try:
                    yield _task(json.loads(line), file.stem)
                except (ValueError, TypeError, KeyError, SyntaxError) as error:
                    raise ConfigError(f"{file}, line {number}: {_fault(error)}") from error


def _fault(error: Exception) -> str:
    return f"the field {error} is missing" if isinstance(error, KeyError) else str(error)


def _task(record: Any, name: str) -> Task:
    if not isinstance(record, dict):
        raise ValueError("a line must be an object")
    for known, make in FORMATS.items():
        if known <= record.keys():
            return make(record, name)
    wanted = "; ".join(", ".join(sorted(known)) for known in FORMATS)
    raise ValueError(f"a record must have one of these sets of fields: {wanted}; it has {', '.join(record)}")


def _oolong(record: Record, name: str) -> Task:
    """OOLONG-synth; its answers are lists in Python's notation."""
    kind = str(record["answer_type"]).rsplit(".", 1)[-1].upper()
    answer = record["answer"]
    if isinstance(answer, str) and (day := re.search(r"datetime\.date\((\d+), (\d+), (\d+)\)", answer)):
        kind, answer = "DATE", datetime.date(*map(int, day.groups())).isoformat()
    elif isinstance(answer, str) and answer.startswith("["):
        answer = ast.literal_eval(answer)
    answers = answer if isinstance(answer, list) else [answer]
    scoring = {"NUMERIC": "count", "COMPARISON": "comparison", "DATE": "date"}.get(kind, "label")
    return Task(name, _text(record, "context_window_text"), _text(record, "question"), _texts(answers), scoring)


def _oolong_real(record: Record, name: str) -> Task:
    """OOLONG-real; its answers are a number, a name, or names between commas."""
    answer = str(record["answer"])
    scoring = "count" if answer.strip().isdecimal() else "f1" if "," in answer else "label"
    truth = tuple(answer.split(",")) if scoring == "f1" else (answer,)
    return Task(name, _text(record, "context_window_text"), _text(record, "question"), truth, scoring)


def _longbench(record: Record, name: str) -> Task:
    """LongBench: several answers, of which any counts."""
    return Task(name, _text(record, "context"), _text(record, "input"), _texts(record["answers"]), "words")


def _longbench_2(record: Record, name: str) -> Task:
    """LongBench v2: four choices."""
    choices = "\n".join(f"({letter}) {_text(record, f'choice_{letter}')}" for letter in CHOICES)
    question = f"{_text(record, 'question')}\n{choices}\nAnswer with the letter alone."
    if record["answer"] not in [*CHOICES]:
        raise ValueError(f"the field 'answer' must be one of {CHOICES}, not {record['answer']!r}")
    return Task(name, _text(record, "context"), question, (record["answer"],), "label")


def _own(record: Record, name: str) -> Task:
    """Anything else: one answer, or a list of which any counts."""
    answer = record["answer"]
    answers = answer if isinstance(answer, list) else [answer]
    return Task(name, _text(record, "context"), _text(record, "question"), _texts(answers), "words")


FORMATS: dict[frozenset[str], Callable[[Record, str], Task]] = {
    frozenset({"context_window_text", "question", "answer", "answer_type"}): _oolong,
    frozenset({"context_window_text", "question", "answer"}): _oolong_real,
    frozenset({"context", "input", "answers"}): _longbench,
    frozenset({"context", "question", "choice_A", "answer"}): _longbench_2,
    frozenset({"context", "question", "answer"}): _own,
}


def _text(record: Record, field: str) -> str:
    if not isinstance(record[field], str):
        raise ValueError(f"the field {field!r} must be a text, not {type(record[field]).__name__}")
    return record[field]


def _texts(answers: list[Any]) -> tuple[str, ...]:
    if not answers:
        raise ValueError("there is no answer")
    return tuple(map(str, answers))
