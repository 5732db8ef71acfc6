"""Training steps over residual topologies, compiled for TPUs and H100s that need not be here, beside the plain step.

``python benchmarks/compiled_topologies.py v5e:1x1 v5p:1x1x1 v6e:1x1 h100:1 --out
benchmarks/results/compiled_topologies``, which takes the compilers (extras ``tpu`` and ``gpu``) and no device, and some
minutes for each row; rows replace those of the same step as they are done. The whole step (forward, backward, AdamW) of
GPT-2 of the given width under the bfloat16 policy, products kept and the rest recomputed, with fused attention.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import configs
from compiled import Row, keep, machine, page
from mhc_jax.models import with_topology
from mhc_jax.nn.stack import Execution
from train.config import RunConfig
from train.devices import sharding
from train.loop.resolve import resolve
from train.measure import hlo, target

# The second dynamic_mhc differentiates Sinkhorn's projection implicitly, from its result alone.
IMPLICIT = "dynamic_mhc, implicit"
TOPOLOGIES = ("plain", "mhc", "mhc_lite", "dynamic_mhc", IMPLICIT, "shc")
# By width: the network, its number of layers here, and sequences of a step: the larger one does not fit a chip whole.
NETWORKS = {768: ("gpt2", 12, 8), 2048: ("gpt2_1b3", 4, 4)}
LENGTH, CHUNK = 1024, 128
FUSED = {"tpu": "splash", "gpu": "cudnn"}
SAME = ("width", "layers", "topology", "streams by")
TITLE = "Training steps over residual topologies, compiled for machines that are not here"
HOW = f"""\
Every number is the compiler's, from shapes; nothing ran on these machines. Width 768: 12 layers, 8 x {LENGTH} tokens.
Width 2048: 4 layers, 4 x {LENGTH} tokens. One device, four streams, `remat dots`, `objective.chunk {CHUNK}`, fused
attention. Kernels and GB: what a step starts, reads and writes, loops as often as they run; operands count wherever
they are, on a TPU also in the memory of its core. Estimated ms: the cycles of the TPU compiler; Pallas kernels, which
it does not estimate, count as if they only moved their bytes at the bandwidth of the data sheet. A layer is its forward
and backward pass. Ratios are to the plain step in the same form. The compiler for H100s estimates no time. Rows of one
machine may come from several runs of its command, each with some of its flags."""


def configuration(width: int, topology: str, layers: str, fused: str, streams_by: str) -> RunConfig:
    """The training step to compile."""
    name, depth, batch = NETWORKS[width]
    config = configs.load(name)
    model = with_topology(config.model, "dynamic_mhc" if topology == IMPLICIT else topology)
    residual = model.residual if streams_by == "xla" else model.residual.replace(implementation=streams_by)
    if topology == IMPLICIT:
        residual = residual.replace(projection=residual.projection.replace(gradient="implicit"))
    model = model.replace(
        layers=depth,
        residual=residual,
        mixer=model.mixer.replace(implementation=fused),
        execution=model.execution.replace(layers=layers),
    )
    return resolve(
        config.replace(
            model=model,
            data=config.data.replace(batch_size=batch, seq_len=LENGTH),
            objective=config.objective.replace(chunk=CHUNK),
            train=config.train.replace(accumulate=1),
        )
    )


def compiled(machine: target.Target, config: RunConfig) -> tuple[str, dict[str, float]]:
    """The text of the program, and its kernels, GB, temporaries and, where the compiler estimates them, ms."""
    mesh = sharding.make_mesh(config.mesh, target.devices(machine))
    _, program = target.compile_step(config, machine, mesh)
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None  # only backends without this analysis return None
    return text, figures(machine, hlo.cost(text)) | {"temporaries MiB": memory.temp_size_in_bytes / 2**20}


def figures(machine: target.Target, cost: hlo.Cost) -> dict[str, float]:
    chip, found = machine.chip, {"kernels": cost.kernels, "GB": cost.bytes / 1e9}
    if chip.clock:
        found["estimated ms"] = 1e3 * cost.seconds(chip.clock, chip.bandwidth)
        found["of that Pallas ms"] = 1e3 * cost.pallas / chip.bandwidth
    return found


def of_layer(found: dict[str, float], layers: int) -> dict[str, float]:
    return {f"{name}, a layer": value / layers for name, value in found.items() if not name.startswith("temp")}


def row(machine: target.Target, width: int, topology: str, layers: str, streams_by: str) -> Row:
    """What the compiler says of one step, and of one layer in it."""
    start, depth, fused = time.perf_counter(), NETWORKS[width][1], FUSED[machine.chip.platform]
    same = dict(zip(SAME, (width, layers, topology, streams_by)))

    text, found = compiled(machine, configuration(width, topology, layers, fused, streams_by))
    if layers != "unroll":
        group = Execution(layers=layers).group
        passes = sorted(hlo.loops(text, depth // group), key=lambda cost: cost.kernels)[-2:]
        found |= of_layer(figures(machine, sum(passes, hlo.Cost())), group)
    return same | found | {"seconds of compiling": time.perf_counter() - start}


def shown(rows: list[Row]) -> list[Row]:
    """The columns of the page, with ratios to the plain step."""

    def place(row: Row) -> tuple[Any, ...]:
        return row["width"], row["layers"], TOPOLOGIES.index(row["topology"]), row["streams by"]

    def columns(row: Row) -> Row:
        same, beside = {name: row[name] for name in SAME}, plain.get((row["width"], row["layers"]), {})
        for name in ("estimated ms", "estimated ms, a layer", "kernels", "GB", "temporaries MiB"):
            if name in row:
                same |= {name: row[name], f"ratio of {name}": row[name] / beside.get(name, math.nan)}
        return same

    plain = {(row["width"], row["layers"]): row for row in rows if row["topology"] == "plain"}
    return list(map(columns, sorted(rows, key=place)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machines", nargs="+", metavar="MACHINE", type=machine, help="such as v5e:1x1 or h100:1")
    parser.add_argument("--widths", nargs="+", type=int, default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, choices=TOPOLOGIES)
    parser.add_argument(
        "--layers", nargs="+", default=["scan", "unroll"], help="scan, unroll, or groups:K, K a divisor"
    )
    parser.add_argument("--streams-by", nargs="+", default=["xla"], choices=["xla", "pallas"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for layers in given.layers:
        if layers == "auto":
            parser.error("--layers auto: give what it stands for")
        if any(NETWORKS[width][1] % Execution(layers=layers).group for width in given.widths):
            parser.error(
                f"--layers {layers}: the group must divide the {[NETWORKS[x][1] for x in given.widths]} layers"
            )
    for there in given.machines:
        command = f"python benchmarks/compiled_topologies.py {there.name} --out {given.out}"
        for width in given.widths:
            for layers in given.layers:
                for topology in given.topologies:
                    for streams_by in ["xla"] if topology == "plain" else given.streams_by:
                        found = row(there, width, topology, layers, streams_by)
                        print(there.name, found, flush=True)
                        record = keep(given.out, there.name, command, [found], SAME)
                        given.out.with_suffix(".md").write_text(page(TITLE, HOW, record, shown))


if __name__ == "__main__":
    main()
