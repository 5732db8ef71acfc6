"""The loss of a model that may see the future: ``python benchmarks/prefix_loss.py RUN ...``.

Feeds prefixes of validation rows and scores the token that follows each. For a causal model that is its ordinary loss,
printed beside it; a model whose tokens see later ones has no other honest one. Compiles once for every length.
"""

import functools
import sys

import jax
import numpy as np

import mhc_jax
from mhc_jax.functional import Params
from mhc_jax.ops.loss import cross_entropy
from train.config import RunConfig
from train.storage.restore import load_run
from train.terminal.console import task

ROWS = 64


@functools.partial(jax.jit, static_argnums=0)
def _last(model, params, tokens_BT, targets_B):
    logits_BTV = mhc_jax.apply(model, params, tokens_BT).logits_BTV
    return cross_entropy(logits_BTV[:, -1:], targets_B[:, None])[0] / len(targets_B)


@functools.partial(jax.jit, static_argnums=0)
def _whole(model, params, tokens_BT, targets_BT):
    return cross_entropy(mhc_jax.apply(model, params, tokens_BT).logits_BTV, targets_BT)[0] / targets_BT.size


def losses(config: RunConfig, params: Params) -> tuple[float, float]:
    """Nats a token on the first :data:`ROWS` validation rows: of whole rows, and of all their prefixes alone."""
    data = config.data.load(("validation",))
    batches = list(data.evaluation("validation"))[: -(-ROWS // config.data.batch_size)]
    inputs_BT, targets_BT = (np.concatenate([batch[name] for batch in batches]) for name in ("inputs", "targets"))
    lengths = range(1, inputs_BT.shape[1] + 1)
    with task(f"{len(lengths)} lengths", len(lengths)) as work:
        prefixes = [
            float(_last(config.model, params, inputs_BT[:, :length], targets_BT[:, length - 1]))
            for length in work.over(lengths)
        ]
    return float(_whole(config.model, params, inputs_BT, targets_BT)), float(np.mean(prefixes))


def main() -> None:
    print(f"{'run':48s} whole rows  prefixes")
    for run in sys.argv[1:]:
        whole, prefixes = losses(*load_run(run, "last"))
        print(f"{run:48s} {whole:10.4f}  {prefixes:8.4f}", flush=True)


if __name__ == "__main__":
    main()
