"""Models and meshes of test_multi_device.py, for it and for its worker.

Every size that a device holds, but for its rows, is odd or a multiple of twice the number of the batch's slices: an
array that holds the rows of several slices shows it in its shape, even where XLA has merged its axes.
"""

import dataclasses

from mhc_jax.models import gpt2, mhc_ssm, with_topology
from mhc_jax.nn.adapters import StreamAdaptersConfig
from mhc_jax.nn.ends import DenseEndsConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from train.config import MeshConfig, OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.objectives.cross_entropy import CrossEntropyConfig

DEVICES, ROWS = 8, 7
VOCABULARY, LENGTH, CHUNK, STREAMS = 96, 9, 3, 5
SIZES = {"vocab_size": VOCABULARY, "max_len": LENGTH, "width": 32, "layers": 2}

MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "data_fsdp": MeshConfig(data=2, fsdp=4),
    "mix": MeshConfig(data=2, fsdp=2, tensor=2),
    "tensor": MeshConfig(data=1, tensor=8),
}

# Without biases: that of the keys has no gradient but rounding.
_GPT = gpt2(**SIZES, mixer=AttentionConfig(heads=16, bias=False))
_BRANCHES = with_topology(_GPT, "multi_branch", streams=STREAMS)

MODELS = {
    "gpt2": _GPT,
    # Ends under which streams differ from the first step on: every gradient is well above rounding.
    "mhc": with_topology(_GPT, "mhc", streams=STREAMS).replace(ends=DenseEndsConfig(init="uniform")),
    # Coefficients that depend on the token from the first step on.
    "dynamic_mhc": with_topology(_GPT, "deepseek_v4", streams=STREAMS),
    "hc": with_topology(_GPT, "hc", streams=STREAMS),
    "mhc_ssm": mhc_ssm(
        "adapters",
        **SIZES,
        norm=LayerNormConfig(),
        residual=mhc_ssm().residual.replace(streams=STREAMS),
        # Adapters that act, too.
        adapters=StreamAdaptersConfig(rank=16, zero_init=False),
        ends=DenseEndsConfig(init="uniform"),
    ),
    # Three runs of every branch in the batch, and the first layer's values in the carry.
    "branches": _BRANCHES.replace(
        residual=dataclasses.replace(_BRANCHES.residual, branches=3),
        value_residual=with_topology(_GPT, "value_residual").value_residual,
    ),
}
# Model by model the meshes that every run of the tests tries; the slow ones try all.
QUICK = {"mhc_ssm": ("mix",)}
ALL = {model: tuple(MESHES) for model in MODELS}
# Models and meshes whose step that measures streams is compiled, too.
MEASURED = {("mhc", "fsdp"), ("mhc_ssm", "mix")}


def run_config(model: str) -> RunConfig:
    """One of them trains for long, and accumulates."""
    steps, accumulate = (10, 3) if model == "mhc_ssm" else (6, 1)
    return RunConfig(
        model=MODELS[model],
        data=CorpusConfig(seq_len=LENGTH, batch_size=ROWS * DEVICES * accumulate),
        optim=OptimConfig(lr=1e-2, warmup_steps=2),
        objective=CrossEntropyConfig(chunk=CHUNK),
        train=TrainConfig(steps=steps, accumulate=accumulate),
    )
