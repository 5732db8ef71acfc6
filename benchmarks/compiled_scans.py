"""Recurrences compiled for TPUs and H100s that need not be here, beside the floor of touching every array once.

``python benchmarks/compiled_scans.py v5e:1x1 v5p:1x1x1 v6e:1x1 h100:1 --out benchmarks/results/compiled_scans``, which
takes the compilers (extras ``tpu`` and ``gpu``) and no device. Rows replace those of the same machine and program in
the file as they are done; others stay, since the two compilers may be in separate environments.

Arguments are what projections write, (B, T, channels) in bfloat16, and gates in float32; inside, as in the mixers, they
are split into heads and taken to float32 (by a kernel, within it), and the output is rounded. Every number is the
compiler's, from shapes.

Pallas kernels, of which the TPU compiler estimates no cycles, have three figures: their bytes at the bandwidth of the
data sheet, the products that they ask for at its peak, and the bundles of instructions that the compiler schedules for
them, one a cycle, in loops as often as these go. The longest counts.
"""

import argparse
import functools
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import schedules
from jax.sharding import SingleDeviceSharding

from compiled import Row, Table, machine
from mhc_jax.backend import compiling_for
from mhc_jax.models.linear_attention import GATED_DELTANET_SIZES, GLA_SIZES
from mhc_jax.ops.delta_rule import gated_delta_rule
from mhc_jax.ops.diag_ssm import diag_ssm
from mhc_jax.ops.gla import gated_linear_attention
from mhc_jax.ops.selective_scan import selective_scan
from train.measure import hlo, target
from train.measure.speed import peak_flops

KERNEL = " by kernel"
MATRIX = ("delta", "delta of wide values", "gla")
NAMES = (*MATRIX, *(name + KERNEL for name in MATRIX), "diagonal", "diagonal" + KERNEL, "selective")
WIDTH, STATES = 768, 16
COLUMNS = ("recurrence", "sizes", "pass", "kernels", "temporaries MiB", "MB", "floor MB", "bytes over floor")
COLUMNS += ("estimated ms", "floor ms", "ms over floor", "its bytes ms", "its products ms", "its schedule ms")
COUNTED = """\
Every number is the compiler's, from shapes; nothing ran on these machines. Kernels and MB: what one run starts, reads
and writes, loops as often as they run; operands count wherever they are, on a TPU also in the memory of its core.
Floor: all arguments and results once, at the bandwidth of the data sheet. The compiler for H100s estimates no time,
and that for TPUs no cycles of Pallas kernels. The estimated ms count the longest of three figures of these: their bytes
at the bandwidth of the data sheet, their products at its peak, and the bundles of instructions that the compiler
schedules, one a cycle, in loops as often as these go."""
HOW = f"""\
{COUNTED}
By kernel: `implementation="pallas"`. Rows of one machine may come from several runs of its command, each with some of
`--recurrences`."""
TABLE = Table(
    "compiled_scans.py",
    "Recurrences compiled for machines that are not here",
    HOW,
    ("recurrence", "pass"),
    COLUMNS,
)
# What each is, its function and its arguments.
Programs = Iterator[tuple[Row, Callable[..., Any], tuple[Any, ...]]]


class Recurrence(NamedTuple):
    """A recurrence as a function of arrays with these shapes, and its sizes in words."""

    run: Callable[..., jax.Array]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    sizes: str


