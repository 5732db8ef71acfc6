"""Named activations: recorded on request, and perturbed so that their cotangents can be read.

A module calls ``x = tap("name", x)``. By default that is the identity. :class:`Taps` records the
value and adds a probe if one is given; the gradient with respect to a zero probe is the cotangent
of the activation.
"""

from collections.abc import Callable, Mapping

import jax

Tap = Callable[[str, jax.Array], jax.Array]


def no_tap(name: str, x: jax.Array) -> jax.Array:
    """Records nothing."""
    return x


class Taps:
    """Records every tapped activation in ``values``, after adding the probe of that name, if any."""

    def __init__(self, probes: Mapping[str, jax.Array] | None = None):
        self.probes = dict(probes or {})
        self.values: dict[str, jax.Array] = {}

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        if name in self.probes:
            x = x + self.probes[name]
        self.values[name] = x
        return x


def under(prefix: str, tap: Tap) -> Tap:
    """``tap`` with ``prefix.`` before every name."""
    if tap is no_tap:
        return tap
    return lambda name, x: tap(f"{prefix}.{name}", x)
