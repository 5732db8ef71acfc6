"""Cross-entropy, and a linear classifier on every prefix of a model that scans over chunks of tokens."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from mhc_jax import functional
from mhc_jax.config import ConfigError
from mhc_jax.functional import ParamInfo, param_shapes
from mhc_jax.nn.model import ModelConfig
from mhc_jax.ops.loss import prefix_cross_entropy
from mhc_jax.precision import policy
from mhc_jax.registry import register
from train.data.kind import places
from train.objectives.cross_entropy import CrossEntropyConfig

# The activation (B, N, C, D) of such a model: what it knows before each of N chunks of C tokens.
TAP = "prefixes"
CLASSIFIER = "classifier"


@register("objective", "prefixes")
@dataclasses.dataclass(frozen=True)
class PrefixesConfig(CrossEntropyConfig):
    """Cross-entropy, and a penalty ``prefixes`` that teaches the scan directly; evaluation has cross-entropy alone.

    A linear classifier, which is trained too and serves nothing else, reads from the prefix of every chunk but the
    first the target of the token before that chunk: on words of a group the product of all actions so far. Without it
    the scan's operator hears of its third place only once the first two are solved.

    Attributes:
        weight: of the classifier's mean cross-entropy.
    """

    weight: float = 0.5

    def validate(self):
        super().validate()
        self.require_not_negative("weight")

    def check(self, model):
        super().check(model)
        _prefix_shape(model)

    def param_info(self, model):
        shape = model.vocab_size, *_prefix_shape(model)
        return {CLASSIFIER: ParamInfo(shape, np.dtype("float32"), "kernel", ("", "", "embed"), 0.0)}

    def init(self, model, key):
        vocab, chunk, width = self.param_info(model)[CLASSIFIER].shape
        return {CLASSIFIER: jax.random.normal(key, (vocab, chunk, width), jnp.float32) / math.sqrt(chunk * width)}

    def training_sums(self, model, params, own, teacher, batch, *, key=None, progress=None, batch_sharding=None):
        called = {"key": key, "progress": progress, "batch_sharding": batch_sharding}
        found = functional.hidden(model, params, batch["inputs"], taps=(TAP,), **places(batch), **called)
        dtypes = policy(model.execution.policy)
        prefixes, classifier = (x.astype(dtypes.compute) for x in (found.taps[TAP], own[CLASSIFIER]))
        with jax.default_matmul_precision(dtypes.precision):
            loss, count = prefix_cross_entropy(prefixes, classifier, batch["targets"], logits_dtype=dtypes.accumulate)
        # Words no longer than a chunk have no such target.
        penalty = self.weight * loss / jnp.maximum(count, 1)
        sums, penalties = self.sums_of(model, found, batch["targets"], errors=False, batch_sharding=batch_sharding)
        return sums, found.penalties | penalties | {TAP: penalty}


@functools.lru_cache
def _prefix_shape(model: ModelConfig) -> tuple[int, int]:
    """Tokens C of a chunk and width D of a prefix.

    Raises:
        ConfigError: the model has no prefixes.
    """
    tokens = jax.ShapeDtypeStruct((1, model.max_len), jnp.int32)
    run = functools.partial(functional.apply, model, taps=True)
    taps = jax.eval_shape(run, param_shapes(model), tokens).taps
    if TAP not in taps:
        raise ConfigError(
            f"a model of kind {model.kind!r} has no prefixes, which the objective 'prefixes' reads; "
            "take --objective cross_entropy, or a model that scans over chunks"
        )
    _, _, chunk, width = taps[TAP].shape
    return chunk, width
