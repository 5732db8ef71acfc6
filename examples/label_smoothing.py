"""An objective from outside: cross-entropy with label smoothing (arXiv 1512.00567), against certainty."""

import dataclasses

import jax
import jax.numpy as jnp

from mhc_jax.functional import hidden
from mhc_jax.ops.loss import IGNORE, cross_entropy
from mhc_jax.precision import policy
from mhc_jax.registry import register
from train.data.kind import places
from train.objectives.kind import ObjectiveConfig


@register("objective", "label_smoothing")
@dataclasses.dataclass(frozen=True)
class LabelSmoothingConfig(ObjectiveConfig):
    """Cross-entropy with targets that share ``weight`` among all tokens alike; what that adds is an auxiliary loss.

    Attributes:
        weight: that is taken from every target.
    """

    weight: float = 0.1

    def validate(self):
        super().validate()
        self.require(0 <= self.weight < 1, f"weight must lie in [0, 1), got {self.weight}")

    def check(self, model):
        model.check_next_token()

    def sums(self, model, params, batch, *, key=None, progress=None, batch_sharding=None):
        called = {"key": key, "progress": progress, "batch_sharding": batch_sharding}
        found = hidden(model, params, batch["inputs"], **places(batch), **called)
        dtypes = policy(model.execution.policy)

        @jax.checkpoint  # the backward pass computes the logits of a chunk again, so that few are alive
        def chunk_sums(hidden_BKD, targets_BK):
            hidden_BKD, dtype = hidden_BKD.astype(dtypes.compute), dtypes.accumulate
            logits_BKV = jnp.einsum("bkd,vd->bkv", hidden_BKD, found.head_VD, preferred_element_type=dtype)
            loss, tokens = cross_entropy(logits_BKV, targets_BK)
            even_BK = jnp.where(targets_BK == IGNORE, 0, -jax.nn.log_softmax(logits_BKV).mean(-1))
            return {"loss": loss, "tokens": tokens, "even": even_BK.sum()}

        starts = range(0, batch["targets"].shape[1], self.chunk)
        pieces = ([x[:, i : i + self.chunk] for x in (found.hidden_BTD, batch["targets"])] for i in starts)
        with jax.default_matmul_precision(dtypes.precision):
            sums = jax.tree.map(lambda *parts: sum(parts), *(chunk_sums(*piece) for piece in pieces))
        smoothing = self.weight * (sums["even"] - sums["loss"]) / jnp.maximum(sums["tokens"], 1)
        return sums, found.penalties | {"smoothing": smoothing}
