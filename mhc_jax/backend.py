"""The target platform of a program, which selects among forms of a computation that differ only in speed.

It is part of the key of JAX's caches: a function that was traced for one platform is traced again for another.
"""

from contextlib import AbstractContextManager

import jax

_target = jax.make_user_context(default_value=None)


def target_backend() -> str:
    """``"cpu"``, ``"gpu"`` or ``"tpu"``: the platform of :func:`compiling_for`, or else JAX's default platform."""
    return _target.value or jax.default_backend()


def stated_backend() -> str | None:
    """The platform of :func:`compiling_for`, or None: it looks for no device, before which processes must have met."""
    return _target.value


def compiling_for(platform: str) -> AbstractContextManager:
    """A context in which programs are traced for ``platform``, whether or not there is such a device here."""
    return _target(platform)
