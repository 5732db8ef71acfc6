"""Whole models: activations and logits in every mode of execution, cotangents and the gradient of every parameter."""

import functools
from collections.abc import Iterator

from parity_tests.compare import Case, DType, Values
from parity_tests.systems import SYSTEMS, System, Weights, batch, split
from parity_tests.taps import run_jax, run_torch

# The modes run the same mathematics, so one model and one dtype each will do.
MODES = {
    "unrolled": {"layers": "unroll"},
    "remat of blocks": {"remat": "block"},
    "remat of all but products": {"remat": "dots"},
    "unrolled, remat of blocks": {"layers": "unroll", "remat": "block"},
}


def cases() -> Iterator[Case]:
    for system in SYSTEMS.values():
        yield forward(system)
        yield gradients(system)
    system = SYSTEMS["adapters 4, rms"]
    for mode, options in MODES.items():
        yield gradients(system, mode, dtypes=("float64",), **options)


def forward(system: System) -> Case:
    """Every activation, the logits and the loss."""
    arguments = system.config, Weights(system.config), batch(system.config)
    return Case(
        tier="models",
        name=system.name,
        jax=functools.partial(_run, run_jax, arguments, ("forward",), False),
        torch=functools.cache(functools.partial(_run, run_torch, arguments, ("forward",), False)),
        covers=system.covers,
    )


def gradients(system: System, mode: str = "", dtypes: tuple[DType, ...] = ("float64", "float32"), **execution) -> Case:
    """Every cotangent, from the last to the first, and every parameter's gradient."""
    config = system.config.replace(execution=system.config.execution.replace(**execution))
    arguments = config, Weights(config), batch(config)
    groups = ("backward", "gradient")
    return Case(
        tier="gradients",
        name=f"{system.name}, {mode}" if mode else system.name,
        jax=functools.partial(_run, run_jax, arguments, groups, True),
        torch=functools.cache(functools.partial(_run, run_torch, arguments, groups, True)),
        dtypes=dtypes,
        covers=system.covers,
    )


def _run(run, arguments, groups: tuple[str, ...], backward: bool, dtype: DType, *sample: int) -> Values:
    return split(run(*arguments, dtype, *sample, backward=backward), *groups)
