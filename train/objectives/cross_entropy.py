"""Cross-entropy with the batch's targets: on text, of the next token."""

import dataclasses

import jax
import jax.numpy as jnp

from mhc_jax.functional import Hidden, hidden
from mhc_jax.nn.model import ModelConfig
from mhc_jax.ops.loss import IGNORE, chunked_cross_entropy
from mhc_jax.precision import policy
from mhc_jax.registry import register
from train.data.kind import places
from train.objectives.kind import ObjectiveConfig, Sums


@register("objective", "cross_entropy")
@dataclasses.dataclass(frozen=True)
class CrossEntropyConfig(ObjectiveConfig):
    """Negative log likelihood in nats of every target, given the tokens up to its place.

    Attributes:
        errors: evaluation also counts targets that are not the likeliest token, as ``error``.
    """

    errors: bool = False

    def check(self, model):
        model.check_next_token()

    def sums(self, model, params, batch, *, key=None, progress=None, batch_sharding=None):
        called = {"key": key, "progress": progress, "batch_sharding": batch_sharding}
        found = hidden(model, params, batch["inputs"], **places(batch), **called)
        return self.sums_of(model, found, batch["targets"], errors=self.errors and key is None), found.penalties

    def sums_of(self, model: ModelConfig, found: Hidden, targets_BT: jax.Array, *, errors: bool) -> Sums:
        """The sums of a forward pass."""
        dtypes = policy(model.execution.policy)
        targets_BT = self.counted(model, targets_BT)
        hidden_BTD = found.hidden_BTD.astype(dtypes.compute)
        options = {"chunk": self.chunk, "logits_dtype": dtypes.accumulate}
        with jax.default_matmul_precision(dtypes.precision):
            loss, count = chunked_cross_entropy(hidden_BTD, found.head_VD, targets_BT, **options)
            sums = {"loss": loss, "tokens": count}
            if errors:
                sums["error"] = _errors(hidden_BTD, found.head_VD, targets_BT, **options)
        return sums


def _errors(
    hidden_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, *, chunk: int, logits_dtype: jnp.dtype
) -> jax.Array:
    """Number of targets without the greatest logit; among equal ones the first counts, and NaN never does."""
    total = jnp.zeros((), logits_dtype)
    for start in range(0, targets_BT.shape[1], chunk):
        hidden_BKD, targets_BK = (x[:, start : start + chunk] for x in (hidden_BTD, targets_BT))
        logits = jnp.einsum("bkd,vd->bkv", hidden_BKD, head_VD, preferred_element_type=logits_dtype)
        right = (jnp.argmax(logits, axis=-1) == targets_BK) & ~jnp.isnan(logits).any(axis=-1)
        total += jnp.sum((targets_BK != IGNORE) & ~right, dtype=logits_dtype)
    return total
