"""Which numbers every part of a run takes."""

import numpy as np
import pytest

from mhc_jax.tests.ranges import COUNT, NATURAL, POSITIVE, SHARE, UPPER, check
from train import config

KEPT = {"from 0, below 1 in float32": lambda x: 0 <= np.float32(x) < 1}
PARTS = {
    "OptimConfig": {
        "lr": POSITIVE, "beta1": KEPT, "beta2": KEPT, "eps": POSITIVE, "weight_decay": NATURAL, "clip": NATURAL,
        "warmup_steps": NATURAL, "decay_steps": NATURAL, "final_lr": UPPER, "value_lr": NATURAL, "residual_lr": NATURAL,
        "decay_fraction": SHARE, "muon_lr": NATURAL, "muon_weight_decay": NATURAL, "muon_momentum": KEPT,
        "ema": KEPT,
    },
    "TrainConfig": {
        "epochs": COUNT, "steps": NATURAL, "accumulate": COUNT,
        "eval_every": NATURAL, "eval_batches": NATURAL, "max_nonfinite": COUNT, "seed": NATURAL,
    },
    "CrossEntropyConfig": {"chunk": COUNT, "z_loss": NATURAL},
    "CorpusConfig": {
        "train_shards": NATURAL, "validation_fraction": {"between 0 and 1": lambda x: 0 < x < 1}, "seq_len": COUNT,
        "batch_size": COUNT, "max_train_tokens": NATURAL, "max_eval_tokens": NATURAL, "seed": NATURAL,
        "sample_tokens": NATURAL,
    },
    "MeshConfig": {"data": NATURAL, "fsdp": COUNT, "tensor": COUNT},
    "CheckpointConfig": {"every": NATURAL, "keep": COUNT},
    "LogConfig": {"every": COUNT, "streams_every": NATURAL},
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_numbers_of_every_part(name):
    check(getattr(config, name)(), PARTS[name])
