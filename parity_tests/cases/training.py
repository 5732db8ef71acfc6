"""AdamW state by state, and whole trajectories, against ``torch.optim.AdamW``."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import train.update.optimizer
import train.update.step
from mhc_jax import interop
from mhc_jax.functional import param_info
from parity_tests.compare import Case, DType, Values
from parity_tests.frameworks import Arrays, cast, jax_precision, jit, jitter
from parity_tests.systems import SYSTEMS, System, Weights, batch, kinds_of
from parity_tests.taps import in_dtype, to_module, to_params
from torch_ref import train as torch_train
from train.config import OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.data.kind import DataConfig
from train.objectives.cross_entropy import CrossEntropyConfig
from train.update.state import TrainState

UPDATES, STEPS = 5, 100

ORIGINAL = OptimConfig(decay="all", schedule="constant", warmup_steps=0)
OPTIMIZERS = {
    "original": ORIGINAL,
    "default": OptimConfig(warmup_steps=2),
    "kernels alone decay, short cosine": OptimConfig(
        decay="kernels", warmup_steps=1, warmup_end="after", decay_steps=3
    ),
    "no clipping, strong decay": OptimConfig(clip=0.0, weight_decay=0.5, lr=1e-2, beta1=0.8, beta2=0.95, eps=1e-6),
}


def cases() -> Iterator[Case]:
    for name, optim in OPTIMIZERS.items():
        yield optimizer(name, SYSTEMS["mhc 4, original, rms"], optim)
    yield trajectory("mhc, original settings", SYSTEMS["mhc 4, original, rms"], ORIGINAL, TrainConfig())
    system = SYSTEMS["adapters 4, rms"]
    diverse = System(system.name, system.config.replace(stream_diversity=0.1))
    settings = OptimConfig(lr=1e-2), TrainConfig(accumulate=2)
    yield trajectory("adapters, default settings", diverse, *settings, objective=CrossEntropyConfig(z_loss=1e-2))


def optimizer(name: str, system: System, optim: OptimConfig) -> Case:
    """Parameters, and AdamW's moments if it has all, after every one of a few updates with random gradients."""
    arguments = system.config, Weights(system.config), optim
    return Case(
        tier="optimizer",
        name=name,
        jax=functools.partial(_updates_jax, *arguments),
        torch=functools.cache(functools.partial(_updates_torch, *arguments)),
    )


def _gradients(weights: Arrays, update: int) -> Arrays:
    """Gradients whose global norm is on either side of the clipping threshold."""
    rng = np.random.default_rng(100 + update)
    scale = (3.0, 1e-3, 0.3, 1e-2, 1.0)[update]
    return {name: (scale * rng.standard_normal(x.shape)).astype(np.float32) for name, x in weights.items()}


def _updates_jax(config, weights: Arrays, optim: OptimConfig, dtype: DType) -> Values:
    with jax_precision(dtype):
        config = in_dtype(config, dtype)
        params = to_params(config, weights, dtype)
        adamw = train.update.optimizer.make_optimizer(optim, UPDATES, param_info(config))
        state = adamw.init(params)

        def one(gradients, state, params):
            updates, state = adamw.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        one = jit(one, dtype)
        values: dict[str, np.ndarray] = {}
        for update in range(UPDATES):
            params, state = one(to_params(config, _gradients(weights, update), dtype), state, params)
            trees = {"params": params}
            if optim.name == "adamw":
                trees |= {"m": optax.tree.get(state, "mu"), "v": optax.tree.get(state, "nu")}
            values |= {
                f"{kind} {update} {name}": x
                for kind, tree in trees.items()
                for name, x in interop.to_torch(config, tree).items()
            }
        return values


