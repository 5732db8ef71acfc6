"""Cases, rows and verdicts: the error of each framework, tensor by tensor."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np

from parity_tests import tolerances

DType = Literal["float32", "float64"]
Values = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One computation, written in both frameworks.

    Attributes:
        tier: key of ``tolerances.FLOAT64``.
        name: unique within its tier.
        jax: runs the computation in a dtype and names its results.
        torch: the same, in order of execution; sample 0 has JAX's inputs, the others inputs that are moved by a
            rounding (:func:`parity_tests.frameworks.jitter`).
        truth: reference values for the inputs of a sample; PyTorch in float64 if omitted.
        dtypes: dtypes in which JAX is judged.
        covers: parts and ops that the case exercises, as ``"axis:kind"`` or ``"op:name"``.
    """

    tier: str
    name: str
    jax: Callable[[DType], Values]
    torch: Callable[[DType, int], Values]
    truth: Callable[[int], Values] | None = None
    dtypes: tuple[DType, ...] = ("float64", "float32")
    covers: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Row:
    """The comparison of one tensor.

    Attributes:
        err_jax: relative L2 distance of JAX's float32 result from the truth; NaN if not judged.
        err_torch: the largest such distance of PyTorch, over the samples.
        ratio: ratio of the two.
        ulp: largest distance of JAX's float32 result from the truth, in units in the last place of the largest entry.
        err_float64: relative L2 distance of JAX's float64 result from the truth.
        fault: description of the fault; empty if the tensor passes.
    """

    tier: str
    case: str
    tap: str
    shape: tuple[int, ...]
    err_jax: float = math.nan
    err_torch: float = math.nan
    ratio: float = math.nan
    ulp: float = math.nan
    err_float64: float = math.nan
    fault: str = ""


def error(x: np.ndarray, truth: np.ndarray, scale: float = 0.0) -> float:
    """``|x - truth| / |truth|`` over the finite entries of the truth; 0 / 0 is 0.

    Beside ``scale`` a truth may be nothing but rounding (the gradient of a key's bias, of the mixing of equal streams):
    then the distance is taken relative to ``scale``.
    """
    finite = np.isfinite(truth)
    distance, size = (float(np.linalg.norm(z[finite].ravel())) for z in (np.asarray(x, np.float64) - truth, truth))
    if distance == 0:
        return 0.0
    size = scale if vanishes(truth, scale) else size
    return distance / size if size else math.inf


def vanishes(truth: np.ndarray, scale: float) -> bool:
    """Whether the truth is only rounding relative to ``scale``."""
    return float(np.linalg.norm(truth[np.isfinite(truth)])) <= tolerances.VANISHING * scale


def scales(truth: Values) -> dict[str, float]:
    """The scale of a vanishing tensor: for gradients the largest gradient, for all else none."""
    largest = max((float(np.linalg.norm(x)) for name, x in truth.items() if name.startswith("gradient")), default=0.0)
    return {name: largest if name.startswith("gradient") else 0.0 for name in truth}


def ulp(x: np.ndarray, truth: np.ndarray) -> float:
    """Largest distance in float32 units in the last place of the largest finite entry of the truth."""
    finite = np.isfinite(truth)
    if not finite.any():
        return 0.0
    largest = np.abs(truth[finite]).max()
    if largest == 0:
        return float(np.abs(x[finite]).max() > 0) and math.inf
    return float(np.abs(np.asarray(x, np.float64) - truth)[finite].max() / np.spacing(np.float32(largest)))


def judge(case: Case, dtypes: tuple[DType, ...] | None = None) -> list[Row]:
    """One row for every name of JAX's that has no partner, and for every tensor of the truth, in order of execution.

    Args:
        dtypes: judges only these of the case's.
    """
    judged = dtypes or case.dtypes
    jax = {dtype: case.jax(dtype) for dtype in judged}
    rows = _rows(case, jax, tolerances.SAMPLES)
    if any(tolerances.RATIO < row.ratio <= tolerances.RATIO**2 for row in failures(rows)):
        return _rows(case, jax, tolerances.MORE_SAMPLES)
    return rows


