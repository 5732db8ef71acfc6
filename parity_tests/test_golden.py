"""The original's own numbers, replayed in JAX without PyTorch."""

import subprocess
import sys

import pytest

from parity_tests import report
from parity_tests.compare import failures
from parity_tests.replays import distillation, hyper_connections, mhc_ssm, rlm, shc, shc_student


@pytest.mark.parametrize("case", mhc_ssm.CASES.values(), ids=mhc_ssm.CASES)
def test_golden_mhc_ssm(case):
    rows = mhc_ssm.replay(case)
    assert sum(row.tap.startswith("gradient") for row in rows) >= 25
    assert not failures(rows), report.table(failures(rows))


def test_golden_mhc_ssm_units():
    rows = list(mhc_ssm.replay_units())
    assert not failures(rows), report.table(failures(rows))


SITES = {name: case for name, case in hyper_connections.load()["cases"].items() if "config" in case}


def two_sources(name):
    """Whether a second published code base gave the same numbers for the same site."""
    return name.startswith("luc/") and f"tb/{name.removeprefix('luc/')}" in SITES


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if two_sources(name) else []) for name in SITES]
)
def test_golden_sites(name):
    rows = hyper_connections.replay(name, SITES[name])
    assert sum(row.tap.startswith("gradient") for row in rows) >= 3
    assert not failures(rows), report.table(failures(rows))


def test_golden_projections():
    rows = list(hyper_connections.replay_projections(hyper_connections.load()["projections"]))
    assert len(rows) >= 13
    assert not failures(rows), report.table(failures(rows))


@pytest.mark.parametrize("case", rlm.CASES.values(), ids=rlm.CASES)
def test_golden_rlm(case):
    rows = rlm.replay(case)
    assert case.padded or sum(row.tap.startswith("gradient") for row in rows) >= 14
    assert not failures(rows), report.table(failures(rows))


@pytest.mark.parametrize("replay", [rlm.replay_units, rlm.replay_generation])
def test_golden_rlm_units(replay):
    rows = list(replay())
    assert not failures(rows), report.table(failures(rows))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "lm_untied" else []) for name in shc.MODELS]
)
def test_golden_shc(name):
    rows = shc.replay(name)
    assert sum(row.tap.startswith("gradient") for row in rows) >= 58
    assert not failures(rows), report.table(failures(rows))


@pytest.mark.parametrize(
    ("replay", "count"),
    [
        (shc.replay_units, 41),
        (shc.replay_blocks, 14),
        (shc_student.replay_layer, 6),
        (shc_student.replay_model, 27),
        (distillation.rows, 5),
    ],
)
def test_golden_shc_units(replay, count):
    rows = replay()
    assert len(rows) == count
    assert not failures(rows), report.table(failures(rows))


def test_replay_needs_no_torch():
    modules = "parity_tests.replays.hyper_connections, parity_tests.replays.shc, parity_tests.__main__"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