def _updates_torch(config, weights: Arrays, optim: OptimConfig, dtype: DType, sample: int) -> Values:
    module = to_module(config, jitter(weights, sample), dtype)
    params = dict(module.named_parameters())
    adamw = torch_train.make_optimizer(module, optim)
    values: dict[str, np.ndarray] = {}
    for update in range(UPDATES):
        for name, x in cast(jitter(_gradients(weights, update), sample), dtype).items():
            params[name].grad = torch.from_numpy(x.copy())
        for group in adamw.param_groups:
            group["lr"] = torch_train.learning_rate(optim, update, UPDATES) * group["lr_scale"]
        if optim.clip > 0:
            torch.nn.utils.clip_grad_norm_(params.values(), optim.clip)
        adamw.step()
        trees = {"params": params}
        if isinstance(adamw, torch.optim.AdamW):
            trees |= {
                kind: {name: adamw.state[x][key] for name, x in params.items()}
                for kind, key in (("m", "exp_avg"), ("v", "exp_avg_sq"))
            }
        values |= {
            f"{kind} {update} {name}": x.detach().numpy().copy()
            for kind, tree in trees.items()
            for name, x in tree.items()
        }
    return values


def trajectory(
    name: str,
    system: System,
    optim: OptimConfig,
    settings: TrainConfig,
    data: DataConfig = CorpusConfig(),
    objective: CrossEntropyConfig = CrossEntropyConfig(),
) -> Case:
    """The loss of every step of a training run, and the parameters at its end.

    Only in float64, because float32 rounding errors grow from step to step in both frameworks.

    Args:
        data: kind of the data; one whose batches have segments gets some.
    """
    run = RunConfig(model=system.config, data=data, optim=optim, train=settings, objective=objective)
    arguments = run, Weights(system.config)
    return Case(
        tier="trajectory",
        name=name,
        jax=functools.partial(_train_jax, *arguments),
        torch=functools.cache(functools.partial(_train_torch, *arguments)),
        dtypes=("float64",),
        covers=kinds_of(run),
    )


def batches_of(config, data: DataConfig) -> Arrays:
    """(STEPS, B, T) tokens and targets, and segments if the kind of data has them."""
    one = batch(config)
    rng = np.random.default_rng(4)
    found = {name: np.stack([rng.permuted(x, axis=1) for _ in range(STEPS)]) for name, x in one.items()}
    if "segments" in data.arrays():
        found["segments"] = np.sort(rng.integers(0, 3, found["tokens"].shape), axis=-1)
    return found


def _train_jax(run: RunConfig, weights: Arrays, dtype: DType) -> Values:
    with jax_precision(dtype):
        config = in_dtype(run.model, dtype)
        batches = batches_of(config, run.data)
        _, rows, length = batches["tokens"].shape
        run = run.replace(model=config, data=run.data.replace(seq_len=length, batch_size=rows))
        adamw = train.update.optimizer.make_optimizer(run.optim, STEPS, param_info(config))
        params = to_params(config, weights, dtype)
        zero = jnp.zeros((), jnp.int32)
        step = train.update.step.make_train_step(run, adamw)
        state, metrics = jit(functools.partial(jax.lax.scan, step), dtype)(
            TrainState(zero, params, adamw.init(params), zero, zero),
            {("inputs" if name == "tokens" else name): jnp.asarray(x, jnp.int32) for name, x in batches.items()},
        )
        values = {f"params {name}": x for name, x in interop.to_torch(config, state.params).items()}
        return {"loss of every step": np.asarray(metrics["loss"]), **values}


def _train_torch(run: RunConfig, weights: Arrays, dtype: DType, sample: int) -> Values:
    module = to_module(run.model, jitter(weights, sample), dtype).train()
    adamw = torch_train.make_optimizer(module, run.optim)
    losses = []
    batches = {name: torch.from_numpy(x) for name, x in batches_of(run.model, run.data).items()}
    for index in range(STEPS):
        one = {name: x[index] for name, x in batches.items()}
        loss = torch_train.train_step(
            module,
            adamw,
            one["tokens"],
            one["targets"],
            segment_ids=one.get("segments"),
            lr=torch_train.learning_rate(run.optim, index, STEPS),
            clip=run.optim.clip,
            accumulate=run.train.accumulate,
            z_weight=getattr(run.objective, "z_loss", 0.0),
        )
        losses.append(float(loss))
    values = {f"params {name}": x.detach().numpy() for name, x in module.named_parameters()}
    return {"loss of every step": np.array(losses), **values}