def _rows(case: Case, jax: dict[DType, Values], samples: int) -> list[Row]:
    truth, err_torch = _torch(case, samples)
    rows = []
    for name, scale in scales(truth).items():
        exact = truth[name]
        row = Row(case.tier, case.name, name, exact.shape, err_torch=err_torch.get(name, math.nan))
        fault = next(filter(None, (_mismatch(jax[dtype].get(name), exact, dtype, scale) for dtype in jax)), "")
        if not fault:
            row = _measure(row, {dtype: values[name] for dtype, values in jax.items()}, exact, scale)
            fault = _verdict(row)
        rows.append(dataclasses.replace(row, fault=fault))
    strays = sorted({name for values in jax.values() for name in values} - set(truth))
    return [Row(case.tier, case.name, name, (), fault="only JAX has it, the twin does not") for name in strays] + rows


def _torch(case: Case, samples: int) -> tuple[Values, dict[str, float]]:
    """The truth, and PyTorch's own float32 error for every tensor if float32 is judged: the largest of the samples."""
    exact = case.truth or (lambda sample: case.torch("float64", sample))
    truth = exact(0)
    largest: dict[str, float] = {}
    for sample in range(samples if "float32" in case.dtypes else 0):
        values, truths = case.torch("float32", sample), exact(sample) if sample else truth
        for name, scale in scales(truths).items():
            largest[name] = max(largest.get(name, 0.0), error(values[name], truths[name], scale))
    return truth, largest


def _measure(row: Row, jax: Values, truth: np.ndarray, scale: float) -> Row:
    if "float64" in jax:
        row = dataclasses.replace(row, err_float64=error(jax["float64"], truth, scale))
    if "float32" in jax:
        err_jax = error(jax["float32"], truth, scale)
        ratio = 1.0 if err_jax == row.err_torch else err_jax / row.err_torch if row.err_torch else math.inf
        units = math.nan if vanishes(truth, scale) else ulp(jax["float32"], truth)
        row = dataclasses.replace(row, err_jax=err_jax, ratio=ratio, ulp=units)
    return row


def _verdict(row: Row) -> str:
    faults = []
    if not math.isnan(row.err_float64):
        # Where sums cancel, PyTorch's float32 error shows how much rounding is amplified.
        cancelled = 0.0 if math.isnan(row.err_torch) else row.err_torch * tolerances.FLOAT64_PER_FLOAT32
        bound = max(tolerances.FLOAT64[row.tier], tolerances.BOTH_ROUND * tolerances.RATIO * cancelled)
        if not row.err_float64 <= bound:
            faults.append(f"float64 error {row.err_float64:.1e} > {bound:.0e}")
    if not math.isnan(row.err_jax):
        rounding = tolerances.FEW_ULP * float(np.finfo(np.float32).eps)
        # The same program in float64, whose errors are bounded above, shows how much its own rounding is amplified.
        multiplied = 0.0 if math.isnan(row.err_float64) else row.err_float64 / tolerances.FLOAT64_PER_FLOAT32
        if not row.err_jax <= max(tolerances.RATIO * max(row.err_torch, multiplied), rounding):
            faults.append(f"float32 error {row.err_jax:.1e}, PyTorch's own {row.err_torch:.1e}")
    return "; ".join(faults)


def _mismatch(x: np.ndarray | None, truth: np.ndarray, dtype: DType, scale: float) -> str:
    """Faults found without measuring: presence, shape, dtype, and the places of NaN, infinities and zeros."""
    if x is None:
        return "JAX lacks this tensor"
    if x.shape != truth.shape:
        return f"JAX's shape is {x.shape}"
    if x.dtype != dtype:
        return f"JAX computed in {x.dtype}, asked for {dtype}"
    for what, mask in (("NaN", np.isnan), ("Inf", np.isposinf), ("-Inf", np.isneginf)):
        if not np.array_equal(mask(x), mask(truth)):
            return f"{what} stands elsewhere"
    if dtype == "float64" and truth.any() != x.any() and not vanishes(truth, scale):
        return "one of the two is zero everywhere"
    return ""


def failures(rows: Iterable[Row]) -> list[Row]:
    """The rows that do not pass."""
    return [row for row in rows if row.fault]


def first_divergence(rows: Iterable[Row]) -> Row | None:
    """The first tensor in order of execution that diverges: everything before it is equal, so the fault lies there."""
    return next((row for row in rows if row.fault), None)
