"""``python -m parity_tests``: every comparison as a table; exit status 1 if anything diverges."""

import dataclasses
import importlib.util
import itertools
import sys
from collections.abc import Iterable

import jax

from mhc_jax.config import ConfigError
from parity_tests import report
from parity_tests.compare import Case, Row, first_divergence, judge
from train.storage.outputs import check_file
from train.terminal import cli
from train.terminal.flags import Plugins


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compare JAX with PyTorch, both against a float64 run.

    Without flags: all cases of all tiers, the golden numbers, and the seeded faults.

    Attributes:
        checkpoint: run directory or exported folder to certify instead.
        golden: whether to replay only the golden numbers, which needs no PyTorch and runs on any device.
        matrix: whether to run only every topology with every mixer, which takes half an hour, and print the table.
        only: topologies and mixers of the matrix to walk.
        json: file that also receives the rows.
        plugins: modules to import first, one or several; they may register parts and add cases
            (``parity_tests.cases.add``).
    """

    checkpoint: str = ""
    golden: bool = False
    matrix: bool = False
    only: tuple[str, ...] = ()
    json: str = ""
    plugins: Plugins = ()


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, cli.plugins_apart(argv), prog="python -m parity_tests")
    if flags.only and not flags.matrix:
        raise ConfigError("--only chooses among the cells of --matrix; give that too")
    if bool(flags.checkpoint) + flags.golden + flags.matrix > 1:
        raise ConfigError("--checkpoint, --golden and --matrix exclude each other")
    if not flags.golden and importlib.util.find_spec("torch") is None:
        raise ConfigError("the comparison needs PyTorch: pip install --editable '.[test]'; --golden does not")
    file = check_file("--json", flags.json) if flags.json else None
    if not flags.golden:
        jax.config.update("jax_platforms", "cpu")  # two frameworks are compared on one device
    for name in flags.plugins:
        cli.load_plugin(name)
    if flags.matrix:
        _matrix(flags.only)
        return
    rows, faults = _run(flags)
    print(report.summary(rows))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(report.to_json(rows, faults=[dataclasses.asdict(fault) for fault in faults]), encoding="utf-8")
    diverging, survivors = first_divergence(rows), [fault.fault for fault in faults if not fault.caught]
    if diverging:
        print(f"first divergence: {diverging.tier}: {diverging.case}: {diverging.tap}: {diverging.fault}")
    if survivors:
        print(f"faults that nothing caught: {', '.join(survivors)}")
    if diverging or survivors:
        sys.exit(1)
    print(f"all {len(rows)} tensors agree")


def _run(flags: Flags) -> tuple[list[Row], list]:
    """Rows, printed as they come, and the outcomes of the seeded faults."""
    from parity_tests import replays

    if flags.golden:
        return _print(replays.rows()), []
    if flags.checkpoint:
        from parity_tests.certify import certify

        return _judge(certify(flags.checkpoint)), []
    from parity_tests import cases, faults, mutations

    rows = _judge(cases.everything()) + _print(replays.rows())
    outcomes = []
    print("", mutations.HEADING, sep="\n", flush=True)
    for mutation in faults.mutations():
        outcomes.append(mutations.run(mutation))
        print(mutations.line(outcomes[-1]), flush=True)
    print(mutations.kill_rate(outcomes), "", sep="\n")
    return rows, outcomes


def _matrix(only: tuple[str, ...]) -> None:
    from parity_tests import matrix

    faults, count = [], 0
    wanted = matrix.names(only)
    matrix.check_twins(wanted)
    print(matrix.heading(list(dict.fromkeys(mixer for _, mixer in wanted))), flush=True)
    for _, names in itertools.groupby(wanted, key=lambda name: name[0]):
        cells = [matrix.walk(*name) for name in names]
        print(matrix.row(cells), flush=True)
        faults += [f"{cell.topology} with {cell.mixer}: {fault}" for cell in cells for fault in cell.faults]
        count += len(cells)
    if faults:
        print(*faults, sep="\n")
        sys.exit(1)
    agree = "the one cell agrees" if count == 1 else f"all {count} cells agree"
    print(f"\n{agree}; numbers: largest error of JAX over PyTorch's own")


def _judge(cases: Iterable[Case]) -> list[Row]:
    """The rows of all cases; each comparison is announced before it is computed."""
    rows: list[Row] = []
    for case in cases:
        print(report.heading(case.tier, case.name), flush=True)
        found = judge(case)
        print(*map(report.line, found), sep="\n", flush=True)
        rows += found
    return rows


def _print(rows: list[Row]) -> list[Row]:
    print(report.table(rows), flush=True)
    return rows


if __name__ == "__main__":
    cli.run(main)
