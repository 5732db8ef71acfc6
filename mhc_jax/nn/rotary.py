"""Scaling of rotary positions: how a model reads texts longer than those it began with.

Fields have the names of Hugging Face's ``rope_parameters``.
"""

import dataclasses
import math
from typing import ClassVar

import jax

from mhc_jax.config import Config
from mhc_jax.ops import rotary
from mhc_jax.registry import register, required


@dataclasses.dataclass(frozen=True)
class RotaryScalingConfig(Config):
    """Base of all scalings of rotary positions."""

    axis: ClassVar[str] = "rotary_scaling"

    @property
    def gain(self) -> float:
        """The length of turned queries and keys, as a multiple of what it was."""
        return 1.0

    @required
    def scale(self, frequency_P: jax.Array, base: float) -> jax.Array:
        """Frequencies (P,), in radians per token, in place of those of ``base``."""


@register("rotary_scaling", "linear")
@dataclasses.dataclass(frozen=True)
class LinearScalingConfig(RotaryScalingConfig):
    """Position interpolation (arXiv 2306.15595).

    Attributes:
        factor: by which every pair turns more slowly.
    """

    factor: float = 2.0

    def validate(self):
        super().validate()
        self.require(self.factor >= 1, f"factor must be at least 1, got {self.factor}")

    def scale(self, frequency_P, base):
        return rotary.linear(frequency_P, factor=self.factor)


@register("rotary_scaling", "llama3")
@dataclasses.dataclass(frozen=True)
class Llama3ScalingConfig(RotaryScalingConfig):
    """LLaMA 3.1's, whose values are the defaults.

    Attributes:
        factor: by which the slow pairs turn more slowly.
        low_freq_factor: turns in the original length up to which a pair is slow.
        high_freq_factor: turns from which it is fast and stays as it is.
        original_max_position_embeddings: the original length, in tokens.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def validate(self):
        super().validate()
        self.require(self.factor >= 1, f"factor must be at least 1, got {self.factor}")
        self.require_counts(1, "original_max_position_embeddings")
        low, high = self.low_freq_factor, self.high_freq_factor
        self.require(0 < low < high, f"0 < low_freq_factor < high_freq_factor must hold, got {low} and {high}")

    def scale(self, frequency_P, base):
        return rotary.llama3(frequency_P, **dataclasses.asdict(self))


@register("rotary_scaling", "yarn")
@dataclasses.dataclass(frozen=True)
class YarnScalingConfig(RotaryScalingConfig):
    """YaRN (arXiv 2309.00071).

    Attributes:
        factor: by which the slow pairs turn more slowly.
        beta_fast: turns in the original length from which a pair stays as it is.
        beta_slow: turns up to which the whole factor counts.
        original_max_position_embeddings: the original length, in tokens.
        attention_factor: length of queries and keys, as a multiple; ``0.1 ln(factor) + 1`` if None.
        truncate: round the indices of the pairs between which the factor sets in to whole ones.
    """

    factor: float = 16.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_max_position_embeddings: int = 4096
    attention_factor: float | None = None
    truncate: bool = True

    def validate(self):
        super().validate()
        self.require(self.factor >= 1, f"factor must be at least 1, got {self.factor}")
        self.require_counts(1, "original_max_position_embeddings")
        slow, fast, gain = self.beta_slow, self.beta_fast, self.attention_factor
        self.require(0 < slow <= fast, f"0 < beta_slow <= beta_fast must hold, got {slow} and {fast}")
        self.require(gain is None or gain > 0, f"attention_factor must be positive, got {gain}")

    @property
    def gain(self):
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor

    def scale(self, frequency_P, base):
        return rotary.yarn(
            frequency_P,
            base=base,
            factor=self.factor,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            original_max_position_embeddings=self.original_max_position_embeddings,
            truncate=self.truncate,
        )
