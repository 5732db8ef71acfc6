"""The original's own numbers, replayed in JAX without PyTorch."""

import subprocess
import sys

import pytest

from parity_tests import replay, report
from parity_tests.compare import failures


@pytest.mark.parametrize("case", replay.CASES.values(), ids=replay.CASES)
def test_golden(case):
    rows = replay.replay(case)
    assert sum(row.tap.startswith("gradient") for row in rows) >= 25
    assert not failures(rows), report.table(failures(rows))


def test_golden_units():
    rows = list(replay.replay_units())
    assert not failures(rows), report.table(failures(rows))


def test_replay_needs_no_torch():
    code = "import sys, parity_tests.replay, parity_tests.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
