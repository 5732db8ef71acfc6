"""Multi-stream-residual language models in JAX.

Each name, and each module, is imported when it is first used: ``mhc_jax.rlm`` needs no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mhc_jax import interop
    from mhc_jax.accounting import Summary, summary
    from mhc_jax.config import ConfigError
    from mhc_jax.decode import generate
    from mhc_jax.functional import Output, apply, init
    from mhc_jax.interop import load, save
    from mhc_jax.nn.lm import LMConfig
    from mhc_jax.sampling import Sampling

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "LMConfig",
    "Output",
    "Sampling",
    "Summary",
    "__version__",
    "apply",
    "generate",
    "init",
    "interop",
    "load",
    "save",
    "summary",
]

_HOMES = {
    "ConfigError": "config",
    "LMConfig": "nn.lm",
    "Output": "functional",
    "Sampling": "sampling",
    "Summary": "accounting",
    "apply": "functional",
    "generate": "decode",
    "init": "functional",
    "load": "interop",
    "save": "interop",
    "summary": "accounting",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    module = f"{__name__}.{name}"
    try:
        if not name.startswith("_"):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
