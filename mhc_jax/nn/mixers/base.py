"""The contract of a sequence mixer: how tokens exchange information."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.taps import Tap, no_tap
from mhc_jax.precision import Policy

MixerState = Any
ValueHook = Callable[[jax.Array], jax.Array]


def own_values(v_BTD: jax.Array) -> jax.Array:
    """The values of this layer alone: no value residual."""
    return v_BTD


class Mixer(nnx.Module):
    """Maps (B, T, D) to (B, T, D), causally; and the same one token at a time with a fixed-size state.

    Every mixer passes what it carries from token to token (attention's values, the input of a recurrence), (B, T, D),
    through ``values`` once: that is where the value residual joins.

    Attributes:
        views: inputs it takes. With V > 1 the input is (V, B, T, D).
    """

    views: int = 1

    def __call__(
        self,
        u_BTD: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        values: ValueHook = own_values,
        key: jax.Array | None = None,
        tap: Tap = no_tap,
    ) -> jax.Array:
        """The whole sequence.

        Args:
            u_BTD: normalised input.
            positions: (B, T) absolute positions; 0 .. T-1 if omitted.
            segment_ids: (B, T); tokens of different segments do not see each other.
            values: see the class.
            key: switches dropout on.
        """
        raise NotImplementedError

    def init_state(self, batch: int, max_len: int) -> MixerState:
        """State before the first token, for sequences of at most ``max_len`` tokens."""
        raise NotImplementedError

    def prefill(
        self, u_BTD: jax.Array, state: MixerState, *, values: ValueHook = own_values
    ) -> tuple[jax.Array, MixerState]:
        """The whole sequence after ``state``, and the state after its last token."""
        raise NotImplementedError

    def step(
        self, u_BD: jax.Array, state: MixerState, *, values: ValueHook = own_values
    ) -> tuple[jax.Array, MixerState]:
        """One token after ``state``, and the state after it; by default a sequence of one token."""
        y_B1D, state = self.prefill(u_BD[..., None, :], state, values=values)
        return y_B1D[:, 0], state


@dataclasses.dataclass(frozen=True)
class MixerConfig(Config):
    """Base of all mixer configurations; ``views`` as in :class:`Mixer`."""

    axis: ClassVar[str] = "mixer"
    views: ClassVar[int] = 1

    def check(self, width: int) -> None:
        """Raises ConfigError if the mixer cannot be built for that width."""

    def product_flops(self, width: int, length: int) -> int:
        """Operations of the products between activations, for one token among ``length``; none by default."""
        return 0

    def build(self, width: int, policy: Policy, init: Init) -> Mixer:
        raise NotImplementedError