def recurrences(B: int, T: int) -> dict[str, Recurrence]:
    """By name, at the sizes of the published decoders."""

    def narrow(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def wide(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def by_head(run: Callable[..., Any], heads: Any, gates: tuple[jax.ShapeDtypeStruct, ...], dtype: Any) -> Recurrence:
        H, K, V = heads.out, heads.K, heads.V

        def rounded(q, k, v, *gates):
            split = (x.astype(dtype).reshape(B, T, H, -1) for x in (q, k, v))
            gates = (x if x.shape[-1] == H else x.reshape(B, T, H, -1) for x in gates)
            return run(*split, *gates)[0].reshape(B, T, -1).astype(q.dtype)

        arguments = (narrow(B, T, H * K), narrow(B, T, H * K), narrow(B, T, H * V), *gates)
        return Recurrence(rounded, arguments, f"H {H}, K {K}, V {V}")

    found: dict[str, Recurrence] = {}
    for kernel, implementation, dtype in (("", "xla", jnp.float32), (KERNEL, "pallas", jnp.bfloat16)):
        options = {"implementation": implementation}
        delta, gla = (functools.partial(op, **options) for op in (gated_delta_rule, gated_linear_attention))
        for name, size in (("delta", "170M_baseline_shortconv"), ("delta of wide values", "170M")):
            heads = GATED_DELTANET_SIZES[size].mixer.shape(WIDTH)
            found[name + kernel] = by_head(delta, heads, (wide(B, T, heads.out), wide(B, T, heads.out)), dtype)
        heads = GLA_SIZES["170M_baseline"].mixer.shape(WIDTH)
        found["gla" + kernel] = by_head(gla, heads, (wide(B, T, heads.out * heads.K),), dtype)
    arguments, sizes = (narrow(B, T, WIDTH), *(wide(WIDTH),) * 4), f"D {WIDTH}"
    for form in ("sequential", "associative", "chunked"):

        def diagonal(u, *rest, form=form):
            return diag_ssm(u.astype(jnp.float32), *rest, form=form, chunk=16)[0].astype(u.dtype)

        found[f"diagonal, {form}"] = Recurrence(diagonal, arguments, sizes)
    found["diagonal" + KERNEL] = Recurrence(
        lambda *arguments: diag_ssm(*arguments, implementation="pallas")[0], arguments, sizes
    )
    E, N = 2 * WIDTH, STATES
    for form in ("sequential", "chunked"):

        def selective(u, dt, a_log, into, out, skip, form=form):
            wide_u, into, out = (x.astype(jnp.float32) for x in (u, into, out))
            return selective_scan(wide_u, dt, a_log, into, out, skip, form=form)[0].astype(u.dtype)

        arguments = (narrow(B, T, E), wide(B, T, E), wide(E, N), narrow(B, T, N), narrow(B, T, N), wide(E))
        found[f"selective, {form}"] = Recurrence(selective, arguments, f"E {E}, N {N}")
    return found


def with_gradients(run: Callable[..., jax.Array]) -> Callable[..., Any]:
    """``run``, and the gradients of all its arguments, of which the first argument is that of the output."""

    def both(dy, *arguments):
        y, pull = jax.vjp(run, *arguments)
        return y, pull(dy)

    return both


def seconds_of_kernels(machine: target.Target, text: str, folder: Path) -> dict[str, float]:
    """Of the Pallas kernels in a compiled program: bytes, products and schedule, each as if it alone took time."""
    flops = sum(map(int, re.findall(r'"cost_estimate":{"flops":"(\d+)"', text)))
    return {
        "bytes": hlo.cost(text).pallas / machine.chip.bandwidth,
        "products": flops / (peak_flops(target.devices(machine)[0]) or math.nan),
        "schedule": schedules.cycles_of_kernels(text, folder) / (machine.chip.clock or math.nan),
    }


def figures(machine: target.Target, run: Callable[..., Any], arguments: tuple[Any, ...], folder: Path) -> Row:
    """What the compiler says of a program, and the floor: its arguments read and its results written once."""
    device = target.devices(machine)[0]
    sharding = SingleDeviceSharding(device)
    there = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    touched = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((there, jax.eval_shape(run, *there))))
    floor = {"floor MB": touched / 1e6, "floor ms": 1e3 * touched / machine.chip.bandwidth}
    start = time.perf_counter()
    with compiling_for(machine.chip.platform, device.device_kind):
        try:
            program = target.compiled(jax.jit(run).lower(*there))
        except target.DoesNotFit as fault:
            return {"temporaries MiB": fault.needed / 2**20, "fits": False, **floor}
    text, memory = program.as_text(), program.memory_analysis()
    cost = hlo.cost(text)
    assert memory is not None  # only backends without this analysis return None
    row = {"kernels": cost.kernels, "MB": cost.bytes / 1e6, "temporaries MiB": memory.temp_size_in_bytes / 2**20}
    row |= {"fits": True, **floor, "bytes over floor": cost.bytes / touched}
    if machine.chip.clock:
        row["estimated ms"] = 1e3 * cost.cycles / machine.chip.clock
        if cost.pallas:
            kernels = seconds_of_kernels(machine, text, folder)
            row |= {f"its {what} ms": 1e3 * seconds for what, seconds in kernels.items()}
            row["estimated ms"] += 1e3 * max(kernels.values())
        row["ms over floor"] = row["estimated ms"] / floor["floor ms"]
    return {**row, "seconds of compiling": time.perf_counter() - start}


def programs(B: int, T: int, names: list[str]) -> Programs:
    """Each recurrence forward, and with its gradients: what it is, the function and its arguments."""
    for name, (run, arguments, sizes) in recurrences(B, T).items():
        if name.partition(",")[0] in names:
            which, dy = {"recurrence": name, "sizes": sizes, "B": B, "T": T}, jax.eval_shape(run, *arguments)
            yield {**which, "pass": "forward"}, run, arguments
            yield {**which, "pass": "forward and backward"}, with_gradients(run), (dy, *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machines", nargs="+", metavar="MACHINE", type=machine, help="such as v5e:1x1 or h100:1")
    parser.add_argument("--recurrences", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--out", type=Path, required=True)
    with schedules.dumped() as folder:  # the compiler is loaded when the name of a machine is parsed
        given = parser.parse_args()
        compile_all(TABLE, given, lambda _: programs(given.batch, given.length, given.recurrences), folder)


def compile_all(
    table: Table, given: argparse.Namespace, programs: Callable[[target.Target], Programs], folder: Path
) -> None:
    """All rows for the machines that the command line asks for, each kept when it is done."""
    for there in given.machines:
        for which, run, arguments in programs(there):
            row: Row = which | figures(there, run, arguments, folder)
            print(there.name, row, flush=True)
            for file in folder.iterdir():
                file.unlink()
            table.keep(given.out, there.name, row)


if __name__ == "__main__":
    main()
