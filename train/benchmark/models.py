"""The cost of a training step with the models of several configurations, relative to the first."""

import sys
from collections.abc import Sequence

from mhc_jax.accounting import flops_per_token
from mhc_jax.config import ConfigError
from train.benchmark.cases import Table
from train.benchmark.topologies import settings, timed_row, trainer
from train.config import RunConfig
from train.loop.typed import typed
from train.measure.turns import compare, take_turns


def contenders(config: RunConfig, others: Sequence[str]) -> dict[str, RunConfig]:
    """The run, and the same run with the models of other configurations, which keep its vocabulary and precision.

    Args:
        others: see :func:`train.loop.typed.typed`.

    Returns:
        Runs by label, the named one first.

    Raises:
        ConfigError: an unknown one, one that is there already, or a model that the run's data or length does not fit.
    """
    shared = {name: getattr(config.model, name) for name in ("vocab_size", "max_len", "execution")}
    found = {config.name: config}
    for other in map(typed, others):
        if other.label in found:
            raise ConfigError(f"{other.label} is there twice; call one of them 'LABEL={other.name}'")
        found[other.label] = config.replace(name=other.label, model=other.load().model.replace(**shared))
        found[other.label].validate()
    return found


def table(config: RunConfig, others: Sequence[str], *, rounds: int, calls: int) -> Table:
    """Training steps of every model, in turns with each other and with the first once more, which shows the noise."""
    if not others:
        raise ConfigError("name what to compare with: --others NAME NAME ...")
    configs = contenders(config, others)
    trainers = {}
    for name, each in configs.items():
        trainers[name] = trainer(each)
        print(f"{name}: compiled in {trainers[name].facts['compile s']:.1f} s", file=sys.stderr, flush=True)
    first, again = config.name, f"{config.name} again"
    steps = {name: each.step for name, each in trainers.items()}
    seconds = take_turns({**steps, again: steps[first]}, rounds=rounds, calls=calls)
    operations = {name: flops_per_token(each.model, each.data.seq_len) for name, each in configs.items()}
    rows = []
    for name in seconds:
        known = first if name == again else name
        timing = compare(seconds[name], seconds[first])
        facts = {"FLOPs ratio": operations[known] / operations[first], **trainers[known].facts}
        rows.append(timed_row({"model": name}, configs[known], timing, facts))
    note = (
        f"FLOPs ratio: by the parameters that a token meets. {first} again: the first step as a contender of itself, "
        "which shows the noise. What is computed once a step, as the folding of linear mHC, is in the time alone."
    )
    return rows, [settings(config), note]
