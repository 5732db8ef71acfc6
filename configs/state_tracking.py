"""State tracking and recall: small models of words of S3 and of pairs, and the published settings of words of S5.

The small models are two layers of width 128, or one of each network of a TransformerScan, that differ in how they carry
a state from token to token; the words grow to 12 actions in the first 600, or 480, of 1,000 steps. The published runs
go through their drawn words 10 times (once for GPT-2) and end a stage early once it is learnt; here every word is new,
and a stage has the steps of a whole one.
"""

from configs.base import offer
from mhc_jax.models import gated_deltanet, gla, gpt2
from mhc_jax.nn.channel import SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig, DiagonalSSMConfig, GatedDeltaConfig, GLAConfig, MixerConfig
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.transformer_scan import TransformerScanConfig, gpt2_backbone
from train.config import OptimConfig, RunConfig, TrainConfig
from train.data.group_words import GroupWordsConfig
from train.data.mqar import MQARConfig
from train.objectives.cross_entropy import CrossEntropyConfig
from train.objectives.prefixes import PrefixesConfig

_SCORED = CrossEntropyConfig(errors=True)


def _recurrent(mixer: MixerConfig) -> LMConfig:
    """Two layers that know the order of tokens by themselves."""
    mlp = SwiGLUConfig(hidden=256)
    return LMConfig(width=128, layers=2, positions="none", head="dense", mixer=mixer, mlp=mlp)


def _gpt(**changes) -> LMConfig:
    return gpt2(vocab_size=None, max_len=None, width=128, layers=2, head="dense", **changes)


def _delta(negative: bool) -> LMConfig:
    return _recurrent(GatedDeltaConfig(heads=4, head_width=32, expand_v=1.0, allow_neg_eigval=negative))


def _scan(width: int, heads: int) -> TransformerScanConfig:
    """One layer that merges two actions, or products of actions, and one that reads the product and an action."""
    networks = {
        "aggregator": gpt2_backbone(width, 1, heads, causal=False),
        "reader": gpt2_backbone(width, 1, heads),
    }
    sizes = {"vocab_size": None, "max_len": None, "chunk": 1}
    return TransformerScanConfig(**sizes, **networks, side_embedding=True, boundary="token")


# A further architecture is one line here and one in _RECALL.
_SMALL: dict[str, tuple[str, ModelConfig]] = {
    "gpt": ("GPT with learned positions", _gpt(mixer=AttentionConfig(heads=4))),
    "gla": ("gated linear attention", _recurrent(GLAConfig())),
    "gated_delta": ("Gated DeltaNet with negative eigenvalues", _delta(negative=True)),
    "gated_delta_positive": ("Gated DeltaNet with positive eigenvalues alone", _delta(negative=False)),
    "diagonal_ssm": ("diagonal SSM", _recurrent(DiagonalSSMConfig())),
}
# Those of the published comparison have one head.
_RECALL: dict[str, tuple[str, ModelConfig]] = {
    "gpt": ("GPT with learned positions", _gpt(mixer=AttentionConfig(heads=1))),
    "gla": _SMALL["gla"],
    "gated_delta": _SMALL["gated_delta"],
}


def _words(name: str, model: ModelConfig) -> RunConfig:
    return RunConfig(
        name=name,
        model=model,
        data=GroupWordsConfig(seq_len=12, batch_size=32, stage_steps=60),
        objective=_SCORED,
        optim=OptimConfig(lr=2e-3, weight_decay=0.01, decay="kernels", warmup_steps=50),
        train=TrainConfig(steps=1000, eval_every=200),
    )


def _scanned_words(name: str) -> RunConfig:
    """With a classifier on the prefixes, without which the scan's operator did not learn the product.

    The reader is told which of its two vectors is the prefix: it could not tell ``a`` from ``a a`` otherwise.
    """
    run = _words(name, _scan(128, 4).replace(prefix_embedding=True, init="legacy"))
    return run.replace(
        data=run.data.replace(first_len=4, len_step=2, stage_steps=120),
        objective=PrefixesConfig(errors=True),
        optim=run.optim.replace(lr=1e-3),
    )


def _published(name: str, model: ModelConfig, lr: float, stage_steps: int, steps: int) -> RunConfig:
    return RunConfig(
        name=name,
        model=model.replace(vocab_size=None, max_len=None),
        data=GroupWordsConfig(group="s5", seq_len=18, batch_size=32, stage_steps=stage_steps),
        objective=_SCORED,
        optim=OptimConfig(lr=lr, weight_decay=0.0, schedule="linear_floored", final_lr=0.0, warmup_steps=0),
        train=TrainConfig(steps=steps, eval_every=5000),
    )


def _recall(name: str, model: ModelConfig) -> RunConfig:
    return RunConfig(
        name=name,
        model=model,
        data=MQARConfig(seq_len=128, batch_size=32),
        objective=_SCORED,
        optim=OptimConfig(lr=1e-4, weight_decay=0.01, final_lr=0.0, warmup_steps=1000),
        train=TrainConfig(steps=200_000, eval_every=5000),
    )


for _name, (_title, _model) in _SMALL.items():
    offer(f"words_{_name}", f"Words of S3, up to 12 actions: {_title}.", _words, _model)
offer("words_transformer_scan", "Words of S3, up to 12 actions: TransformerScan over single actions.", _scanned_words)
for _name, (_title, _model) in _RECALL.items():
    offer(f"mqar_{_name}", f"Recall of 8 pairs in 128 tokens: {_title}.", _recall, _model)

# A million words in batches of 32: once for GPT-2, ten times for each length from 2 to 18 for the others.
_ONCE = 31_250
_STAGES = (10 * _ONCE, 17 * 10 * _ONCE)
offer("s5_gpt2", "Words of S5, 18 actions: GPT-2 small.", _published, gpt2(), 1e-3, 0, _ONCE)
offer("s5_gla", "Words of S5, 2 to 18 actions: gated linear attention.", _published, gla("170M"), 3e-3, *_STAGES)
offer(
    "s5_gated_deltanet",
    "Words of S5, 2 to 18 actions: Gated DeltaNet.",
    _published,
    gated_deltanet("170M"),
    1e-3,
    *_STAGES,
)
offer(
    "s5_transformer_scan",
    "Words of S5, 2 to 18 actions: TransformerScan over single actions.",
    _published,
    _scan(768, 12),
    1e-4,
    3125,
    17 * 10 * 3125,
)
