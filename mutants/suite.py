"""The lines that each test executes, measured one test file at a time, and the tests that could see a mutant."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import coverage

from mutants.contexts import TIMES, VARIABLE
from mutants.operators import Mutant

FOLDERS = ("mhc_jax", "train", "configs", "parity_tests")  # torch_ref is not mutated
CONFIG = """[run]
source =
    {root}/mhc_jax
    {root}/train
omit = */tests/*
parallel = true
data_file = {folder}/coverage
context = ${{{variable}-}}
"""
FILE_SECONDS = 4.0  # of a processor, that collecting one more file costs

Lines = dict[str, dict[str, list[int]]]  # test -> file -> lines


def digest(*files: Path) -> str:
    """A digest of names and contents."""
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return sha.hexdigest()


def test_files(root: Path) -> list[Path]:
    """All test files that may see a mutant."""
    return sorted(file for folder in FOLDERS for file in (root / folder).rglob("test_*.py"))


class Suite:
    """The measurements of each test.

    Attributes:
        seconds: processor seconds, including its children's.
        lines: lines executed in its process and in those it started.
    """

    def __init__(self, records: list[dict]):
        self.seconds: dict[str, float] = {}
        self.lines: Lines = {}
        for record in records:
            passed = {test: time for test, time in record["seconds"].items() if test not in record["failed"]}
            self.seconds |= passed
            self.lines |= {test: record["lines"].get(test, {}) for test in passed}

    def watching(self, mutant: Mutant, budget: float) -> list[str]:
        """Tests that execute the line, then others of its file, the nearest and quickest first.

        A line that runs when its module is imported is executed by no test: those come first then that execute most of
        the file.
        """
        home = mutant.file.split("/")[0] + "/"
        ranked = sorted(
            (
                not (runs := mutant.line in lines),
                not test.startswith(home),
                not runs and -len(lines),
                self.seconds[test],
                test,
            )
            for test, files in self.lines.items()
            if (lines := files.get(mutant.file))
        )
        chosen, opened = [], set()
        for *_, seconds, test in ranked:
            file = test.split("::")[0]
            cost = seconds + FILE_SECONDS * (file not in opened)
            if cost <= budget or not chosen:
                chosen.append(test)
                opened.add(file)
                budget -= cost
        return chosen


def measure(root: Path, folder: Path, workers: int) -> Suite:
    """Runs every test file whose record in ``folder`` is missing or older than the code, and reads all records."""
    code = digest(*sorted(file for name in ("mhc_jax", "train") for file in (root / name).rglob("*.py")))
    with ThreadPoolExecutor(workers) as pool:
        return Suite(list(pool.map(lambda file: _record(root, folder, file, code), test_files(root))))


def _record(root: Path, folder: Path, file: Path, code: str) -> dict:
    name = str(file.relative_to(root))
    path = folder / (name.replace("/", ".") + ".json")
    current = digest(file) + code
    if path.exists() and (record := json.loads(path.read_text(encoding="utf-8")))["digest"] == current:
        return record
    print(f"measuring {name}", flush=True)
    work = folder / name.replace("/", ".")
    work.mkdir(parents=True, exist_ok=True)
    (work / "rc").write_text(CONFIG.format(root=root, folder=work, variable=VARIABLE), encoding="utf-8")
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": paths,
        "COVERAGE_PROCESS_START": f"{work}/rc",
        TIMES: f"{work}/times.json",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mutants.contexts", "-p", "no:cacheprovider", name]
    subprocess.run(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, check=False)
    found = json.loads((work / "times.json").read_text(encoding="utf-8"))
    record = found | {"digest": current, "lines": read_lines(root, work)}
    path.write_text(json.dumps(record), encoding="utf-8")
    shutil.rmtree(work)
    return record


def read_lines(root: Path, folder: Path) -> Lines:
    """Combines the records of the processes in ``folder``."""
    recorded = coverage.Coverage(data_file=str(folder / "coverage"))
    recorded.combine([str(folder)])
    data, lines = recorded.get_data(), {}
    for file in data.measured_files():
        for line, tests in data.contexts_by_lineno(file).items():
            for test in filter(None, tests):
                lines.setdefault(test, {}).setdefault(str(Path(file).relative_to(root)), []).append(line)
    return lines
