"""Every topology with every mixer at a tiny size: built, trained for a step, decoded, converted and compared.

``python -m parity_tests --matrix`` prints the table. Every registered topology and mixer has a row or column,
including those of plug-ins.
"""

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import mhc_jax
from mhc_jax import interop, registry
from mhc_jax.config import ConfigError, check_name
from mhc_jax.functional import param_info
from mhc_jax.models.topologies import with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.tree import flatten
from parity_tests.cases.decode import decoding
from parity_tests.compare import Case, Row, failures, judge
from parity_tests.systems import BATCH, LAYERS, POSITIONS, TIME, VOCAB, System, Weights, batch, split
from parity_tests.taps import build_twin, run_jax, run_torch
from train.checks.mirror import differences
from train.config import OptimConfig, RunConfig
from train.data.config import CorpusConfig
from train.objectives.cross_entropy import CrossEntropyConfig
from train.update.optimizer import make_optimizer
from train.update.step import init_state, make_train_step

WIDTH = 8


def tiny(topology_name: str, mixer: str) -> LMConfig:
    """The cell's model: the mixer and an MLP in separate sites, each behind a norm with a gain and a bias."""
    config = LMConfig(
        vocab_size=VOCAB,
        max_len=POSITIONS,
        width=WIDTH,
        layers=LAYERS,
        norm=LayerNormConfig(),
        mixer=registry.get("mixer", mixer)().small(),
        mlp=GeluMLPConfig(hidden=7),
    )
    config = with_topology(config, topology_name)
    if isinstance(config.ends, CopyEndsConfig):
        # Equal streams, or equal cotangents as under a mean, leave some weights no gradient but rounding.
        collapse = "pool" if config.ends.collapse == "mean" else config.ends.collapse
        config = config.replace(ends=config.ends.replace(stream_embed=True, collapse=collapse))
    return config if config.adapters is None else config.replace(adapters=config.adapters.replace(rank=3))


@dataclasses.dataclass(frozen=True)
class Cell:
    """The result for one topology with one mixer.

    Attributes:
        ratio: largest float32 error of JAX over PyTorch's own, logits, activations, cotangents and gradients.
        faults: one line per fault; empty if all is well.
    """

    topology: str
    mixer: str
    ratio: float
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return f"FAIL: {self.faults[0]}" if self.faults else f"ok {self.ratio:.1f}"


def names(only: Collection[str] = ()) -> list[tuple[str, str]]:
    """(topology, mixer), topology by topology.

    Args:
        only: topologies and mixers to walk; all of an axis if none of it is named.

    Raises:
        ConfigError: a name of neither axis.
    """
    axes = [registry.names(axis) for axis in ("topology", "mixer")]
    for name in only:
        check_name("topology or mixer", name, [*axes[0], *axes[1]])
    return list(itertools.product(*([name for name in axis if name in only] or axis for axis in axes)))


def kinds() -> list[str]:
    """The first topology of every kind: of residual connection, with and without adapters, and value residuals."""
    found = {}
    for name in registry.names("topology"):
        config = tiny(name, registry.names("mixer")[0])
        parts = (type(part) for part in (config.residual, config.adapters, config.value_residual))
        found.setdefault(tuple(parts), name)
    return list(found.values())


def check_twins(wanted: Collection[tuple[str, str]]) -> None:
    """Raises ConfigError for a topology or mixer that PyTorch's mirror lacks, before the walk, which is long."""
    for topology, mixer in wanted:
        try:
            build_twin(tiny(topology, mixer))
        except ConfigError as error:
            raise ConfigError(f"{topology} with {mixer}: {error}") from None


def walk(topology_name: str, mixer: str) -> Cell:
    """Builds, trains one step, decodes, converts and compares one cell; every parameter has to get a gradient."""
    config = tiny(topology_name, mixer)
    if unlike := differences(Weights(config), build_twin(config).state_dict()):
        return Cell(topology_name, mixer, 0.0, tuple(unlike))
    faults = [*_trains(config), *_converts(config)]
    cases = list(parity_cases(topology_name, mixer))
    rows = [row for case in cases for row in judge(case)]
    faults += [f"{row.case}: {row.tap}: {row.fault}" for row in failures(rows)]
    exact = split(cases[0].torch("float64", 0), "gradient")
    faults += [f"{name} is zero" for name, x in exact.items() if not x.any()]
    return Cell(topology_name, mixer, _worst(rows), tuple(faults))


def parity_cases(topology_name: str, mixer: str) -> Iterator[Case]:
    """Activations, cotangents and gradients; and decoding against the whole sequence."""
    config, name = tiny(topology_name, mixer), f"{topology_name}, {mixer}"
    data = batch(config)
    arguments = config, Weights(config), data

    def run(function, dtype, *sample):
        return split(function(*arguments, dtype, *sample), "forward", "backward", "gradient")

    yield Case(
        tier="matrix",
        name=name,
        jax=functools.partial(run, run_jax),
        torch=functools.cache(functools.partial(run, run_torch)),
        dtypes=("float32",),
        covers=System(name, config).covers,
    )
    case = decoding("matrix", f"{name}, decoding", config, Weights(config), data["tokens"])
    yield dataclasses.replace(case, dtypes=("float32",))


def _trains(config: LMConfig) -> Iterator[str]:
    """A step from the initial parameters, whose loss is near that of guessing, changes parameters and stays finite."""
    run = RunConfig(
        model=config,
        data=CorpusConfig(seq_len=TIME, batch_size=BATCH),
        optim=OptimConfig(warmup_steps=0),
        objective=CrossEntropyConfig(chunk=TIME),
    )
    optimizer = make_optimizer(run.optim, 10, param_info(config))
    data = {"inputs": jnp.asarray(batch(config)["tokens"], jnp.int32)}
    data["targets"] = jnp.roll(data["inputs"], -1, axis=1)
    before = init_state(run, optimizer)
    after, metrics = jax.jit(make_train_step(run, optimizer))(before, data)
    if int(after.skipped):
        yield "the training step was skipped: something is not finite"
    if abs(float(metrics["loss"]) - np.log(config.vocab_size)) > 0.5:
        yield f"the first loss is {float(metrics['loss']):.2f}, guessing has {np.log(config.vocab_size):.2f}"
    if not float(metrics["grad_norm"]) > 0:
        yield "the gradient is zero"


def _converts(config: LMConfig) -> Iterator[str]:
    """The weights come back from the mirror bit by bit."""
    params = mhc_jax.init(config, jax.random.key(0))
    exported = interop.to_torch(config, params)
    left, right = flatten(params), flatten(interop.from_torch(config, exported))
    if left.keys() != right.keys() or any(
        np.asarray(left[k]).tobytes() != np.asarray(right[k]).tobytes() for k in left
    ):
        yield "parameters do not come back from PyTorch as they were"


def _worst(rows: list[Row]) -> float:
    """The largest ratio, of tensors whose error is more than rounding."""
    return max((row.ratio for row in rows if np.isfinite(row.ratio) and row.ulp > 1), default=0.0)


def heading(mixers: Sequence[str]) -> str:
    """Markdown: a column for each mixer."""
    return "| topology | what | " + " | ".join(mixers) + " |\n" + "|---" * (len(mixers) + 2) + "|"


def row(cells: Sequence[Cell]) -> str:
    """One topology with every mixer."""
    name = cells[0].topology
    what = (registry.get("topology", name).__doc__ or "").strip().splitlines()[0].rstrip(".")
    return f"| `{name}` | {what} | {' | '.join(map(str, cells))} |"
