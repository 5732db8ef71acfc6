"""The contract of a sequence mixer, which exchanges information between tokens."""

import dataclasses
from typing import Any, ClassVar

import jax
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.scope import Scope
from mhc_jax.precision import Policy
from mhc_jax.registry import required

MixerState = Any


class Mixer(nnx.Module):
    """Maps (B, T, D) to (B, T, D), causally unless its configuration says otherwise.

    The state is a pytree of arrays (B, ...) of fixed shapes: the past of a sequence, so that it can be extended in any
    pieces. What it keeps of every token is in :class:`mhc_jax.nn.columns.Columns`, which are written in place. The
    values that the mixer carries from token to token, (B, T, :meth:`MixerConfig.value_width`), pass through
    ``scope.values`` once.

    Attributes:
        views: inputs it takes. With V > 1 the input is (V, B, T, D).
    """

    views: int = 1

    @required
    def init_state(self, batch: int, max_len: int) -> MixerState:
        """State before the first token, for sequences of at most ``max_len`` tokens."""

    @required
    def __call__(self, u_BTD: jax.Array, state: MixerState | None, scope: Scope) -> tuple[jax.Array, MixerState | None]:
        """The tokens after ``state``, and the state after the last of them.

        Args:
            u_BTD: normalised input. T is static, so that a mixer may treat a single token specially.
            state: None for a sequence with nothing before it and nothing to follow; then None comes back.
            scope: see :class:`mhc_jax.nn.scope.Scope`.
        """


@dataclasses.dataclass(frozen=True)
class MixerConfig(Config):
    """Base of all mixer configurations; ``views`` as in :class:`Mixer`.

    Attributes:
        causal: no token sees a later one.
    """

    axis: ClassVar[str] = "mixer"
    views: ClassVar[int] = 1
    causal: ClassVar[bool] = True

    def check(self, width: int) -> None:
        """Raises ConfigError if the mixer cannot be built for that width."""

    def check_kernels(self, width: int, policy: Policy) -> None:
        """Raises ConfigError if kernels are asked for that cannot take that width in these dtypes."""

    def value_width(self, width: int) -> int:
        """Width of the values that the mixer carries from token to token; the model's by default."""
        return width

    def product_flops(self, width: int, length: int) -> int:
        """Operations of the products between activations, for one token among ``length``; none by default."""
        return 0

    @required
    def build(self, width: int, policy: Policy, init: Init) -> Mixer: ...
