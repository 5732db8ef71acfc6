"""The original's own numbers, replayed in JAX without PyTorch."""

import subprocess
import sys

import pytest

from parity_tests import replay, replay_mixing, report
from parity_tests.compare import failures


@pytest.mark.parametrize("case", replay.CASES.values(), ids=replay.CASES)
def test_golden(case):
    rows = replay.replay(case)
    assert sum(row.tap.startswith("gradient") for row in rows) >= 25
    assert not failures(rows), report.table(failures(rows))


def test_golden_units():
    rows = list(replay.replay_units())
    assert not failures(rows), report.table(failures(rows))


SITES = {name: case for name, case in replay_mixing.load()["cases"].items() if "config" in case}


@pytest.mark.parametrize("name", SITES)
def test_golden_sites(name):
    rows = replay_mixing.replay(name, SITES[name])
    assert sum(row.tap.startswith("gradient") for row in rows) >= 3
    assert not failures(rows), report.table(failures(rows))


def test_golden_projections():
    rows = list(replay_mixing.replay_projections(replay_mixing.load()["projections"]))
    assert len(rows) >= 13
    assert not failures(rows), report.table(failures(rows))


def test_replay_needs_no_torch():
    modules = "parity_tests.replay, parity_tests.replay_mixing, parity_tests.__main__"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
