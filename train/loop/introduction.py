"""What a run says of itself before anything is compiled."""

import jax
from jax.sharding import Mesh

from mhc_jax.functional import param_info
from train.config import RunConfig
from train.data.kind import Data
from train.devices import sharding
from train.loop.resolve import implementations
from train.terminal.console import say
from train.update.optimizer import muon_share
from train.update.state import trained_info


def introduce(
    config: RunConfig, data: Data, mesh: Mesh, parameters: int, total_steps: int, baselines: dict[str, float]
) -> None:
    """Announces the run, and warns of what is hardly meant."""
    devices = f"{mesh.size} x {jax.devices()[0].device_kind}"
    lines = (
        f"{config.name}: {parameters:,} parameters, {config.model.execution.policy}, on {devices}",
        data.introduction(baselines),
        config.objective.description,
        _optimizer(config),
        f"{total_steps:,} steps of {config.data.batch_size} x {config.data.seq_len} tokens",
    )
    say("\n".join(filter(None, lines)))
    if config.model.remark:
        say(f"warning: {config.model.remark}")
    kernels = [f"{flag} {value}" for flag, value in implementations(config).items() if value in ("pallas", "splash")]
    if kernels and jax.default_backend() == "cpu":
        say(f"warning: kernels are interpreted on a CPU, which is slow: {', '.join(kernels)}; for speed give xla")
    known = config.data.vocab_size()
    if config.model.vocab_size > 2 * known:
        say(
            f"warning: the model has a vocabulary of {config.model.vocab_size:,}, the data of {known:,}; to follow it, "
            "give --model.vocab-size None"
        )
    if config.optim.warmup_steps >= total_steps:
        say(
            f"warning: --optim.warmup-steps {config.optim.warmup_steps} covers all {total_steps} steps of the run, so "
            "the learning rate never decays; use fewer"
        )
    elif 0 < config.optim.decay_steps <= config.optim.warmup_steps and config.optim.schedule != "constant":
        say(
            f"warning: --optim.decay-steps {config.optim.decay_steps} count the {config.optim.warmup_steps} of the "
            "warm-up, so the learning rate falls to its end at once; give more"
        )
    if mesh.size > 1:
        say(sharding.table(param_info(config.model), mesh))


def _optimizer(config: RunConfig) -> str:
    """What takes which parameters, unless AdamW takes all."""
    if config.optim.name == "adamw":
        return ""
    taken, total = muon_share(trained_info(config))
    return f"Muon for {taken:,} of {total:,} trained parameters, the matrices of hidden layers; AdamW for the others"
