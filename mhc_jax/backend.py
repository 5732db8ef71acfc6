"""The platform that a program is made for. It decides between forms of a computation that differ in speed alone.

It is part of the key of JAX's caches: a function that was traced for one platform is traced again for another.
"""

from contextlib import AbstractContextManager

import jax

_target = jax.make_user_context(default_value=None)


def target_backend() -> str:
    """``"cpu"``, ``"gpu"`` or ``"tpu"``: what :func:`compiling_for` names, or else where JAX runs by default."""
    return _target.value or jax.default_backend()


def compiling_for(platform: str) -> AbstractContextManager:
    """A context in which programs are traced for ``platform``, whether or not there is such a device here."""
    return _target(platform)
