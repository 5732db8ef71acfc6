"""The prefix scan in all its forms, and models of two backbones over it: every activation but those of the tree."""

from collections.abc import Iterator

import jax.numpy as jnp
import torch

from mhc_jax.models import transformer_scan
from mhc_jax.nn.channel import MoEConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import DiagonalSSMConfig
from mhc_jax.nn.transformer_scan import TransformerScanConfig
from parity_tests.cases.decode import decoding
from parity_tests.cases.models import forward, gradients
from parity_tests.cases.ops import draw, op
from parity_tests.compare import Case
from parity_tests.systems import VOCAB, System, Weights, batch
from parity_tests.systems.gpt import tiny_gpt
from torch_ref.ops.prefix_scan import prefixes

FORMS = ("parallel", "blelloch", "sequential", "legacy_parallel", "legacy_blelloch")


def cases() -> Iterator[Case]:
    for form in FORMS:

        def mirror(arrays, form=form):
            return prefixes(_uneven_torch, arrays["x"], form=form)

        yield op("prefix_scan.prefixes", form, draw(x=(15, 2, 3)), torch=mirror, combine=_uneven, form=form)
    for name, config in MODELS.items():
        system = System(name, config)
        yield forward(system)
        yield gradients(system)
    for name, config in DECODED.items():
        yield decoding("decode", name, config, Weights(config), batch(config, time=11)["tokens"])


def _uneven(a, b):
    return jnp.tanh(1.3 * a - 0.7 * b) + 0.5 * a * b


def _uneven_torch(a, b):
    return torch.tanh(1.3 * a - 0.7 * b) + 0.5 * a * b


def _tiny(**changes) -> TransformerScanConfig:
    """Chunks of two: seven tokens end inside the fourth."""
    config = transformer_scan("tiny", vocab_size=VOCAB, max_len=12, chunk=2, **changes)
    aggregator, reader = (backbone(tiny_gpt()) for _ in range(2))
    mixer = aggregator.mixer.replace(causal=changes.get("positions") == "legacy_mixed")
    return config.replace(aggregator=aggregator.replace(mixer=mixer, layers=1), reader=reader)


def backbone(config: LMConfig):
    """The backbone of a language model."""
    reader = transformer_scan("tiny").reader
    return reader.replace(**{name: getattr(config, name) for name in reader.to_dict()})


def _over_streams() -> TransformerScanConfig:
    """Chunks of three, other mixers, streams in both networks."""
    plain = {"mlp": None}
    aggregator = backbone(tiny_gpt("mhc", layers=1, **plain))
    reader = backbone(tiny_gpt("mhc", layers=1, mixer=DiagonalSSMConfig(), **plain))
    config = _tiny(side_embedding=True, prefix_embedding=True, head="tied")
    return config.replace(chunk=3, aggregator=aggregator, reader=reader)


def _balanced() -> TransformerScanConfig:
    """Auxiliary losses of both networks, one of a name that they share."""
    experts = MoEConfig(experts=3, hidden=7, balance=0.5)
    aggregator = backbone(tiny_gpt("mhc", layers=1, mlp=experts)).replace(stream_diversity=0.5)
    return _tiny().replace(aggregator=aggregator, reader=backbone(tiny_gpt(layers=1, mlp=experts)))


MODELS = {
    "transformer_scan, auxiliary losses": _balanced(),
    "transformer_scan, labels": _tiny(boundary="token", scan="blelloch", positions="absolute", outputs=VOCAB + 2),
    "transformer_scan over streams": _over_streams(),
    "transformer_scan, published": _tiny(
        boundary="unscored", scan="legacy_parallel", positions="legacy_mixed", init="legacy"
    ).replace(max_len=8),
}
DECODED = {"transformer_scan over streams": MODELS["transformer_scan over streams"]}
