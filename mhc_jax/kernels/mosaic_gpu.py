"""What kernels of GPUs share: a grid of blocks, each of one warpgroup, and programs by operations that Mosaic has."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import ClosedJaxpr, Literal
from jaxlib.mlir.dialects import nvvm

from mhc_jax.backend import target_backend

# Of a warpgroup.
THREADS = 128


def has_threads() -> bool:
    """Whether kernels are compiled; elsewhere than on a GPU they are tried out, interpreted."""
    return target_backend() == "gpu"


def over_blocks(kernel: Callable[..., None], blocks: int, makes: Any, name: str) -> Callable[..., Any]:
    """A function of arrays that calls ``kernel(block, *references)``, first those to its arguments, then to ``makes``.

    A thread must read nothing that another one has written: there are no barriers.

    Args:
        makes: tree of the shapes of its results.
    """
    if not has_threads():
        return pl.pallas_call(
            lambda *refs: kernel(pl.program_id(0), *refs), grid=(blocks,), out_shape=makes, interpret=True
        )
    return plgpu.kernel(
        lambda *refs: kernel(lax.axis_index("block"), *refs),
        grid=(blocks,),
        grid_names=("block",),
        kernel_name=name,
        out_type=makes,
        compiler_params=by_lanes(unsafe_no_auto_barriers=True),
    )


def by_lanes(**options: Any) -> plgpu.CompilerParams:
    """Parameters for a program of what each thread does, for which these kernels are written.

    JAX 0.11 takes one of whole warpgroups unless told otherwise, and has fewer operations for it.
    """
    return plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane, **options)


def shown_to_copies() -> None:
    """Lets copies to shared memory see what this thread has stored in the device's; barriers do not."""

    def fence(_: Any) -> None:
        nvvm.fence_proxy(nvvm.ProxyKind.async_)

    run: Any = plgpu.inline_mgpu()(fence)
    run()


def number(x: jax.Array) -> jax.Array:
    """The only element, without axes."""
    return lax.squeeze(x, range(x.ndim))


def only_states_a_sharding(eqn: Any) -> bool:
    """Whether it is a reshape to the same shape, as derivatives have them beside a mesh."""
    return eqn.primitive.name == "reshape" and eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape


def run_program(program: ClosedJaxpr, values: Sequence[jax.Array]) -> list[jax.Array]:
    """Results of ``program`` by operations that Mosaic has.

    It sums rows only to numbers without axes, and has no sum of a number, as derivatives of broadcasts make them, nor
    of cotangents.
    """
    jaxpr = program.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *values), strict=True))

    def value(x):
        return x.val if isinstance(x, Literal) else known[x]

    for eqn in jaxpr.eqns:
        name, operands, shape = eqn.primitive.name, [value(x) for x in eqn.invars], eqn.outvars[0].aval.shape
        if name == "jit":
            found = run_program(eqn.params["jaxpr"], operands)
        elif name == "stop_gradient":
            found = operands
        elif name == "integer_pow":  # of derivatives of quotients
            power = functools.reduce(lax.mul, operands * abs(eqn.params["y"]))
            found = [power if eqn.params["y"] > 0 else lax.div(jnp.ones_like(power), power)]
        elif name == "add_any":
            found = [lax.add(*operands)]
        elif name == "reduce_sum" and math.prod(shape) == 1:
            (x,) = operands
            found = [lax.broadcast(number(x) if x.size == 1 else jnp.sum(x), shape)]
        elif name in ("broadcast_in_dim", "reshape") and operands[0].size == 1:
            found = [lax.broadcast(number(operands[0]), shape)]
        elif only_states_a_sharding(eqn):
            found = operands
        else:
            found = eqn.primitive.bind(*operands, **eqn.params)
            found = found if eqn.primitive.multiple_results else [found]
        known.update(zip(eqn.outvars, found, strict=True))
    return [value(x) for x in jaxpr.outvars]
