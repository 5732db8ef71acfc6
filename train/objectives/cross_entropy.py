"""Cross-entropy with the batch's targets: on text, of the next token."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.backend import stated_backend
from mhc_jax.functional import Hidden, hidden
from mhc_jax.nn.model import ModelConfig
from mhc_jax.ops.loss import IGNORE, chunked_cross_entropy, chunked_cross_entropy_and_z_loss
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
        z_loss: weight of the auxiliary loss ``z_loss``, the mean of ``log(Z)^2`` where Z is the softmax's denominator
            (PaLM, arXiv 2204.02311: 1e-4), which keeps logits from drifting; 0 for none.
        implementation: ``"xla"``, or ``"pallas"`` for kernels of TPUs whose logits exist in the core alone, see
            :mod:`mhc_jax.kernels.vocabulary`; ``chunk`` then counts for ``errors`` only.
    """

    errors: bool = False
    z_loss: float = 0.0
    implementation: Literal["xla", "pallas"] = "xla"

    def validate(self):
        super().validate()
        self.require_not_negative("z_loss")

    def check(self, model):
        model.check_next_token()

    def check_kernels(self, model):
        if self.implementation == "pallas":
            from mhc_jax.kernels.vocabulary import fault  # Pallas takes long to import

            found = fault(policy(model.execution.policy).compute, stated_backend())
            self.require(not found, f"implementation 'pallas': {found}")

    def sums(self, model, params, batch, *, key=None, progress=None, batch_sharding=None):
        called = {"key": key, "progress": progress, "batch_sharding": batch_sharding}
        found = hidden(model, params, batch["inputs"], **places(batch), **called)
        options = {"errors": self.errors and key is None, "batch_sharding": batch_sharding}
        sums, penalties = self.sums_of(model, found, batch["targets"], **options)
        return sums, found.penalties | penalties

    def sums_of(
        self,
        model: ModelConfig,
        found: Hidden,
        targets_BT: jax.Array,
        *,
        errors: bool,
        batch_sharding: jax.sharding.Sharding | None = None,
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """The sums of a forward pass, and the auxiliary losses of its logits."""
        dtypes = policy(model.execution.policy)
        targets_BT = self.counted(model, targets_BT)
        hidden_BTD, penalties = found.hidden_BTD.astype(dtypes.compute), {}
        chunks = {"chunk": self.chunk, "logits_dtype": dtypes.accumulate}
        options = {**chunks, "implementation": self.implementation, "batch_sharding": batch_sharding}
        with jax.default_matmul_precision(dtypes.precision):
            if self.z_loss:
                total, loss, squares, count = chunked_cross_entropy_and_z_loss(
                    hidden_BTD, found.head_VD, targets_BT, self.z_loss, **options
                )
                # Only their sum is minimised, so the loss carries the derivative of both, formed in one pass.
                loss += total - jax.lax.stop_gradient(total)
                penalties["z_loss"] = self.z_loss * squares / jnp.maximum(count, 1)
            else:
                loss, count = chunked_cross_entropy(hidden_BTD, found.head_VD, targets_BT, **options)
            sums = {"loss": loss, "tokens": count}
            if errors:
                sums["error"] = _errors(hidden_BTD, found.head_VD, targets_BT, **chunks)
        return sums, penalties


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
