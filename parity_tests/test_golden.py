"""The original's own numbers, replayed in JAX without PyTorch."""

import subprocess
import sys

import pytest

from parity_tests import report
from parity_tests.compare import failures
from parity_tests.replays import distillation, hyper_connections, mhc_ssm, rlm, shc, shc_student


def quickly(cases, *names):
    """Cases by name, all but ``names`` among the slow tests."""
    return [pytest.param(x, id=name, marks=[] if name in names else pytest.mark.slow) for name, x in cases.items()]


@pytest.mark.parametrize("case", quickly(mhc_ssm.CASES, "S3_static_n4", "S6_adapters_r8_ln_div0.1"))
def test_golden_mhc_ssm(case):
    rows = mhc_ssm.replay(case)
    assert sum(row.tap.startswith("gradient") for row in rows) >= 25
    assert not failures(rows), report.table(failures(rows))


def test_golden_mhc_ssm_units():
    rows = list(mhc_ssm.replay_units())
    assert not failures(rows), report.table(failures(rows))


SITES = {name: case for name, case in hyper_connections.load()["cases"].items() if "config" in case}
# One of every kind of site.
KINDS = "tb/hc", "tb/mhc_ortho", "luc/mhc_v1_log_domain", "hf/ds4_site", "hf/hy4_site"


@pytest.mark.parametrize("site", quickly({name: (name, case) for name, case in SITES.items()}, *KINDS))
def test_golden_sites(site):
    rows = hyper_connections.replay(*site)
    assert sum(row.tap.startswith("gradient") for row in rows) >= 3
    assert not failures(rows), report.table(failures(rows))


def test_golden_projections():
    rows = list(hyper_connections.replay_projections(hyper_connections.load()["projections"]))
    assert len(rows) >= 13
    assert not failures(rows), report.table(failures(rows))


@pytest.mark.parametrize("case", quickly(rlm.CASES, "R1_mhc"))
def test_golden_rlm(case):
    rows = rlm.replay(case)
    assert case.padded or sum(row.tap.startswith("gradient") for row in rows) >= 14
    assert not failures(rows), report.table(failures(rows))


@pytest.mark.parametrize("replay", [rlm.replay_units, pytest.param(rlm.replay_generation, marks=pytest.mark.slow)])
def test_golden_rlm_units(replay):
    rows = list(replay())
    assert not failures(rows), report.table(failures(rows))


@pytest.mark.parametrize("name", quickly({name: name for name in shc.MODELS}, "lm_bypass"))
def test_golden_shc(name):
    rows = shc.replay(name)
    assert sum(row.tap.startswith("gradient") for row in rows) >= 58
    assert not failures(rows), report.table(failures(rows))


@pytest.mark.parametrize(
    ("replay", "count"),
    [
        (shc.replay_units, 41),
        pytest.param(shc.replay_blocks, 14, marks=pytest.mark.slow),
        (shc_student.replay_layer, 6),
        (shc_student.replay_model, 27),
        (distillation.rows, 5),
    ],
)
def test_golden_shc_units(replay, count):
    rows = replay()
    assert len(rows) == count
    assert not failures(rows), report.table(failures(rows))


@pytest.mark.slow
def test_replay_needs_no_torch():
    modules = "parity_tests.replays.hyper_connections, parity_tests.replays.shc, parity_tests.__main__"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
