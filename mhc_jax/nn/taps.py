"""Named activations: recorded on request, and perturbed so that their cotangents can be read.

A module calls ``x = scope.tap("name", x)``. By default that is the identity. :class:`Taps` records the
value and adds a probe if one is given; the gradient with respect to a zero probe is the cotangent
of the activation.
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Taps:
    """Records every tapped activation in ``values``, after adding the probe of that name and shape, if any.

    Attributes:
        probes: probes by full name.
        prefix: prefix of the names that are tapped through this object, such as ``"blocks.mixer."``.
        only: full names that are recorded, of which a prefix may be cut off; None for all.
        values: tapped values by full name; shared by all objects derived by :meth:`__truediv__`.
    """

    probes: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    only: frozenset[str] | None = None
    values: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    def __truediv__(self, name: str) -> Self:
        """The same recorder with ``name.`` before every name."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def wants(self, name: str) -> bool:
        """Whether an activation of that name is recorded or perturbed."""
        return self.only is None or self.prefix + name in self.only

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        name = self.prefix + name
        # One of another shape is refused by `mhc_jax.apply`, which knows both as a person does, layers included.
        if name in self.probes and jnp.shape(self.probes[name]) == x.shape:
            x = (x + self.probes[name]).astype(x.dtype)  # streams may be narrower than the probe
        self.values[name] = x
        return x

    def inside(self, probes: Mapping[str, jax.Array]) -> "Taps":
        """A recorder of what this one wants, for names without its prefix."""
        if self.only is None:
            return Taps(probes)
        wanted = [name.removeprefix(self.prefix) for name in self.only if name.startswith(self.prefix)]
        return Taps(probes, only=frozenset(wanted))

    def probes_inside(self, layers: int) -> dict[str, jax.Array]:
        """Probes under this prefix whose first axis is the layers, by their names without the prefix."""
        inside = {name: probe for name, probe in self.probes.items() if name.startswith(self.prefix)}
        return {name.removeprefix(self.prefix): x for name, x in inside.items() if jnp.shape(x)[:1] == (layers,)}

    def record(self, values: Mapping[str, jax.Array]) -> None:
        """Takes over activations that were recorded elsewhere, by names without this prefix."""
        self.values.update({self.prefix + name: x for name, x in values.items()})
