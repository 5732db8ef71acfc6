"""A controlled comparison of models: ``python -m train.study NAME [NAME ...] --out FOLDER``.

Every row trains on the same tokens with the same learning rates; the rate with the least validation loss at the first
seed is then trained with the other seeds. Finished runs are kept, so an interrupted study continues where it stopped.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mhc_jax.config import ConfigError
from train.__main__ import listing
from train.loop.typed import flags_in
from train.storage.outputs import check_folder, json_text
from train.study import local, report
from train.study import slurm as array_job
from train.study.plan import Plan, described, rows_of
from train.terminal import cli, interrupt
from train.terminal.flags import Plugins
from train.terminal.table import markdown, terminal


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compare models, or residual topologies under them, on the same data with the same budget.

    Attributes:
        plugins: modules to import first, here and in every run.
        names: rows: names of configurations, each perhaps with a topology and with flags of its own in one argument:
            "gla_170m@mhc --model.width 128"; "LABEL=NAME" gives one another name in tables and folders.
        out: folder of all runs, ``study.json``, ``study.md``, ``study.png`` and ``study.html``.
        topologies: residual topologies that every name is put over, one row each; ``plain_matched`` is the plain model
            with an MLP widened to the parameter count of the largest other row of that name.
        rates: learning rates tried at the first seed; if none is given, each row has that of its configuration.
        seeds: seeds of the initial parameters and of the order of the data.
        train_flags: flags of ``python -m train`` for every run, as in ``--train-flags="--train.steps 500"``.
        launch: whether runs are processes of this machine or an array job of SLURM. With SLURM the same command, given
            again when its jobs are done, submits what is then left, and at last writes the results.
        jobs: number of runs at a time on this machine.
        slurm: what a run asks of the cluster.
        list: whether to print what can be named, and nothing else.
        dry_run: whether to print every run and its command without training; the script of SLURM is written.
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME [NAME ...]")] = ()
    out: str = ""
    topologies: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    train_flags: str = ""
    launch: Literal["local", "slurm"] = "local"
    jobs: int = 1
    slurm: array_job.Slurm = array_job.Slurm()
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    plugins: Plugins = ()


def parse(argv: Sequence[str]) -> Flags:
    """The flags of the command. Raises ConfigError for a wrong one."""
    return cli.parse(Flags, argv, prog="python -m train.study", default=Flags())


def plan_of(flags: Flags) -> Plan:
    """The runs that the flags ask for.

    Raises:
        ConfigError: a flag without a value that it needs, or a row with an unknown name, topology or flag.
    """
    if not flags.seeds or flags.jobs < 1:
        raise ConfigError("--seeds needs at least one value, --jobs must be at least 1")
    rows = rows_of(flags.names, flags.topologies)
    if not flags.out:
        raise ConfigError("--out is missing: folder of all runs")
    check_folder("--out", flags.out)
    return Plan(Path(flags.out), rows, flags.rates, flags.seeds, flags_in(flags.train_flags), flags.plugins)


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = parse(argv)
    for plugin in flags.plugins:
        cli.load_plugin(plugin)
    if flags.list:
        print(listing())
        return
    plan, asked = plan_of(flags), flags.slurm.settled()
    plan.check_begun()
    if flags.dry_run:
        show(plan, asked if flags.launch == "slurm" else None)
        return
    if flags.launch == "slurm" and (due := plan.due()):
        array_job.check()
        said = array_job.submit(array_job.write(plan, due, asked))
        print(f"{said}: {len(due)} runs; the same command goes on when they are done")
        return
    if flags.launch == "local":
        with interrupt.advising("interrupted: what was trained is saved; the same command continues from here"):
            local.train_all(plan, flags.jobs)
    write(plan, title_of(plan, flags.names))


def title_of(plan: Plan, names: Sequence[str]) -> str:
    """The subject of pictures and page."""
    source = Path(plan.config(plan.rows[0].label).data.label).name
    what = plan.rows[0].name.partition("@")[0] if len(names) == 1 else f"{len(plan.rows)} models"
    return f"{what} on {source}, {len(plan.seeds)} seeds"


def show(plan: Plan, asked: array_job.Slurm | None) -> None:
    """Prints every run and its command; writes the script for SLURM if there is anything to submit."""
    rows, due = report.planned(plan), plan.due()
    print(terminal(rows), *(shlex.join(["python", *plan.command(job)]) for job in due), sep="\n\n")
    tokens = [row["tokens"] for row in rows]
    total = f"{sum(tokens):,} tokens" if all(tokens) else "as many tokens as their epochs have"
    later = 0 if len(plan.seeds) == 1 else sum(plan.best(row.label) is None for row in plan.rows)
    more = f"; then {len(plan.seeds) - 1} more seeds for the best rate of {later} rows" if later else ""
    print(f"\n{len(rows)} runs, {total}; {len(due)} to do{more}")
    if asked and due:
        print(f"Written to {array_job.write(plan, due, asked)}, not submitted")


def write(plan: Plan, title: str) -> None:
    """Writes and prints the results."""
    from train.report import figures

    records, out = plan.records(), plan.out
    rows = report.table(plan, records)
    notes = report.remarks(plan, rows)
    found = {"plan": described(plan), "rows": records, "notes": notes}
    (out / "study.json").write_text(json_text(found), encoding="utf-8")
    (out / "study.md").write_text("\n\n".join([markdown(rows), *notes]) + "\n", encoding="utf-8")
    figures.save_png(lambda: report.draw(plan, records, title), out / "study.png")
    (out / "study.html").write_text(report.page(plan, records, title), encoding="utf-8")
    print(terminal(rows), *notes, f"Differences drawn in {out / 'study.png'}; page: {out / 'study.html'}", sep="\n\n")


if __name__ == "__main__":
    cli.run(main)
