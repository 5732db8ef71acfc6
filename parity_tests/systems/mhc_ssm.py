"""mHC-SSM: original and repaired, with and without streams and adapters."""

from collections.abc import Iterator

from mhc_jax import registry
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.lm import LMConfig
from parity_tests.systems.base import LAYERS, POSITIONS, VOCAB, WIDTH, System


def systems() -> Iterator[System]:
    yield System("baseline, original, rms", tiny("baseline", "original", "rms"))
    yield System(
        "baseline, ln, associative", tiny("baseline", "default", "ln", conv=4, scan="associative"), decoded=True
    )
    yield System("mhc 4, original, rms", tiny("mhc", "original", "rms", stream_diversity=0.1))
    yield System("mhc 1, original, ln", tiny("mhc", "original", "ln", streams=1, conv=1))
    yield System("mhc 2, ln, chunked", tiny("mhc", "default", "ln", streams=2, conv=1, scan="chunked"), decoded=True)
    yield System("adapters 2, original, ln", tiny("adapters", "original", "ln", streams=2, stream_diversity=0.1))
    yield System("adapters 4, rms", tiny("adapters", "default", "rms"), decoded=True)


def tiny(variant, form, norm, *, streams=4, conv=3, scan="auto", **changes) -> LMConfig:
    """A model of odd sizes."""
    sizes = {"vocab_size": VOCAB, "max_len": POSITIONS, "width": WIDTH, "layers": LAYERS}
    config = mhc_ssm(variant, form, norm=registry.get("norm", norm)(), **sizes, **changes)
    config = config.replace(mixer=config.mixer.replace(conv_kernel=conv, form=scan, chunk=3))
    if variant != "baseline":
        config = config.replace(residual=config.residual.replace(streams=streams))
    if config.adapters is not None:
        config = config.replace(adapters=config.adapters.replace(rank=3))
    return config
