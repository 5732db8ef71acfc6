"""Worker of test_ema.py: Muon, the z-loss and an average of the parameters on one device and on a mesh of eight.

``python optimizer_on_meshes.py`` prints one JSON object on its last line.
"""

import json

from train.tests.multi_device import Trainer, batches, distances, flat  # before JAX starts: it asks for eight devices

# isort: split

import jax
import optax

from train.config import MeshConfig
from train.devices import sharding
from train.measure.lowering import shardings
from train.tests.meshes import MESHES, run_config


def main():
    config = run_config("gpt2")
    config = config.replace(
        optim=config.optim.replace(name="muon", ema=0.5),
        objective=config.objective.replace(z_loss=1e-2),
        train=config.train.replace(steps=3),
    )
    one = Trainer(config, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    state, losses = one.train(batches(config))
    eight = Trainer(config, sharding.make_mesh(MESHES["mix"]))
    sliced, sliced_losses = eight.train(batches(config))
    momentum = flat(shardings(optax.tree.get(sliced.opt_state, "trace")))
    params = flat(shardings(sliced.params))
    report = {
        "losses": losses,
        "sliced_losses": sliced_losses,
        "params": max(distances(flat(sliced.params), flat(state.params)).values()),
        "ema": max(distances(flat(sliced.ema), flat(state.ema)).values()),
        "apart": max(distances(flat(state.ema), flat(state.params)).values()),
        "momentum": sorted(momentum),
        "momentum_follows": all(params[name] == its for name, its in momentum.items()),
        "ema_follows": shardings(sliced.ema) == shardings(sliced.params),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
