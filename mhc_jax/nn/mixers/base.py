"""The contract of a sequence mixer: how tokens exchange information."""

import dataclasses
from typing import Any, ClassVar

import jax
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.taps import Tap, no_tap
from mhc_jax.precision import Policy

MixerState = Any


class Mixer(nnx.Module):
    """Maps (B, T, D) to (B, T, D), causally; and the same one token at a time with a fixed-size state."""

    def __call__(
        self,
        u_BTD: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        tap: Tap = no_tap,
    ) -> jax.Array:
        """The whole sequence.

        Args:
            u_BTD: normalised input.
            positions: (B, T) absolute positions; 0 .. T-1 if omitted.
            segment_ids: (B, T); tokens of different segments do not see each other.
        """
        raise NotImplementedError

    def init_state(self, batch: int, max_len: int) -> MixerState:
        """State before the first token, for sequences of at most ``max_len`` tokens."""
        raise NotImplementedError

    def prefill(self, u_BTD: jax.Array, state: MixerState) -> tuple[jax.Array, MixerState]:
        """The whole sequence after ``state``, and the state after its last token."""
        raise NotImplementedError

    def step(self, u_BD: jax.Array, state: MixerState) -> tuple[jax.Array, MixerState]:
        """One token after ``state``, and the state after it."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class MixerConfig(Config):
    """Base of all mixer configurations."""

    axis: ClassVar[str] = "mixer"

    def build(self, width: int, policy: Policy, init: Init) -> Mixer:
        raise NotImplementedError
