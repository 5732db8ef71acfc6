"""Replays the original mHC-SSM's own numbers in JAX; works without PyTorch.

Parameters come from a deterministic fill of the original's names and enter through
``interop.from_original``, so names, layouts and mathematics are all under test.
"""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mhc_jax
from mhc_jax import interop
from mhc_jax.ops.diag_ssm import diag_ssm, pole
from mhc_jax.ops.loss import cross_entropy
from mhc_jax.ops.sinkhorn import sinkhorn_rows_then_columns
from parity_tests import tolerances
from parity_tests.compare import Row
from parity_tests.replays import base
from parity_tests.replays.base import row, summary

SYSTEM = "mhc_ssm"
VOCAB = 97


@dataclasses.dataclass(frozen=True)
class Golden:
    """One case of the original: its inputs, and the settings that its tensors do not show."""

    name: str
    hints: dict[str, Any] = dataclasses.field(default_factory=dict)
    time: int = 12
    diversity: float = 0.0
    ignored: int = 0


CASES = {
    case.name: case
    for case in (
        Golden("S1_baseline_rms_k3"),
        Golden("S2_baseline_ln_k4"),
        Golden("S3_static_n4"),
        Golden("S4_static_n3_it2_temp0.5_ln_k1", {"sinkhorn_iters": 2, "sinkhorn_temp": 0.5}),
        Golden("S5_adapters_r8"),
        Golden("S6_adapters_r8_ln_div0.1", diversity=0.1),
        Golden("S7_static_n1"),
        Golden("S8_static_T7_of_12_ignore", time=7, ignored=3),
        Golden("S9_static_iters0", {"sinkhorn_iters": 0}),
    )
}


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The deterministic float32 value of a parameter of the original."""
    parent, leaf = name.split(".")[-2:]
    base, scale = 0.0, 0.2
    if parent in ("norm", "norm_f", "ad_norm"):
        base, scale = float(leaf == "weight"), 0.1
    elif leaf in ("gamma_pre", "gamma_post"):
        base, scale = 1.0, 0.1
    elif leaf.endswith("_logits") or leaf == "logit_a":
        scale = 1.0
    elif parent in ("emb", "pos") or (parent == "ssm" and leaf in ("b", "c", "d")):
        scale = 0.5
    noise = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).standard_normal(int(np.prod(shape)))
    return (base + scale * noise.reshape(shape)).astype(np.float32)


def replay(case: Golden) -> list[Row]:
    """Logits, loss, diversity and every gradient of one case, in float32."""
    told, arrays = summary(SYSTEM)[case.name], base.arrays(SYSTEM, case.name)
    gradients = base.gradients(arrays)
    weights = {name: fill(name, gradient.shape) for name, gradient in gradients.items()}
    config, params = interop.from_original("mhc_ssm", weights, **case.hints)
    tokens, targets = (np.random.RandomState(seed).randint(0, VOCAB, (2, case.time)) for seed in (0, 1))
    targets[0, : case.ignored] = -100

    if config.residual.stream_count is not None:
        config = config.replace(stream_diversity=1.0)  # left unweighted, and weighted here

    def objective(params):
        output = mhc_jax.apply(config, params, jnp.asarray(tokens))
        total, count = cross_entropy(output.logits_BTV, jnp.asarray(targets))
        diversity = output.penalties.get("stream_diversity", jnp.zeros(()))
        return total / count + case.diversity * diversity, (output.logits_BTV, total / count, diversity)

    found, (logits, loss, diversity) = base.compiled(jax.grad(objective, has_aux=True))(params)
    found = interop.to_original("mhc_ssm", config, found)
    rows = [
        row(case.name, "logits", logits, arrays["logits"]),
        row(case.name, "loss", loss, told["loss"]),
        row(case.name, "stream_diversity", diversity, told["div"], tolerances.GOLDEN_DIVERSITY),
        row(case.name, "parameters", sum(x.size for x in weights.values()), told["params"]),
    ]
    return rows + [row(case.name, f"gradient {name}", found[name], gradients[name]) for name in gradients]


def replay_units() -> Iterator[Row]:
    """Sinkhorn and the diagonal SSM on their own."""
    told = summary(SYSTEM)
    logits = np.asarray(told["sk_in"], np.float32)
    for name, iters, temperature in (
        ("sk_it0_t1.0", 0, 1.0),
        ("sk_it1_t1.0", 1, 1.0),
        ("sk_it8_t1.0", 8, 1.0),
        ("sk_it8_t0.1", 8, 0.1),
    ):
        yield row("units", name, sinkhorn_rows_then_columns(logits, iters=iters, temperature=temperature), told[name])
    extreme = np.asarray(told["sk_extreme_in"], np.float32)
    yield row("units", "sk_extreme", sinkhorn_rows_then_columns(extreme, iters=8), told["sk_extreme"])
    unit = told["ssm_unit"]
    logit_a = np.array([-20, -2, 0, 2, 8, 20], np.float32)
    b, c, d = (np.full(6, value, np.float32) for value in (0.5, -0.7, 0.25))
    u = np.random.RandomState(3).standard_normal((2, 300, 6)).astype(np.float32)
    y, _ = diag_ssm(jnp.asarray(u), logit_a, b, c, d)
    yield row("units", "ssm a", pole(logit_a), unit["a"])
    yield row("units", "ssm y[0,0]", y[0, 0], unit["y[0,0]"])
    yield row("units", "ssm y[1,-1]", y[1, -1], unit["y[1,-1]"])


def rows() -> list[Row]:
    """All golden cases."""
    return [row for case in CASES.values() for row in replay(case)] + list(replay_units())
