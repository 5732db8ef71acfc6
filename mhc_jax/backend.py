"""The target platform of a program, which selects among forms of a computation that differ only in speed.

It is part of the key of JAX's caches: a function that was traced for one platform is traced again for another.
"""

from contextlib import AbstractContextManager

import jax

_target = jax.make_user_context(default_value=None)


def target_backend() -> str:
    """``"cpu"``, ``"gpu"`` or ``"tpu"``: the platform of :func:`compiling_for`, or else JAX's default platform."""
    return stated_backend() or jax.default_backend()


def target_kind() -> str | None:
    """What JAX calls the devices there, such as ``"TPU v4"``; None if the platform was stated without their kind."""
    return _target.value[1] if _target.value else jax.devices()[0].device_kind


def stated_backend() -> str | None:
    """The platform of :func:`compiling_for`, or None: it looks for no device, before which processes must have met."""
    return _target.value[0] if _target.value else None


def compiling_for(platform: str, kind: str | None = None) -> AbstractContextManager:
    """A context in which programs are traced for ``platform``, whether or not there is such a device here.

    Args:
        kind: of its devices, as JAX names it.
    """
    return _target((platform, kind))
