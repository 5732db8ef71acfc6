"""The contract of a model: tokens in, hidden states out, and a head that makes logits of them."""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.pieces import Piece
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Execution
from mhc_jax.precision import Policy
from mhc_jax.registry import required

ModelState = Any

# None until it is known. To a type checker it is a number: validate(), through which every use of a model goes, refuses
# None once and for all, so that nothing after it has to ask.
if TYPE_CHECKING:
    Size = int
else:
    Size = int | None


SIZES = ("vocab_size", "max_len")


def _open_sizes(data: Any) -> Any:
    """The fields of an older record, in which an open size was 0, as they are now."""
    if not isinstance(data, dict):
        return data
    return {name: None if name in SIZES and type(x) is int and x == 0 else x for name, x in data.items()}


class Model(nnx.Module):
    """Built by :meth:`ModelConfig.build`."""

    policy: Policy

    @required
    def init_state(self, batch: int, max_len: int) -> ModelState:
        """State before the first token, for sequences of at most ``max_len`` tokens: a pytree of distinct arrays."""

    @required
    def __call__(
        self, tokens_BT: jax.Array, state: ModelState | None, scope: Scope
    ) -> tuple[jax.Array, ModelState | None]:
        """Inputs of the head (B, T, D) for the tokens that follow ``state``, and the state after them.

        Args:
            tokens_BT: ids.
            state: None for sequences with nothing before them and nothing to follow; then None comes back.
            scope: see :class:`mhc_jax.nn.scope.Scope`.
        """

    def pieces(self) -> dict[str, Piece]:
        """Its parts up to the head, by name, in the order in which they run; none if it does not tell them apart."""
        return {}

    @required
    def head_VD(self) -> jax.Array:
        """The output head in the compute dtype."""

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """(B, T, V) in the accumulation dtype."""
        hidden_BTD = hidden_BTD.astype(self.policy.compute)
        dtype = self.policy.accumulate
        return jnp.einsum("btd,vd->btv", hidden_BTD, self.head_VD(), preferred_element_type=dtype)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Config):
    """Base of all model configurations.

    Attributes:
        vocab_size: V, of ids that go in; in a run, None takes the data's.
        max_len: tokens of the longest sequence; in a run, None takes those of the data's windows.
        execution: settings that change speed and memory, not the model.
        layers_under: prefix of the names of its layers' activations.
    """

    axis: ClassVar[str] = "model"
    layers_under: ClassVar[str] = ""

    vocab_size: Size = None  # pyright: ignore[reportAssignmentType]
    max_len: Size = None  # pyright: ignore[reportAssignmentType]
    execution: Execution = Execution()

    @classmethod
    def from_dict(cls, data):
        return super().from_dict(_open_sizes(data))

    @property
    def open_sizes(self) -> tuple[str, ...]:
        """The sizes that are still to follow the data."""
        return tuple(name for name in SIZES if getattr(self, name) is None)

    def validate(self):
        super().validate()
        for name in SIZES:
            size = getattr(self, name)
            self.require(size is not None, f"{name} must be given; only in a run can it follow the data")
            self.require(size != 0, f"{name} must be at least 1, got 0; None follows the data of a run")
        self.require_counts(1, *SIZES)

    @property
    def depth(self) -> int:
        """Number of its layers, one after another; 0 for a model that has none."""
        return getattr(self, "layers", 0)

    @property
    def description(self) -> tuple[str, ...]:
        """Its parts, in a few words each."""
        return (self.kind or type(self).__name__,)

    def product_flops(self, length: int) -> dict[str, int]:
        """Operations by name of products without a parameter of role ``"kernel"``, for one token among ``length``.

        Those between activations, and the head where it is a table.
        """
        return {}

    @property
    def first_logit_std(self) -> float:
        """Standard deviation of the logits of initial parameters, as far as the record implies one."""
        return 0.0

    @property
    def layer_output(self) -> str | None:
        """Name of the activation that holds the output of every layer, (L, B, T, D), or of its streams (L, B, T, N, D).

        None, by default, for a model whose layers cannot be compared with those of another.
        """
        return None

    def layer_mask(self, mask_BT: jax.Array) -> jax.Array:
        """Which places of its layers' activations count, given which tokens do: by default the same."""
        return mask_BT

    def scored_T(self, length: int) -> np.ndarray | None:
        """(T,) whether the output at each token counts, in training and in evaluation; None, by default, if all do."""
        return None

    @property
    def remark(self) -> str:
        """What is to be known before it is trained; empty, by default, for nothing."""
        return ""

    @property
    @required
    def causal(self) -> bool:
        """Whether no token's output depends on a later token, as next-token training and decoding require."""

    def check_next_token(self) -> None:
        """Raises ConfigError unless the logits predict the next token, as training on text and decoding require."""
        self.require(self.causal, "tokens see later ones: it can neither learn nor continue a text")

    def check_segments(self) -> None:
        """Raises ConfigError if it cannot keep segments of a row apart; by default it can."""

    @required
    def build(self, init: Init) -> Model: ...
