"""What a model is made of and what it costs: ``python -m train.inspect RUN_OR_NAME``."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import configs
import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, param_shapes
from train import cli
from train.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from train.optimizer import make_optimizer
from train.prepare import resolve
from train.restore import load_run
from train.step import init_state, make_train_step
from train.table import markdown

Row = dict[str, Any]
MIXING = ("h_pre", "h_post", "h_res")


def parameter_rows(params: Params) -> list[Row]:
    """One row per module that holds parameters: their names, how many numbers, how many bytes; then the total."""
    rows: dict[str, Row] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *module, name = (key.key for key in path)
        row = rows.setdefault(".".join(module), {"module": ".".join(module), "parameters": [], "count": 0, "bytes": 0})
        row["parameters"].append(f"{name} {tuple(leaf.shape)}")
        row["count"] += math.prod(leaf.shape)
        row["bytes"] += math.prod(leaf.shape) * leaf.dtype.itemsize
    for row in rows.values():
        row["parameters"] = ", ".join(row["parameters"])
    total = {key: sum(row[key] for row in rows.values()) for key in ("count", "bytes")}
    return [*rows.values(), {"module": "total", "parameters": "", **total}]


def cost_rows(config: RunConfig) -> list[Row]:
    """Memory, arithmetic and compile time of one training step, from shapes alone: no array is made."""
    start = time.perf_counter()
    compiled = _lowered_step(config).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    scratch = memory.temp_size_in_bytes / 2**20 if memory else math.nan
    state = jax.eval_shape(lambda: init_state(config, make_optimizer(config.optim, total_steps=1)))
    gflop = step_flops(config) / 1e9
    mib = {
        "parameters": _mib(state.params),
        "optimizer state": _mib(state.opt_state),
        "activations, gradients and scratch": scratch,
    }
    quantities = {
        **{name: (value, "MiB") for name, value in mib.items()},
        "all of these": (sum(mib.values()), "MiB"),
        "arithmetic": (gflop, "GFLOP"),
        "arithmetic per token": (1e3 * gflop / (config.data.batch_size * config.data.seq_len), "MFLOP"),
        "trace and compile": (seconds, "s"),
    }
    return [{"one training step": name, "value": value, "unit": unit} for name, (value, unit) in quantities.items()]


def step_flops(config: RunConfig) -> float:
    """Floating-point operations of one training step, as XLA counts them before optimisation.

    XLA counts the body of a loop once. The loops over layers, micro-batches and loss chunks are therefore taken
    apart first; the loop over time is not: it holds a few operations per channel, beside the matrix products.
    """
    execution = config.model.execution.replace(layers="unroll")
    whole = config.train.replace(accumulate=1, loss_chunk=config.data.seq_len)
    config = config.replace(model=config.model.replace(execution=execution), train=whole)
    cost = _lowered_step(config).cost_analysis()
    return cost["flops"] if cost else math.nan


def _lowered_step(config: RunConfig) -> jax.stages.Lowered:
    optimizer = make_optimizer(config.optim, total_steps=1)
    state = jax.eval_shape(lambda: init_state(config, optimizer))
    tokens = jax.ShapeDtypeStruct((config.data.batch_size, config.data.seq_len), jnp.int32)
    train_step = jax.jit(make_train_step(config, optimizer), donate_argnums=0)
    return train_step.lower(state, {"inputs": tokens, "targets": tokens})


def _mib(tree: Any) -> float:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20


def mixing(config: RunConfig, params: Params) -> dict[str, np.ndarray]:
    """H_pre (L, N), H_post (L, N) and H_res (L, N, N) as they act; empty for topologies without streams.

    Those of dynamic topologies are averaged over a few tokens.
    """
    tokens = jnp.arange(min(16, config.model.max_len, config.model.vocab_size))[None]
    taps = jax.jit(lambda params: mhc_jax.apply(config.model, params, tokens, taps=True).taps)(params)
    found = {name: np.asarray(x) for key, x in taps.items() for name in MIXING if key.endswith(f".{name}")}
    axes = {"h_pre": 1, "h_post": 1, "h_res": 2}
    return {name: x.mean(axis=tuple(range(1, x.ndim - axes[name]))) for name, x in found.items()}


def mixing_rows(matrices: dict[str, np.ndarray]) -> list[Row]:
    """Per layer: sums of H_res by row and column, entropy of its rows over ln N, its distance from the identity."""
    rows = []
    for layer, h in enumerate(matrices["h_res"]):
        n = len(h)
        entropy = -np.sum(h * np.log(np.maximum(h, 1e-30)), axis=1).mean()
        rows.append(
            {
                "layer": layer,
                "row sums": _range(h.sum(1)),
                "column sums": _range(h.sum(0)),
                "entropy": float(entropy / math.log(n)) if n > 1 else 0.0,
                "|H - I| / |I|": float(np.linalg.norm(h - np.eye(n)) / math.sqrt(n)),
                "H_pre": _list(matrices["h_pre"][layer]),
                "H_post": _list(matrices["h_post"][layer]),
            }
        )
    return rows


def _range(x: np.ndarray) -> str:
    return f"{x.min():.4f} .. {x.max():.4f}"


def _list(x: np.ndarray) -> str:
    return " ".join(f"{value:.3f}" for value in x)


def draw_mixing(matrices: dict[str, np.ndarray], path: Path, title: str) -> None:
    """H_pre and H_post as columns by layer, and every layer's H_res, on one page; row i of H_res feeds stream i."""
    h_res = matrices["h_res"]
    layers, n = h_res.shape[:2]
    figure = Figure(figsize=(1.6 * (layers + 2) + 1, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, layers + 2)
    for axis, name in zip(axes, ("h_pre", "h_post")):
        image = axis.imshow(matrices[name], cmap="viridis", vmin=0, aspect="auto")
        figure.colorbar(image, ax=axis, location="bottom")
        axis.set(title=f"H_{name[2:]}", xlabel="stream", ylabel="layer", xticks=range(n), yticks=range(layers))
    for layer, axis in enumerate(axes[2:]):
        axis.imshow(h_res[layer], cmap="viridis", vmin=0, vmax=1)
        axis.set(title=f"H_res, layer {layer}", xlabel="from", xticks=range(n), yticks=range(n))
        for (i, j), value in np.ndenumerate(h_res[layer]):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color="black" if value > 0.5 else "w")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Parameters, memory, arithmetic, compile time and mixing matrices of a run or of a configuration.

    Attributes:
        name: run directory, exported folder, or name of a configuration (its initial parameters).
        which: checkpoint of a run directory.
        compile: compile a training step, for memory, arithmetic and compile time.
        picture: where the mixing matrices are drawn.
        model, data, optim, train: as in training.
    """

    name: tyro.conf.Positional[str]
    which: Literal["best", "last"] = "best"
    compile: bool = True
    picture: str = "mixing.png"
    model: mhc_jax.LMConfig = mhc_jax.LMConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse_named(Flags, argv, prog="python -m train.inspect", default=_defaults)
    config = RunConfig(name=flags.name, model=flags.model, data=flags.data, optim=flags.optim, train=flags.train)
    config = resolve(config)
    shapes = param_shapes(config.model)
    params = load_run(flags.name, flags.which)[1] if _is_run(flags.name) else None
    if params is not None and jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, shapes):
        raise ConfigError(f"the model flags do not fit the parameters of {flags.name}; leave them out")
    print(markdown(parameter_rows(shapes)))
    if flags.compile:
        print("", markdown(cost_rows(config)), sep="\n")
    if config.model.residual.stream_count is None:
        print("\nOne residual stream: nothing is mixed.")
        return
    if params is None:
        params = mhc_jax.init(config.model, jax.random.key(config.train.seed))
    matrices = mixing(config, params)
    draw_mixing(matrices, Path(flags.picture), f"Stream mixing of {flags.name}")
    print("", markdown(mixing_rows(matrices)), "", f"Mixing matrices drawn in {flags.picture}", sep="\n")


def _is_run(name: str) -> bool:
    return Path(name).is_dir()


def _defaults(name: str) -> Flags:
    config = load_run(name)[0] if _is_run(name) else configs.load(name)
    return Flags(name, model=config.model, data=config.data, optim=config.optim, train=config.train)


if __name__ == "__main__":
    cli.run(main)
