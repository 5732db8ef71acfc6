"""RLM-mHC: the published network, its folded form, the one over streams, and the LLaMA without mHC."""

from collections.abc import Iterator
from typing import Any

from mhc_jax.models import rlm
from mhc_jax.models.rlm import Form
from mhc_jax.nn.channel import LinearConfig
from mhc_jax.nn.lm import LMConfig
from parity_tests.systems.base import LAYERS, POSITIONS, VOCAB, System


def systems() -> Iterator[System]:
    yield System("rlm, original", tiny_rlm("original"), decoded=True)
    yield System("rlm, folded", tiny_rlm("folded", flows=3))
    yield System("rlm, default", tiny_rlm("default"), decoded=True)
    yield System("rlm, plain", tiny_rlm("plain"))
    yield System("rlm, linear before SwiGLU", tiny_rlm("plain", before_mlp=LinearConfig()))


def tiny_rlm(form: Form, *, flows: int = 2, **changes: Any) -> LMConfig:
    """Two heads of width 4, and a perceptron of odd width."""
    config = rlm("small", form, heads=2, hidden=7, vocab_size=VOCAB, max_len=POSITIONS, width=8, layers=LAYERS)
    between = config.before_mixer and config.before_mixer.replace(flows=flows)
    return config.replace(before_mixer=between, before_mlp=between).replace(**changes)
