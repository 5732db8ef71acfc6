"""A language model's head with its loss and gradients, compiled for machines that need not be here: XLA's and kernels.

``python benchmarks/compiled_head.py v5e:1x1 v5p:1x1x1 v6e:1x1 h100:1 --out benchmarks/results/compiled_head``, which
takes the compilers (extras ``tpu`` and ``gpu``) and no device. H100s have no kernels.
Cross-entropy of hidden states and a head in bfloat16, with the gradients of both. Rows replace those of the same
machine and program in the file as they are done. What is counted is told in ``compiled_scans.py``.
"""

import argparse
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import schedules
from compiled_scans import COUNTED, Programs, compile_all

from compiled import Table, machine
from mhc_jax.ops.loss import chunked_cross_entropy
from train.measure.target import Target

B, T, V = 8, 1024, 50304
BY_KERNELS = "pallas"
FORMS = "128", "256", "1024", BY_KERNELS
SAME = ("width", "by", "pass")
COLUMNS = (*SAME, "kernels", "temporaries MiB", "MB", "estimated ms", "its bytes ms", "its products ms")
COLUMNS += ("its schedule ms",)
HOW = f"""\
{B} x {T} tokens, a head of {V:,} rows, bfloat16. XLA's form by tokens of each sequence in a chunk. The floor is left
out, as products take longer than all arguments and results once. Bytes of kernels count what passes as often as it
does.
{COUNTED}"""
TABLE = Table("compiled_head.py", "The head with its loss, compiled for machines that are not here", HOW, SAME, COLUMNS)


def program(width: int, by: str, *, gradients: bool):
    """The summed loss, and the gradients of hidden states and head, as a function of both and targets; its arguments.

    Args:
        by: tokens of each sequence in a chunk of XLA's form, or :data:`BY_KERNELS`.
    """
    options = {"chunk": T, "implementation": by} if by == BY_KERNELS else {"chunk": int(by)}

    def run(hidden, head, targets):
        def loss(hidden, head):
            return chunked_cross_entropy(hidden, head, targets, **options)[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(hidden, head) if gradients else loss(hidden, head)

    shapes = ((B, T, width), jnp.bfloat16), ((V, width), jnp.bfloat16), ((B, T), jnp.int32)
    return run, tuple(jax.ShapeDtypeStruct(*each) for each in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machines", nargs="+", metavar="MACHINE", type=machine, help="such as v5e:1x1")
    parser.add_argument("--widths", nargs="+", type=int, default=[768, 2048])
    parser.add_argument("--by", nargs="+", default=FORMS, choices=FORMS, help="chunks, or pallas")
    parser.add_argument("--out", type=Path, required=True)
    with schedules.dumped() as folder:  # the compiler is loaded when the name of a machine is parsed
        given = parser.parse_args()
        compile_all(TABLE, given, lambda there: programs(there, given.widths, given.by), folder)


def programs(there: Target, widths: list[int], forms: list[str]) -> Programs:
    """Each form that the machine has, forward, and with its gradients."""
    if there.chip.platform == "gpu":
        forms = [by for by in forms if by != BY_KERNELS]
    for width, by in itertools.product(widths, forms):
        for name, gradients in (("forward", False), ("forward and backward", True)):
            yield {"width": width, "by": by, "pass": name}, *program(width, by, gradients=gradients)


if __name__ == "__main__":
    main()
