"""The memory that a model needs and a machine has: impossible requests are refused before they are made."""

import math

import jax

from mhc_jax.config import ConfigError
from mhc_jax.functional import ParamInfo, param_info
from mhc_jax.nn.model import ModelConfig
from train.data.machine import machine_memory

# Parameters, their gradients, and the two moments of AdamW.
TRAINING = 4


def check_memory(model: ModelConfig, copies: int) -> None:
    """Refuses a model if several copies of its float32 parameters exceed all memory.

    Args:
        copies: 1 to hold the parameters, :data:`TRAINING` to train them.

    Raises:
        ConfigError: it names the largest parameter's flag, and both numbers.
    """
    infos = param_info(model)
    sizes = {name: math.prod(info.shape) for name, info in infos.items()}
    needed, there = 4 * copies * sum(sizes.values()), memory()
    if needed > there:
        name = max(sizes, key=sizes.__getitem__)
        raise ConfigError(
            f"{sum(sizes.values()):,} parameters take {_gigabytes(needed)}{' in training' if copies > 1 else ''}, and "
            f"this machine has {_gigabytes(there)}; the largest is {name}: choose a smaller {_flag(model, infos[name])}"
        )


def memory() -> int:
    """Bytes of all local devices together; of the machine, where they are its processor or do not say."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    if jax.default_backend() != "cpu" and all(limits):
        return sum(limits) * jax.process_count()
    return machine_memory() * jax.process_count()


def most_used() -> dict[str, int | None]:
    """For a run's summary: ``peak_bytes`` that were in use on the first local device; None where it does not say."""
    return {"peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")}


def _flag(model: ModelConfig, parameter: ParamInfo) -> str:
    """The flag of which that parameter's size is the likeliest to be too large."""
    axes = set(parameter.axes)
    if "vocab" in axes and model.vocab_size > model.width:
        return "--model.vocab-size"
    if "position" in axes and model.max_len > model.width:
        return "--model.max-len or --data.seq-len"
    if "layer" in axes and model.layers > model.width:
        return "--model.layers"
    if axes & {"stream", "streams", "coefficient"} and (model.residual.stream_count or 0) > 64:
        return "--model.residual.streams"
    return "--model.width"


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
