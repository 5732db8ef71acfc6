"""A site (a residual topology around a normalised branch), and the block of sites that is one layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.config import ConfigError
from mhc_jax.nn.channel.base import ChannelMixer
from mhc_jax.nn.deferred import computed
from mhc_jax.nn.layers import dropout
from mhc_jax.nn.mixers.base import Mixer, MixerState
from mhc_jax.nn.norms import Norm
from mhc_jax.nn.residual.base import Residual, State, streams_of, with_streams
from mhc_jax.nn.scope import Scope, own_values
from mhc_jax.nn.value_residual import FirstValues, ValueMix, ValueResidual
from mhc_jax.precision import Policy

# The carry of the scan over layers: the residual state and, with value residual, the values of the first layer.
Carry = tuple[State, FirstValues | None]


class Site(nnx.Module):
    """``state = post(state, dropout(branch(norm(u))))`` with ``u = pre(state)``."""

    def __init__(
        self,
        residual: Residual,
        branch: Mixer | ChannelMixer,
        norm: Norm | None,
        rate: float,
        policy: Policy,
    ):
        self.residual, self.branch, self.norm = residual, branch, norm
        self.rate, self.policy = rate, policy

    def __call__(
        self, state: State, run: Callable[[jax.Array, Scope], tuple[jax.Array, Any]], scope: Scope
    ) -> tuple[State, Any]:
        """The state after the site, and the second result of ``run``.

        Args:
            run: the branch as a function of its normalised input and of its scope.
            scope: scope of the site.

        Raises:
            ConfigError: the output of the branch has another shape than its input.
        """
        around = scope / "residual"
        x, ctx = self._read(state, around.keyed("pre"), scope)
        y, out = run(x, (scope / "branch").repeated(self.residual.branches))
        if jnp.shape(y) != (shape := x.shape[-3:]):  # beyond are the views
            raise ConfigError(f"{_name(self.branch)} must give an output of shape {shape}, not {jnp.shape(y)}")
        if self.residual.branches > 1:
            y = jnp.swapaxes(y.reshape(-1, self.residual.branches, *y.shape[1:]), 0, 1)
        y = scope.tap("y", dropout(y, self.rate, scope.key_of("dropout")))
        state = self.residual.post(state, y, ctx, around.keyed("post"))
        if scope.taps is None:
            return state, out
        state = computed(state)
        return with_streams(state, scope.tap("state", streams_of(state))), out

    def _read(self, state: State, around: Scope, scope: Scope) -> tuple[jax.Array, Any]:
        """The input of the branch, and the context of the write. What is recorded is not fused with its norm."""
        if self.norm is not None and self.norm.fusible and self.residual.fuses_norm and scope.taps is None:
            return self.residual.pre(state, around, self.norm)
        u, ctx = self.residual.pre(state, around)
        return self.branch_input(scope.tap("u", u)), ctx

    def branch_input(self, u: jax.Array) -> jax.Array:
        """The input of the branch: normalised, with all views or their mean, and with the runs folded into the batch.

        The runs of a sequence are adjacent, so that contiguous sequences stay contiguous when devices share the batch.
        """
        u = u.astype(self.policy.accumulate)
        x = self._normalise(u).astype(self.policy.compute)
        if self.residual.views > 1 and self.branch.views == 1:
            return jnp.mean(x, axis=0)
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]) if self.residual.branches > 1 else x

    def _normalise(self, u: jax.Array) -> jax.Array:
        return u if self.norm is None else self.norm(u)


class Block(nnx.Module):
    """One layer: sites in the order ``before_mixer``, ``mixer``, ``before_mlp``, ``mlp``.

    The site ``mixer`` has a sequence mixer, and the others, which need not exist, have channel mixers.
    """

    def __init__(
        self,
        mixer: Site,
        mlp: Site | None = None,
        values: ValueResidual | None = None,
        *,
        before_mixer: Site | None = None,
        before_mlp: Site | None = None,
    ):
        self.before_mixer, self.mixer, self.before_mlp, self.mlp = before_mixer, mixer, before_mlp, mlp
        self.values = values

    def init_state(self, batch: int, max_len: int) -> MixerState:
        """The mixer's state before the first token."""
        mixer: Any = self.mixer.branch
        return mixer.init_state(batch * self.mixer.residual.branches, max_len)

    def __call__(self, carry: Carry, memory: MixerState | None, scope: Scope) -> tuple[Carry, MixerState | None]:
        """The carry after the layer, and the mixer's state after the last token; see :class:`Mixer`."""
        state, first = carry
        shared = None if self.values is None else ValueMix(self.values.weights(), scope.layer, first)
        mixer: Any = self.mixer.branch

        def mix(x: jax.Array, inside: Scope):
            y, after = mixer(x, memory, inside.replace(values=shared or own_values))
            _check_state(mixer, memory, after)
            return y, after

        state = _through_channels(self.before_mixer, state, scope / "before_mixer")
        state, memory = self.mixer(state, mix, scope / "mixer")
        state = _through_channels(self.before_mlp, state, scope / "before_mlp")
        state = _through_channels(self.mlp, state, scope / "mlp")
        return (state, None if shared is None else shared.first), memory


def _check_state(mixer: Mixer, before: MixerState | None, after: MixerState | None) -> None:
    """Raises ConfigError if the mixer's state has changed its shape."""
    was, now = (jax.tree.map(lambda x: f"{x.dtype} {x.shape}", state) for state in (before, after))
    if was != now:
        raise ConfigError(f"{_name(mixer)} must return a state like the one it was given, {was}, not {now}")


def _name(part: nnx.Module) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _through_channels(site: Site | None, state: State, scope: Scope) -> State:
    """The state after a site with a channel mixer, if the layer has it."""
    if site is None:
        return state
    branch: Any = site.branch
    return site(state, lambda x, inside: (branch(x, inside), None), scope)[0]
