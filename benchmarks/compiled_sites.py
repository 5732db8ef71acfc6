"""Two sites over four streams by kernels, compiled for TPUs and H100s that need not be here: what streams alone cost.

``python benchmarks/compiled_sites.py v5e:1x1 v5p:1x1x1 v6e:1x1 h100:1 --out benchmarks/results/compiled_sites``, which
takes the compilers (extras ``tpu`` and ``gpu``) and no device. A read, the boundary of both sites and a last write,
without branches: what the sites write are arguments. Streams are in bfloat16. Rows replace those of the same machine
and program in the file as they are done. What is counted is told in ``compiled_scans.py``.
"""

import argparse
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import schedules
from compiled_scans import COUNTED, Programs, compile_all, with_gradients
from flax import nnx

from compiled import Table, machine
from mhc_jax.models import topologies
from mhc_jax.nn.deferred import computed
from mhc_jax.nn.init import Init
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Prepared, Preparing
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import policy

STREAMS, SITES, B, T = 4, 2, 8, 1024
TOPOLOGIES = "mhc", "mhc_lite", "dynamic_mhc"
SAME = ("width", "topology", "pass")
COLUMNS = (*SAME, "kernels", "MB", "floor MB", "bytes over floor", "estimated ms", "floor ms", "ms over floor")
COLUMNS += ("its bytes ms", "its products ms", "its schedule ms")
HOW = f"""\
Four streams of {B} x {T} tokens in bfloat16 through two sites without their branches: a read, a boundary and a write.
{COUNTED}"""
TABLE = Table("compiled_sites.py", "Two sites by kernels, compiled for machines that are not here", HOW, SAME, COLUMNS)


def program(width: int, topology: str):
    """What sites read and the last streams, as a function of parameters, streams and what they write; its arguments."""
    residual = topologies.topology(topology).residual.replace(streams=STREAMS, implementation="pallas")

    def built():
        init = Init(jax.random.key(0), sites=SITES)
        norm = LayerNormConfig().build(width, init / "norm")
        sites = [residual.build(width, policy("bfloat16"), init.at(i) / str(i)) for i in range(SITES)]
        for site in sites:
            if isinstance(site, Preparing):  # a step does that once, for all layers
                for name, x in site.prepare().items():
                    setattr(site, name, Prepared(x))
        return norm, sites

    graph, params = nnx.split(nnx.eval_shape(built))

    def run(params, h, ys):
        (norm, sites), state, read, scope = nnx.merge(graph, params), Streams(h), [], Scope.over(T)
        for site, y in zip(sites, ys, strict=True):
            u, ctx = site.pre(state, scope, norm)
            state, read = site.post(state, y, ctx, scope), [*read, u]
        return read, computed(state).parts

    row = jax.ShapeDtypeStruct((B, T, width), jnp.bfloat16)
    return run, (params, (row,) * STREAMS, (row,) * SITES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machines", nargs="+", metavar="MACHINE", type=machine, help="such as v5e:1x1 or h100:1")
    parser.add_argument("--widths", nargs="+", type=int, default=[768, 2048], help="multiples of 128")
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, choices=TOPOLOGIES)
    parser.add_argument("--out", type=Path, required=True)
    with schedules.dumped() as folder:  # the compiler is loaded when the name of a machine is parsed
        given = parser.parse_args()
        compile_all(TABLE, given, lambda _: programs(given.widths, given.topologies), folder)


def programs(widths: list[int], topologies: list[str]) -> Programs:
    """Each topology forward, and with its gradients."""
    for width, topology in itertools.product(widths, topologies):
        which, (run, arguments) = {"width": width, "topology": topology}, program(width, topology)
        results = jax.eval_shape(run, *arguments)
        yield {**which, "pass": "forward"}, run, arguments
        yield {**which, "pass": "forward and backward"}, with_gradients(run), (results, *arguments)


if __name__ == "__main__":
    main()
