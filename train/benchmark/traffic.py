"""The memory traffic of residual topologies, relative to the least possible: from compiled programs, without a clock.

The unit everywhere is one array of the width, for one token at one site, in the dtype of the streams.
"""

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import mhc_jax
from mhc_jax.functional import param_shapes
from mhc_jax.models.topologies import with_topology
from mhc_jax.nn.model import ModelConfig
from mhc_jax.precision import policy
from train.benchmark.cases import Row, Table
from train.benchmark.topologies import PLAIN, variants
from train.config import RunConfig
from train.measure import hlo

# Depths whose programs are compared: the difference excludes the embedding, the ends and the first layer.
SHALLOW, DEEP = 2, 3
# Code of the CPU need not be fast to be counted: its fusions are decided before.
_COMPILER_OPTIONS = {"cpu": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}}


def floors(streams: int) -> dict[str, float]:
    """Arrays of the width that a site of n streams must move forward and backward beyond the plain residual's 8.

    - ``floor``: one pass at every boundary between sites (write, mix, next read and its norm): 2n + 2 forward,
      3n + 3 backward. One stream needs no more than the plain residual.
    - ``two kernels``: one that writes and mixes, one that reads: 3n + 2 and 7n + 3. The least for coefficients that
      depend on the token, unless they come a site late as in single-pass mHC.
    - ``naive``: every published step by itself: 8n + 2, and twice that backward.
    """
    n = streams
    return {
        "floor": 5 * n - 3 if n > 1 else 0,
        "two kernels": 10 * n - 3,
        "naive": 24 * n - 2,
    }


def paper_forward(streams: int, width: int) -> float:
    """Forward traffic of unfused hyper-connections (mHC, 2512.24880, table 2) beyond the plain residual's.

    Read (5n + 1) C + n^2 + 2n, write (3n + 1) C + n^2 + 2n; plain: read 2 C, write C.
    """
    n = streams
    return 8 * n + 2 - 3 + 2 * (n**2 + 2 * n) / width


def table(config: RunConfig, names: Sequence[str], counts: Sequence[int]) -> Table:
    """Traffic of one site beyond the plain residual's, by topology and number of streams.

    Args:
        config: the run whose model is put over each topology; its batch and sequence give the shapes.
        names, counts: see :func:`train.benchmark.topologies.variants`.
    """
    found, notes = variants(config.model, names, counts)
    plain = site(config, with_topology(config.model, PLAIN))
    rows: list[Row] = [{"topology": "plain, all of it", "n": None, **plain}]
    for variant in found:
        mine = site(config, variant.model)
        extra = {name: mine[name] - plain[name] for name in mine}
        n = variant.model.residual.stream_count
        known: Row = {}
        if n is not None:
            known = {**floors(n), "paper, forward": paper_forward(n, config.model.width)}
            known["over floor"] = extra["both"] / known["floor"] if known["floor"] else None
        rows.append({"topology": variant.topology, "n": n, **extra, **known})
        print(f"{variant}: {extra['both']:.1f}", file=sys.stderr, flush=True)
    return rows, [*_notes(config), *notes]


def site(config: RunConfig, model: ModelConfig) -> dict[str, float]:
    """Traffic and kernels of one site, its branch included.

    Returns:
        ``forward`` and ``both`` (forward and backward), with loops as often as they run; ``both (XLA)`` and
        ``kernels`` of the latter program.
    """
    tokens = config.data.batch_size * config.data.seq_len
    unit = tokens * model.width * np.dtype(policy(model.execution.policy).streams).itemsize
    forward, both = (
        _added(config, model, backward=backward) / len(model.sites) / np.array([unit, unit, 1])
        for backward in (False, True)
    )
    return {"forward": forward[0], "both": both[0], "both (XLA)": both[1], "kernels": both[2]}


def _added(config: RunConfig, model: ModelConfig, *, backward: bool) -> np.ndarray:
    """The increment of one layer in an unrolled stack: bytes, XLA's bytes, kernels."""

    def counts(layers: int) -> np.ndarray:
        execution = model.execution.replace(layers="unroll")
        compiled = _compiled(config, model.replace(layers=layers, execution=execution), backward)
        cost, xla = hlo.cost(compiled.as_text()), compiled.cost_analysis() or {}
        return np.array([cost.bytes, xla.get("bytes accessed", np.nan), cost.kernels])

    return (counts(DEEP) - counts(SHALLOW)) / (DEEP - SHALLOW)


def _compiled(config: RunConfig, model: ModelConfig, backward: bool):
    shape = config.data.batch_size, config.data.seq_len
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    cotangent = jax.ShapeDtypeStruct((*shape, model.width), policy(model.execution.policy).accumulate)

    def run(params, tokens, cotangent):
        hidden, pull = jax.vjp(lambda params: mhc_jax.apply(model, params, tokens).hidden_BTD, params)
        return (hidden, pull(cotangent)) if backward else hidden

    lowered = jax.jit(run).lower(param_shapes(model), tokens, cotangent)
    return lowered.compile(compiler_options=_COMPILER_OPTIONS.get(jax.default_backend()))


def _notes(config: RunConfig) -> list[str]:
    model, data = config.model, config.data
    return [
        f"Compiled for {jax.devices()[0].device_kind}: width {model.width}, {data.batch_size} sequences of "
        f"{data.seq_len} tokens, {model.execution.policy}, remat {model.execution.remat}. The unit is one array of the "
        f"width for one token at one site, in the dtype of the streams: what layer {DEEP} adds to an unrolled stack of "
        f"{SHALLOW}, divided by the {len(model.sites)} sites of a layer. The first row is all that a plain site "
        "moves, its branch included; the others are what a topology adds to that (a branch that runs twice too).",
        "forward, both (forward and backward): every kernel reads its operands and writes its results once, of an "
        "operand that it only slices no more than the slices; a loop counts as often as it runs. Caches are not "
        "thought of, so small arrays (Sinkhorn's) count though they never reach memory. both (XLA): the compiler's "
        "own number of the same program, which counts a loop's body once. A CPU fuses chains of elementwise "
        "operations, but not several results or sums into one kernel, as a GPU does. kernels: of one site, both ways.",
        "floor, two kernels, naive: formulas, both ways, beyond the plain residual's 8 arrays. paper, forward: table 2 "
        "of the mHC paper, beyond its plain residual's 3. over floor: both / floor.",
    ]
