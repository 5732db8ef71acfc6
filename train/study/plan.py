"""The rows of a study, the runs that they take, and the command of each."""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mhc_jax.config import ConfigError
from mhc_jax.functional import parameter_count
from train.config import RunConfig
from train.loop.resolve import changed, resolve
from train.loop.typed import Typed, typed
from train.storage.folder import CONFIG_FILE, DIVERGED_FILE, METRICS_FILE, read_metrics, read_summary
from train.terminal import cli

# In the place of a topology: the plain model as large as the largest row with the same name.
MATCHED = "plain_matched"
# What SLURM says; a folder of the study, so that no row can be called so.
LOGS = "slurm"
# Flags of a run that the study gives.
OWN = ("--run-dir", "--train.seed", "--data.seed")


def rows_of(names: Sequence[str], topologies: Sequence[str]) -> tuple[Typed, ...]:
    """The rows: every name, or every name over each of the topologies.

    Args:
        names: see :func:`train.loop.typed.typed`.

    Raises:
        ConfigError: no row, or two with one label.
    """
    rows = [typed(words) for words in names]
    if topologies:
        if over := [row.name for row in rows if "@" in row.name]:
            raise ConfigError(f"{over[0]} has a topology of its own; leave out --topologies, or its @")
        rows = [
            Typed(topology if len(rows) == 1 else f"{row.label}@{topology}", f"{row.name}@{topology}", row.flags)
            for row in rows
            for topology in topologies
        ]
    labels = [row.label for row in rows]
    if not rows:
        raise ConfigError("name what to compare: python -m train.study NAME [NAME ...]; --list shows the names")
    if twice := next((row for row in rows if labels.count(row.label) > 1), None):
        raise ConfigError(f"{twice.label} is there twice; call one of them 'LABEL={twice.name}'")
    taken = (label == LOGS or "/" in label or label.startswith((".", "study.")) for label in labels)
    if bad := next(itertools.compress(labels, taken), None):
        raise ConfigError(f"the label {bad!r} cannot be the name of a folder of the study")
    return tuple(rows)


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run of the study.

    Attributes:
        row: label of its row.
        rate: learning rate.
        seed: of the parameters and of the order of the data.
    """

    row: str
    rate: float
    seed: int

    def folder(self, out: Path) -> Path:
        """The folder of the run."""
        return out / self.row / f"lr{self.rate:g}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a study.

    Attributes:
        out: folder of the study.
        rows: see :func:`rows_of`; all others are compared with the first.
        rates: learning rates that every row tries at the first seed; if empty, that of its configuration.
        seeds: seeds of the best rate.
        flags: of ``python -m train``, for every run; those of a row come after them.
        plugins: modules that every run imports.

    Raises:
        ConfigError: a row has an unknown name, topology or flag, or a rate or seed is wrong or is there twice.
    """

    out: Path
    rows: tuple[Typed, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    flags: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()

    def __post_init__(self):
        """Meets names, topologies, flags, rates and seeds before any run."""
        for flag in (*self.flags, *(flag for row in self.rows for flag in row.flags)):
            if (name := flag.partition("=")[0]) in OWN:
                raise ConfigError(f"{name} differs from run to run, and the study gives it; leave it out")
        for flag, values in (("--rates", [f"{rate:g}" for rate in self.rates]), ("--seeds", self.seeds)):
            if twice := [value for value in values if values.count(value) > 1]:
                raise ConfigError(f"{flag} has {twice[0]} twice; each run has a folder of its own")
        for config in self._configs.values():
            config.validate()
        first, *others = (Job(self.rows[0].label, self.rates_of(self.rows[0].label)[0], seed) for seed in self.seeds)
        for job in [*self.tried(first.row), *others]:
            self.run(job).validate()

    def check_begun(self) -> None:
        """Raises ConfigError if a run in the folder has other settings, and so belongs to another study."""
        labels = (row.label for row in self.rows)
        jobs = [Job(label, rate, seed) for label in labels for rate in self.rates_of(label) for seed in self.seeds]
        for job in jobs:
            folder = job.folder(self.out)
            begun = (folder / CONFIG_FILE).is_file()
            if begun and (found := changed(resolve(self.run(job)), "train.steps", "train.epochs")):
                raise ConfigError(
                    f"{folder} is of another study: {found}; give the same flags, or choose another --out"
                )

    @functools.cached_property
    def _by_label(self) -> dict[str, Typed]:
        return {row.label: self._matched(row) for row in self.rows}

    def run(self, job: Job) -> RunConfig:
        """The configuration of a run."""
        row = self._by_label[job.row]
        return dataclasses.replace(row, flags=(*row.flags, *self._own(job))).load(self.flags)

    def config(self, label: str) -> RunConfig:
        """The configuration of a row, its vocabulary and length open as they are."""
        return self._configs[label]

    @functools.cached_property
    def _configs(self) -> dict[str, RunConfig]:
        return {label: row.load(self.flags) for label, row in self._by_label.items()}

    def _matched(self, row: Typed) -> Typed:
        """The row itself, or the plain one with the flag that makes it as large as the largest other of its name."""
        base, _, topology = row.name.partition("@")
        if topology != MATCHED:
            return row
        plain = dataclasses.replace(row, name=f"{base}@plain")
        sizes = [
            parameter_count(other.load(self.flags).sized(1).model)
            for other in self.rows
            if other.name.partition("@")[0] == base and other.name != row.name
        ]
        if not sizes:
            raise ConfigError(f"{row.label} is as large as the largest other row of {base}, and there is none")
        hidden = matched_hidden(plain.load(self.flags).sized(1), max(sizes))
        return dataclasses.replace(plain, flags=(*row.flags, "--model.mlp.hidden", str(hidden)))

    def rates_of(self, label: str) -> tuple[float, ...]:
        """The learning rates that a row tries."""
        return self.rates or (self.config(label).optim.lr,)

    def tried(self, label: str) -> list[Job]:
        """The runs of a row by which its rate is chosen."""
        return [Job(label, rate, self.seeds[0]) for rate in self.rates_of(label)]

    def best(self, label: str) -> float | None:
        """The rate of least validation loss; None while that is unknown."""
        jobs = self.tried(label)
        if len(jobs) == 1:
            return jobs[0].rate
        losses = [(summary["val_loss"], job.rate) for job in jobs if (summary := self.summary(job))]
        return min(losses)[1] if len(losses) == len(jobs) else None

    def due(self) -> list[Job]:
        """The runs that can be started now and are not finished; none once the study is."""
        jobs = [job for row in self.rows for job in self.tried(row.label)]
        for row in self.rows:
            if (rate := self.best(row.label)) is not None:
                jobs += [Job(row.label, rate, seed) for seed in self.seeds[1:]]
        return [job for job in jobs if self.summary(job) is None]

    def summary(self, job: Job) -> dict[str, Any] | None:
        """What a finished run has found; its loss is infinite if it diverged."""
        folder = job.folder(self.out)
        return {"val_loss": math.inf} if (folder / DIVERGED_FILE).exists() else read_summary(folder)

    def command(self, job: Job) -> list[str]:
        """The arguments of ``python -m train`` that train the run, or continue it."""
        row = self._by_label[job.row]
        return ["-m", "train", row.name, *cli.importing(self.plugins), *self.flags, *row.flags, *self._own(job)]

    def _own(self, job: Job) -> list[str]:
        """The flags of one run alone."""
        seeds = ["--train.seed", str(job.seed), "--data.seed", str(job.seed)]
        return ["--run-dir", str(job.folder(self.out)), "--optim.lr", f"{job.rate!r}", *seeds, "--train.resume"]

    def records(self) -> list[dict[str, Any]]:
        """One record a row: the rates tried, the best, and the summaries at that rate by seed."""
        return [self._record(row.label) for row in self.rows]

    def _record(self, label: str) -> dict[str, Any]:
        best = self.best(label)
        assert best is not None
        seeds = {seed: self._found(Job(label, best, seed)) for seed in self.seeds}
        tried = {f"{job.rate:g}": (self.summary(job) or {}).get("val_loss") for job in self.tried(label)}
        return {"row": label, "rate": best, "tried": tried, "seeds": seeds}

    def _found(self, job: Job) -> dict[str, Any]:
        summary, lines = self.summary(job) or {}, self.metrics(job)
        reported = ("val_loss", "params", "tokens", "tokens_per_second", "seconds", "peak_bytes")
        counted = [line["tokens"] for line in lines if line.get("tokens")]
        scored = round(statistics.fmean(counted) * summary["steps"]) if counted and "steps" in summary else None
        return {**{key: summary.get(key) for key in reported}, "scored_tokens": scored}

    def metrics(self, job: Job) -> list[dict[str, Any]]:
        """What the run has logged."""
        return read_metrics(job.folder(self.out) / METRICS_FILE)


def matched_hidden(config: RunConfig, target: int) -> int:
    """The hidden width of the MLP at which the model has as nearly ``target`` parameters as can be.

    Raises:
        ConfigError: a model without MLP.
    """
    mlp = config.model.mlp
    if mlp is None:
        raise ConfigError(f"{MATCHED} widens the MLP, and {config.name} has none; leave it out of --topologies")

    def count(hidden: int) -> int:
        return parameter_count(config.model.replace(mlp=mlp.replace(hidden=hidden)))

    one, two = count(1), count(2)
    return max(1, round(1 + (target - one) / (two - one)))


def described(plan: Plan) -> dict[str, Any]:
    """The plan as ``study.json`` keeps it."""
    rows = [dataclasses.asdict(row) for row in plan.rows]
    return {**dataclasses.asdict(plan), "out": str(plan.out), "rows": rows}
