"""Gated linear attention and Gated DeltaNet on WikiText-103: the sizes that are compared with GPT-2 small.

The published budget: 62,900 updates of 64 windows of 512 tokens, dropout 0.1 after the embedding, after every branch
and of queries, keys and values. Weight decay is here of dense kernels alone; the published optimiser decays everything.
"""

from typing import get_args

from configs.base import offer
from mhc_jax.models import gated_deltanet, gla
from mhc_jax.models.linear_attention import GatedDeltaNetSize, GLASize
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers.linear_attention import LinearAttentionConfig
from mhc_jax.nn.stack import Execution
from train.config import CheckpointConfig, LogConfig, OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig

_DROPOUT = 0.1


def _wikitext103(name: str, model: LMConfig) -> RunConfig:
    mixer = model.mixer
    assert isinstance(mixer, LinearAttentionConfig)
    return RunConfig(
        name=name,
        model=model.replace(
            vocab_size=None,
            max_len=None,
            dropout=_DROPOUT,
            mixer=mixer.replace(dropout=_DROPOUT),
            execution=Execution(policy="bfloat16"),
        ),
        data=CorpusConfig(source="wikitext-103-raw-v1", seq_len=512, batch_size=64),
        optim=OptimConfig(lr=1e-3, beta2=0.95, eps=1e-15, weight_decay=0.01, decay="kernels", warmup_steps=1000),
        train=TrainConfig(steps=62_900, eval_every=5000),
        checkpoint=CheckpointConfig(every=5000, keep=12),
        log=LogConfig(every=100),
    )


for _size in get_args(GLASize):
    offer(f"gla_{_size.lower()}", f"Gated linear attention, {_size}, on WikiText-103.", _wikitext103, gla(_size))
for _size in get_args(GatedDeltaNetSize):
    _name = f"gated_deltanet_{_size.lower()}"
    offer(_name, f"Gated DeltaNet, {_size}, on WikiText-103.", _wikitext103, gated_deltanet(_size))
