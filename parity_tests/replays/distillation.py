"""Replays the loss of SHC's published distillation in JAX; works without PyTorch."""

import jax.numpy as jnp
import numpy as np

from mhc_jax.ops.loss import IGNORE, published_distillation
from parity_tests.compare import Row
from parity_tests.replays import base
from parity_tests.replays.base import row, summary
from parity_tests.replays.shc import fill, ids

VOCAB, STATES = 11, (2, 4, 6)
NAMES = ("total_loss", "kl_loss", "mse_loss", "ce_loss")


def rows() -> list[Row]:
    """Its three parts and their sum, with the published weights and temperature."""
    told, labels = summary("shc")["distill_loss"], ids((2, 4), 86, VOCAB)
    labels[1, 3] = IGNORE
    # The original shifts labels itself, and the last place has none.
    targets = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    logits, teacher = fill((2, 4, VOCAB), 80, 2.0), fill((2, 4, VOCAB), 81, 2.0)
    student, goals = ([fill(STATES, j) for j in which] for which in ((82, 83), (84, 85)))
    arrays = [
        jnp.asarray(np.stack(x) if isinstance(x, list) else x, jnp.float32) for x in (logits, teacher, student, goals)
    ]
    found = base.compiled(published_distillation)(*arrays, jnp.asarray(targets))
    rows = [row("distill_loss", "labels", labels, told["labels"])]
    return rows + [row("distill_loss", name, x, told["parts"][name]) for name, x in zip(NAMES, found, strict=True)]
