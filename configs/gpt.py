"""nanoGPT on FineWeb10B and on characters of Shakespeare, original and repaired; GPT-2.

The published runs take random windows of the tokens; their evaluations see 3,276,800 of them. Where a published file
sets nothing, its trainer's default counts: among them a cosine that ends at step 2,000, after which the Shakespeare
runs continue at the lowest rate.
"""

import itertools

from configs.base import offer
from mhc_jax.models import gpt2, nanogpt
from mhc_jax.models.gpt import Form, Topology
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.residual import DynamicMHCConfig, StaticMHCConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.registry import register
from train.config import CheckpointConfig, LogConfig, OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig

_BFLOAT16 = Execution(policy="bfloat16")
# Common to both: AdamW (0.9, 0.95), decay of linear layers only, clipping at 1. The published loop counts its last step
# too: one more than the steps that it names.
_OPTIM = OptimConfig(lr=6e-4, beta2=0.95, decay="kernels", warmup_steps=200, warmup_end="after", final_lr=0.1)

# Layers to width and sequences in a step: about 20M parameters each.
_DEPTHS = {6: (288, 128), 48: (150, 32)}
# Layers, heads, width, dropout, sequences per step, steps, steps between evaluations.
_SHAKESPEARE = {"": (6, 6, 384, 0.2, 64, 5001, 200), "_20m": (8, 8, 448, 0.1, 32, 20001, 500)}


def _fineweb(name: str, layers: int, topology: Topology, form: Form, value_residual: bool) -> RunConfig:
    width, batch = _DEPTHS[layers]
    model = nanogpt(
        topology,
        form,
        layers=layers,
        width=width,
        value_residual="free" if value_residual else "none",
        execution=_BFLOAT16,
    )
    return RunConfig(
        name=name,
        model=model,
        data=CorpusConfig(
            source="fineweb10b", seq_len=1024, batch_size=batch, windows="random", max_eval_tokens=3_276_800
        ),
        optim=_OPTIM.replace(decay_steps=5000, value_lr=1e-2 if value_residual else 0.0),
        train=TrainConfig(steps=5001, accumulate=4, eval_every=500, eval_batches=100),
    )


def _shakespeare(name: str, size: str, topology: Topology, form: Form) -> RunConfig:
    layers, heads, width, dropout, batch, steps, eval_every = _SHAKESPEARE[size]
    model = nanogpt(
        topology,
        form,
        heads=heads,
        attention_dropout=dropout,
        layers=layers,
        width=width,
        dropout=dropout,
        vocab_size=None,
        max_len=None,
        execution=_BFLOAT16,
    )
    return RunConfig(
        name=name,
        model=model,
        data=CorpusConfig(
            source="input.txt",
            tokenizer="chars",
            validation_fraction=0.1,
            seq_len=256,
            batch_size=batch,
            windows="random",
            sample_tokens=250,
        ),
        optim=_OPTIM.replace(lr=3e-4, decay_steps=2000, final_lr=0.2),
        train=TrainConfig(
            steps=steps,
            accumulate=1 if topology == "plain" else 2,
            eval_every=eval_every,
            eval_batches=200,
        ),
    )


def _offer_published() -> None:
    titles = {
        "hc": "hyper-connections",
        "mhc": "static mHC by Sinkhorn",
        "mhc_orthostochastic": "static mHC by Newton-Schulz",
    }
    forms: tuple[tuple[Form, str, str], ...] = (
        ("default", "", "repaired"),
        ("original", "_original", "exactly as published"),
    )
    for layers in _DEPTHS:
        deep = "" if layers == 6 else f"_{layers}l"
        what = f"nanoGPT of {layers} layers on FineWeb10B"
        offer(f"nanogpt{deep}", f"{what}: plain residual.", _fineweb, layers, "plain", "default", False)
        offer(f"nanogpt_vres{deep}", f"{what}: value residual.", _fineweb, layers, "plain", "default", True)
        for (topology, title), (form, suffix, kind) in itertools.product(titles.items(), forms):
            name = f"nanogpt_{topology}{deep}{suffix}"
            offer(name, f"{what}: {title}, {kind}.", _fineweb, layers, topology, form, False)
    for size in _SHAKESPEARE:
        what = f"nanoGPT{' of 20M parameters' if size else ''} on characters of Shakespeare (give --data.source)"
        offer(f"shakespeare_char{size}", f"{what}: plain residual.", _shakespeare, size, "plain", "default")
        for form, suffix, kind in forms:
            name = f"shakespeare_char{size}_hc{suffix}"
            offer(name, f"{what}: hyper-connections, {kind}.", _shakespeare, size, "hc", form)


def _gpt2(name: str, model: LMConfig) -> RunConfig:
    """Ten billion tokens in steps of half a million."""
    return RunConfig(
        name=name,
        model=model.replace(vocab_size=50304, execution=_BFLOAT16.replace(remat="dots")),
        data=CorpusConfig(
            source="fineweb10b",
            train_shards=0,
            seq_len=1024,
            batch_size=512,
            windows="random",
            max_eval_tokens=3_276_800,
        ),
        optim=_OPTIM.replace(decay="matrices", warmup_steps=700, warmup_end="last"),
        train=TrainConfig(steps=19073, accumulate=16, eval_every=250, eval_batches=20),
        checkpoint=CheckpointConfig(every=1000),
        log=LogConfig(every=10),
    )


@register("config", "gpt2")
def gpt2_plain() -> RunConfig:
    """GPT-2 of 124M parameters on FineWeb10B."""
    return _gpt2("gpt2", gpt2())


@register("config", "gpt2_mhc")
def gpt2_mhc() -> RunConfig:
    """GPT-2 of 124M parameters over static mHC, repaired, four streams."""
    return _gpt2("gpt2_mhc", gpt2(residual=StaticMHCConfig()))


@register("config", "gpt2_dynamic_mhc")
def gpt2_dynamic_mhc() -> RunConfig:
    """GPT-2 of 124M parameters over dynamic mHC of the DeepSeek paper, four streams."""
    return _gpt2("gpt2_dynamic_mhc", gpt2(residual=DynamicMHCConfig()))


@register("config", "gpt2_1b3")
def gpt2_1b3() -> RunConfig:
    """GPT-2 of 1.3B parameters (24 layers of width 2048) on FineWeb10B, for machines of many devices."""
    config = _gpt2("gpt2_1b3", gpt2(layers=24, width=2048, mixer=AttentionConfig(heads=16)))
    return config.replace(
        data=config.data.replace(batch_size=1024),
        optim=config.optim.replace(lr=2e-4, warmup_steps=350),
        train=config.train.replace(steps=9536, accumulate=1),
    )


_offer_published()
