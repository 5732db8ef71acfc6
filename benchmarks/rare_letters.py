"""Where the rows of ``shc_study.sh`` differ: ``python benchmarks/rare_letters.py RUN ...``.

The validation text has a page of Hebrew, the training text next to none, and bytes that were hardly ever trained cost
every model more than a uniform guess would. Scores validation rows with and without Hebrew apart; beside them stands
the training loss of the last four lines of the log, on text that a run of one epoch meets for the first time.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mhc_jax
from mhc_jax.functional import Params
from mhc_jax.ops.loss import IGNORE
from train.config import RunConfig
from train.storage.folder import METRICS_FILE, read_metrics
from train.storage.restore import load_run

# First bytes of Hebrew letters and points in UTF-8.
HEBREW = (0xD6, 0xD7)


@functools.partial(jax.jit, static_argnums=0)
def _losses(model, params, tokens_BT, targets_BT):
    """Of every token; 0 where there is no target."""
    log_BTV = jax.nn.log_softmax(mhc_jax.apply(model, params, tokens_BT).logits_BTV)
    loss_BT = -jnp.take_along_axis(log_BTV, targets_BT[..., None] % log_BTV.shape[-1], axis=-1)[..., 0]
    return jnp.where(targets_BT == IGNORE, 0, loss_BT)


def losses(config: RunConfig, params: Params) -> tuple[float, float, float]:
    """Nats a token of the validation split: of all rows, of those with Hebrew, of the others."""
    batches = list(config.data.load(("validation",)).evaluation("validation"))
    loss_BT = np.concatenate([_losses(config.model, params, batch["inputs"], batch["targets"]) for batch in batches])
    targets_BT = np.concatenate([batch["targets"] for batch in batches])
    hebrew_B = np.isin(targets_BT, HEBREW).any(axis=1)
    parts = slice(None), hebrew_B, ~hebrew_B
    every, hebrew, others = (float(loss_BT[part].sum() / (targets_BT[part] != IGNORE).sum()) for part in parts)
    return every, hebrew, others


def trained(run: str) -> float:
    """The mean training loss of the last four lines of the log."""
    lines = [line["loss"] for line in read_metrics(Path(run) / METRICS_FILE) if "loss" in line]
    return float(np.mean(lines[-4:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    given = parser.parse_args()
    print(f"{'run':48s} validation  Hebrew  others  training")
    for run in given.runs:
        every, hebrew, others = losses(*load_run(run, "last"))
        print(f"{run:48s} {every:10.4f} {hebrew:7.4f} {others:7.4f}  {trained(run):8.4f}", flush=True)


if __name__ == "__main__":
    main()
