"""A site (a residual topology around a normalised branch), and the block of sites that is one layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.channel.base import ChannelMixer
from mhc_jax.nn.init import Init
from mhc_jax.nn.layers import Norm, NormName, dropout, fold
from mhc_jax.nn.mixers.base import Mixer, MixerState, own_values
from mhc_jax.nn.residual.base import Residual, State, streams_of, with_streams
from mhc_jax.nn.taps import Tap, no_tap, under
from mhc_jax.nn.value_residual import ValueMix, ValueResidual
from mhc_jax.precision import Policy

# What a scan over layers carries: the residual state and, with value residual, the first layer's values.
Carry = tuple[State, jax.Array | None]


class Site(nnx.Module):
    """``state = post(state, dropout(branch(norm(u))))`` with ``u = pre(state)``."""

    def __init__(
        self,
        residual: Residual,
        branch: Mixer | ChannelMixer,
        width: int,
        norm: NormName,
        rate: float,
        policy: Policy,
        init: Init,
        *,
        norm_bias: bool = True,
    ):
        self.residual, self.branch = residual, branch
        self.norm = None if residual.normalised else Norm(width, norm, init / "norm", biased=norm_bias)
        self.rate, self.policy = rate, policy

    def __call__(
        self,
        state: State,
        run: Callable[[jax.Array], tuple[jax.Array, Any]],
        *,
        key: jax.Array | None = None,
        tap: Tap = no_tap,
    ) -> tuple[State, Any]:
        """The state after the site, and what else ``run`` returned.

        Args:
            run: the branch as a function of its normalised input.
            key: switches dropout on.
        """
        u, ctx = self.residual.pre(state, key=fold(key, 0), tap=under("residual", tap))
        y, out = run(self._input(tap("u", u)))
        if self.residual.branches > 1:
            y = jnp.swapaxes(y.reshape(-1, self.residual.branches, *y.shape[1:]), 0, 1)
        y = tap("y", dropout(y, self.rate, fold(key, 1)))
        state = self.residual.post(state, y, ctx, key=fold(key, 2), tap=under("residual", tap))
        return with_streams(state, tap("state", streams_of(state))), out

    def _input(self, u: jax.Array) -> jax.Array:
        """What the branch takes: normalised, its views as many as it takes, branches folded into the batch.

        All branches of a sequence follow one another, so that a slice of the batch stays one.
        """
        u = u.astype(self.policy.accumulate)
        x = self._normalise(u).astype(self.policy.compute)
        if self.residual.views > 1 and self.branch.views == 1:
            return jnp.mean(x, axis=0)
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]) if self.residual.branches > 1 else x

    def _normalise(self, u: jax.Array) -> jax.Array:
        return u if self.norm is None else self.norm(u)


class Block(nnx.Module):
    """One layer: a site ``mixer`` with a sequence mixer and, in most models, a site ``mlp`` with a channel mixer."""

    def __init__(self, mixer: Site, mlp: Site | None, values: ValueResidual | None):
        self.mixer, self.mlp, self.values = mixer, mlp, values

    def __call__(
        self,
        carry: Carry,
        layer: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
        tap: Tap = no_tap,
    ) -> Carry:
        """The whole sequence; ``key`` switches dropout on."""
        mixer: Any = self.mixer.branch
        tokens = {"positions": self._repeat(positions), "segment_ids": self._repeat(segment_ids)}
        inside = {"key": fold(key, 2), "tap": under("mixer.branch", tap)}

        def mix(x, values):
            return mixer(x, values=values, **tokens, **inside), None

        return self._through(carry, layer, mix, key, tap)[0]

    def init_memory(self, batch: int, max_len: int) -> MixerState:
        """The mixer state before the first token."""
        return self.mixer.branch.init_state(batch * self.mixer.residual.branches, max_len)

    def prefill(self, carry: Carry, layer: jax.Array, memory: MixerState) -> tuple[Carry, MixerState]:
        """The whole sequence after the mixer state ``memory``, and the mixer state after it."""
        return self._through(carry, layer, lambda x, values: self.mixer.branch.prefill(x, memory, values=values))

    def step(self, carry: Carry, layer: jax.Array, memory: MixerState) -> tuple[Carry, MixerState]:
        """One token: the state has T = 1."""

        def mix(x, values):
            y_BD, after = self.mixer.branch.step(x[..., 0, :], memory, values=values)
            return y_BD[:, None], after

        return self._through(carry, layer, mix)

    def _through(self, carry, layer, mix, key=None, tap: Tap = no_tap):
        state, first = carry
        values = own_values if self.values is None else ValueMix(self.values.weights(), layer, first)
        state, memory = self.mixer(state, lambda x: mix(x, values), key=fold(key, 0), tap=under("mixer", tap))
        if self.mlp is not None:
            branch, inside = self.mlp.branch, under("mlp.branch", tap)
            state, _ = self.mlp(state, lambda x: (branch(x, tap=inside), None), key=fold(key, 1), tap=under("mlp", tap))
        return (state, values.first if isinstance(values, ValueMix) else None), memory

    def _repeat(self, x_BT: jax.Array | None) -> jax.Array | None:
        """Branches are folded into the batch, and all of a sequence run over the same tokens."""
        return None if x_BT is None else jnp.repeat(x_BT, self.mixer.residual.branches, axis=0)
