"""A site (a residual topology around a normalised branch), and the block of sites that is one layer."""

from typing import Any

import jax
from flax import nnx

from mhc_jax.nn.init import Init
from mhc_jax.nn.layers import Norm, NormName, dropout, fold
from mhc_jax.nn.mixers.base import Mixer, MixerState
from mhc_jax.nn.residual.base import Residual, State
from mhc_jax.nn.taps import Tap, no_tap, under
from mhc_jax.precision import Policy


class Site(nnx.Module):
    """``state = post(state, dropout(branch(norm(u))))`` with ``u = pre(state)``."""

    def __init__(
        self, residual: Residual, branch: Mixer, width: int, norm: NormName, rate: float, policy: Policy, init: Init
    ):
        self.residual, self.branch = residual, branch
        self.norm = Norm(width, norm, init / "norm")
        self.rate, self.policy = rate, policy

    def __call__(
        self,
        state: State,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
        tap: Tap = no_tap,
    ) -> State:
        """The whole sequence; ``key`` switches dropout on."""
        u_BTD, ctx = self.residual.pre(state, key=fold(key, 0), tap=under("residual", tap))
        x_BTD = self._normalise(tap("u", u_BTD))
        y_BTD = self.branch(x_BTD, positions=positions, segment_ids=segment_ids, tap=under("branch", tap))
        y_BTD = tap("y", dropout(y_BTD, self.rate, fold(key, 1)))
        return tap("state", self.residual.post(state, y_BTD, ctx, key=fold(key, 2), tap=under("residual", tap)))

    def prefill(self, state: State, memory: MixerState) -> tuple[State, MixerState]:
        """The whole sequence after the mixer state ``memory``, and the mixer state after it."""
        u_BTD, ctx = self.residual.pre(state)
        y_BTD, memory = self.branch.prefill(self._normalise(u_BTD), memory)
        return self.residual.post(state, y_BTD, ctx), memory

    def step(self, state: State, memory: MixerState) -> tuple[State, MixerState]:
        """One token: ``state`` has T = 1."""
        u_B1D, ctx = self.residual.pre(state)
        y_BD, memory = self.branch.step(self._normalise(u_B1D)[:, 0], memory)
        return self.residual.post(state, y_BD[:, None], ctx), memory

    def _normalise(self, u_BTD: jax.Array) -> jax.Array:
        return self.norm(u_BTD.astype(self.policy.accumulate)).astype(self.policy.compute)


class Block(nnx.Module):
    """One layer: so far a single site, ``mixer``."""

    def __init__(self, mixer: Site):
        self.mixer = mixer

    def __call__(self, state: State, *, tap: Tap = no_tap, **options: Any) -> State:
        """See :meth:`Site.__call__`."""
        return self.mixer(state, tap=under("mixer", tap), **options)

    def init_memory(self, batch: int, max_len: int) -> MixerState:
        """The mixer state before the first token."""
        return self.mixer.branch.init_state(batch, max_len)

    def prefill(self, state: State, memory: MixerState) -> tuple[State, MixerState]:
        """See :meth:`Site.prefill`."""
        return self.mixer.prefill(state, memory)

    def step(self, state: State, memory: MixerState) -> tuple[State, MixerState]:
        """See :meth:`Site.step`."""
        return self.mixer.step(state, memory)
