"""The cost of a training step with each residual topology, relative to the plain residual."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence

import jax

from mhc_jax import registry
from mhc_jax.accounting import flops_per_token
from mhc_jax.config import ConfigError
from mhc_jax.functional import param_info, param_shapes
from mhc_jax.models.topologies import AXIS, topology, with_topology
from mhc_jax.nn.model import ModelConfig
from train.benchmark.cases import Row, Table
from train.benchmark.jax_worker import TOTAL_STEPS, random_batch
from train.benchmark.worker import Step
from train.config import RunConfig
from train.measure.speed import peak_flops
from train.measure.turns import compare, take_turns
from train.update.optimizer import make_optimizer
from train.update.step import init_state, make_train_step

PLAIN = "plain"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model over one topology.

    Attributes:
        topology: its name.
        streams: number of streams; None if the topology has no such choice.
        model: the whole model.
    """

    topology: str
    streams: int | None
    model: ModelConfig

    def __str__(self):
        return self.topology if self.streams is None else f"{self.topology} with {self.streams} streams"


def variants(model: ModelConfig, names: Sequence[str], counts: Sequence[int]) -> tuple[list[Variant], list[str]]:
    """The model over every topology but the plain one, with every number of streams, and notes on what cannot be.

    Args:
        model: a model with any topology.
        names: registered topologies; none for all.
        counts: numbers of streams. A topology without that choice appears once.

    Raises:
        ConfigError: an unknown topology.
    """
    found, notes = [], []
    for name in names or registry.names(AXIS):
        choice = counts if hasattr(topology(name).residual, "streams") else (None,)
        for streams in () if name == PLAIN else choice:
            variant = Variant(name, streams, with_topology(model, name, streams=streams))
            try:
                param_shapes(variant.model)
                found.append(variant)
            except ConfigError as fault:
                notes.append(f"{variant} is left out: {fault}.")
    return found, notes


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A compiled training step that continues from its last state.

    Attributes:
        facts: columns of its row that need no clock but the compiler's.
    """

    step: Step
    facts: Row


def trainer(config: RunConfig) -> Trainer:
    """Whole optimizer steps on one fixed random batch, the first one done. The state is donated, so it exists once."""
    optimizer = make_optimizer(config.optim, TOTAL_STEPS, param_info(config.model))
    state, batch = init_state(config, optimizer), random_batch(config)
    start = time.perf_counter()
    compiled = jax.jit(make_train_step(config, optimizer), donate_argnums=0).lower(state, batch).compile()
    compile_s = time.perf_counter() - start

    def step():
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    step()
    memory = compiled.memory_analysis()
    return Trainer(
        step,
        {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "temporary MiB": memory and memory.temp_size_in_bytes / 2**20,
            "compile s": compile_s,
        },
    )


def _trainers(config: RunConfig, group: Sequence[Variant]) -> tuple[dict[Variant, Trainer], list[str]]:
    """The steps of those variants that fit into memory, and notes on the others."""
    trainers, notes = {}, []
    for variant in group:
        try:
            trainers[variant] = trainer(config.replace(model=variant.model))
        except jax.errors.JaxRuntimeError as fault:
            if "RESOURCE_EXHAUSTED" not in str(fault):
                raise
            notes.append(f"{variant} is left out: out of memory.")
    return trainers, notes


def table(config: RunConfig, names: Sequence[str], counts: Sequence[int], *, rounds: int, calls: int) -> Table:
    """Training steps of every topology: ratio to the plain residual, which takes turns with it.

    Each topology's numbers of streams take turns with the plain residual and with the plain residual once more, whose
    ratio to itself shows how far noise alone goes.

    Args:
        config: the run whose model is put over each topology.
        names, counts: see :func:`variants`.
        rounds, calls: see :func:`train.measure.turns.take_turns`.
    """
    found, notes = variants(config.model, names, counts)
    plain_config = config.replace(model=with_topology(config.model, PLAIN))
    plain = trainer(plain_config)
    rows, first, again = [], [], []
    groups = [list(group) for _, group in itertools.groupby(found, key=lambda variant: variant.topology)]
    for group in groups or [[]]:
        trainers, missing = _trainers(config, group)
        notes += missing
        steps = {"plain": plain.step, **{str(v.streams): each.step for v, each in trainers.items()}}
        seconds = take_turns({**steps, "again": plain.step}, rounds=rounds, calls=calls)
        first += seconds["plain"]
        again += seconds["again"]
        for variant, each in trainers.items():
            timing = compare(seconds[str(variant.streams)], seconds["plain"])
            rows.append(_row(variant.topology, config.replace(model=variant.model), timing, each.facts))
            print(f"{variant}: {timing['ratio']:.2f}", file=sys.stderr, flush=True)
    plain_rows = [
        _row(name, plain_config, compare(timed, first), plain.facts)
        for name, timed in ((PLAIN, first), ("plain again", again))
    ]
    return plain_rows + rows, [*_notes(plain_config), *notes]


def _row(name: str, config: RunConfig, timing: dict[str, float], facts: Row) -> Row:
    return timed_row({"topology": name, "n": config.model.residual.stream_count}, config, timing, facts)


def timed_row(name: Row, config: RunConfig, timing: dict[str, float], facts: Row) -> Row:
    """The columns of one contender: its name, its timing and what follows from it, and further facts."""
    tokens_per_s = config.data.batch_size * config.data.seq_len / (1e-3 * timing["ms"])
    peak = peak_flops(jax.devices()[0])
    mfu = {"mfu": flops_per_token(config.model, config.data.seq_len) * tokens_per_s / peak} if peak else {}
    return {**name, **timing, "tokens/s": tokens_per_s, **mfu, **facts}


def settings(config: RunConfig) -> str:
    """Device, sizes and execution of the steps, as a sentence."""
    model, data = config.model, config.data
    return (
        f"Whole optimizer steps on {jax.devices()[0].device_kind}: {model.layers} layers of width {model.width}, "
        f"{data.batch_size} sequences of {data.seq_len} tokens, vocabulary {model.vocab_size}, "
        f"{model.execution.policy}, layers {model.execution.walk(model.layers)}, remat {model.execution.remat}."
    )


def _notes(config: RunConfig) -> list[str]:
    return [
        settings(config),
        "ms: median of all calls. plain ms: of the plain residual in the same turns. ratio: of these two; then its "
        "quartiles over rounds; least ratio: of the quickest calls. plain again: the plain step as a contender of "
        "itself, which shows the noise.",
    ]
