"""Where kernels of TPUs are interpreted."""

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError


def is_interpreted() -> bool:
    """Whether a kernel of TPUs is interpreted, which is slow: on a CPU, where it is tried out.

    Raises:
        ConfigError: on a GPU, where whoever asks for a kernel wants it fast.
    """
    if target_backend() == "gpu":
        raise ConfigError("this kernel is for TPUs; take implementation 'xla' on a GPU, or 'cudnn' for attention")
    return target_backend() != "tpu"
