"""Tokens that runs of studies took to given validation losses: ``python benchmarks/tokens_to_loss.py STUDY.json ...``.

Of every row the runs at its best rate. Between two evaluations the loss is taken as a straight line; a run that never
gets there leaves its row without a number.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from train.storage.folder import METRICS_FILE, read_metrics
from train.study.plan import Job
from train.terminal.table import markdown

LOSSES = (3.0, 2.9, 2.8, 2.7)


def tokens_to(loss: float, run: Path) -> float | None:
    """Training tokens of the run when its validation loss first was that low."""
    lines = read_metrics(run / METRICS_FILE)
    curve = [(line["total_tokens"], line["val_loss"]) for line in lines if "val_loss" in line]
    for (tokens, above), (later, below) in itertools.pairwise(curve):
        if below <= loss < above:
            return tokens + (later - tokens) * (above - loss) / (above - below)
    return None


def row(file: Path, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: the study, its row and rate, and mean and deviation over seeds for each loss."""
    runs = [Job(found["row"], found["rate"], int(seed)).folder(file.parent) for seed in found["seeds"]]
    cells = {"study": file.parent.name, "row": found["row"], "rate": f"{found['rate']:g}"}
    for loss in LOSSES:
        tokens = [tokens_to(loss, run) for run in runs]
        reached = [x for x in tokens if x is not None]
        whole = len(reached) == len(runs)
        cells[f"{loss}"] = f"{statistics.mean(reached):,.0f} ± {statistics.stdev(reached):,.0f}" if whole else ""
    finals = [seed["val_loss"] for seed in found["seeds"].values()]
    return cells | {"end": f"{statistics.mean(finals):.4f} ± {statistics.stdev(finals):.4f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY.json")
    given = parser.parse_args()
    print(markdown([row(file, found) for file in given.studies for found in json.loads(file.read_text())["rows"]]))


if __name__ == "__main__":
    main()
