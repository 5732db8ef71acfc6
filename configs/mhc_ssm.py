"""mHC-SSM: the published runs in original and repaired form, their controls, and a quick start.

The model's ``vocab_size`` and ``max_len`` are None here: they follow the tokenizer and the data.
"""

import bisect
import functools

from mhc_jax.functional import parameter_count
from mhc_jax.models import mhc_ssm as models
from mhc_jax.nn.adapters import StreamAdaptersConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.registry import register
from train.config import CheckpointConfig, LogConfig, OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.objectives.cross_entropy import CrossEntropyConfig

_FROM_DATA = {"vocab_size": None, "max_len": None}
# Of all forms, so that their numbers compare.
_PUBLISHED_DATA = CorpusConfig(source="wikitext-2-raw-v1", seq_len=256, batch_size=16)


def _repaired(name: str, model: LMConfig) -> RunConfig:
    """The published budget with warm-up, cosine decay, and weight decay of dense kernels only."""
    return RunConfig(name=name, model=model, data=_PUBLISHED_DATA, train=TrainConfig(epochs=10))


def _original(name: str, model: LMConfig) -> RunConfig:
    """The published settings: AdamW that decays every parameter, at a constant rate."""
    return RunConfig(
        name=name,
        model=model,
        data=_PUBLISHED_DATA,
        optim=OptimConfig(lr=3e-4, weight_decay=0.1, decay="all", clip=1.0, schedule="constant", warmup_steps=0),
        train=TrainConfig(epochs=10, eval_every=500),
        checkpoint=CheckpointConfig(every=1000),
    )


@register("config", "mhc_ssm")
def mhc_ssm() -> RunConfig:
    """Static mHC-SSM with four streams, repaired."""
    return _repaired("mhc_ssm", models("mhc", **_FROM_DATA))


@register("config", "mhc_ssm_baseline")
def baseline() -> RunConfig:
    """Diagonal SSM with one plain residual stream, repaired."""
    return _repaired("mhc_ssm_baseline", models("baseline", **_FROM_DATA))


@register("config", "mhc_ssm_adapters")
def adapters() -> RunConfig:
    """mHC-SSM with stream-specialised adapters, repaired."""
    return _repaired("mhc_ssm_adapters", models("adapters", **_FROM_DATA))


@register("config", "mhc_ssm_dense")
def dense() -> RunConfig:
    """Control: mHC-SSM with one stream, which is the baseline and one dense layer."""
    model = models("mhc", **_FROM_DATA)
    return _repaired("mhc_ssm_dense", model.replace(residual=model.residual.replace(streams=1)))


@register("config", "mhc_ssm_matched")
def matched() -> RunConfig:
    """Control: the baseline widened to the parameter count of mhc_ssm."""
    width = matched_width(models("baseline"), parameter_count(models("mhc")))
    return _repaired("mhc_ssm_matched", models("baseline", width=width, **_FROM_DATA))


@register("config", "mhc_ssm_original")
def original() -> RunConfig:
    """The published static mHC-SSM, unchanged."""
    return _original("mhc_ssm_original", models("mhc", "original", **_FROM_DATA))


@register("config", "mhc_ssm_baseline_original")
def baseline_original() -> RunConfig:
    """The published baseline, unchanged."""
    return _original("mhc_ssm_baseline_original", models("baseline", "original", **_FROM_DATA))


@register("config", "mhc_ssm_adapters_original")
def adapters_original() -> RunConfig:
    """The published mHC-SSM with adapters, unchanged."""
    model = models("adapters", "original", **_FROM_DATA)
    model = model.replace(adapters=StreamAdaptersConfig(dropout=0.1, zero_init=False))
    return _original("mhc_ssm_adapters_original", model)


@register("config", "quickstart")
def quickstart() -> RunConfig:
    """A small mHC-SSM on the docstrings of the installed packages, in minutes on a laptop."""
    return RunConfig(
        name="quickstart",
        model=models("mhc", width=96, layers=4, **_FROM_DATA),
        data=CorpusConfig(tokenizer="bytes", seq_len=256, batch_size=8, sample_tokens=250),
        objective=CrossEntropyConfig(chunk=256),
        optim=OptimConfig(lr=4e-3, warmup_steps=50, beta2=0.99),
        train=TrainConfig(steps=800, eval_every=200, eval_batches=20),
        checkpoint=CheckpointConfig(every=400),
        log=LogConfig(every=20),
    )


@functools.lru_cache
def matched_width(model: LMConfig, target: int) -> int:
    """The width at which ``model`` has as nearly ``target`` parameters as can be."""

    def count(width: int) -> int:
        return parameter_count(model.replace(width=width))

    above = bisect.bisect_left(range(1, 2 * model.width), target, key=count) + 1
    return min((above - 1, above), key=lambda width: abs(count(width) - target))
