"""The judge itself: what passes, what does not, and where it says the fault lies."""

import json

import numpy as np
import pytest

from parity_tests import report
from parity_tests.compare import Case, error, failures, first_divergence, judge, ulp

TRUTH = np.array([1.0, -2.0, 3.0])


def case(jax=None, torch=None, **values):
    """A case whose PyTorch is exact but for a rounding, and whose JAX returns what is given."""
    exact = {"forward a": TRUTH, "forward b": 2 * TRUTH}
    jax = exact | {name.replace("_", " "): x for name, x in values.items()} if jax is None else jax

    def run_torch(dtype, sample):
        return {name: x.astype(dtype) * (1 + np.float32(1e-6) * (dtype == "float32")) for name, x in exact.items()}

    return Case("models", "x", lambda dtype: {name: x.astype(dtype) for name, x in jax.items()}, run_torch)


def test_equal_passes():
    assert failures(judge(case())) == []


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (TRUTH * (1 + 1e-5), "float64 error"),
        (TRUTH[:2], "shape"),
        (np.array([1.0, np.nan, 3.0]), "NaN"),
        (np.array([1.0, -np.inf, 3.0]), "-Inf"),
        (np.zeros(3), "zero everywhere"),
    ],
)
def test_faults_are_named(value, fault):
    (row,) = failures(judge(case(forward_a=value)))
    assert row.tap == "forward a"
    assert fault in row.fault


def test_missing_and_stray_tensors_are_faults():
    rows = judge(case(jax={"forward a": TRUTH, "forward c": TRUTH}))
    assert {row.tap: row.fault for row in failures(rows)} == {
        "forward b": "JAX lacks this tensor",
        "forward c": "only JAX has it, the twin does not",
    }


def test_the_wrong_dtype_is_a_fault():
    x = case()
    wrong = Case("models", "x", lambda dtype: x.jax("float32"), x.torch)
    assert "JAX computed in float32" in judge(wrong)[0].fault


def test_float32_may_be_four_times_as_far_as_torch():
    def rows(distance):
        x = case()
        off = {"float32": 1 + distance, "float64": 1.0}
        return judge(Case("models", "x", lambda dtype: {n: v * off[dtype] for n, v in x.jax(dtype).items()}, x.torch))

    assert failures(rows(np.float32(3.5e-6))) == []
    assert len(failures(rows(np.float32(5e-6)))) == 2


def test_float32_may_be_as_far_as_its_own_float64_foretells():
    def rows(float64):
        x = case()
        off = {"float32": 1 + np.float32(2e-5), "float64": 1 + float64}
        return judge(Case("models", "x", lambda dtype: {n: v * off[dtype] for n, v in x.jax(dtype).items()}, x.torch))

    assert failures(rows(1e-14)) == []  # 2^29 times 1e-14 is 5e-6
    assert len(failures(rows(5e-15))) == 2


def test_the_first_divergence_comes_first():
    rows = judge(case(forward_a=TRUTH + 1, forward_b=TRUTH))
    first = first_divergence(rows)
    assert first is not None
    assert first.tap == "forward a"
    assert first_divergence(judge(case())) is None


def test_measures():
    assert error(TRUTH, TRUTH) == 0
    assert error(2 * TRUTH, TRUTH) == pytest.approx(1)
    assert error(TRUTH, 0 * TRUTH) == np.inf
    assert ulp(np.float32([4, 4.000001]), np.array([4.0, 4.0])) == pytest.approx(2, abs=0.2)


def test_a_gradient_that_vanishes_is_measured_beside_the_largest():
    def rows(**noise):
        exact = {"gradient a": TRUTH, "gradient b": 1e-17 * TRUTH}

        def run_torch(dtype, sample):
            return {name: x.astype(dtype) * (1 + np.float32(1e-6) * (dtype == "float32")) for name, x in exact.items()}

        def run_jax(dtype):
            return {"gradient a": TRUTH.astype(dtype), "gradient b": np.full(3, noise[dtype], dtype)}

        return judge(Case("models", "x", run_jax, run_torch))

    assert failures(rows(float32=1e-8, float64=1e-17)) == []
    assert failures(rows(float32=1e-8, float64=0.0)) == []
    assert [row.tap for row in failures(rows(float32=1e-8, float64=1e-3))] == ["gradient b"]
    assert [row.tap for row in failures(rows(float32=1e-3, float64=0.0))] == ["gradient b"]


def test_report():
    rows = judge(case(forward_a=TRUTH + 1))
    text = report.table(rows)
    assert "models: x" in text
    assert "FAIL float64 error" in text
    assert text.splitlines()[-1].endswith("ok")
    assert "models" in report.summary(rows)
    assert [row["tap"] for row in json.loads(report.to_json(rows))["rows"]] == ["forward a", "forward b"]
