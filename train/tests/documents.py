"""What the pages of the project tell a reader to run: commands, and blocks of Python."""

import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from train.study.plan import MATCHED

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# In prose: what begins as a command does, after the variables that it sets.
INLINE = re.compile(r"`((?:[A-Z_]+=(?:\"[^\"]*\"|\S*)\s+)*(?:python -m|make|benchmarks/\w+\.sh)\s[^`]+)`")
# In place of python: writes down how it was called, at once, because scripts call it several times in parallel.
RECORDER = '#!/bin/sh\nprintf "%s\\0" "$@" "{end}" >> "$CALLS"\n'
END = "end of the call"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language; ``""`` for those that name none, which hold commands."""
    return [text for name, text in FENCED.findall(page.read_text(encoding="utf-8")) if name == language]


def sessions(page: Path, *, fenced_only: bool = False) -> list[list[str]]:
    """What a reader types, without comments: the lines of each block of commands, and each command in the text."""
    shown = [block.splitlines() for block in blocks(page, "")]
    if not fenced_only:
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        shown += [[" ".join(found.split())] for found in INLINE.findall(text)]
    return [[shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()] for lines in shown]


def recipes() -> list[str]:
    """The commands in Python of the Makefile."""
    found = re.findall(
        r"^\t\$\([\w-]+\)(?:-aot)?/(?:bin/)?(python -m .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    return [line.replace("$(WORKERS)", "2") for line in found]


def split(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables that a command sets, and its words without what only stands for more of the same."""
    words = [word for word in shlex.split(command) if word != "..."]
    count = next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def calls(script: list[str], environment: dict[str, str], folder: Path) -> Iterator[str]:
    """The commands in Python that a shell script gives; nothing of them runs."""
    recorder, log = folder / "recorder", folder / "calls"
    recorder.write_text(RECORDER.format(end=END))
    recorder.chmod(0o755)
    settings = os.environ | environment | {"PYTHON": str(recorder), "CALLS": str(log)}
    subprocess.run(["bash", str(ROOT / script[0]), *script[1:]], env=settings, cwd=folder, check=True, timeout=60)
    for call in log.read_text().split(f"{END}\0")[:-1]:
        words = call.split("\0")[:-1]
        if words[0] != "-m":  # a script of benchmarks/, which reads what the commands before it have written
            continue
        yield shlex.join(["python", *words])
        # A study passes flags on, to a run of each of its rows.
        for flags in (word.removeprefix("--train-flags=") for word in words if word.startswith("--train-flags=")):
            start = [*words, "--topologies"].index("--topologies") + 1
            rows = {*itertools.takewhile(lambda word: word[:2] != "--", words[start:])} - {MATCHED}
            yield from (f"python -m train {words[2]}@{row} {flags}" for row in sorted(rows))
    log.unlink()
