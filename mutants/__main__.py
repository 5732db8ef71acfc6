"""``python -m mutants``: measures the suite where it has changed, runs a sample of mutants, prints who survived."""

import argparse
import itertools
import json
import runpy
import time
import tomllib
from pathlib import Path

from mutants.operators import Mutant
from mutants.sample import sample
from mutants.suite import digest, measure, test_files
from mutants.trial import Trial, copy_tree, preload

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent.toml")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--each", type=int, default=25, help="mutants of every area")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--budget", type=float, default=90, help="processor seconds of tests a mutant")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / ".mutants", help="what is known so far, to go on from")
    flags = parser.parse_args()
    runpy.run_path(str(ROOT / "conftest.py"))  # the environment of the tests, before jax is imported
    suite = measure(ROOT, flags.folder / "suite", flags.workers)
    drawn = sample(ROOT, flags.each, flags.seed)
    results = Results(flags.folder / "results.json")
    # In turns, so that a run that is stopped has measured all areas alike.
    turns = itertools.chain(*itertools.zip_longest(*drawn.values()))
    waiting = [mutant for mutant in turns if mutant and not results.known(mutant)]
    if waiting:
        run(waiting, suite, results, flags)
    print(table(drawn, results))


class Results:
    """Outcomes by mutant, kept in a file.

    A kill holds while the mutated file is the same, a survival while all tests are too.
    """

    def __init__(self, path: Path):
        self.path = path
        self.outcomes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.tests = digest(*test_files(ROOT))

    def known(self, mutant: Mutant) -> bool:
        known = self.outcomes.get(mutant.name, {})
        same_code = known.get("code") == digest(ROOT / mutant.file)
        return same_code and (known["killed"] or known["tests"] == self.tests)

    def add(self, mutant: Mutant, outcome: dict) -> None:
        self.outcomes[mutant.name] = {"code": digest(ROOT / mutant.file), "tests": self.tests} | outcome
        scratch = self.path.with_suffix(".new")
        scratch.write_text(json.dumps(self.outcomes, indent=1), encoding="utf-8")
        scratch.replace(self.path)


def run(waiting: list[Mutant], suite, results: Results, flags) -> None:
    """All of ``waiting``, as many at a time as there are workers."""
    preload()
    trees = [flags.folder / f"tree{worker}" for worker in range(flags.workers)]
    for tree in trees:
        copy_tree(ROOT, tree)
    running: list[Trial] = []
    while waiting or running:
        while waiting and trees:
            mutant = waiting.pop(0)
            tests = {test: suite.seconds[test] for test in suite.watching(mutant, flags.budget)}
            if tests:
                running.append(Trial(mutant, trees.pop(), tests, flags.budget))
                running[-1].start()
            else:
                report(mutant, {"killed": False, "by": "no test executes its file"}, results, len(waiting))
        time.sleep(0.5)
        for trial in list(running):
            if outcome := trial.poll():
                trial.restore((ROOT / trial.mutant.file).read_text(encoding="utf-8"))
                running.remove(trial)
                trees.append(trial.tree)
                report(trial.mutant, outcome, results, len(waiting))


def report(mutant: Mutant, outcome: dict, results: Results, left: int) -> None:
    results.add(mutant, outcome)
    verdict = "killed  " if outcome["killed"] else "SURVIVED"
    print(f"{verdict} {mutant.name}  [{outcome['by']}] {outcome.get('seconds', 0)} s, {left} left", flush=True)


def equivalents() -> dict[tuple[str, str, str, str], str]:
    """Why a mutant changes nothing, by file, line of code, before and after."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["mutant"]
    return {(e["file"], e["line"], e["before"], e["after"]): e["reason"] for e in entries}


def table(drawn: dict[str, list[Mutant]], results: Results) -> str:
    """The rate of every area, and the survivors."""
    reasons, survivors = equivalents(), []
    lines = ["| area | mutants | equivalent | killed | rate |", "|---|---|---|---|---|"]
    for area, mutants in drawn.items():
        killed = same = 0
        for mutant in mutants:
            code = (ROOT / mutant.file).read_text(encoding="utf-8").splitlines()[mutant.line - 1].strip()
            reason = reasons.get((mutant.file, code, mutant.before, mutant.after))
            killed += (outcome := results.outcomes[mutant.name])["killed"]
            if not outcome["killed"]:
                same += reason is not None
                survivors.append(f"{mutant.name}  {outcome['by']}" + (f" (equivalent: {reason})" if reason else ""))
        rate = killed / max(1, len(mutants) - same)
        lines.append(f"| {area} | {len(mutants)} | {same} | {killed} | {rate:.0%} |")
    return "\n".join([*lines, "", *survivors])


if __name__ == "__main__":
    main()
