"""Absent machines for which a training step can be compiled: slices of TPUs and hosts of H100s."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from mhc_jax.backend import compiling_for
from mhc_jax.config import ConfigError
from train.config import RunConfig
from train.devices import sharding
from train.measure.lowering import abstract_state, lower_train_step
from train.update.optimizer import make_optimizer
from train.update.state import TrainState, trained_info

GIB = 2**30

_H100_MEMORY = 84929347584
_H100_BANDWIDTH = 3352320000000

# XLA's description of an NVIDIA H100 80GB HBM3 (SXM), which it otherwise gets from the driver.
_H100 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {_H100_BANDWIDTH}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {_H100_MEMORY}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: 9 minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_GPUS_A_HOST = 8
_GPU_SHARE = 0.75  # share of its memory that JAX allocates by default


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator.

    Attributes:
        platform: name of JAX's compiler, ``"tpu"`` or ``"gpu"``.
        size: size of the machine, as a user writes it.
        memory: bytes of a device that a program may use.
        bandwidth: bytes a second between a device and its memory, from the maker's data sheet.
        clock: cycles per second of the compiler's estimates; None if it estimates nothing.
        options: options of the compiler's topology.
    """

    platform: str
    size: str
    memory: float
    bandwidth: float
    clock: float | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Memory as the compilers state it when a program is too large. A chip of v4 and v5p is one device of two cores.
CHIPS = {
    "v4": Chip("tpu", "AxBxC", 30.75 * GIB, 1228e9, 1.05e9, {"chip_config_name": "megacore"}),
    "v5e": Chip("tpu", "AxB", 15.75 * GIB, 819e9, 1.5e9),
    "v5p": Chip("tpu", "AxBxC", 95.74 * GIB, 2765e9, 1.75e9),
    "v6e": Chip("tpu", "AxB", 31.25 * GIB, 1640e9, 1.75e9),
    "h100": Chip("gpu", "N", _H100_MEMORY, _H100_BANDWIDTH, options={"target_config": _H100}),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine: its name, such as ``"v5p:4x4x4"`` or ``"h100:8"``, the kind of its devices, and their arrangement."""

    name: str
    chip: Chip
    shape: tuple[int, ...]


class DoesNotFit(Exception):
    """The program needs more memory than a device has: ``needed`` bytes."""

    def __init__(self, needed: float):
        super().__init__(f"needs {needed / GIB:.4g} GiB a device")
        self.needed = needed


def find(name: str) -> Target:
    """The machine of that name.

    Raises:
        ConfigError: there is none; the message lists the names.
    """
    kind, _, size = name.partition(":")
    chip = CHIPS.get(kind)
    shape = tuple(map(int, size.split("x") if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size) else []))
    if chip is None or len(shape) != len(chip.size.split("x")):
        accepted = ", ".join(f"{kind}:{chip.size}" for kind, chip in CHIPS.items())
        raise ConfigError(
            f"--compile.topology {name!r} is no machine known here; give one of {accepted} with numbers for the "
            "letters: chips along each axis of TPUs, such as v5p:4x4x4, or GPUs, such as h100:8"
        )
    if chip.platform == "gpu" and shape[0] > _GPUS_A_HOST and shape[0] % _GPUS_A_HOST:
        raise ConfigError(f"--compile.topology {name}: more than {_GPUS_A_HOST} GPUs come in hosts of {_GPUS_A_HOST}")
    return Target(name, chip, shape)


def prepare_environment() -> None:
    """Prepares the compilers of absent machines: they look for no device, and two may run at once.

    It must be called before JAX looks for devices.
    """
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    # Without them the TPU compiler complains on standard error that it finds no machine.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    jax.config.update("jax_platforms", "cpu")


def devices(target: Target) -> Sequence[jax.Device]:
    """The devices of the machine, for which programs can be compiled but not run.

    Raises:
        ConfigError: the compiler is not installed, or no machine has this shape.
    """
    chip, shape = target.chip, target.shape
    if chip.platform == "gpu":
        gpus = min(shape[0], _GPUS_A_HOST)
        asked = {"platform": "cuda", "topology": f"1x{shape[0] // gpus}x{gpus}"}
    else:
        asked = {"platform": "tpu", "topology_name": target.name}
        if set(shape) == {1}:
            asked["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(**asked, **chip.options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"--compile.topology {target.name}: {str(error).splitlines()[0].partition(': ')[2]}"
        ) from None
    except RuntimeError:
        raise ConfigError(
            f"--compile.topology {target.name} needs the compiler of the machine; install the extra "
            f"`{chip.platform}`: pip install -e '.[{chip.platform}]'"
        ) from None


def compile_step(config: RunConfig, target: Target, mesh: Mesh) -> tuple[TrainState, jax.stages.Compiled]:
    """The abstract state that the training step takes, and the step compiled for the machine.

    Args:
        mesh: mesh of the machine's :func:`devices`.

    Raises:
        ConfigError: batch or parameters do not divide by the mesh.
        DoesNotFit: see :func:`compiled`.
    """
    sharding.check(config, mesh)
    optimizer = make_optimizer(config.optim, config.train.steps or 1, trained_info(config))
    with compiling_for(target.chip.platform, mesh.devices.flat[0].device_kind):
        state = abstract_state(config, optimizer, mesh)
        return state, compiled(lower_train_step(config, optimizer, state, mesh))


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program for the machine it was lowered for.

    Raises:
        DoesNotFit: the compiler reports it. Only the TPU compiler does; that of GPUs also compiles what does not fit.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(needed_bytes(str(error))) from error


def needed_bytes(message: str) -> float:
    """Memory that a program needs on one device, from the TPU compiler's error: the first size in it."""
    number, unit = re.findall(r"\b(\d+(?:\.\d+)?)([KMGT])\b", message)[0]
    return float(number) * 2 ** (10 * ("KMGT".index(unit) + 1))


def verdict(target: Target, needed: float) -> str:
    """A line that says whether that number of bytes fits a device of the machine."""
    memory = target.chip.memory
    line = f"{target.name}: peak {needed / GIB:.4g} of {memory / GIB:.4g} GiB a device"
    if needed > memory:
        return f"does not fit {line}"
    if target.chip.platform == "gpu" and needed > _GPU_SHARE * memory:
        return f"fits {line}, with XLA_PYTHON_CLIENT_MEM_FRACTION above its default of {_GPU_SHARE}"
    return f"fits {line}"
