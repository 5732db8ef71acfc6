"""The context of a call: the call-time twin of :class:`mhc_jax.nn.init.Init`."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Self, TypeVar

import jax
import jax.numpy as jnp

from mhc_jax.config import ConfigError
from mhc_jax.nn.taps import Taps
from mhc_jax.ops.streams import Streams

Tapped = TypeVar("Tapped", jax.Array, Streams)
ValueHook = Callable[[jax.Array], jax.Array]


def own_values(v_BTD: jax.Array) -> jax.Array:
    """Only the values of this layer: no value residual."""
    return v_BTD


@dataclasses.dataclass(frozen=True)
class Scope:
    """The context of a call that a part may use, in addition to its input and its state.

    Attributes:
        positions_BT: absolute positions, counted from each row's first token; (1, T) where all rows agree.
        segments_BT: tokens of different segments do not see each other; None where every row is one segment.
        column: cache column of the first token of this call, the same for all rows.
        start_B: column of each row's first token. Earlier columns are padding that no token sees.
        key: key of random draws; None in evaluation.
        progress: 0 at the start of training, 1 at its end; None counts as 1.
        layer: counted from 0, inside the layers.
        values: what a mixer carries from token to token (attention's values, the input of a recurrence) passes through
            it once: there the value residual joins.
        taps: recorder of named activations.
        penalties: auxiliary losses that were left so far, by name.
        batch_sharding: sharding of arrays (B, ...) on several devices.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array | None = None
    column: jax.Array | int = 0
    start_B: jax.Array | None = None
    key: jax.Array | None = None
    progress: jax.Array | None = None
    layer: jax.Array | int = 0
    values: ValueHook = own_values
    taps: Taps | None = None
    penalties: dict[str, list[jax.Array]] = dataclasses.field(default_factory=dict)
    batch_sharding: jax.sharding.Sharding | None = None

    @classmethod
    def over(cls, length: int, **fields) -> Self:
        """The scope of whole sequences of ``length`` tokens."""
        return cls(jnp.arange(length)[None], **fields)

    def __truediv__(self, name: str) -> Self:
        """The scope of a part: taps under ``name.``, and a separate key."""
        return self.keyed(name).replace(taps=self.taps and self.taps / name)

    def replace(self, **changes) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def keyed(self, name: str) -> Self:
        """The same scope with the key of that name."""
        return self.replace(key=self.key_of(name))

    def key_of(self, name: str) -> jax.Array | None:
        """A key that depends on this scope's and on the name."""
        return None if self.key is None else jax.random.fold_in(self.key, zlib.crc32(name.encode()))

    def at(self, layer: jax.Array | int) -> Self:
        """The scope of one layer, with a separate key."""
        return self.replace(layer=layer, key=None if self.key is None else jax.random.fold_in(self.key, layer))

    def tap(self, name: str, x: Tapped) -> Tapped:
        """``x``, recorded under the name if activations are recorded; streams as one array (B, T, N, D)."""
        if self.taps is None or not self.taps.wants(name):
            return x
        return Streams.unstack(self.taps(name, x.stack())) if isinstance(x, Streams) else self.taps(name, x)

    def repeated(self, n: int) -> Self:
        """The scope of a batch in which every row is repeated n times in succession: branches folded into the batch."""
        if n == 1:
            return self
        shared = self.positions_BT.shape[0] == 1
        rows = {"positions_BT": None if shared else self.positions_BT}
        rows |= {"segments_BT": self.segments_BT, "start_B": self.start_B}
        return self.replace(**{name: jnp.repeat(x, n, axis=0) for name, x in rows.items() if x is not None})

    def penalise(self, name: str, value: jax.Array) -> None:
        """Adds an auxiliary loss, already weighted; the mean over those of one name reaches the training loss.

        Raises:
            ConfigError: it is not a scalar.
        """
        if shape := jnp.shape(value):
            raise ConfigError(f"penalty {name!r} has shape {shape}; it must be a scalar, such as a mean")
        self.penalties.setdefault(name, []).append(value)

    def mean_penalties(self) -> dict[str, jax.Array]:
        """The recorded penalties, a scalar for each name."""
        return {name: sum(values) / len(values) for name, values in self.penalties.items()}

    def starts_BT(self, length: int) -> jax.Array | None:
        """(B, T) true at tokens that see no earlier token of this call; None if only the state decides that.

        These are the first tokens of segments other than the first, whose past is the state, and the first tokens of
        rows that padding precedes.
        """
        starts = None
        if self.segments_BT is not None:
            starts = jnp.pad(self.segments_BT[:, 1:] != self.segments_BT[:, :-1], ((0, 0), (1, 0)))
        if self.start_B is not None:
            first = self.columns(length) == self.start_B[:, None]
            starts = first if starts is None else starts | first
        return starts

    def padding_BT(self, length: int) -> jax.Array | None:
        """(B, T) true before the first token of a row; None if there is no such place."""
        return None if self.start_B is None else self.columns(length) < self.start_B[:, None]

    def columns(self, length: int) -> jax.Array:
        """(T,) columns of the cache that the tokens of this call belong in."""
        return self.column + jnp.arange(length)
