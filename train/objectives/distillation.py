"""Distillation: a student learns the distributions and the hidden states of a trained teacher."""

import dataclasses
import math
import re
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mhc_jax import functional
from mhc_jax.config import ConfigError
from mhc_jax.functional import Hidden, ParamInfo, parameter_count
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.stack import sliced
from mhc_jax.ops import loss
from mhc_jax.ops.norm import inverse_unit_rms
from mhc_jax.precision import Policy, policy
from mhc_jax.registry import register
from train.data.kind import places
from train.objectives.cross_entropy import CrossEntropyConfig
from train.objectives.kind import TeacherConfig

PROJECTIONS = "projections"
PAIRS = "--objective.layers"
NUMBER = "(0|[1-9][0-9]{0,8})"  # each has one spelling, so that equal pairs are equal texts


@register("objective", "distillation")
@dataclasses.dataclass(frozen=True)
class DistillationConfig(CrossEntropyConfig):
    """A weighted sum of three terms, each reported without its weight; evaluation is that of cross-entropy alone.

    ``kl`` is the divergence of the student's distribution from the teacher's, ``hidden`` the distance of hidden states,
    ``cross_entropy`` that of :class:`CrossEntropyConfig`; all of them means over tokens with a target.

    Attributes:
        teacher: the teacher. Both models have the same tokens.
        temperature: divisor of both models' logits in the divergence, whose weight it leaves as it is.
        kl, hidden, cross_entropy: weights of the terms.
        layers: pairs ``STUDENT:TEACHER`` of layers, counted from 0, whose outputs are compared: both normalised, the
            student's after a projection to the teacher's width that is trained, the mean of their streams if there are
            some. Without any, every layer of the student and that of the teacher at the same share of its depth, so
            that the last meets the last.
        hidden_until: share of training after which hidden states no longer count.
        kl_from, cross_entropy_from: shares of training from which the other terms count.
        form: ``"original"`` is the loss of SHC's published code: the divergence is a sum over a sequence, so its weight
            grows with the length; hidden states are compared as they are; no term has a stage.
    """

    teacher: TeacherConfig = TeacherConfig()
    temperature: float = 2.0
    kl: float = 1.0
    hidden: float = 0.5
    cross_entropy: float = 0.1
    layers: tuple[str, ...] = ()
    hidden_until: float = 1.0
    kl_from: float = 0.0
    cross_entropy_from: float = 0.0
    form: Literal["default", "original"] = "default"

    def validate(self):
        super().validate()
        # Logits over less are no longer finite in float32.
        self.require(self.temperature >= 1e-6, f"temperature must be at least 1e-06, got {self.temperature}")
        self.require_not_negative("kl", "hidden", "cross_entropy")
        self.require(not self.z_loss, "z_loss is not part of distillation; leave it at 0")
        self.require(self.implementation == "xla", "implementation 'pallas' has no distillation; leave it at 'xla'")
        for name in ("hidden_until", "kl_from", "cross_entropy_from"):
            self.require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for at in sorted({0.0, self.hidden_until, self.kl_from, self.cross_entropy_from} - {1.0}):
            self.require(
                any(weight > 0 for weight in self.weights(at)),
                f"no term counts from {at:.0%} of training on; change kl, hidden, cross_entropy or the stages",
            )
        staged = (self.hidden_until, self.kl_from, self.cross_entropy_from) != (1, 0, 0)
        self.require(not (staged and self.form == "original"), "form 'original' has no stages; leave them out")
        for pair in self.layers:
            matched = re.fullmatch(rf"{NUMBER}:{NUMBER}", pair)
            self.require(matched is not None, f"layers must be pairs STUDENT:TEACHER such as 0:1, got {pair!r}")
        self.require(len({*self.layers}) == len(self.layers), "layers must not hold a pair twice")

    def weights(self, progress: jax.Array | float) -> tuple[jax.Array | float, ...]:
        """Those of divergence, hidden states and cross-entropy at a share of training."""
        return (
            self.kl * (progress >= self.kl_from),
            self.hidden * ((progress < self.hidden_until) | (self.hidden_until == 1)),
            self.cross_entropy * (progress >= self.cross_entropy_from),
        )

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Layers of the student with those of the teacher, if hidden states count."""
        layers = self.layers if self.hidden else ()
        return [(int(ours), int(theirs)) for ours, _, theirs in (pair.partition(":") for pair in layers)]

    @property
    def description(self):
        pairs = f"; layers {', '.join(self.layers)}" if self.hidden else ""
        return f"teacher: {self.teacher.path}, {parameter_count(self.teacher.known):,} parameters{pairs}"

    def taught(self, model, teacher):
        found = dataclasses.replace(self, teacher=teacher)
        if not self.hidden:
            return found
        for who, one in (("student", model), ("teacher", teacher.known)):
            if one.layer_output is None:
                raise ConfigError(f"the layers of the {who}, a {one.kind!r}, cannot be compared; --objective.hidden 0")
        if self.form == "original" and model.width != teacher.known.width:
            raise ConfigError(
                f"--objective.form original compares hidden states of one width, not of {model.width} (the student) "
                f"and {teacher.known.width}; give --model.width {teacher.known.width}, or --objective.hidden 0"
            )
        found = found if found.layers else dataclasses.replace(found, layers=found._all_layers(model))
        for (ours, theirs), words in zip(found.pairs, found.layers, strict=True):
            for who, layer, one in (("student", ours, model), ("teacher", theirs, teacher.known)):
                if layer >= one.layers:
                    raise ConfigError(f"{PAIRS} {words}: the {who} has layers 0 to {one.layers - 1}, and no {layer}")
        return found

    def _all_layers(self, model: ModelConfig) -> tuple[str, ...]:
        """Each layer of the student and that of the teacher at the same share of its depth.

        The published form takes the one that begins there, so that the teacher's last layer need not be among them.
        """
        layers, count = self.teacher.known.layers, model.layers
        begins = [i * layers // count for i in range(count)]
        ends = [-(-(i + 1) * layers // count) - 1 for i in range(count)]
        return tuple(f"{i}:{at}" for i, at in enumerate(begins if self.form == "original" else ends))

    def without_teacher(self):
        return CrossEntropyConfig(chunk=self.chunk, errors=self.errors)

    def param_info(self, model):
        if not self.hidden or self.form == "original":
            return {}
        shape = len(self.pairs), model.width, self.teacher.known.width
        return {PROJECTIONS: ParamInfo(shape, np.dtype("float32"), "kernel", ("", "embed", ""), 0.0)}

    def init(self, model, key):
        def drawn(shape):
            _, ours, theirs = shape
            if ours == theirs:
                return jnp.broadcast_to(jnp.eye(ours, dtype=jnp.float32), shape)
            return jax.random.normal(key, shape, jnp.float32) / math.sqrt(ours)

        return {name: drawn(info.shape) for name, info in self.param_info(model).items()}

    def training_sums(self, model, params, own, teacher, batch, *, key=None, progress=None, batch_sharding=None):
        called = {"batch_sharding": batch_sharding, **places(batch)}
        goal = functional.hidden(
            self.teacher.known, teacher, batch["inputs"], taps=self._taps(self.teacher.known), **called
        )
        called |= {"key": key, "progress": progress}
        found = functional.hidden(model, params, batch["inputs"], taps=self._taps(model), **called)
        dtypes = policy(model.execution.policy)
        weights = self.weights(1.0 if progress is None else progress)
        with jax.default_matmul_precision(dtypes.precision):
            compared = self._states(found, 0, batch_sharding, dtypes), self._states(goal, 1, batch_sharding, dtypes)
            pieces = found, jax.lax.stop_gradient(goal), jax.lax.stop_gradient(compared[1]), compared[0]
            if self.form == "original":
                sums = self._published(*pieces, self.counted(model, batch["targets"]), dtypes)
            else:
                sums = self._sums(*pieces, own, self.counted(model, batch["targets"]), weights, dtypes)
        return sums, found.penalties

    def _taps(self, model: ModelConfig) -> tuple[str, ...]:
        return (model.layer_output,) if self.hidden and model.layer_output else ()

    def _states(self, found: Hidden, who: int, batch_sharding, dtypes: Policy) -> list[jax.Array]:
        """Outputs (B, T, D) of the layers of the student (0) or of the teacher (1) in each pair."""
        if not self.hidden:
            return []
        (states,) = found.taps.values()
        outputs = [states[pair[who]].astype(dtypes.accumulate) for pair in self.pairs]
        return [sliced(x if x.ndim == 3 else jnp.mean(x, axis=2), batch_sharding) for x in outputs]

    def _sums(self, found, goal, goals, states, own, targets_BT, weights, dtypes: Policy):
        kl_weight, hidden_weight, entropy_weight = weights
        total, kl, entropy, count = loss.chunked_distillation(
            found.hidden_BTD.astype(dtypes.compute),
            found.head_VD,
            goal.hidden_BTD.astype(dtypes.compute),
            goal.head_VD.astype(dtypes.compute),
            targets_BT,
            kl_weight,
            entropy_weight,
            temperature=self.temperature,
            chunk=self.chunk,
            logits_dtype=dtypes.accumulate,
        )
        sums = {"loss": total, "tokens": count, "kl": kl, "cross_entropy": entropy}
        if not self.hidden:
            return sums
        distance = jnp.zeros((), dtypes.accumulate)
        for state, aim, kernel in zip(states, goals, own[PROJECTIONS], strict=True):
            state, aim = (x * inverse_unit_rms(x) for x in (state, aim))
            state, kernel = (x.astype(dtypes.compute) for x in (state, kernel))
            projected = jnp.einsum("btd,de->bte", state, kernel, preferred_element_type=dtypes.accumulate)
            distance += loss.state_distance(projected, aim, targets_BT)[0] / len(goals)
        return sums | {"loss": total + hidden_weight * distance, "hidden": distance}

    def _published(self, found, goal, goals, states, targets_BT, dtypes: Policy):
        """Means times the number of targets, of which the step takes the mean."""
        logits, aims = (
            jnp.einsum(
                "btd,vd->btv",
                one.hidden_BTD.astype(dtypes.compute),
                one.head_VD.astype(dtypes.compute),
                preferred_element_type=dtypes.accumulate,
            )
            for one in (found, goal)
        )
        nothing = [jnp.zeros((1, *targets_BT.shape, 1), dtypes.accumulate)] * 2
        ours_LBTD, theirs_LBTD = map(jnp.stack, (states, goals)) if self.hidden else nothing
        weights = self.kl, self.hidden, self.cross_entropy
        options = {"temperature": self.temperature, "weights": weights}
        total, kl, distance, entropy = loss.published_distillation(
            logits, aims, ours_LBTD, theirs_LBTD, targets_BT, **options
        )
        count = jnp.sum(targets_BT != loss.IGNORE, dtype=dtypes.accumulate)
        means = {"loss": total, "kl": kl, "cross_entropy": entropy} | ({"hidden": distance} if self.hidden else {})
        return {name: count * mean for name, mean in means.items()} | {"tokens": count}
