"""TransformerScan on WikiText-103 with the published settings, and small runs.

Published: 20 epochs of 64 windows of 512 tokens, AdamW with a decay of 0.01, here of matrices and not of tables. With
chunks of 512 or 256 tokens such a window has one or two: no prediction uses the scan, and the network is a GPT-2 or one
that attends to the previous chunk.
"""

from configs.base import offer
from configs.mhc_ssm import quickstart
from mhc_jax.models import transformer_scan
from mhc_jax.models.transformer_scan import Form
from mhc_jax.nn.transformer_scan import TransformerScanConfig
from train.config import CheckpointConfig, LogConfig, OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig

CHUNKS = (32, 64, 128, 256, 512)
_FORMS: dict[Form, tuple[str, str]] = {"default": ("", ""), "original": ("_original", ", exactly as published")}
_OPTIM = OptimConfig(lr=1e-4, beta2=0.999, weight_decay=0.01, decay="matrices", warmup_steps=1000, final_lr=0.0)
_FROM_DATA = {"vocab_size": None, "max_len": None}


def _wikitext103(name: str, chunk: int, form: Form) -> RunConfig:
    model = transformer_scan("base", form, chunk=chunk, **_FROM_DATA)
    return RunConfig(
        name=name,
        model=model if form == "original" else _dropping(model, 0.1),
        data=CorpusConfig(source="wikitext-103-raw-v1", seq_len=512, batch_size=64),
        optim=_OPTIM,
        train=TrainConfig(epochs=20, eval_every=1000),
        checkpoint=CheckpointConfig(every=1000),
        log=LogConfig(every=100),
    )


def _dropping(model: TransformerScanConfig, rate: float) -> TransformerScanConfig:
    """Dropout as published, but for the outputs of the two networks."""
    networks = {
        name: part.replace(dropout=rate, mixer=part.mixer.replace(dropout=rate))
        for name, part in (("aggregator", model.aggregator), ("reader", model.reader))
    }
    return model.replace(dropout=rate, **networks)


def _wikitext2(name: str) -> RunConfig:
    return RunConfig(
        name=name,
        model=transformer_scan("small", aggregator_layers=1, reader_layers=4, chunk=32, **_FROM_DATA),
        data=CorpusConfig(source="wikitext-2-raw-v1", seq_len=256, batch_size=16),
        train=TrainConfig(epochs=10),
    )


def _docstrings(name: str) -> RunConfig:
    """The recipe of the quick start."""
    model = transformer_scan("tiny", reader_layers=2, chunk=32, **_FROM_DATA)
    return quickstart().replace(name=name, model=model)


offer("transformer_scan", "TransformerScan, four layers that read chunks of 32 tokens, on WikiText-2.", _wikitext2)
offer("transformer_scan_quickstart", "A small TransformerScan on docstrings, in minutes on a laptop.", _docstrings)
for _form, (_suffix, _how) in _FORMS.items():
    for _chunk in CHUNKS:
        _what = f"TransformerScan of 170M parameters on WikiText-103, chunks of {_chunk} tokens{_how}."
        offer(f"transformer_scan_170m_c{_chunk}{_suffix}", _what, _wikitext103, _chunk, _form)
