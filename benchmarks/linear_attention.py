"""The gated delta rule and gated linear attention on one core: both forms, and chunked ones in eager PyTorch.

``python benchmarks/linear_attention.py --out benchmarks/results/linear_attention``. Contenders take turns on the same
inputs, one thread each. Outputs and gradients are compared before anything is timed; times are of the processor, so
that other work on the machine counts little.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from mhc_jax.ops.delta_rule import gated_delta_rule
from mhc_jax.ops.gla import gated_linear_attention
from torch_ref.ops import delta_rule as mirror_delta
from torch_ref.ops import gla as mirror_gla

B, H, K, V = 2, 4, 64, 64
OPS = {"delta": gated_delta_rule, "gla": gated_linear_attention}
# Chunked, in PyTorch; the delta rule of transformers beside those of the mirror.
EAGER = {
    "delta": {"transformers": torch_chunk_gated_delta_rule, "torch_ref": mirror_delta.gated_delta_rule},
    "gla": {"torch_ref": mirror_gla.gated_linear_attention},
}


def inputs(op: str, length: int) -> list[np.ndarray]:
    """Queries, keys of length 1, values, logarithms of decays, and strengths for the delta rule."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, length, H, size)).astype(np.float32) for size in (K, K, V))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    if op == "gla":
        return [q, k, v, -rng.uniform(0, 0.2, (B, length, H, K)).astype(np.float32)]
    decay, beta = -rng.uniform(0, 0.2, (B, length, H)), rng.uniform(0, 1, (B, length, H))
    return [q, k, v, decay.astype(np.float32), beta.astype(np.float32)]


def ours(op: str, form: str, arrays: list[np.ndarray], weight: np.ndarray, backward: bool) -> Callable[[], Any]:
    """The compiled call: the output, or the gradients of its weighted sum."""

    def forward(*arguments):
        return OPS[op](*arguments, form=form)[0]

    def gradients(*arguments):
        return jax.grad(lambda *x: jnp.sum(forward(*x) * weight), tuple(range(len(arrays))))(*arguments)

    run = jax.jit(gradients if backward else forward)
    held = [jnp.asarray(x) for x in arrays]
    return lambda: jax.block_until_ready(run(*held))


def eager(rule: Callable, arrays: list[np.ndarray], weight: np.ndarray, backward: bool) -> Callable[[], Any]:
    """The same of a rule in PyTorch."""
    held = [torch.from_numpy(x).requires_grad_(backward) for x in arrays]
    by = torch.from_numpy(weight)

    def run():
        with torch.set_grad_enabled(backward):
            y = rule(*held)[0]
        return torch.autograd.grad(y, held, by) if backward else y

    return run


def contenders(length: int, backward: bool) -> dict[str, Callable[[], Any]]:
    """By name. Those of one op agree."""
    weight = np.random.default_rng(1).standard_normal((B, length, H, V)).astype(np.float32)
    found = {}
    for op in OPS:
        arrays = inputs(op, length)
        runs = {f"{op} {form}": ours(op, form, arrays, weight, backward) for form in ("chunked", "recurrent")}
        runs |= {f"{op} {name}": eager(rule, arrays, weight, backward) for name, rule in EAGER[op].items()}
        first, *others = (list(map(_array, _leaves(run()))) for run in runs.values())
        for x, y in ((x, y) for other in others for x, y in zip(first, other, strict=True)):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * np.abs(y).max())
        found |= runs
    return found


def _leaves(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, tuple | list) else (values,)


def _array(x: Any) -> np.ndarray:
    return x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def _processor() -> str:
    """As Linux calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for length in given.lengths:
        for backward in (False, True):
            runs = contenders(length, backward)
            times: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(given.rounds):
                for name, run in runs.items():
                    start = time.process_time()
                    run()
                    times[name].append(time.process_time() - start)
            rows.append({"length": length, "backward": backward} | {name: sorted(x) for name, x in times.items()})
            print(length, backward, {name: round(statistics.median(x), 4) for name, x in times.items()}, flush=True)
    machine = {"machine": _processor(), "jax": jax.__version__, "torch": torch.__version__}
    sizes = {"B": B, "H": H, "K": K, "V": V, "rounds": given.rounds, "load": os.getloadavg()}
    record = machine | sizes | {"seconds": "of the processor, sorted", "rows": rows}
    given.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    names = [name for name in rows[0] if name not in ("length", "backward")]
    title = f"Milliseconds of one core, median (least to most) of {given.rounds}; B {B}, H {H}, K {K}, V {V}; "
    lines = [f"{title}{_processor()}, jax {jax.__version__}, torch {torch.__version__}", ""]
    lines += ["| tokens | pass | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        medians = [
            f"{1000 * statistics.median(row[name]):.0f} ({1000 * row[name][0]:.0f}-{1000 * row[name][-1]:.0f})"
            for name in names
        ]
        lines.append(
            f"| {row['length']:,} | {'forward and backward' if row['backward'] else 'forward'} | "
            + " | ".join(medians)
            + " |"
        )
    given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
